"""What rewards gather is saved with the run, comes back on resume, and is not moved by held-out rows."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from mmft.engine.reward_calls import IsolatedReward
from mmft.errors import ConfigError, RewardError
from mmft.trainers.reward_state import REWARDS_FILE
from rewards import CompositeReward
from tests.trainers.support import (
    make_rows,
    make_trainer,
    moved,
    step_rows,
    token_reward,
    trained_weights,
    without_cache,
)

SAVING: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "max_steps": 8}
"""Rollouts end at steps 4 and 8."""


def scaled() -> CompositeReward:
    return CompositeReward({"tokens": token_reward}, scaling="z-score")


def read(folder: str | Path) -> dict[str, Any]:
    return json.loads((Path(folder) / REWARDS_FILE).read_text())


def fails_on_row_1(completion_ids: list[list[int]], number: list[int], **columns: Any) -> list[float | None]:
    if 1 in number:
        raise ValueError("not this one")
    return [1.0] * len(number)


class Fitted:
    """Remembers the column it was prepared with."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def prepare(self, column: Any) -> None:
        self.seen.append((column("number"), column("nothing")))

    def __call__(self, prompts: list[Any], **columns: Any) -> list[float | None]:
        return [0.0] * len(prompts)


@pytest.mark.parametrize("step", [4, 6], ids=["between rollouts", "inside a rollout"])
def test_a_resumed_run_goes_on_with_the_statistics(step: int, tmp_path: Path):
    whole = make_trainer(tmp_path / "whole", rewards=scaled(), **SAVING)
    whole.train()
    resumed = make_trainer(tmp_path / "resumed", rewards=scaled(), **SAVING)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
    assert moved(trained_weights(resumed), trained_weights(whole)) == set()
    assert without_cache(step_rows(resumed)) == without_cache(step_rows(whole))
    assert resumed.reward_suite.state_dict() == whole.reward_suite.state_dict()
    early, late = (read(tmp_path / "whole" / f"checkpoint-{number}") for number in (4, 8))
    assert early != late, "the second rollout moved the statistics"


def test_a_saved_model_has_the_state_beside_it(tmp_path: Path):
    trainer = make_trainer(tmp_path, rewards=[token_reward, scaled()], max_steps=4)
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    assert read(tmp_path / "model").keys() == {"composite"}
    assert read(tmp_path / "model") == trainer.eval_suite.state_dict()


def test_rewards_without_a_state_leave_no_file(tmp_path: Path):
    trainer = make_trainer(tmp_path)
    trainer.save_model(str(tmp_path / "model"))
    assert not (tmp_path / "model" / REWARDS_FILE).exists()


def test_a_checkpoint_of_other_rewards_is_refused(tmp_path: Path):
    make_trainer(tmp_path / "whole", **SAVING).train()
    other = make_trainer(tmp_path / "other", rewards=scaled(), **SAVING)
    with pytest.raises(ConfigError, match="holds nothing for the reward 'composite'"):
        other.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))


def test_a_state_that_json_does_not_know_is_refused_before_training(tmp_path: Path):
    class Module(torch.nn.Linear):
        def forward(self, prompts: list[Any], **columns: Any) -> list[float | None]:  # type: ignore[override]
            return [0.0] * len(prompts)

    with pytest.raises(ConfigError, match="`state_dict` of the reward 'Module' cannot be saved as JSON"):
        make_trainer(tmp_path, rewards=Module(1, 1))


def test_held_out_rows_do_not_move_the_statistics_of_training(tmp_path: Path):
    trainer = make_trainer(tmp_path, rewards=scaled(), eval_rows=make_rows(6), max_steps=4)
    trainer.train()
    before = trainer.reward_suite.state_dict()["composite"]["scales"]["tokens"]["training"]
    trainer.evaluate()
    assert trainer.reward_suite.state_dict()["composite"]["scales"]["tokens"]["training"] == before
    assert before["count"] == 8, "one rollout of 4 prompts with 2 completions"


