"""Actor-critic and the critic-free case against loops over tokens; what policy-gradient trainers share."""

from __future__ import annotations

import dataclasses
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmft.engine.scoring import Scores
from mmft.errors import ConfigError
from mmft.trainers.a2c import A2CConfig, A2CTrainer
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
    without_cache,
)

A2C: dict[str, Any] = {"trainer_class": A2CTrainer, "config_class": A2CConfig, "num_ppo_epochs": 1}
GROUP: dict[str, Any] = {"advantage_estimator": "group", "kl_coef": 0.0}
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


def current_scores(experience: Experience, values: bool = True) -> Scores:
    """The policy and the critic some updates later."""
    generator = torch.Generator().manual_seed(5)
    shape = experience.old_logps.shape
    noise = [0.3 * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2)]
    logps = (experience.old_logps + noise[0]).requires_grad_()
    critic = (experience.values + noise[1]).requires_grad_() if values else None
    return Scores(logps, torch.zeros(shape), critic)


def loss_of(trainer: A2CTrainer, scores: Scores, experience: Experience) -> Tensor:
    num_tokens = experience.train_mask.sum().double()
    return trainer.compute_policy_loss(scores, experience, num_tokens)


def places(experience: Experience) -> list[tuple[int, int]]:
    return [(n, t) for n, length in enumerate(experience.completions.lengths.tolist()) for t in range(length)]


def slow_rewards(experience: Experience, kl_coef: float) -> dict[tuple[int, int], float]:
    lengths = experience.completions.lengths.tolist()
    rewards = {}
    for n, t in places(experience):
        kl = (experience.old_logps[n, t] - experience.ref_logps[n, t]).item()
        rewards[n, t] = -kl_coef * kl + (experience.scores[n].item() if t == lengths[n] - 1 else 0.0)
    return rewards


def test_td_is_the_one_step_error_of_the_critic(tmp_path: Path):
    trainer = make_trainer(tmp_path, advantage_estimator="td", gamma=0.9, vf_coef=0.7, **A2C)
    experience = random_experience()
    targets = trainer.add_targets(experience)
    rewards, scores = slow_rewards(experience, trainer.args.kl_coef), current_scores(experience)
    actor = critic = 0.0
    for n, t in rewards:
        following = experience.values[n, t + 1].item() if (n, t + 1) in rewards else 0.0
        target = rewards[n, t] + 0.9 * following
        advantage = target - experience.values[n, t].item()
        assert targets.advantages[n, t].item() == pytest.approx(advantage)
        assert targets.returns[n, t].item() == pytest.approx(target)
        actor -= scores.logps[n, t].item() * advantage
        critic += (target - scores.values[n, t].item()) ** 2
    expected = (actor + 0.7 * critic) / len(rewards)
    assert loss_of(trainer, scores, targets).item() == pytest.approx(expected)


