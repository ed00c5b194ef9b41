"""`mmft dqn`, `ppo` and `a2c` with `env`: a config in, one command, a run folder of an agent out."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import PIL.Image
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mmft.cli import main
from mmft.cli.agent_folder import Usage, closing, restart_warnings
from mmft.cli.agent_setup import blankable
from mmft.cli.arguments import parse_run
from mmft.cli.loading import load_policy
from mmft.engine.agent import load_agent
from mmft.report.page_data import build_report
from mmft.trainers.callbacks import EpisodeProgress
from tests.cli.agent_support import BROKEN, GRID, GRID_ARGUMENTS, agent_config
from tests.cli.support import lines, refusal, summary
from tests.cli.test_online import distributed_environment

ALGORITHMS = {"dqn": "DQNTrainer", "ppo": "AgentPPOTrainer", "a2c": "AgentA2CTrainer"}
EVALUATIONS = ["random", "after", "without the picture", "without the text"]
Finished = Callable[[str], Path]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The run folder of an algorithm, made when it is first asked for."""
    runs: dict[str, Path] = {}

    def run_of(algorithm: str) -> Path:
        saving = {"save_strategy": "steps", "save_steps": 10} if algorithm == "dqn" else {}
        if algorithm not in runs:
            folder, said = tmp_path_factory.mktemp(algorithm), io.StringIO()
            with contextlib.redirect_stdout(said):
                assert main([algorithm, *agent_config(folder, algorithm, **saving)]) == 0
            (folder / "said.txt").write_text(said.getvalue())
            runs[algorithm] = folder / "run"
        return runs[algorithm]

    return run_of


def heads(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "heads.safetensors")


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_run_leaves_every_file(algorithm: str, finished: Finished):
    run = finished(algorithm)
    names = {path.name for path in run.iterdir()}
    assert names >= {
        "agent.json", "heads.safetensors", "processor_config.json", "config.yaml", "metrics.jsonl",
        "summary.json", "episodes.jsonl", "curves.png", "episode.png", "episode.gif", "report.html",
        "README.md",
    }  # fmt: skip
    assert "model.safetensors" not in names, "the frozen model is not saved again"
    with PIL.Image.open(run / "episode.gif") as moving:
        assert moving.info["loop"] == 0
    for name in ("curves.png", "episode.png"):
        with PIL.Image.open(run / name) as picture:
            assert min(picture.size) > 100


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_report_has_the_agents_curves_evaluations_and_episodes(algorithm: str, finished: Finished):
    run = finished(algorithm)
    data, told = build_report([run]), summary(run)
    assert (data["kind"], data["samples"], data["answers"]) == ("agent", [], [])
    (table,) = data["tables"]
    assert table["columns"][1:] == ["before", "after", "without the picture", "without the text"]
    assert table["rows"][0]["cells"][2].startswith(f"{told['after']['return']:.3f} [")
    assert data["figures"][0]["title"] == "Episodes"
    drawn = {chart["id"]: chart for chart in data["charts"]}
    assert {"return", "loss"} <= set(drawn)
    assert drawn["return"]["x_label"] == "steps in environments"
    assert told["hardware"]["cpu"]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_summary_agrees_with_the_episodes(algorithm: str, finished: Finished):
    told, records = summary(finished(algorithm)), lines(finished(algorithm) / "episodes.jsonl")
    means = [told["before"], told["after"], told["blanked"]["image"], told["blanked"]["text"]]
    assert list(told["intervals"]) == EVALUATIONS
    for name, found in zip(EVALUATIONS, means, strict=True):
        chosen = [each for each in records if each["evaluation"] == name]
        assert len(chosen) == told["episodes"] == 12
        total = {
            key: sum(each[key] for each in chosen)
            for key in ("return", "length", "success", "optimal_return")
        }
        assert found == pytest.approx(
            {
                "return": total["return"] / 12,
                "episode_length": total["length"] / 12,
                "success": total["success"] / 12,
                "optimal_share": total["return"] / total["optimal_return"],
            }
        )
        for measure, (low, high) in told["intervals"][name].items():
            assert low <= found[measure] <= high
    places = [
        [(each["environment"], each["episode"]) for each in records[n : n + 12]] for n in (0, 12, 24, 36)
    ]
    assert places == 4 * [places[0]], "the same episodes each time"
    assert [each["optimal_return"] for each in records[:12]] == [
        each["optimal_return"] for each in records[12:24]
    ]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_summary_tells_how_it_ran(algorithm: str, finished: Finished):
    run = finished(algorithm)
    told = summary(run)
    assert (told["algorithm"], told["trainer"]) == (algorithm, ALGORITHMS[algorithm])
    assert (told["environment"], told["env_kwargs"]) == (GRID, GRID_ARGUMENTS)
    assert told["actions"] == ["up", "right", "down", "left"]
    assert told["action_space"] == "Discrete(4)"
    assert told["before_acts_at_random"] is True
    logged = [line for line in lines(run / "metrics.jsonl") if "loss" in line]
    # Steps 5, 10 and so on are logged; the last of them are not the end of the run.
    assert 0 <= told["environment_steps"] - logged[-1]["environment_steps"] <= 64
    assert told["steps"] >= logged[-1]["step"] > 0
    assert 0 < told["encoder"]["encoded"] < told["encoder"]["asked"]
    assert 0 < told["encoder"]["cache_hit_rate"] < 1
    assert told["feature_widths"] == {"fused": 128}
    assert (told["env_restarts"], told["env_failures"]) == (0, [])
    assert (told["num_processes"], told["device"]) == (1, "cpu")
    assert "gymnasium" in told["versions"]
    if algorithm == "dqn":
        assert told["buffer"]["holds"].startswith("room for 200 steps of 4 environments, 513 B a state")
        assert told["buffer"]["bytes"] > 200 * 513
    else:
        assert told["buffer"] is None