def test_rewards_see_the_training_rows_once(tmp_path: Path):
    reward = Fitted()
    make_trainer(tmp_path, rewards=reward, rows=make_rows(6))
    assert reward.seen == [([0, 1, 2, 3, 4, 5], None)]


def test_masked_held_out_samples_are_counted_and_left_out(tmp_path: Path):
    settings: dict[str, Any] = {"reward_on_error": "mask", "per_device_eval_batch_size": 2}
    trainer = make_trainer(tmp_path, rewards=fails_on_row_1, eval_rows=make_rows(5), **settings)
    metrics = trainer.evaluate()
    assert metrics["eval_rewards/fails_on_row_1/masked"] == 1.0
    assert metrics["eval_reward"] == 1.0, "not 0.8: the failed sample is no 0.0"
    assert [sample["reward"] == sample["reward"] for sample in trainer.eval_samples] == [True, False] + 3 * [
        True
    ]


def test_a_masked_row_that_fills_up_the_last_batch_is_counted_once(tmp_path: Path):
    settings: dict[str, Any] = {"reward_on_error": "mask", "per_device_eval_batch_size": 2}
    rows = [dict(row) | {"number": 1 - number} for number, row in enumerate(make_rows(3))]
    trainer = make_trainer(tmp_path, rewards=fails_on_row_1, eval_rows=rows, **settings)
    assert trainer.evaluate()["eval_rewards/fails_on_row_1/masked"] == 1.0


def test_a_call_that_training_left_behind_is_not_overtaken_by_evaluation(tmp_path: Path):
    at_once: list[int] = []
    end = threading.Event()

    def slow(prompts: list[Any], **columns: Any) -> list[float | None]:
        at_once.append(len(at_once) + 1)
        end.wait(20)
        return [1.0] * len(prompts)

    trainer = make_trainer(
        tmp_path,
        rewards=slow,
        rows=make_rows(4),
        eval_rows=make_rows(2),
        reward_on_error="mask",
        reward_time_limit=0.2,
    )
    trainer.collect(0)
    metrics = trainer.evaluate()
    end.set()
    assert at_once == [1], "the call of training still runs"
    assert metrics["eval_rewards/slow/masked"] == 2.0


def test_silent_held_out_samples_are_left_out_and_are_no_failures(tmp_path: Path):
    def silent_on_row_1(number: list[int], **columns: Any) -> list[float | None]:
        return [None if each == 1 else 1.0 for each in number]

    silent: Any = IsolatedReward(silent_on_row_1, on_none="mask")
    trainer = make_trainer(tmp_path, rewards=[silent, token_reward], eval_rows=make_rows(3))
    metrics = trainer.evaluate()
    assert not [name for name in metrics if name.endswith("/masked")]
    assert [sample["reward"] == sample["reward"] for sample in trainer.eval_samples] == [True, False, True]


def test_masked_samples_of_training_are_logged_and_train_nothing(tmp_path: Path):
    trainer = make_trainer(
        tmp_path, rewards=fails_on_row_1, rows=make_rows(4), reward_on_error="mask", max_steps=4
    )
    trainer.train()
    rows = step_rows(trainer)
    assert [row.get("rewards/fails_on_row_1/masked") for row in rows] == [2.0, None, None, None]
    assert rows[0]["rewards/unjudged_share"] == 0.25
    experience = trainer.experience
    assert experience is not None
    masked = experience.scores.isnan()
    assert masked.sum() == 2
    assert not experience.train_mask[masked].any()


def test_without_a_policy_the_run_stops(tmp_path: Path):
    trainer = make_trainer(tmp_path, rewards=fails_on_row_1, rows=make_rows(4))
    with pytest.raises(RewardError, match=r"failed on row \('train', 1\)"):
        trainer.train()


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"reward_time_limit": -1.0}, "`time_limit` must be > 0"), ({"reward_on_error": "skip"}, "got 'skip'")],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=message):
        make_trainer(tmp_path, **settings)
