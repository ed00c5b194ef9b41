"""`mmft evaluate` of a recipe with `env`: the same numbers again, other environments, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmft.cli import main
from tests.cli.agent_support import GRID_ARGUMENTS, agent_config
from tests.cli.support import lines, refusal, summary


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("agent")
    assert main(["dqn", *agent_config(folder, num_samples=0)]) == 0
    return folder / "run"


def evaluation(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "evaluation.json").read_text())
    return found


def test_the_agent_of_a_run_plays_its_evaluation_again(run: Path, capsys: pytest.CaptureFixture[str]):
    before = (run / "metrics.jsonl").read_text()
    assert main(["evaluate", "--config", str(run / "config.yaml")]) == 0
    found, told, said = evaluation(run), summary(run), capsys.readouterr().out
    assert found["means"] == told["after"]
    assert found["blanked"] == told["blanked"]
    assert found["intervals"]["agent"] == told["intervals"]["after"]
    assert found["agent"] == str(run)
    played = [record for record in lines(run / "episodes.jsonl") if record["evaluation"] != "random"]
    changed = [
        record | {"evaluation": "agent"} if record["evaluation"] == "after" else record for record in played
    ]
    assert found["episodes"] == changed
    assert (run / "metrics.jsonl").read_text() == before, "which is of training"
    (row,) = [line for line in said.splitlines() if line.startswith("agent ")]
    assert f" {found['means']['return']:.3f} [" in row
    assert f"{run}/evaluation.json holds every episode" in said
    assert all(f"WARNING {text}\n" in said for text in found["warnings"])


def test_it_may_be_played_elsewhere_and_the_result_be_kept_elsewhere(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    argv = ["--agent_path", str(run), "--output_dir", str(tmp_path), "--eval_env_kwargs", "{max_steps: 2}"]
    assert main(["evaluate", "--config", str(run / "config.yaml"), *argv, "--eval_episodes", "5"]) == 0
    found = evaluation(tmp_path)
    assert found["env_kwargs"] == GRID_ARGUMENTS | {"max_steps": 2}
    assert len(found["episodes"]) == 3 * 5
    assert max(record["length"] for record in found["episodes"]) == 2
    assert "note:" not in capsys.readouterr().out


def test_another_instruction_than_the_agent_was_trained_with_is_noted(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    argv = ["--agent_path", str(run), "--output_dir", str(tmp_path), "--instruction", "{mission}!"]
    assert main(["evaluate", "--config", str(run / "config.yaml"), *argv]) == 0
    said = capsys.readouterr().out
    assert "note: `instruction` is '{mission}!', and the agent was trained with None" in said
    assert evaluation(tmp_path)["means"] != summary(run)["after"]


def test_a_folder_without_an_agent_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = ["evaluate", "--config", str(run / "config.yaml"), "--output_dir", str(tmp_path)]
    said = refusal(capsys, config)
    assert f"`agent_path` is unset, and `output_dir` {tmp_path} holds no agent.json. Give the folder" in said
    said = refusal(capsys, [*config, "--agent_path", "nowhere"])
    assert "`agent_path` nowhere holds no agent.json" in said


def test_an_agent_of_another_algorithm_or_environment_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["evaluate", *agent_config(tmp_path, "ppo", agent_path=str(run))]) == 2
    assert "`model` is an agent with kind='q', but AgentPPOTrainer on" in capsys.readouterr().err
    argv = agent_config(tmp_path, agent_path=str(run), env="mmft/SceneQuestions-v0", env_kwargs={})
    assert main(["evaluate", *argv]) == 2
    assert "num_actions=4, but DQNTrainer on 'mmft/SceneQuestions-v0' needs 2" in capsys.readouterr().err