def test_the_terminal_shows_what_it_does_and_how_well(finished: Finished):
    run = finished("dqn")
    said, told = (run.parent / "said.txt").read_text(), summary(run)
    for part in (
        "mmft/tiny-captioner: 1,909,376 parameters, 0 of them train; 2,132 more in fusion and heads",
        "mmft/FindObject-v0: 4 actions (up, right, down, left)",
        "reads pictures image; texts mission; fusion vlm of fused",
        "(at random: the agent's features have no statistics yet)",
        "buffer: room for 200 steps",
        "holds the agent and report.html, summary.json, episodes.jsonl, metrics.jsonl, curves.png, episode.p",
    ):
        assert part in said
    card = (run / "README.md").read_text()
    for name, means in {"random": told["before"], "after": told["after"]}.items():
        low, high = told["intervals"][name]["return"]
        cell = f"{means['return']:.3f} [{low:.3f}, {high:.3f}]"
        assert f"| {name} | {cell} |" in card
        (row,) = [line for line in said.splitlines() if line.startswith(f"{name} ")]
        assert cell in row
    for text in told["warnings"]:
        assert f"WARNING {text}\n" in said
        assert f"- {text}\n" in card


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_card_lets_the_agent_act_as_it_did(algorithm: str, finished: Finished):
    run = finished(algorithm)
    card = (run / "README.md").read_text()
    assert "The pretrained model is frozen; what reads its embeddings was trained." in card
    found: dict[str, Any] = {}
    exec(card.split("```python\n")[1].split("```")[0], found)
    assert found["env"].unwrapped.size == GRID_ARGUMENTS["size"]
    assert found["scores"].shape == (4,)
    decisions = load_agent(run)([found["seen"]])
    expected = decisions.q if algorithm == "dqn" else decisions.logits
    assert expected is not None
    assert torch.equal(found["scores"], expected[0])


def test_the_written_config_repeats_the_run(finished: Finished, tmp_path: Path):
    run = finished("ppo")
    assert main(["ppo", "--config", str(run / "config.yaml"), "--output_dir", str(tmp_path)]) == 0
    assert equal(heads(run), heads(tmp_path))
    assert summary(tmp_path)["after"] == summary(run)["after"]
    assert lines(tmp_path / "episodes.jsonl") == lines(run / "episodes.jsonl")


def test_a_run_goes_on_from_a_checkpoint_to_the_same_end(finished: Finished, tmp_path: Path):
    run = finished("dqn")
    stopped = ["--resume_from_checkpoint", str(run / "checkpoint-10"), "--save_strategy", "no"]
    argv = ["--config", str(run / "config.yaml"), "--output_dir", str(tmp_path), "--num_samples", "0"]
    assert main(["dqn", *argv, *stopped]) == 0
    assert equal(heads(run), heads(tmp_path))
    for name in ("before", "after", "blanked", "steps", "environment_steps"):
        assert summary(tmp_path)[name] == summary(run)[name]
    logged = [line["step"] for line in lines(tmp_path / "metrics.jsonl") if "loss" in line]
    assert logged == [15, 20]


