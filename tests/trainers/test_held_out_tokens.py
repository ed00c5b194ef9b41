"""What `evaluate` keeps of each token of held-out completions, and that nothing else changes by it."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mmft.engine.packing import Completions
from mmft.engine.rollout import Samples
from mmft.trainers import collector
from mmft.trainers.advantage import AdvantageTrainer
from mmft.trainers.held_out import TOKEN_FIELDS
from mmft.trainers.reward_weighted import RewardWeightedConfig, RewardWeightedTrainer
from tests.trainers.support import make_rows, make_trainer, step_rows, token_reward


def judged(totals: list[float], values: list[list[float]], lengths: list[int], ended: bool = True) -> Any:
    """Completions with these values, cut to these lengths; beyond them the values stay, as nonsense."""
    width = len(values[0])
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    ids = torch.ones(len(values), width, dtype=torch.long)
    completions = Completions(ids, mask, torch.arange(len(values)))
    samples = Samples(
        completions, torch.zeros(mask.shape), torch.tensor(values), torch.tensor([ended] * len(values))
    )
    return SimpleNamespace(samples=samples, judgement=SimpleNamespace(total=torch.tensor(totals)))


def advantages(trainer: AdvantageTrainer, *given: Any, **more: Any) -> Tensor:
    found = trainer.held_out_advantages(judged(*given, **more))
    assert found is not None
    return found


# The numbers


def test_held_out_advantages_hand_computed(tmp_path: Path):
    trainer = make_trainer(tmp_path, lam=0.5, gamma=1.0)
    # delta_1 = 1 - 0.25 = 0.75; delta_0 = 0.25 - 0.5 = -0.25; A_0 = -0.25 + 0.5 * 0.75 = 0.125.
    # The second is one token long: A_0 = 2 - 0.5; what stands behind it counts for nothing.
    found = advantages(trainer, [1.0, 2.0], [[0.5, 0.25], [0.5, 9.0]], [2, 1])
    torch.testing.assert_close(found, torch.tensor([[0.125, 0.75], [1.5, 0.0]]))


def test_a_completion_that_was_cut_pays_for_it_as_in_training(tmp_path: Path):
    trainer = make_trainer(tmp_path, lam=0.5, missing_eos_penalty=0.5)
    # The score is 1 - 0.5: delta_1 = 0.25; A_0 = -0.25 + 0.125.
    cut = advantages(trainer, [1.0], [[0.5, 0.25]], [2], ended=False)
    torch.testing.assert_close(cut, torch.tensor([[-0.125, 0.25]]))
    torch.testing.assert_close(advantages(trainer, [1.0], [[0.5, 0.25]], [2]), torch.tensor([[0.125, 0.75]]))


def test_what_nothing_judged_has_no_advantage(tmp_path: Path):
    found = advantages(make_trainer(tmp_path), [math.nan, 1.0], [[0.5, 0.25]] * 2, [2, 2])
    assert found[0].tolist() == [0.0, 0.0]
    assert bool(found[1].all())


@pytest.mark.parametrize("estimator", ["gae", "td", "monte_carlo"])
def test_they_are_those_of_training_but_for_kl_and_whitening(tmp_path: Path, estimator: str):
    settings = {"advantage_estimator": estimator, "kl_coef": 0.0, "whiten_advantages": False, "gamma": 0.9}
    trainer = make_trainer(tmp_path, eval_rows=make_rows(3), missing_eos_penalty=0.5, **settings)
    answered = trainer.answer_held_out(trainer.eval_dataset, [0, 1, 2])
    # The critic begins at 0 and would agree with itself.
    answered.samples.values.uniform_(-1, 1)
    trained = trainer.learn_from(0, [0, 1, 2], answered)
    torch.testing.assert_close(trainer.held_out_advantages(answered), trained.advantages)


def test_estimating_them_moves_and_logs_nothing(tmp_path: Path):
    trainer = make_trainer(tmp_path, kl_coef=0.1, kl_target=1.0, kl_horizon=100)
    advantages(trainer, [1.0], [[0.5, 0.25]], [2])
    assert trainer.kl_coef == 0.1
    assert trainer.metric_log.flush() == {}


# The records


def test_every_token_of_a_held_out_completion_is_told(tmp_path: Path):
    trainer = make_trainer(tmp_path, eval_rows=make_rows(4), lam=0.5)
    with torch.no_grad():
        for weight in trainer.actor_critic.value_head.parameters():
            weight.add_(torch.randn_like(weight))
    trainer.evaluate()
    answered = trainer.answer_held_out(trainer.eval_dataset, [*range(4)])
    with torch.no_grad():
        scores = trainer.actor_critic(answered.prompts, answered.samples.completions)
    expected = advantages(
        trainer,
        answered.judgement.total.tolist(),
        scores.values.tolist(),
        answered.samples.completions.lengths.tolist(),
    )
    tokenizer: Any = trainer.processing_class.tokenizer
    for index, sample in enumerate(trainer.eval_samples):
        length = sample["tokens"]
        ids = answered.samples.completions.ids[index, :length]
        assert "".join(sample["token_texts"]) == tokenizer.decode(ids, skip_special_tokens=False)
        assert {len(sample[name]) for name in TOKEN_FIELDS} == {length}
        assert sum(sample["logps"]) / length == pytest.approx(sample["mean_logp"], abs=1e-4)
        assert sample["logps"] == pytest.approx(scores.logps[index, :length].tolist(), abs=1e-4)
        assert sample["values"] == pytest.approx(scores.values[index, :length].tolist(), abs=1e-4)
        assert sample["advantages"] == pytest.approx(expected[index, :length].tolist(), abs=1e-4)
        assert all(round(value, 4) == value for value in sample["values"])
    assert len({tuple(sample["values"]) for sample in trainer.eval_samples}) == 4


@pytest.mark.parametrize("critic", ["none", "group"])
def test_without_a_critic_there_are_no_values_and_no_advantages(tmp_path: Path, critic: str):
    other: dict[str, Any] = {
        "none": {"trainer_class": RewardWeightedTrainer, "config_class": RewardWeightedConfig},
        "group": {"advantage_estimator": "group"},
    }
    trainer = make_trainer(tmp_path, eval_rows=make_rows(2), **other[critic])
    trainer.evaluate()
    for sample in trainer.eval_samples:
        assert len(sample["token_texts"]) == len(sample["logps"]) == sample["tokens"]
        assert not {"values", "advantages"} & set(sample)


def test_a_row_that_nothing_judged_keeps_its_values_and_no_advantages(tmp_path: Path):
    def some(completion_ids: list[list[int]], **columns: Any) -> list[float | None]:
        scores = token_reward(completion_ids, **columns)
        return [
            None if number == 1 else score for number, score in zip(columns["number"], scores, strict=True)
        ]

    trainer = make_trainer(tmp_path, eval_rows=make_rows(3), rewards=some, per_device_eval_batch_size=2)
    trainer.evaluate()
    assert [sample["advantages"] is None for sample in trainer.eval_samples] == [False, True, False]
    assert trainer.eval_samples[1]["values"] is not None
    first = list(trainer.eval_samples)
    trainer.evaluate()
    assert math.isnan(first[1]["reward"])
    assert [each["advantages"] for each in trainer.eval_samples] == [each["advantages"] for each in first]


def test_a_model_that_shares_no_prompt_has_the_same_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def evaluated(folder: Path) -> list[dict[str, Any]]:
        trainer = make_trainer(folder, eval_rows=make_rows(3))
        with torch.no_grad():
            for weight in trainer.actor_critic.value_head.parameters():
                weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
        trainer.evaluate()
        assert trainer.actor_critic.packed is packed
        return trainer.eval_samples

    packed = True
    expected = evaluated(tmp_path)
    refused = collector.Verification(False, "packed log-probs differ", 1.0)
    monkeypatch.setattr(collector, "verify_packed", lambda *_: refused)
    packed = False
    for sample, known in zip(evaluated(tmp_path), expected, strict=True):
        for name in ("logps", "values", "advantages"):
            assert sample[name] == pytest.approx(known[name], abs=2e-4)
        assert sample["token_texts"] == known["token_texts"]


# What is logged beside it


def test_tokens_and_seconds_of_training_are_counted(tmp_path: Path):
    trainer = make_trainer(tmp_path, max_steps=5, logging_steps=1)
    trainer.train()
    rows = step_rows(trainer)
    # A rollout of 8 completions serves 4 steps; only the lines of steps that sampled count tokens.
    assert ["completions/num_tokens" in row for row in rows] == [True, False, False, False, True]
    assert rows[0]["completions/num_tokens"] == 8 * rows[0]["completions/mean_length"]
    seconds = [row["seconds/training"] for row in trainer.state.log_history if "loss" in row]
    rollouts = [row["seconds/rollout"] for row in trainer.state.log_history if "seconds/rollout" in row]
    assert all(value > 0 for value in seconds)
    assert seconds[0] > rollouts[0]
    assert seconds[4] > rollouts[1]


def test_seconds_add_up_over_micro_batches(tmp_path: Path):
    trainer = make_trainer(tmp_path, max_steps=2, gradient_accumulation_steps=3, logging_steps=2)
    added: list[float] = []
    count = trainer.metric_log.count

    def counted(name: str, number: float) -> None:
        if name == "seconds/training":
            added.append(number)
        count(name, number)

    trainer.metric_log.count = counted
    trainer.train()
    (line,) = [row for row in trainer.state.log_history if "loss" in row]
    assert len(added) == 2 * 3
    assert line["seconds/training"] == pytest.approx(sum(added))