def test_monte_carlo_is_the_whole_return_less_the_value(tmp_path: Path):
    trainer = make_trainer(tmp_path, advantage_estimator="monte_carlo", gamma=0.8, **A2C)
    experience = random_experience()
    targets, rewards = trainer.add_targets(experience), slow_rewards(experience, trainer.args.kl_coef)
    for n, t in rewards:
        to_go = sum(0.8 ** (u - t) * r for (m, u), r in rewards.items() if m == n and u >= t)
        assert targets.returns[n, t].item() == pytest.approx(to_go)
        assert targets.advantages[n, t].item() == pytest.approx(to_go - experience.values[n, t].item())


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("algorithm", [{}, A2C], ids=["ppo", "a2c"])
def test_group_is_the_reward_less_the_mean_of_the_prompt(
    algorithm: dict[str, Any], scale: bool, tmp_path: Path
):
    settings = GROUP | {"kl_coef": 0.3, "scale_rewards": scale}
    trainer = make_trainer(tmp_path, **(settings | algorithm))
    experience = dataclasses.replace(random_experience(num_generations=4), values=None)
    scores = experience.scores.clone()
    scores[5], experience.train_mask[5] = torch.nan, False
    experience = dataclasses.replace(experience, scores=scores)
    targets = trainer.add_targets(experience)
    assert targets.returns is None
    rewards = slow_rewards(experience, 0.3)
    totals = [sum(r for (m, _), r in rewards.items() if m == n) for n in range(12)]
    for n in range(12):
        group = [totals[m] for m in range(n // 4 * 4, n // 4 * 4 + 4) if m != 5]
        expected = 0.0 if n == 5 else totals[n] - statistics.mean(group)
        if scale and n != 5:
            expected /= statistics.stdev(group) + 1e-4
        length = int(experience.completions.lengths[n])
        assert targets.advantages[n, :length].tolist() == pytest.approx([expected] * length)
        assert (targets.advantages[n, length:] == 0).all()


@pytest.mark.parametrize("algorithm", [{}, A2C], ids=["ppo", "a2c"])
def test_groups_cost_no_critic(algorithm: dict[str, Any], tmp_path: Path):
    trainer = make_trainer(tmp_path, **(GROUP | {"max_steps": 2} | algorithm))
    assert trainer.actor_critic.value_head is None
    before = trained_weights(trainer)
    trainer.train()
    assert trainer.experience.values is None
    assert trainer.experience.ref_logps is None
    assert moved(before, trained_weights(trainer)) == before.keys()
    assert "value_loss" not in step_rows(trainer)[0]
    assert not any(name.startswith("value_head") for name in before)


def test_a_weight_of_0_leaves_the_policy_gradient(tmp_path: Path):
    trainer = make_trainer(tmp_path, vf_coef=0.0, **A2C)
    experience = trainer.add_targets(random_experience())
    scores = current_scores(experience)
    loss_of(trainer, scores, experience).backward()
    num_tokens, mask = experience.train_mask.sum(), experience.train_mask
    torch.testing.assert_close(scores.logps.grad, torch.where(mask, -experience.advantages / num_tokens, 0.0))
    assert not scores.values.grad.any()


def test_ppo_on_its_first_pass_has_the_gradient_of_the_policy_gradient(tmp_path: Path):
    settings: dict[str, Any] = {"vf_coef": 0.0, "whiten_advantages": False}
    gradients = []
    for number, algorithm in enumerate(({}, A2C)):
        trainer = make_trainer(tmp_path / str(number), **(settings | algorithm))
        experience = trainer.add_targets(random_experience())
        logps = experience.old_logps.clone().requires_grad_()
        loss_of(trainer, Scores(logps, None, experience.values), experience).backward()
        gradients.append(logps.grad)
    assert gradients[0].abs().max() > 0.01
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a2c_keeps_advantages_as_they_are_and_ppo_whitens_them(tmp_path: Path):
    experience = random_experience()
    raw = make_trainer(tmp_path / "a2c", **A2C).add_targets(experience).advantages
    white = make_trainer(tmp_path / "ppo").add_targets(experience).advantages
    mask = experience.train_mask
    assert white[mask].mean().item() == pytest.approx(0, abs=1e-6)
    assert white[mask].std().item() == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(white[mask], (raw[mask] - raw[mask].mean()) / raw[mask].std())


# Entropy


def test_the_entropy_bonus_is_taken_off_the_loss(tmp_path: Path):
    trainer = make_trainer(tmp_path, **A2C)
    experience = trainer.add_targets(random_experience())
    entropies = torch.rand(experience.old_logps.shape, dtype=torch.float64, requires_grad=True)
    scores = dataclasses.replace(current_scores(experience), entropies=entropies)
    plain = loss_of(trainer, scores, experience).item()
    trainer.args.entropy_coef = 0.5
    loss = loss_of(trainer, scores, experience)
    assert loss.item() == pytest.approx(plain - 0.5 * entropies[experience.train_mask].mean().item())
    loss.backward()
    assert entropies.grad[experience.train_mask].unique().tolist() == [-0.5 / experience.train_mask.sum()]


def test_the_entropy_bonus_keeps_the_policy_undecided(tmp_path: Path):
    """Without any reward nothing else moves it."""
    entropies = {}
    for coefficient in (0.0, 1.0):
        trainer = make_trainer(
            tmp_path / str(coefficient),
            rewards=silent,
            entropy_coef=coefficient,
            kl_coef=0.0,
            max_steps=6,
            **A2C,
        )
        trainer.train()
        entropies[coefficient] = [row["entropy"] for row in step_rows(trainer)]
    assert entropies[1.0][-1] > entropies[0.0][-1] + 0.005
    assert entropies[1.0][0] == pytest.approx(entropies[0.0][0])


def silent(completion_ids: list[list[int]], **columns: Any) -> list[float | None]:
    return [0.0 for _ in completion_ids]


# The price of KL, and passes that end early


def test_the_price_of_kl_follows_its_target(tmp_path: Path):
    trainer = make_trainer(tmp_path, kl_coef=0.1, kl_target=2.0, kl_horizon=60)
    experience = random_experience()
    kl = (experience.old_logps - experience.ref_logps) * experience.completions.mask
    mean = kl.sum().item() / len(kl)
    expected = 0.1 * (1 + min(max(mean / 2.0 - 1, -0.2), 0.2) * len(kl) / 60)
    first = trainer.add_targets(experience)
    assert trainer.kl_coef == pytest.approx(expected)
    assert trainer.kl_coef != pytest.approx(0.1)
    second = trainer.add_targets(experience)
    assert not torch.allclose(first.returns, second.returns)  # the new price counts from the next rollout on
    assert trainer.metric_log.flush()["kl_coef"] == pytest.approx((0.1 + expected) / 2)


def test_the_price_of_kl_is_saved_and_restored(tmp_path: Path):
    settings = {
        "kl_coef": 0.1,
        "kl_target": 1e-3,
        "kl_horizon": 16,
        "save_strategy": "steps",
        "save_steps": 1,
    }
    whole = make_trainer(tmp_path / "whole", **settings)
    whole.train()
    assert whole.kl_coef != 0.1
    for step in (4, 5):
        resumed = make_trainer(tmp_path / f"resumed {step}", **settings)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert resumed.kl_coef == whole.kl_coef
        assert moved(trained_weights(resumed), trained_weights(whole)) == set()
        assert without_cache(step_rows(resumed)) == without_cache(step_rows(whole))


def test_a_second_training_starts_at_the_configured_price(tmp_path: Path):
    trainer = make_trainer(tmp_path, kl_coef=0.1, kl_target=1e-3, kl_horizon=16)
    trainer.train()
    first = [row["kl_coef"] for row in step_rows(trainer) if "kl_coef" in row]
    trainer.train()
    assert first[0] == 0.1
    assert next(row["kl_coef"] for row in step_rows(trainer) if "kl_coef" in row) == 0.1


def test_a_horizon_shorter_than_a_rollout_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"`kl_horizon` is 7, less than the 8 completions of one rollout"):
        make_trainer(tmp_path, kl_target=1.0, kl_horizon=7)


EARLY: dict[str, Any] = {"num_mini_batches": 1, "num_ppo_epochs": 4, "learning_rate": 3e-2, "max_steps": 6}


def rollouts_of(trainer: PPOTrainer) -> list[int]:
    """Which steps began with a new rollout: only those know its reward."""
    return [number for number, row in enumerate(step_rows(trainer)) if "reward" in row]


def test_passes_end_where_the_policy_has_moved_too_far(tmp_path: Path):
    patient = make_trainer(tmp_path / "patient", **EARLY)
    patient.train()
    assert rollouts_of(patient) == [0, 4]
    moved_by = [row["approx_kl"] for row in step_rows(patient)]
    assert moved_by[0] == pytest.approx(0, abs=1e-6)
    assert moved_by[1] > 1e-4
    # The second step sees what the first one did, ends the passes, and is itself still taken.
    hasty = make_trainer(tmp_path / "hasty", early_stop_kl=moved_by[1] / 100, **EARLY)
    hasty.train()
    assert hasty.state.global_step == 6
    assert rollouts_of(hasty) == [0, 2, 4]
    assert [row.get("early_stops") for row in step_rows(hasty)] == [None, 1.0, None, 1.0, None, 1.0]


def test_an_early_stop_is_resumed(tmp_path: Path):
    settings = EARLY | {"early_stop_kl": 1e-4, "save_strategy": "steps", "save_steps": 1}
    whole = make_trainer(tmp_path / "whole", **settings)
    whole.train()
    assert len(rollouts_of(whole)) > 2
    for step in (1, 2, 3):
        resumed = make_trainer(tmp_path / f"resumed {step}", **settings)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert moved(trained_weights(resumed), trained_weights(whole)) == set()
        assert without_cache(step_rows(resumed)) == without_cache(step_rows(whole))


@pytest.mark.parametrize(
    ("saved", "resumed", "message"),
    [
        ({}, GROUP, r"critic=True \(now False\)"),
        (GROUP, {}, r"critic=False \(now True\)"),
        (A2C, {}, r"trainer=A2CTrainer \(now PPOTrainer\)"),
    ],
    ids=["a critic too many", "no critic", "another algorithm"],
)
@pytest.mark.parametrize("step", [4, 5], ids=["between rollouts", "in a rollout"])
def test_another_algorithm_cannot_take_over_a_run(
    saved: dict[str, Any], resumed: dict[str, Any], message: str, step: int, tmp_path: Path
):
    saving = {"save_strategy": "steps", "save_steps": step, "max_steps": step, "learning_rate": 0.0}
    make_trainer(tmp_path / "saved", **(saving | saved)).train()
    other = make_trainer(tmp_path / "resumed", **resumed)
    with pytest.raises(ConfigError, match=rf"was saved by a run with {message}\. Resume with the algorithm"):
        other.train(resume_from_checkpoint=str(tmp_path / "saved" / f"checkpoint-{step}"))


# The critic's own learning rate


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_the_critic_has_its_own_rate(weight_decay: float, tmp_path: Path):
    trainer = make_trainer(tmp_path, critic_learning_rate=3e-4, weight_decay=weight_decay, **A2C)
    optimizer = trainer.create_optimizer()
    critic = {id(p) for p in trainer.actor_critic.value_head.parameters()}
    seen = []
    for group in optimizer.param_groups:
        inside = {id(p) in critic for p in group["params"]}
        assert len(inside) <= 1
        seen += [id(p) for p in group["params"]]
        if inside:
            assert group["lr"] == (3e-4 if inside == {True} else 1e-2)
    assert len(seen) == len(set(seen)) == sum(p.requires_grad for p in trainer.actor_critic.parameters())
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    head = trainer.actor_critic.value_head
    assert (decays[id(head.weight)], decays[id(head.bias)]) == (weight_decay, 0.0)


def test_rates_of_policy_and_critic_fall_together_to_their_floor(tmp_path: Path):
    """eta_t = eta_min + (eta_max - eta_min) (1 + cos(pi t / T)) / 2, the floor a tenth of either."""
    rates = []

    trainer = make_trainer(
        tmp_path,
        critic_learning_rate=5e-2,
        max_steps=8,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1},
        **A2C,
    )
    step = trainer.training_step

    def recorded(*args: Any, **kwargs: Any) -> Tensor:
        rates.append(sorted({group["lr"] for group in trainer.optimizer.param_groups}))
        return step(*args, **kwargs)

    trainer.training_step = recorded
    trainer.train()
    for t, (policy, critic) in enumerate(rates):
        share = 0.1 + 0.9 * (1 + math.cos(math.pi * t / 8)) / 2
        assert policy == pytest.approx(1e-2 * share)
        assert critic == pytest.approx(5e-2 * share)
    assert len(rates) == 8


def test_a_model_with_a_critic_is_refused_where_there_is_no_use_for_it(tmp_path: Path):
    built = make_trainer(tmp_path / "built")
    args = dataclasses.replace(built.args, advantage_estimator="group")
    with pytest.raises(ConfigError, match=r"built with `critic=True`.* no use for a critic"):
        PPOTrainer(built.actor_critic, token_reward, args, make_rows(4))
