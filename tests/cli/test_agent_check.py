"""`mmft check` of a recipe with `env`: what would happen, and every problem at once, with nothing written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmft.cli import main
from mmft.cli.agent_check import a_few_steps
from mmft.cli.arguments import parse_run
from tests.cli.agent_support import BROKEN, agent_config


def problems(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith("PROBLEM")]


@pytest.mark.parametrize(
    ("algorithm", "parts"),
    [
        ("dqn", ["method: deep Q-learning", "buffer: 513 B a state, 0.1 MiB for 200 steps"]),
        ("ppo", ["method: PPO"]),
        ("a2c", ["method: A2C"]),
    ],
)
def test_check_tells_what_would_happen_and_writes_nothing(
    algorithm: str, parts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["check", *agent_config(tmp_path, algorithm)]) == 0
    said = capsys.readouterr().out
    for part in (
        *parts,
        "mmft/FindObject-v0: 4 actions (up, right, down, left)",
        "reads pictures image; texts mission",
        "first observation: pictures of 64 x 64 pixels, text 'go to the red ",
        "64 random steps in 4 environments: rewards -0.05 to 0.95, ",
        " episodes ended: mean return ",
        "memory: weights 7.3 MiB, gradients 0.0 MiB",
        "embeddings of a state: fused (1, 128); ",
        "after scaling and PCA: fused 128 wide",
        "loss of the first update: ",
        "it would choose ",
        "peak memory after one update: ",
        "no problems found",
    ):
        assert part in said
    assert "PROBLEM" not in said
    assert "note:" not in said
    assert not (tmp_path / "run").exists()


def test_check_finds_every_problem_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    argv = agent_config(tmp_path, env_kwargs={"siz": 3}, model_name_or_path=str(tmp_path))
    assert main(["check", *argv]) == 1
    found = problems(capsys.readouterr().out)
    assert len(found) == 2
    assert "has no argument 'siz'" in found[0]
    assert "cannot be loaded" in found[1]


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"pca_components": 60, "learning_starts": 40}, "`pca_components` is 60, and the warm-up does not"),
        ({"pca_components": 200}, "`pca_components` must be between 1 and 128"),
        ({"env": BROKEN, "env_kwargs": {"share": 0.3}, "max_env_restarts": 500}, "failures of environments"),
        ({"env": BROKEN, "env_kwargs": {}, "max_env_restarts": 0}, "RuntimeError: out of order"),
        ({"eval_env_kwargs": {"size": 7}}, "`size` must be one of 2, 3, 4; got 7"),
    ],
)  # fmt: skip
def test_check_finds_what_shows_only_when_it_runs(
    settings: dict[str, Any], problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["check", *agent_config(tmp_path, **settings)]) == 1
    assert any(problem in line for line in problems(capsys.readouterr().out))


def test_check_remarks_on_rewards_and_ends_that_did_not_show(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    still = {"env": BROKEN, "env_kwargs": {"share": 0.0}}
    assert main(["check", *agent_config(tmp_path, **still)]) == 0
    said = capsys.readouterr().out
    assert "note: each of 64 random steps brought 0: nothing told actions apart so far" in said
    assert "note: the environment does not say what the best possible return is" in said
    assert "1 different observations" in said
    assert main(["check", *agent_config(tmp_path, **still, num_envs=32, learning_starts=40)]) == 0
    assert "note: no episode ended in 64 random steps over 32 environments" in capsys.readouterr().out


def test_adapters_and_numbers_are_checked_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    settings = {"env": BROKEN, "env_kwargs": {"share": 0.0, "numbers": 3}, "use_peft": True, "lora_r": 2}
    assert main(["check", *agent_config(tmp_path, **settings)]) == 0
    said = capsys.readouterr().out
    assert "numbers numbers (3 in all)" in said
    assert "after scaling and PCA: fused 128, numbers 3 wide" in said
    assert "first observation: pictures of 32 x 32 pixels, 3 numbers" in said


@pytest.mark.parametrize(
    ("algorithm", "settings"),
    [
        ("dqn", {"learning_starts": 5000, "buffer_size": 9000, "total_timesteps": 90000, "train_freq": 0.5}),
        ("dqn", {"num_envs": 64, "n_steps": 5, "exploration_fraction": 0.01, "learning_starts": 90}),
        ("ppo", {"num_envs": 12, "per_device_train_batch_size": 18, "gradient_accumulation_steps": 2,
                 "num_mini_batches": 4, "early_stop_kl": 0.1, "total_timesteps": 5000}),
        ("a2c", {"warm_up_steps": 9000, "total_timesteps": 50000, "load_best_model_at_end": False}),
    ],
)  # fmt: skip
def test_the_update_that_is_tried_takes_few_steps(algorithm: str, settings: dict[str, Any], tmp_path: Path):
    args = parse_run(algorithm, agent_config(tmp_path, algorithm, **settings)).training
    few = a_few_steps(args, str(tmp_path))
    assert 1 <= few.max_steps <= 2
    assert few.total_timesteps <= 400
    assert few.per_device_train_batch_size <= 2 * args.per_device_train_batch_size
    assert few.n_steps == args.n_steps if algorithm == "dqn" else few.steps_per_rollout % args.num_envs == 0
