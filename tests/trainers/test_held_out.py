"""Evaluation between updates, and the files that a run leaves."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from mmft.engine.sampling import SamplingParams
from mmft.errors import ConfigError
from mmft.trainers.callbacks import METRICS_FILE, append_line
from mmft.trainers.held_out import held_out_columns, held_out_means
from mmft.trainers.ppo import PPOTrainer
from tests.trainers.support import (
    make_rows,
    make_trainer,
    moved,
    step_rows,
    token_reward,
    trained_weights,
    without_cache,
)  # fmt: skip


def test_evaluation_decodes_every_row_once_and_greedily(tmp_path: Path):
    trainer = make_trainer(tmp_path, eval_rows=make_rows(5), per_device_eval_batch_size=2)
    metrics = trainer.evaluate()
    samples = trainer.eval_samples
    assert [sample["row"] for sample in samples] == list(range(5))
    assert metrics["eval_reward"] == pytest.approx(sum(sample["reward"] for sample in samples) / 5)
    lengths = [sample["tokens"] for sample in samples]
    assert metrics["eval_completions/mean_length"] == sum(lengths) / 5
    assert metrics["eval_completions/no_eos_share"] == sum(not sample["ended"] for sample in samples) / 5
    trainer.evaluate()
    assert trainer.eval_samples == samples


def test_evaluation_takes_other_rows_and_another_prefix(tmp_path: Path):
    trainer = make_trainer(tmp_path)
    metrics = trainer.evaluate(make_rows(2), metric_key_prefix="test")
    assert {name.split("_")[0] for name in metrics if name != "epoch"} == {"test"}
    assert len(trainer.eval_samples) == 2


def test_evaluation_does_not_disturb_training(tmp_path: Path):
    quiet = make_trainer(tmp_path / "quiet", lora_dropout=0.2, max_steps=5)
    quiet.train()
    settings = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 5}
    evaluated = make_trainer(tmp_path / "evaluated", lora_dropout=0.2, eval_rows=make_rows(3), **settings)
    evaluated.train()
    assert moved(trained_weights(evaluated), trained_weights(quiet)) == set()
    assert without_cache(step_rows(evaluated)) == without_cache(step_rows(quiet))


def test_functions_for_evaluation_alone_are_reported_and_never_trained_on(tmp_path: Path):
    calls: list[int] = []

    def truth(completions: list[Any], **columns: Any) -> list[float | None]:
        calls.append(len(completions))
        return [2.0 if number % 2 else None for number in columns["number"]]

    trainer = make_trainer(tmp_path)
    trainer = PPOTrainer(
        trainer.actor_critic, token_reward, trainer.args, make_rows(4), make_rows(4), eval_funcs=[truth]
    )
    trainer.train()
    assert calls == []
    metrics = trainer.evaluate()
    assert metrics["eval_rewards/truth"] == 2.0  # the mean of the judged
    assert metrics["eval_reward"] == pytest.approx(metrics["eval_rewards/token_reward"])


def test_means_leave_out_what_could_not_be_judged():
    sample = {"tokens": 3, "ended": True, "reward": 1.0, "rewards": {"a": 1.0, "b": math.nan}}
    other = {"tokens": 5, "ended": False, "reward": math.nan, "rewards": {"a": math.nan, "b": math.nan}}
    assert held_out_means([sample, other]) == {
        "reward": 1.0,
        "rewards/a": 1.0,
        "completions/mean_length": 4.0,
        "completions/no_eos_share": 0.5,
    }


def test_reward_weights_count(tmp_path: Path):
    def ones(completions: list[Any], **columns: Any) -> list[float | None]:
        return [1.0] * len(completions)

    trainer = make_trainer(tmp_path, rewards=[token_reward, ones], reward_weights=[2.0, -3.0], max_steps=1)
    trainer.train()
    logged = step_rows(trainer)[0]
    assert logged["reward"] == pytest.approx(2 * logged["rewards/token_reward"] - 3)
    with pytest.raises(ConfigError, match=r"`reward_weights` has 1 numbers for 2 rewards"):
        make_trainer(tmp_path, rewards=[token_reward, ones], reward_weights=[2.0])


def test_columns_stay_in_step_where_a_part_is_logged_now_and_then():
    samples = [
        {"tokens": 1, "ended": True, "reward": 1.0, "rewards": {"a": 1.0}},
        {"tokens": 2, "ended": False, "reward": 2.0, "rewards": {"a": 2.0, "a/part": 0.5}},
    ]
    columns = held_out_columns(samples)
    assert columns["rewards/a/part"] == [None, 0.5]
    assert columns["completions/no_eos_share"] == [0.0, 1.0]
    assert held_out_means(samples)["rewards/a/part"] == 0.5


def test_samples_tell_how_likely_the_policy_found_them(tmp_path: Path):
    trainer = make_trainer(tmp_path, eval_rows=make_rows(3))
    trainer.evaluate()
    row = trainer.eval_dataset[1]
    with torch.no_grad():
        judged = trainer.collector.judge([row], trainer_params(trainer), None)
        scores = trainer.actor_critic(judged.prompts, judged.samples.completions)
    mean = float(scores.logps.sum() / judged.samples.completions.lengths[0])
    assert trainer.eval_samples[1]["mean_logp"] == pytest.approx(mean, abs=1e-5)
    assert mean < 0


def trainer_params(trainer: PPOTrainer) -> SamplingParams:
    length = trainer.args.max_completion_length
    return SamplingParams(num_generations=1, max_completion_length=length, temperature=0)


def lines(trainer: PPOTrainer) -> list[dict[str, Any]]:
    path = Path(trainer.args.output_dir) / METRICS_FILE
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_log_line_is_kept_with_its_step(tmp_path: Path):
    trainer = make_trainer(tmp_path, max_steps=3)
    trainer.train()
    assert [row["step"] for row in lines(trainer)] == [1, 2, 3, 3]  # and the summary of the run
    assert [row["loss"] for row in lines(trainer)[:3]] == [row["loss"] for row in step_rows(trainer)]


def test_a_new_run_starts_a_new_file(tmp_path: Path):
    append_line(tmp_path / METRICS_FILE, {"step": 1, "loss": 123.0})
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.train()
    assert 123.0 not in [row.get("loss") for row in lines(trainer)]


def test_log_lines_are_means_since_the_last(tmp_path: Path):
    every = make_trainer(tmp_path / "every", max_steps=4)
    every.train()
    second = make_trainer(tmp_path / "second", max_steps=4, logging_steps=2)
    second.train()
    first, last = (row["value_loss"] for row in step_rows(every)[2:])
    assert min(first, last) < step_rows(second)[1]["value_loss"] < max(first, last)
    assert step_rows(second)[0]["reward"] == step_rows(every)[0]["reward"]
