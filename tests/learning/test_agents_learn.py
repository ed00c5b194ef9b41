"""Trainers in environments find answers that are known: Q*, mean rewards, best policies, a way to read."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch

from mmft.trainers.a2c import AgentA2CConfig, AgentA2CTrainer
from mmft.trainers.dqn import DQNConfig, DQNTrainer
from mmft.trainers.ppo import AgentPPOConfig, AgentPPOTrainer
from tests.learning.agent_tasks import (
    ARMS,
    GAMMA,
    HIGH,
    LEFT,
    LENGTH,
    LOW,
    RIGHT,
    Arms,
    Chain,
    learned_scores,
    learned_values,
    make_agent,
    optimal_values,
)

pytestmark = pytest.mark.learning

TRUNCATED: dict[str, Any] = {"endless": True, "limit": 3}
TERMINATED = TRUNCATED | {"limit_terminates": True}
"""The same episodes; they differ in what is said of their end."""

TOLERANCE = 0.05
"""Of a learned value; those of neighbouring states of the chain lie 0.07 and more apart."""
DQN: dict[str, Any] = {
    "num_envs": 8,
    "per_device_train_batch_size": 64,
    "learning_starts": 300,
    "train_freq": 2,
    "target_update_interval": 10,
    "exploration_final_eps": 0.3,
    "lr_scheduler_type": "linear",
    "total_timesteps": 1200,
}
FORGETFUL: dict[str, Any] = {"buffer_size": 120, "learning_starts": 16}
"""The random steps of the beginning are soon forgotten, so that exploration has to go on."""
BOLTZMANN: dict[str, Any] = {
    "exploration": "boltzmann",
    "exploration_initial_temperature": 0.3,
    "exploration_final_temperature": 0.3,
}
THOMPSON: dict[str, Any] = {"exploration": "thompson", "dropout": 0.03}
LONGER: dict[str, Any] = {
    "total_timesteps": 2300,
    "learning_rate": 1e-2,
    "tau": 0.2,
    "target_update_interval": 2,
}
"""Fifteen states in place of five; and in an endless chain nothing but gamma ends the sums."""
GREEDY: dict[str, Any] = {"exploring_starts": True}
N_STEPS: dict[str, Any] = {"n_steps": 3, "exploration_final_eps": 0.0, "buffer_size": 300}
"""The rewards after the first are those of the policy that acted, which therefore has to be the best one."""


CHAINS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "single": ({}, {"double_q": False}),
    "double": ({}, FORGETFUL),
    "dueling": ({}, {"dueling": True}),
    "Huber": ({}, {"huber_delta": 0.2}),
    "Boltzmann": ({}, FORGETFUL | BOLTZMANN),
    "Thompson": ({}, THOMPSON),
    "masked": ({"barrier": 1}, {}),
    "n steps": (GREEDY, N_STEPS),
    "terminated": (TERMINATED, LONGER),
    "truncated": (TRUNCATED, LONGER),
    "truncated, n steps": (TRUNCATED | GREEDY, LONGER | N_STEPS | {"buffer_size": 400}),
}
"""Rules of the chain, and settings of the learner."""


def test_the_known_values_are_known():
    """Right everywhere: Q(s, right) = gamma^(4 - s), and a step to the left costs gamma^2."""
    known = optimal_values(Chain())
    rightmost = torch.tensor([HIGH * GAMMA ** (LENGTH - 1 - place) for place in range(LENGTH)])
    torch.testing.assert_close(known[:, RIGHT], rightmost)
    torch.testing.assert_close(known[1:, LEFT], GAMMA**2 * rightmost[1:])
    assert float(known[0, LEFT]) == pytest.approx(LOW)
    # From the middle right, right, right, and in the middle again: V = gamma^2 * 1 + gamma^3 * V.
    middle = optimal_values(Chain(**TRUNCATED))[6:9].amax(1)
    torch.testing.assert_close(middle, torch.full((3,), GAMMA**2 / (1 - GAMMA**3)))
    # With one step left, only that step.
    final = optimal_values(Chain(**TERMINATED))[0::3]
    torch.testing.assert_close(final[:, RIGHT], torch.tensor([0.0, 0.0, 0.0, 0.0, HIGH]))


@pytest.mark.parametrize("name", CHAINS)
def test_q_learning_finds_the_value_of_every_action(name: str, tmp_path: Path):
    rules, settings = CHAINS[name]
    make = functools.partial(Chain, **rules)
    trainer = make_agent(DQNTrainer, DQNConfig, make, tmp_path, **(DQN | settings))
    trainer.train()
    found, known = learned_scores(trainer, make()), optimal_values(make())
    legal = ~known.isnan()
    torch.testing.assert_close(found[legal], known[legal], rtol=0, atol=TOLERANCE)


def test_q_learning_finds_the_mean_rewards_of_pictures(tmp_path: Path):
    # 200 draws of each arm at each picture, of standard deviation 0.25: means within 0.018.
    settings = DQN | {"exploration_final_eps": 1.0, "total_timesteps": 1800, "train_freq": 3}
    trainer = make_agent(DQNTrainer, DQNConfig, Arms, tmp_path, **settings)
    trainer.train()
    torch.testing.assert_close(learned_scores(trainer, Arms()), ARMS, rtol=0, atol=2 * TOLERANCE)


PPO: dict[str, Any] = {"num_mini_batches": 2, "num_ppo_epochs": 4, "total_timesteps": 2048}
A2C: dict[str, Any] = {"total_timesteps": 5760, "learning_rate": 6e-3}
POLICIES: dict[str, Any] = {
    "ppo": functools.partial(make_agent, AgentPPOTrainer, AgentPPOConfig, **PPO),
    "a2c": functools.partial(make_agent, AgentA2CTrainer, AgentA2CConfig, **A2C),
}
ROLLOUTS: dict[str, Any] = {"num_envs": 16, "per_device_train_batch_size": 64, "warm_up_steps": 64}
CLEAR = 0.1
"""By how much an action has to be worth more before a policy is asked to be sure of it."""


@pytest.mark.parametrize("rules", [{}, {"barrier": 1}], ids=["chain", "masked"])
@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_becomes_sure_of_the_best_action(name: str, rules: dict[str, Any], tmp_path: Path):
    make = functools.partial(Chain, **rules)
    trainer = POLICIES[name](make, tmp_path, **ROLLOUTS)
    trainer.train()
    probs, known = learned_scores(trainer, make()), optimal_values(make())
    assert bool((probs[known.isnan()] == 0).all())
    best = known.nan_to_num(-torch.inf)
    clear = best.amax(1) - best.amin(1) > CLEAR
    assert float(probs.gather(1, best.argmax(1, keepdim=True))[clear].min()) >= 0.95


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_becomes_sure_of_the_best_arm(name: str, tmp_path: Path):
    trainer = POLICIES[name](Arms, tmp_path, **ROLLOUTS)
    trainer.train()
    probs = learned_scores(trainer, Arms())
    assert float(probs.gather(1, ARMS.argmax(1, keepdim=True)).min()) >= 0.95


@pytest.mark.parametrize("rules", [TERMINATED, TRUNCATED], ids=["terminated", "truncated"])
@pytest.mark.parametrize("name", POLICIES)
def test_a_critic_looks_beyond_truncation_alone(name: str, rules: dict[str, Any], tmp_path: Path):
    """On average over states the best policy earns 0.4 before the world ends, and 3.1 if it does not."""
    settings = ROLLOUTS | {"num_ppo_epochs": 4, "total_timesteps": 3840, "learning_rate": 3e-3}
    make = functools.partial(Chain, **rules)
    trainer = POLICIES[name](make, tmp_path, **settings)
    trainer.train()
    found, known = learned_values(trainer, make()).mean(), optimal_values(make()).amax(1).mean()
    assert abs(float(found - known)) < 0.6


def test_a_way_is_found_by_looking_and_reading(tmp_path: Path):
    """Lots decide which of two objects is meant, and where each of them lies.

    Without the mission, or without the picture, nothing tells them apart, and half of the episodes end well
    at best.
    """
    rules = {
        "size": 2,
        "wrong_reward": 0.0,
        "jitter": False,
        "colours": ["red"],
        "shapes": ["circle", "star"],
    }
    settings = {
        "num_envs": 16,
        "per_device_train_batch_size": 64,
        "hidden_sizes": [128, 128],
        "learning_starts": 600,
        "train_freq": 8,
        "target_update_interval": 50,
        "n_steps": 3,
        "total_timesteps": 4600,
        "lr_scheduler_type": "linear",
        "eval_episodes": 100,
    }
    trainer = make_agent(DQNTrainer, DQNConfig, "mmft/FindObject-v0", tmp_path, env_kwargs=rules, **settings)
    trainer.train()
    assert trainer.evaluate()["eval_success"] >= 0.95
    for blank in ("image", "text"):
        assert trainer.evaluate(blank=blank)["eval_success"] <= 0.6
