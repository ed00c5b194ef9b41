"""Every algorithm from a newcomer's side: the same run folder, and the commands that read it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from mmft.cli import main
from tests.cli.support import SETTINGS, lines, refusal, summary, write_config

METHODS: dict[str, dict[str, Any]] = {
    "a2c": {"algorithm": "a2c", "entropy_coef": 0.01, "kl_target": 1.0},
    "group": {"algorithm": "ppo", "advantage_estimator": "group", "early_stop_kl": 1e-9, "num_ppo_epochs": 3},
    "rwl": {"algorithm": "rwl", "weighting": "exponential", "baseline": "group"},
    "offline": {
        "algorithm": "rwl",
        "offline": True,
        "dataset_name": "mmft/scenes-rated-captions",
        "instruction": None,
        "max_train_rows": 16,
        "max_completion_length": 100,
    },
    "whole": {
        "algorithm": "ppo",
        "use_peft": False,
        "trainable": ["projector", "language"],
        "l2_pretrained_coef": 0.1,
    },
}
NAMED = {
    "a2c": ("A2CTrainer", True, True, "A2C and a learned critic"),
    "group": ("PPOTrainer", False, True, "PPO, advantages within the group of a prompt, and no critic"),
    "rwl": (
        "RewardWeightedTrainer", False, False, "reward-weighted likelihood of its own completions"
    ),
    "offline": (
        "RewardWeightedTrainer", False, False, "reward-weighted likelihood of given completions"
    ),
    "whole": ("PPOTrainer", True, True, "PPO and a learned critic"),
}  # fmt: skip
Finished = Callable[[str], Path]


def settings_of(method: str, model_folder: str, run: Path) -> dict[str, Any]:
    return SETTINGS | {"model_name_or_path": model_folder, "output_dir": str(run)} | METHODS[method]


@pytest.fixture(scope="module")
def finished(model_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The run folder of a method, made when it is first asked for."""
    runs: dict[str, Path] = {}

    def run_of(method: str) -> Path:
        if method not in runs:
            folder = tmp_path_factory.mktemp(method)
            config = write_config(folder, settings_of(method, model_folder, folder / "run"))
            assert main([METHODS[method]["algorithm"], "--config", config]) == 0
            runs[method] = folder / "run"
        return runs[method]

    return run_of


@pytest.mark.parametrize("method", METHODS)
def test_the_run_folder_names_the_algorithm_and_what_it_needed(method: str, finished: Finished):
    run = finished(method)
    trainer, critic, reference, words = NAMED[method]
    told = summary(run)
    assert (told["algorithm"], told["trainer"]) == (METHODS[method]["algorithm"], trainer)
    assert (told["critic"], told["reference"]) == (critic, reference)
    assert told["steps"] == 2
    assert set(told["differences"]) >= {"reward", "rewards/captioning", "completions/mean_length"}
    card = (run / "README.md").read_text()
    assert f"trained by mmft with {words} on" in card
    assert f"`mmft {METHODS[method]['algorithm']} --config config.yaml` repeats" in card
    for picture in ("curves.png", "overview.png"):
        assert (run / picture).stat().st_size > 0


@pytest.mark.parametrize("method", ["a2c", "offline"])
def test_the_written_config_repeats_the_run(method: str, finished: Finished, tmp_path: Path):
    run = finished(method)
    written = yaml.safe_load((run / "config.yaml").read_text())
    assert written["algorithm"] == METHODS[method]["algorithm"]
    argv = [written["algorithm"], "--config", str(run / "config.yaml"), "--output_dir", str(tmp_path)]
    assert main(argv) == 0
    assert summary(tmp_path)["after"] == summary(run)["after"]
    (weights,) = [each.name for each in run.glob("*model.safetensors")]
    first, second = (load_file(each / weights) for each in (run, tmp_path))
    assert all(bool((first[name] == second[name]).all()) for name in first)


@pytest.mark.parametrize("method", METHODS)
def test_evaluate_and_generate_read_its_config(method: str, finished: Finished, tmp_path: Path):
    run = finished(method)
    trained = ["--model_name_or_path", str(run)]
    argv = ["--config", str(run / "config.yaml"), *trained, "--output_dir", str(tmp_path)]
    assert main(["evaluate", *argv]) == 0
    evaluated = yaml.safe_load((tmp_path / "evaluation.json").read_text())
    assert evaluated["means"]["reward"] == pytest.approx(summary(run)["after"]["reward"], abs=1e-5)
    assert main(["generate", *argv]) == 0
    said = [line["completions"][0]["completion"] for line in lines(tmp_path / "generations.jsonl")]
    assert said == [sample["after"]["completion"] for sample in lines(run / "samples.jsonl")]


def test_a_run_of_whole_weights_logs_how_far_it_went(finished: Finished):
    logged = [line for line in lines(finished("whole") / "metrics.jsonl") if "loss" in line]
    assert all(line["regularization/l2_pretrained"] >= 0 for line in logged)
    assert logged[-1]["regularization/distance"] > 0


def test_offline_the_card_says_that_the_column_was_optimised(finished: Finished):
    assert "to raise: `reward`." in (finished("offline") / "README.md").read_text()


def offline(model_folder: str, folder: Path, **settings: Any) -> str:
    return write_config(folder, settings_of("offline", model_folder, folder / "run") | settings)


def test_offline_training_needs_no_rewards(model_folder: str, tmp_path: Path):
    nothing = {"reward_funcs": [], "reward_weights": None, "eval_funcs": []}
    config = offline(model_folder, tmp_path, eval_split=None, **nothing)
    assert main(["rwl", "--config", config]) == 0
    assert summary(tmp_path / "run")["after"] is None
    assert main(["check", "--config", config]) == 0


def test_held_out_rows_that_nothing_would_judge_are_refused(
    model_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = offline(model_folder, tmp_path, reward_funcs=[], reward_weights=None, eval_funcs=[])
    said = refusal(capsys, ["rwl", "--config", config])
    assert (
        "`eval_split` is 'validation', and `reward_funcs`, `eval_funcs` and `metrics` are all empty" in said
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("judges", [{"eval_funcs": ["bleu"]}, {"eval_funcs": [], "metrics": ["rouge_l"]}])
def test_reported_measures_alone_judge_held_out_rows(
    judges: dict[str, Any], model_folder: str, tmp_path: Path
):
    config = offline(
        model_folder, tmp_path, reward_funcs=[], reward_weights=None, max_steps=1, num_samples=1, **judges
    )
    assert main(["rwl", "--config", config]) == 0
    told = summary(tmp_path / "run")
    assert "reward" not in told["after"], "nothing was optimised that could be summed"
    names = {"rewards/bleu_reward"} if judges["eval_funcs"] else {"metrics/rouge_l"}
    assert names <= set(told["after"])


def test_rewards_are_needed_where_completions_are_sampled(
    model_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = offline(model_folder, tmp_path, offline=False, reward_funcs=[], reward_weights=None)
    assert "`reward_funcs` is empty" in refusal(capsys, ["rwl", "--config", config])


def test_columns_that_offline_training_misses_are_named(
    model_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = offline(model_folder, tmp_path, dataset_name="mmft/scenes", instruction="Say.")
    assert main(["rwl", "--config", config]) == 2
    assert "`completion`" in capsys.readouterr().err