def test_adapters_train_with_the_heads_and_are_saved_with_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    few = {"total_timesteps": 48, "learning_starts": 32, "num_samples": 0, "eval_episodes": 4}
    argv = agent_config(tmp_path, use_peft=True, lora_r=2, lora_dropout=0.0, **few)
    assert main(["dqn", *argv]) == 0
    run = tmp_path / "run"
    trained = load_file(run / "adapter_model.safetensors")
    assert any(bool(tensor.any()) for name, tensor in trained.items() if "lora_B" in name)
    assert summary(run)["buffer"]["holds"].count("64x64x3 uint8") == 1, "pixels, no embeddings"
    assert "Adapters of the pretrained model were trained along" in (run / "README.md").read_text()
    assert not (run / "episode.png").exists()
    assert "episode.png" not in capsys.readouterr().out
    assert main(["evaluate", "--config", str(run / "config.yaml")]) == 0
    assert yaml.safe_load((run / "evaluation.json").read_text())["means"] == summary(run)["after"]


@pytest.mark.parametrize(
    ("settings", "parts"),
    [({}, set()), ({"trainable": ["projector"]}, {"projector"}), ({"use_peft": True, "lora_r": 2}, {"lora"})],
)
def test_the_model_is_frozen_unless_something_else_is_said(
    settings: dict[str, Any], parts: set[str], tmp_path: Path
):
    run = parse_run("dqn", agent_config(tmp_path, **settings))
    names = [name for name, each in load_policy(run, train=True).named_parameters() if each.requires_grad]
    assert {part for part in ("projector", "lora") for name in names if part in name} == parts
    assert all(any(part in name for part in parts) for name in names)


def test_weights_of_the_model_may_train(tmp_path: Path):
    few = {"total_timesteps": 32, "warm_up_steps": 16, "num_samples": 0, "eval_episodes": 4}
    assert main(["a2c", *agent_config(tmp_path, "a2c", trainable=["projector"], **few)]) == 0
    assert "Weights of the model itself were trained" in (tmp_path / "run" / "README.md").read_text()
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_the_agent_may_be_evaluated_in_another_environment_than_it_learns_in(tmp_path: Path):
    argv = agent_config(tmp_path, eval_env_kwargs={"max_steps": 2}, num_samples=1)
    assert main(["dqn", *argv]) == 0
    run = tmp_path / "run"
    assert max(record["length"] for record in lines(run / "episodes.jsonl")) == 2
    assert max(line.get("episode_length", 0) for line in lines(run / "metrics.jsonl") if "loss" in line) > 2
    assert summary(run)["eval_env_kwargs"] == GRID_ARGUMENTS | {"max_steps": 2}
    assert "'max_steps': 2" in (run / "README.md").read_text()


def test_without_statistics_to_wait_for_the_untrained_agent_acts_before(tmp_path: Path):
    few = {"total_timesteps": 48, "learning_starts": 32, "num_samples": 0, "eval_episodes": 4}
    assert main(["dqn", *agent_config(tmp_path, feature_scaling="none", **few)]) == 0
    told = summary(tmp_path / "run")
    assert told["before_acts_at_random"] is False
    assert "random" not in told["intervals"]
    assert set(told["intervals"]) > {"before", "after"}


def test_failures_of_environments_are_told_and_only_modalities_that_exist_are_blanked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    settings = {"env": BROKEN, "env_kwargs": {"share": 0.1}, "max_env_restarts": 1000}
    assert main(["dqn", *agent_config(tmp_path, **settings, num_samples=20)]) == 0
    told, said = summary(tmp_path / "run"), capsys.readouterr().out
    assert list(told["blanked"]) == ["image"]
    assert told["env_restarts"] > 0
    assert told["env_failures"][-1].endswith("RuntimeError: out of order")
    assert told["warnings"][-1].startswith(
        f"Environments were made anew after {told['env_restarts']} failures;"
    )
    assert "optimal_share" not in told["after"]
    assert "note: no episode is drawn: environment" in said
    assert "![The agent" not in (tmp_path / "run" / "README.md").read_text()
    assert (tmp_path / "run" / "curves.png").is_file()


