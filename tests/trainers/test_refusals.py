"""Samples that cannot be judged leave the run unharmed; rewards and numbers that are wrong stop it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

from mmft.errors import ConfigError, NonFiniteError, RewardError
from mmft.trainers.experience import Experience
from mmft.trainers.ppo import PPOTrainer
from tests.trainers.support import (
    make_rows,
    make_trainer,
    moved,
    random_experience,
    step_rows,
    token_reward,
    trained_weights,
)


def without_rows(*numbers: int) -> Callable[..., list[float | None]]:
    """The token reward, unable to judge some rows."""

    def picky(completion_ids: list[list[int]], **columns: Any) -> list[float | None]:
        rewards = token_reward(completion_ids, **columns)
        return [None if n in numbers else r for r, n in zip(rewards, columns["number"], strict=True)]

    return picky


def gradients(trainer: PPOTrainer, experience: Experience, num_tokens: float) -> dict[str, Tensor]:
    """Of the loss of a whole rollout."""
    trainer.actor_critic.zero_grad()
    inputs = {"batch": experience, "num_tokens": torch.tensor(num_tokens)}
    trainer.compute_loss(trainer.actor_critic, inputs).backward()
    named = trainer.actor_critic.named_parameters()
    return {name: weight.grad.clone() for name, weight in named if weight.grad is not None}


def test_an_unjudged_group_leaves_no_trace(tmp_path: Path):
    rows = make_rows(4)
    trainer = make_trainer(tmp_path, rows=rows, rewards=without_rows(2))
    whole = trainer.collect(0)
    place = whole.rows.index(2)
    others = [group for group in range(4) if group != place]
    without = trainer.add_targets(whole.take(others))
    mine, expected = gradients(trainer, whole, 30), gradients(trainer, without, 30)
    assert any(gradient.abs().max() > 1e-3 for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(mine[name], gradient, rtol=1e-4, atol=1e-6)


def test_an_unjudged_sample_has_advantage_zero_and_trains_nothing(tmp_path: Path):
    trainer = make_trainer(tmp_path)
    experience = random_experience()
    scores, mask = experience.scores.clone(), experience.train_mask.clone()
    scores[3], mask[3] = torch.nan, False
    experience = experience.with_tensors(scores=scores, train_mask=mask)
    targets = trainer.add_targets(experience)
    assert (targets.advantages[3] == 0).all()
    assert targets.advantages.isfinite().all()
    assert targets.returns.isfinite().all()


def test_unjudged_samples_leave_the_statistics(tmp_path: Path):
    trainer = make_trainer(tmp_path, rows=make_rows(4), rewards=without_rows(0, 3), max_steps=1)
    trainer.train()
    logged = step_rows(trainer)[0]
    judged = [row for row in trainer.last_judged.judgement.total.tolist() if not math.isnan(row)]
    assert len(judged) == 4
    assert logged["rewards/unjudged_share"] == 0.5
    assert logged["reward"] == pytest.approx(sum(judged) / 4)
    assert all(math.isfinite(value) for value in logged.values())


def test_a_rollout_without_any_judgement_moves_nothing(tmp_path: Path):
    trainer = make_trainer(tmp_path, rewards=lambda completions, **_: [None] * len(completions))
    before = trained_weights(trainer)
    trainer.train()
    assert moved(before, trained_weights(trainer)) == set()
    for logged in step_rows(trainer):
        assert logged["loss"] == 0
        assert logged["grad_norm"] == 0
        assert "reward" not in logged
        assert all(math.isfinite(value) for value in logged.values())
    assert step_rows(trainer)[0]["rewards/unjudged_share"] == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda completions, **_: [0.0] * (len(completions) - 1), r"returned 7 rewards for 8 completions"),
        (lambda completions, **_: [math.nan] * len(completions), r"returned nan for row .* a finite number"),
        (lambda completions, **_: [math.inf] * len(completions), r"returned inf for row"),
        (lambda completions, **_: 1 / 0, r"failed on row .*ZeroDivisionError"),
    ],
)
def test_a_wrong_reward_stops_the_run(wrong: Any, message: str, tmp_path: Path):
    trainer = make_trainer(tmp_path, rewards=wrong)
    before = trained_weights(trainer)
    with pytest.raises(RewardError, match=message):
        trainer.train()
    assert moved(before, trained_weights(trainer)) == set()


class LastWeights(TrainerCallback):
    """Keeps the weights of the beginning of each step."""

    def __init__(self) -> None:
        self.weights: dict[str, Tensor] = {}

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_changes_nothing(
    value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    last = LastWeights()
    trainer = make_trainer(
        tmp_path, callbacks=[last], per_device_train_batch_size=2, gradient_accumulation_steps=2
    )
    compute, calls = trainer.compute_policy_loss, []

    def spoiled(*args: Any) -> Tensor:
        calls.append(args)
        loss = compute(*args)
        return loss * value if len(calls) == 6 else loss  # second half of the third step

    monkeypatch.setattr(trainer, "compute_policy_loss", spoiled)
    with pytest.raises(NonFiniteError, match=rf"step 2: the loss is -?{value} on rows \[\d+\]\. Nothing was"):
        trainer.train()
    assert trainer.state.global_step == 2
    assert moved(last.weights, dict(trainer.actor_critic.named_parameters())) == set()


@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_no_number_changes_nothing(max_grad_norm: float, value: float, tmp_path: Path):
    last = LastWeights()
    trainer = make_trainer(tmp_path, callbacks=[last], max_grad_norm=max_grad_norm)
    weight = trainer.actor_critic.value_head.weight
    weight.register_hook(lambda grad: grad + value if trainer.state.global_step == 1 else grad)
    with pytest.raises(NonFiniteError, match=rf"step 1: the gradient norm is {value}\. Nothing was updated"):
        trainer.train()
    assert moved(last.weights, dict(trainer.actor_critic.named_parameters())) == set()


def test_missing_parts_are_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"`reward_funcs` is empty"):
        make_trainer(tmp_path, rewards=[])
    trainer = make_trainer(tmp_path)
    with pytest.raises(ConfigError, match=r"`eval_dataset` is missing"):
        trainer.evaluate()
    trainer.train_dataset = None
    with pytest.raises(ConfigError, match=r"`train_dataset` is missing"):
        trainer.train()


def test_a_model_in_memory_needs_its_processor(tmp_path: Path):
    trainer = make_trainer(tmp_path)
    model = trainer.actor_critic.backbone.model
    with pytest.raises(ConfigError, match=r"`processing_class` is missing"):
        PPOTrainer(model, token_reward, trainer.args, make_rows(4))


def test_several_gpus_in_one_process_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    trainer = make_trainer(tmp_path)
    monkeypatch.setattr(type(trainer.args), "n_gpu", 4)
    with pytest.raises(ConfigError, match=r"One process sees 4 GPUs.* \(`accelerate launch`\)"):
        PPOTrainer(trainer.actor_critic, token_reward, trainer.args, make_rows(4))
