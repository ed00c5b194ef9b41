"""`mmft explain` of agents: which decisions are explained, what is written, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch

from mmft.cli import explain, explain_agent, main
from mmft.cli.explain import explain_run
from mmft.errors import ConfigError
from tests.cli.agent_support import AGENT, LENGTHS, agent_config
from tests.cli.support import lines, refusal, summary

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def agent_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for algorithm in ("dqn", "ppo"):
        folder = tmp_path_factory.mktemp(algorithm)
        assert main([algorithm, *agent_config(folder, algorithm, eval_episodes=4)]) == 0
        folders[algorithm] = folder / "run"
    return folders


@pytest.fixture(autouse=True)
def reports(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The report has tests of its own; here it counts that it is made."""
    made: list[Path] = []
    monkeypatch.setattr(explain, "write_page", made.append)
    return made


def page(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "explain.json").read_text())


def test_decisions_of_a_q_agent_are_explained(
    agent_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["--rows", "3", "--map-by", "action", "--map-rows", "20", "--output", str(tmp_path / "out")]
    assert main(["explain", str(agent_folders["dqn"]), *words]) == 0
    told = page(tmp_path / "out")
    assert told["of"] == "q"
    assert list(told["samples"]) == [f'["episode", {number}, "step", 0]' for number in range(3)]
    assert {each["text"] for each in told["samples"].values()} <= {"up", "right", "down", "left"}
    assert [each["file"] for each in told["figures"]] == [
        "out/pca.png", "out/0_heat.png", "out/1_heat.png", "out/2_heat.png",
    ]  # fmt: skip
    assert "episode 0 step 0" in capsys.readouterr().out


def test_the_chosen_action_is_explained_and_has_the_best_score(
    agent_folders: dict[str, Path], tmp_path: Path
):
    found = explain_run(agent_folders["dqn"], rows=2, output=tmp_path / "out")
    for each in found.explained:
        (chosen,) = [choice for choice in each.choices if choice.chosen]
        assert chosen.score == max(choice.score for choice in each.choices if choice.legal)
        assert chosen.score == pytest.approx(each.found.value, abs=1e-5)
        assert chosen.name == each.text


def test_a_map_by_nothing_of_an_agents_is_refused_before_it_plays(
    agent_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(explain_agent, "playing", lambda *args: pytest.fail("played"))
    with pytest.raises(ConfigError, match="is nothing of an agent's"):
        explain_run(agent_folders["dqn"], rows=1, map_by="colour")


def test_policy_and_value_of_an_agent(agent_folders: dict[str, Path], tmp_path: Path):
    folder, output = agent_folders["ppo"], tmp_path / "out"
    policy = explain_run(folder, rows=1, output=output)
    assert policy.explained[0].found.of == "policy"
    (chosen,) = [choice for choice in policy.explained[0].choices if choice.chosen]
    assert torch.tensor(chosen.score).log() == pytest.approx(policy.explained[0].found.value, abs=1e-4)
    value = explain_run(folder, rows=1, of="value", output=output)
    assert value.explained[0].found.of == "value"
    assert sum(choice.score for choice in value.explained[0].choices) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("column", ["value", "step", "text"])
def test_maps_of_agents(column: str, agent_folders: dict[str, Path], tmp_path: Path):
    explain_run(agent_folders["dqn"], rows=1, map_by=column, map_rows=20, output=tmp_path / "out")
    with PIL.Image.open(tmp_path / "out" / "pca.png") as image:
        assert image.width > 300


@pytest.mark.parametrize(
    ("algorithm", "words", "message"),
    [
        ("dqn", ["--of", "policy"], "`--of policy` does not go with an agent that learned Q; choose q"),
        ("ppo", ["--of", "q"], "`--of q` does not go with an agent that learned a policy"),
        ("dqn", ["--token", "a"], "`--token` is for policies, and this run trained an agent"),
        ("dqn", ["--base"], "`--base` is for policies, and this run trained an agent"),
        ("dqn", ["--map-by", "colour"], "`--map-by` 'colour' is nothing of an agent's"),
    ],
)
def test_what_agents_do_not_have_is_refused(
    agent_folders: dict[str, Path],
    algorithm: str,
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
):
    assert message in refusal(capsys, ["explain", str(agent_folders[algorithm]), *words])


def test_an_agent_without_its_settings_is_refused(
    agent_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = shutil.copytree(agent_folders["dqn"], tmp_path / "run")
    (folder / "config.yaml").unlink()
    assert "names the agent's environment (`env`)" in refusal(capsys, ["explain", str(folder)])


# The end of training


def test_a_finished_agent_has_explained_the_decisions_that_it_shows(agent_folders: dict[str, Path]):
    for algorithm, of in (("dqn", "q"), ("ppo", "policy")):
        folder = agent_folders[algorithm]
        told = page(folder / "explain")
        assert told["of"] == of
        assert len(told["samples"]) == AGENT["num_samples"]
        found = summary(folder)["modality_use"]
        assert found["before"] is None
        assert found["after"]["rows"] == AGENT["num_samples"]
        assert found["after"]["image_share"] + found["after"]["text_share"] == pytest.approx(1.0, abs=1e-5)
        if algorithm == "dqn":
            assert any("importance/image_share" in line for line in lines(folder / "metrics.jsonl"))
    assert LENGTHS.keys() >= agent_folders.keys()