@pytest.mark.parametrize(
    ("images", "texts", "instruction", "expected"),
    [
        (["view"], ["said"], None, ["image", "text"]),
        ([], ["said"], None, ["text"]),
        (["view"], [], None, ["image"]),
        (["view"], ["said"], "Which way?", ["image"]),
        (["view"], [], "You are at {place}.", ["image", "text"]),
    ],
)
def test_what_tells_something_of_a_state_is_blanked(
    images: list[str], texts: list[str], instruction: str | None, expected: list[str]
):
    reader: Any = SimpleNamespace(image_keys=images, text_keys=texts)
    config: Any = SimpleNamespace(training=SimpleNamespace(instruction=instruction))
    assert blankable(config, reader) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"env_kwargs": {"siz": 3}}, "'mmft/FindObject-v0' has no argument 'siz'. Did you mean 'size'?"),
        ({"env": "mmft/FindObjct-v0"}, "no environment is registered as 'mmft/FindObjct-v0'. Did you mean"),
        ({"env": "CartPole-v1", "env_kwargs": {}}, "has no picture and no text in its observations"),
        ({"image_keys": ["picture"]}, "`image_keys` names 'picture', which its observations do not have"),
        ({"env": BROKEN, "env_kwargs": {}, "eval_env_kwargs": {"numbers": 2}}, "num_numbers=2, where traini"),
        ({"agent_path": "runs/mine"}, "`agent_path` is 'runs/mine', which is for `mmft evaluate`"),
        ({"model_name_or_path": None}, "`model_name_or_path` is missing"),
    ],
)  # fmt: skip
def test_a_mistake_is_answered_in_one_line_before_anything_is_written(
    settings: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert message in refusal(capsys, ["dqn", *agent_config(tmp_path, **settings)])
    assert not (tmp_path / "run").exists()


def test_an_environment_that_always_fails_ends_the_run_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["dqn", *agent_config(tmp_path, env=BROKEN, env_kwargs={}, max_env_restarts=2)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"mmft dqn: error: environment {BROKEN!r}, number ")
    assert said.count("\n") == 1


def test_a_warm_up_that_is_too_short_for_pca_names_the_setting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["dqn", *agent_config(tmp_path, pca_components=100)]) == 2
    assert "`pca_components` is 100, and the warm-up does not tell so many" in capsys.readouterr().err


def test_the_progress_bar_shows_what_episodes_brought():
    progress, shown = EpisodeProgress(), {}
    progress.training_bar = SimpleNamespace(set_postfix=shown.update)
    progress.on_log(None, None, None, {"eval_return": 1.0})
    assert shown == {}
    progress.on_log(None, None, None, {"loss": 1.0, "return": 0.25, "epsilon": 0.5, "q": 3.0})
    assert shown == {"return": "0.250", "epsilon": "0.500"}


def test_one_failure_is_one():
    once = Usage(10, 1, ["number 3: no"], 1, 1)
    assert restart_warnings(once) == [
        "Environments were made anew after 1 failure; the last one: number 3: no"
    ]
    assert restart_warnings(Usage(10, 0, [], 1, 1)) == []


def test_the_closing_lines_name_what_was_written(tmp_path: Path):
    (tmp_path / "summary.json").touch()
    told = {
        "warnings": ["Odd."], "steps": 1200, "environment_steps": 4800, "environment": "x",
        "wall_seconds": 61.2, "encoder": {"asked": 5000, "encoded": 70}, "buffer": None,
    }  # fmt: skip
    assert closing(tmp_path, told).splitlines() == [
        "WARNING Odd.",
        "1,200 optimizer steps, 4,800 steps in x in 61 s; of 5,000 states 70 went through the model",
        f"{tmp_path}/ holds the agent and summary.json, README.md",
    ]


def test_a_tracker_gets_the_episodes_of_the_end(tmp_path: Path):
    assert main(["dqn", *agent_config(tmp_path, report_to="tensorboard")]) == 0
    (events,) = (tmp_path / "run" / "runs").iterdir()
    found = EventAccumulator(str(events)).Reload()
    (strip,) = found.Images("samples/episodes")
    with PIL.Image.open(tmp_path / "run" / "episode.png") as drawn:
        assert (strip.width, strip.height) == drawn.size


@pytest.mark.slow
def test_of_two_processes_one_writes_and_speaks(tmp_path: Path):
    argv = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "mmft", "dqn"]
    done = subprocess.run(
        [sys.executable, *argv, *agent_config(tmp_path, total_timesteps=160)],
        cwd=Path(__file__).parents[2],
        env=distributed_environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("share of best") == 1
    told = summary(tmp_path / "run")
    assert told["num_processes"] == 2
    assert told["environment_steps"] >= 150, "of both"
    assert len(lines(tmp_path / "run" / "episodes.jsonl")) == 4 * 12
