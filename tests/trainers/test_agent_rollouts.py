"""PPO and A2C in environments: targets by a slow loop over whole episodes, losses by hand, what moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmft.engine.observations import Observation
from mmft.trainers.a2c import AgentA2CConfig, AgentA2CTrainer
from mmft.trainers.agent_rollouts import Steps, load_steps
from mmft.trainers.ppo import AgentPPOConfig, AgentPPOTrainer
from tests.reference import estimators as slow
from tests.trainers.agent_support import (
    NUM_ACTIONS,
    Counter,
    Makes,
    Taken,
    agent_weights,
    failing,
    legal_at,
    make_agent_trainer,
    perturb,
    recorded,
)
from tests.trainers.support import moved, step_rows

PPO, A2C = (AgentPPOTrainer, AgentPPOConfig), (AgentA2CTrainer, AgentA2CConfig)
GAMMA, LAMBDA = 0.9, 0.8
LONG: dict[str, Any] = {"per_device_train_batch_size": 14, "num_mini_batches": 2, "lam": LAMBDA}
"""Rollouts of 28 steps, 14 in each of two environments."""


def warmed_up(folder: Path, kind: Any = PPO, **settings: Any) -> tuple[Any, list[list[Taken]]]:
    """A trainer whose features have statistics and whose critic has an opinion, before its first rollout."""
    trainer = make_agent_trainer(folder, *kind, **settings)
    trainer.agent.eval()
    trainer.begin()
    if not trainer.agent.transforms.is_fitted:
        with torch.no_grad():
            trainer._warm_up()
    perturb(trainer.agent, 0.5)
    return trainer, recorded(trainer)


@torch.no_grad()
def value_of(trainer: Any, observation: Observation) -> float:
    trainer.agent.eval()
    return float(trainer.agent([observation]).values[0])


def slow_targets(trainer: Any, streams: list[list[Taken]], lam: float) -> tuple[list[float], list[float]]:
    """Advantages and returns of one environment after the other, one episode at a time."""
    advantages: list[float] = []
    returns: list[float] = []
    for number, steps in enumerate(streams):
        waiting = trainer.player.observations[number]
        start = 0
        for t, step in enumerate(steps):
            if not (step.last or t == len(steps) - 1):
                continue
            # A step that failed did not happen: the episode ended in the state that it was to be taken in.
            stop = t if step.failed else t + 1
            after = step.before if step.failed else step.final if step.last else waiting
            beyond = 0.0 if step.terminated else value_of(trainer, after)
            rewards = [each.reward for each in steps[start:stop]]
            values = [value_of(trainer, each.before) for each in steps[start:stop]]
            found = slow.gae(rewards, values, beyond, GAMMA, lam) if rewards else []
            nothing = [0.0] if step.failed else []
            advantages += found + nothing
            returns += [a + v for a, v in zip(found, values, strict=True)] + nothing
            start = t + 1
    return advantages, returns


def flat(tensor: Tensor) -> list[float]:
    return tensor.flatten().tolist()


@pytest.mark.parametrize(
    ("estimator", "lam"), [("gae", LAMBDA), ("td", 0.0), ("monte_carlo", 1.0)], ids=["gae", "td", "mc"]
)
def test_targets_are_those_of_a_slow_loop_over_whole_episodes(estimator: str, lam: float, tmp_path: Path):
    # One environment ends by termination and by truncation, the other one fails in an episode and breaks off.
    env = Makes({"length": 4}, {"length": 3, "on_step": failing(in_reset=6)})
    settings = LONG | {"advantage_estimator": estimator, "whiten_advantages": False}
    trainer, streams = warmed_up(tmp_path, env=env, **settings)
    rollout = trainer.collect(0)
    kinds = [(step.terminated, step.last, step.failed) for steps in streams for step in steps]
    terminated, truncated, broken, on = (
        (True, True, False),
        (False, True, False),
        (False, True, True),
        (False,) * 3,
    )
    assert {terminated, truncated, broken, on} == set(kinds)
    assert kinds[13] == kinds[27] == on, "both windows end within an episode"
    advantages, returns = slow_targets(trainer, streams, lam)
    assert flat(rollout.advantages) == pytest.approx(advantages, abs=1e-5)
    assert flat(rollout.returns) == pytest.approx(returns, abs=1e-5)
    assert flat(rollout.train_mask) == [not kind[2] for kind in kinds]
    assert rollout.actions.tolist() == [step.action for steps in streams for step in steps]


def test_a_rollout_may_begin_in_the_middle_of_an_episode(tmp_path: Path):
    trainer, streams = warmed_up(tmp_path, env=Makes(length=4), whiten_advantages=False, **LONG)
    first = trainer.collect(0)
    for steps in streams:
        steps.clear()
    second = trainer.collect(1)
    advantages, returns = slow_targets(trainer, streams, LAMBDA)
    assert flat(second.advantages) == pytest.approx(advantages, abs=1e-5)
    assert flat(second.returns) == pytest.approx(returns, abs=1e-5)
    assert flat(first.advantages) != flat(second.advantages)


def test_whitened_advantages_have_mean_0_and_variance_1_over_steps_that_happened(tmp_path: Path):
    env = Makes({}, {"on_step": failing(in_reset=5)})
    settings = LONG | {"whiten_advantages": True}
    trainer, streams = warmed_up(tmp_path, env=env, **settings)
    rollout = trainer.collect(0)
    raw, _ = slow_targets(trainer, streams, LAMBDA)
    happened = rollout.train_mask.flatten()
    assert int((~happened).sum()) == 1
    chosen = torch.tensor(raw)[happened]
    expected = (chosen - chosen.mean()) / chosen.std()
    torch.testing.assert_close(rollout.advantages.flatten()[happened], expected, atol=1e-4, rtol=0)
    assert float(rollout.advantages.flatten()[~happened]) == 0


def test_log_probs_are_those_of_the_policy_that_acted_over_legal_actions(tmp_path: Path):
    env = Makes(masked=True)
    trainer, streams = warmed_up(tmp_path, env=env, **LONG)
    rollout = trainer.collect(0)
    trainer.agent.eval()
    steps = [step for steps in streams for step in steps]
    with torch.no_grad():
        logits = trainer.agent([step.before for step in steps]).logits  # as if everything were legal
    for number, step in enumerate(steps):
        allowed = step.before.legal.nonzero().flatten().tolist()
        total = sum(float(logits[number, a].double().exp()) for a in allowed)
        expected = float(logits[number, step.action]) - torch.tensor(total).log()
        assert float(rollout.old_logps[number]) == pytest.approx(float(expected), abs=1e-5)
        assert rollout.legal[number].tolist() == step.before.legal.tolist()
    played = [taken for counter in env.made for taken in counter.taken]
    assert all(legal_at(count)[action] for count, action in played)
    assert len(set(played)) == 6, "every legal action of each of three steps was tried"


def test_actions_are_drawn_from_the_policy(tmp_path: Path):
    trainer, _ = warmed_up(
        tmp_path, per_device_train_batch_size=500, num_mini_batches=1, num_envs=2, total_timesteps=500
    )
    with torch.no_grad():
        stream = trainer.agent.policy_head.logits
        stream.output.weight.zero_()
        stream.output.bias.copy_(torch.tensor([0.5, 0.3, 0.2]).log())
    rollout = trainer.collect(0)
    shares = torch.bincount(rollout.actions, minlength=NUM_ACTIONS) / 500
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.3, 0.2]), atol=0.09, rtol=0)  # 4 deviations
    expected = torch.tensor([0.5, 0.3, 0.2]).log()[rollout.actions]
    torch.testing.assert_close(rollout.old_logps[:, 0], expected)


def scored(trainer: Any, batch: Steps) -> tuple[Tensor, Tensor, Tensor]:
    """(N,) log-probs, values and entropies, by `torch.distributions`."""
    decisions = trainer.agent(batch.states.restored("cpu"), batch.legal)
    policy = torch.distributions.Categorical(logits=decisions.logits)
    return policy.log_prob(batch.actions), decisions.values, policy.entropy()


def first_batch(trainer: Any) -> dict[str, Any]:
    """The first micro-batch of a rollout, of which the policy has moved on meanwhile."""
    inputs = trainer._prepare_inputs({"micro_batch": 0})
    perturb(trainer.agent, 0.1)
    trainer.agent.eval()
    return inputs


def test_the_loss_of_ppo_is_its_equation(tmp_path: Path):
    settings = LONG | {"cliprange": 0.1, "cliprange_value": 0.15, "entropy_coef": 0.03, "vf_coef": 0.7}
    trainer, _ = warmed_up(tmp_path, env=Makes({}, {"on_step": failing(in_reset=5)}), **settings)
    inputs = first_batch(trainer)
    batch: Steps = inputs["batch"]
    logps, values, entropies = (tensor.detach() for tensor in scored(trainer, batch))
    total, count = 0.0, 0
    clipped = [0, 0]
    for n in range(len(batch.rows)):
        if not batch.train_mask[n]:
            continue
        count += 1
        advantage, old_value, target = (float(x[n]) for x in (batch.advantages, batch.values, batch.returns))
        ratio = float((logps[n] - batch.old_logps[n, 0]).exp())
        near = min(max(ratio, 0.9), 1.1)
        total -= min(ratio * advantage, near * advantage)
        held = min(max(float(values[n]), old_value - 0.15), old_value + 0.15)
        errors = (float(values[n]) - target) ** 2, (held - target) ** 2
        total += 0.7 * 0.5 * max(errors) - 0.03 * float(entropies[n])
        clipped[0] += near * advantage < ratio * advantage
        clipped[1] += errors[1] > errors[0]
    loss = trainer.compute_loss(trainer.agent, inputs)
    assert float(loss.detach()) == pytest.approx(total / count, rel=1e-4)
    assert min(clipped) > 0, "both clips bite"
    logged = trainer.metric_log.flush()
    assert logged["clip_fraction"] == pytest.approx(clipped[0] / count)
    assert logged["value_clip_fraction"] == pytest.approx(clipped[1] / count)
    assert logged["entropy"] == pytest.approx(float(entropies[batch.train_mask[:, 0]].mean()), rel=1e-4)


def test_the_loss_of_a2c_is_its_equation(tmp_path: Path):
    trainer, _ = warmed_up(tmp_path, A2C, env=Makes(masked=True), vf_coef=0.7, **LONG)
    inputs = first_batch(trainer)
    batch: Steps = inputs["batch"]
    logps, values, _ = scored(trainer, batch)
    policy = -(logps * batch.advantages[:, 0]).mean()
    critic = (batch.returns[:, 0] - values).square().mean()
    loss = trainer.compute_loss(trainer.agent, inputs)
    torch.testing.assert_close(loss, policy + 0.7 * critic)
    logged = trainer.metric_log.flush()
    assert logged["policy_loss"] == pytest.approx(float(policy.detach()), abs=1e-5)
    assert logged["value_loss"] == pytest.approx(float(critic.detach()), rel=1e-4)


@pytest.mark.parametrize("lora", [False, True])
def test_a_rollout_starts_from_the_policy_that_played_it(lora: bool, tmp_path: Path):
    trainer = make_agent_trainer(tmp_path, *PPO, lora=lora, num_mini_batches=1, total_timesteps=16)
    trainer.train()
    for number, logged in enumerate(step_rows(trainer)):
        if number % 2 == 0:
            assert logged["approx_kl"] < 1e-9
            assert logged["clip_fraction"] == 0
        else:
            assert logged["approx_kl"] > 1e-7


def test_every_pass_takes_each_step_once(tmp_path: Path):
    trainer = make_agent_trainer(tmp_path, *PPO, gradient_accumulation_steps=2, per_device_train_batch_size=4)
    seen: list[list[int]] = []
    compute = trainer.compute_policy_loss

    def watch(scores: Any, batch: Steps, num_tokens: Tensor) -> Tensor:
        assert int(num_tokens) == 8, "of the whole optimizer step"
        seen.append(batch.rows)
        return compute(scores, batch, num_tokens)

    trainer.compute_policy_loss = watch
    trainer.train()
    assert len(seen) == 3 * 8
    for start in range(0, 24, 4):
        assert sorted(row for rows in seen[start : start + 4] for row in rows) == list(range(16))
    assert seen[:4] != seen[4:8]


def test_accumulated_micro_batches_equal_one_batch(tmp_path: Path):
    whole = make_agent_trainer(tmp_path / "whole", *PPO)
    parts = make_agent_trainer(
        tmp_path / "parts", *PPO, per_device_train_batch_size=2, gradient_accumulation_steps=4
    )
    whole.train()
    parts.train()
    weights = agent_weights(parts)
    for name, weight in agent_weights(whole).items():
        torch.testing.assert_close(weights[name], weight, rtol=0, atol=1e-5, msg=name)
    for mine, expected in zip(step_rows(parts), step_rows(whole), strict=True):
        assert mine == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", [PPO, A2C], ids=["ppo", "a2c"])
def test_a_frozen_backbone_stays_and_everything_above_it_moves(kind: Any, tmp_path: Path):
    trainer = make_agent_trainer(tmp_path, *kind, fusion="linear", num_ppo_epochs=2)
    before = agent_weights(trainer)
    trainer.train()
    changed = moved(before, agent_weights(trainer))
    above = {name for name in before if not name.startswith("backbone.")}
    assert changed == above
    assert {"fusion", "policy_head", "value_head", "transforms"} == {name.split(".")[0] for name in above}


@pytest.mark.parametrize(
    ("settings", "trains"),
    [
        ({"lora": True, "l2_pretrained_coef": 0.1, "l2_adapter_coef": 0.01}, "lora_"),
        ({"trainable": ["projector"], "l2_pretrained_coef": {"projector": 0.1}}, "multi_modal_projector"),
    ],
    ids=["lora", "full weights"],
)
@pytest.mark.parametrize("kind", [PPO, A2C], ids=["ppo", "a2c"])
def test_gradients_reach_a_backbone_that_trains_and_l2_holds_it(
    kind: Any, settings: dict[str, Any], trains: str, tmp_path: Path
):
    trainer = make_agent_trainer(tmp_path, *kind, total_timesteps=32, **settings)
    before = agent_weights(trainer)
    held: list[dict[str, Tensor]] = []
    compute = trainer.compute_policy_loss

    def watch(*args: Any) -> Tensor:
        held.append(agent_weights(trainer))
        return compute(*args)

    trainer.compute_policy_loss = watch
    trainer.train()
    changed = {name for name in moved(before, agent_weights(trainer)) if name.startswith("backbone.")}
    assert changed == {name for name in before if name.startswith("backbone.") and trains in name}
    rows = step_rows(trainer)
    assert rows[0]["regularization/distance"] == pytest.approx(0, abs=1e-6)
    assert rows[-1]["regularization/distance"] > 1e-3
    if "lora" not in settings:
        squares = sum(float((held[-1][name] - before[name]).square().sum()) for name in changed)
        assert rows[-1]["regularization/l2_pretrained"] == pytest.approx(0.1 * squares, rel=1e-3)


def test_pictures_are_kept_where_the_backbone_trains(tmp_path: Path):
    frozen, _ = warmed_up(tmp_path / "frozen", **LONG)
    assert sorted(frozen.collect(0).states.tensors) == ["fused", "fused_mask"]
    trained, streams = warmed_up(tmp_path / "trained", lora=True, **LONG)
    rollout = trained.collect(0)
    assert sorted(rollout.states.tensors) == ["picture_0", "words"]
    assert rollout.states.tensors["picture_0"].dtype == torch.uint8
    restored = rollout.states.restored("cpu")
    seen = [step.before for steps in streams for step in steps]
    assert [each.key for each in restored] == [each.key for each in seen]


def test_what_is_kept_of_an_unfinished_rollout_is_all_of_it(tmp_path: Path):
    trainer, _ = warmed_up(tmp_path, env=Makes(masked=True), lora=True, **LONG)
    rollout = trainer.collect(3)
    part = rollout.take([5, 2, 17])
    part.save(tmp_path / "rollout.safetensors", {"seed": 1})
    again = load_steps(tmp_path / "rollout.safetensors", torch.device("cpu"))
    assert (again.number, again.rows) == (3, [5, 2, 17])
    for name in ("actions", "legal", "train_mask", "old_logps", "values", "advantages", "returns"):
        assert torch.equal(getattr(again, name), getattr(rollout, name)[[5, 2, 17]]), name
    keys = [each.key for each in rollout.states.restored("cpu")]
    assert [each.key for each in again.states.restored("cpu")] == [keys[row] for row in (5, 2, 17)]


def test_frozen_features_are_computed_once_without_a_cache_too(tmp_path: Path):
    trainer, _ = warmed_up(tmp_path, feature_cache_mb=0, env=Makes(ending="terminated"), **LONG)
    asked = trainer.agent.encoder.num_asked
    trainer.collect(0)
    assert trainer.agent.encoder.num_asked - asked == 28 + 2, "28 steps, and the states that wait at the end"


def test_statistics_are_taken_once_over_the_warm_up(tmp_path: Path):
    trainer = make_agent_trainer(tmp_path, *PPO, warm_up_steps=9)
    streams = recorded(trainer)
    trainer.collect(0)
    seen = [step.before for steps in streams for step in steps[:5]]
    features = trainer.agent.encoder.encode(seen).embeddings["fused"][:, 0]
    scaler = trainer.agent.transforms.scalers["fused"]
    assert int(scaler.num_seen) == 10, "nine steps are five rounds of two environments"
    torch.testing.assert_close(scaler.mean.float(), features.mean(0))
    before = {name: buffer.clone() for name, buffer in trainer.agent.transforms.named_buffers()}
    trainer.train()
    assert moved(before, dict(trainer.agent.transforms.named_buffers())) == set()


def test_random_episodes_are_no_result(tmp_path: Path):
    trainer = make_agent_trainer(tmp_path, *PPO, env=Makes(length=2), warm_up_steps=12)
    trainer.begin()
    with torch.no_grad():
        trainer._warm_up()
    assert trainer.player.pool.finished() == []


def test_a_run_whose_passes_are_cut_short_plays_no_more_than_its_steps(tmp_path: Path):
    # 48 steps are 3 rollouts of 16; each ends after its first pass or earlier.
    trainer = make_agent_trainer(tmp_path, *PPO, early_stop_kl=1e-6, learning_rate=0.1, num_ppo_epochs=4)
    trainer.train()
    assert trainer.clock.rollout == 3
    assert trainer.player.num_played == 8 + 48
    assert trainer.state.global_step < trainer.args.max_steps == 3 * 8


def test_critic_and_heads_have_rates_of_their_own(tmp_path: Path):
    rates = {"learning_rate": 1e-3, "head_learning_rate": 1e-2, "critic_learning_rate": 3e-2}
    trainer = make_agent_trainer(tmp_path, *PPO, lora=True, fusion="linear", **rates)
    names = {id(weight): name.split(".")[0] for name, weight in trainer.agent.named_parameters()}
    groups = trainer.create_optimizer().param_groups
    found = {(names[id(weight)], group["lr"]) for group in groups for weight in group["params"]}
    assert found == {("backbone", 1e-3), ("fusion", 1e-2), ("policy_head", 1e-2), ("value_head", 3e-2)}


def test_one_environment_makes_a_rollout_too(tmp_path: Path):
    trainer = make_agent_trainer(tmp_path, *A2C, env=Counter, num_envs=1, total_timesteps=16)
    trainer.train()
    assert trainer.experience.rows == list(range(16))
    assert step_rows(trainer)[0]["episode_length"] == 3
