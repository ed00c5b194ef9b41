"""The settings of trainers in environments: what follows from them, what is refused, what reads each."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

import mmft.trainers
from mmft.errors import ConfigError
from mmft.exploration.schedules import Schedule
from mmft.trainers.a2c import AgentA2CConfig
from mmft.trainers.agent_config import AgentConfig
from mmft.trainers.dqn import DQNConfig
from mmft.trainers.ppo import AgentPPOConfig

CONFIGS = [DQNConfig, AgentPPOConfig, AgentA2CConfig]
SOURCES = Path(mmft.trainers.__file__).parent
SB3_DQN = {
    "learning_starts", "tau", "gamma", "train_freq", "target_update_interval", "exploration_fraction",
    "exploration_initial_eps", "exploration_final_eps", "max_grad_norm", "n_steps", "buffer_size",
    "learning_rate",
}  # fmt: skip
"""Names of stable-baselines3 2.8's DQN."""
BY_NAME = {"image_keys", "text_keys", "number_keys", "instruction"}
"""Fields that are read together with others of their kind, by name."""
BY_NAME |= {f"exploration_{end}_{what}" for end in ("initial", "final") for what in ("eps", "temperature")}


def make(config: type[AgentConfig], **settings: Any) -> Any:
    return config(output_dir="unused", use_cpu=True, **settings)


def own_fields(config: type) -> list[dataclasses.Field[Any]]:
    """The fields that transformers does not have."""
    inherited = {field.name for field in dataclasses.fields(TrainingArguments)}
    return [field for field in dataclasses.fields(config) if field.name not in inherited]


FIELDS = sorted({field.name for config in CONFIGS for field in own_fields(config)})


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_is_read_by_the_code(name: str):
    code = "".join(path.read_text(encoding="utf-8") for path in SOURCES.glob("*.py"))
    read = rf'"{name}"' if name in BY_NAME else rf'(args|self|config)\.{name}\b|"{name}", None\)'
    assert re.search(read, code), f"nothing honours `{name}`"


@pytest.mark.parametrize("config", CONFIGS)
def test_every_own_field_explains_itself(config: type):
    silent = [field.name for field in own_fields(config) if not field.metadata["help"].endswith(".")]
    assert silent == []


def test_names_are_those_of_stable_baselines():
    assert {field.name for field in dataclasses.fields(DQNConfig)} >= SB3_DQN


@pytest.mark.parametrize("config", CONFIGS)
def test_settings_may_be_built_from_themselves(config: type[AgentConfig]):
    first = make(config, total_timesteps=20_000)
    assert dataclasses.replace(first).max_steps == first.max_steps == first.num_optimizer_steps


def test_optimizer_steps_follow_from_steps_in_environments():
    # (1000 - 100) / 4 = 225, (1000 - 101) / 2.5 = 359.6, of which 359 are whole.
    assert make(DQNConfig, total_timesteps=1000, learning_starts=100).max_steps == 225
    assert make(DQNConfig, total_timesteps=1000, learning_starts=101, train_freq=2.5).max_steps == 359
    # Rollouts of 4 x 2 x 3 = 24 steps: 1000 steps are 41 of them, with 5 passes of 3 optimizer steps each.
    rollout = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_mini_batches": 3}
    config = make(AgentPPOConfig, total_timesteps=1000, num_ppo_epochs=5, **rollout)
    assert (config.steps_per_rollout, config.num_rollouts, config.max_steps) == (24, 41, 41 * 15)


def test_defaults_of_the_algorithms_are_their_own():
    ppo, a2c = make(AgentPPOConfig), make(AgentA2CConfig)
    assert (ppo.num_ppo_epochs, ppo.num_mini_batches, ppo.whiten_advantages, ppo.gamma) == (4, 4, True, 0.99)
    assert (a2c.num_ppo_epochs, a2c.num_mini_batches, a2c.whiten_advantages, a2c.gamma) == (1, 1, False, 0.99)


def test_the_schedule_is_that_of_the_exploration():
    settings = {"total_timesteps": 1000, "learning_starts": 100, "exploration_fraction": 0.25}
    greedy = make(DQNConfig, exploration_initial_eps=0.9, exploration_final_eps=0.2, **settings)
    assert greedy.schedule() == Schedule("linear", 0.9, 0.2, 250)
    temperatures = {"exploration_initial_temperature": 3.0, "exploration_final_temperature": 0.5}
    warm = make(
        DQNConfig,
        exploration="boltzmann",
        exploration_schedule="exponential",
        **temperatures,
        **settings,
    )
    assert warm.schedule() == Schedule("exponential", 3.0, 0.5, 250)


@pytest.mark.parametrize(
    ("fusion", "given", "pooled"),
    [("vlm", None, True), ("linear", None, True), ("cross_modal", None, False), ("cross_modal", True, True),
     ("linear", False, False)],
)  # fmt: skip
def test_sequences_are_kept_where_the_fusion_attends(fusion: str, given: bool | None, pooled: bool):
    assert make(DQNConfig, fusion=fusion, pool_embeddings=given).pooled == pooled


EVERYWHERE = [
    ({"fusion": "vml"}, r"`fusion` names 'vml', which is not one of .*Did you mean 'vlm'\?"),
    ({"feature_scaling": "standart"}, r"`feature_scaling` names 'standart'.*Did you mean 'standard'\?"),
    ({"total_timesteps": 0}, r"`total_timesteps` must be >= 1 and finite; got 0"),
    ({"num_envs": 0}, r"`num_envs` must be >= 1 and finite; got 0"),
    ({"per_device_train_batch_size": 0}, r"`per_device_train_batch_size` must be >= 1 and finite; got 0"),
    ({"encode_batch_size": 0}, r"`encode_batch_size` must be >= 1 and finite; got 0"),
    ({"eval_episodes": 0}, r"`eval_episodes` must be >= 1 and finite; got 0"),
    ({"max_env_restarts": -1}, r"`max_env_restarts` must be >= 0 and finite; got -1"),
    ({"feature_cache_mb": -1}, r"`feature_cache_mb` must be >= 0 and finite; got -1"),
    ({"env_time_limit": 0.0}, r"`env_time_limit` must be > 0 and finite; got 0"),
    ({"head_learning_rate": 0.0}, r"`head_learning_rate` must be > 0 and finite; got 0"),
    ({"gamma": 1.1}, r"`gamma` must be between 0 and 1 and finite; got 1.1"),
    (
        {"fusion_heads": 2},
        r"`fusion_heads` is 2, but `fusion: vlm` has no attention\. Leave it out, or choose",
    ),
    ({"fusion_size": 8}, r"`fusion_size` is 8, but `fusion: vlm` is the model's own hidden state\. Leave it"),
    (
        {"max_steps": 7},
        r"`max_steps` is 7, but \d+ optimizer steps follow from `total_timesteps` 100000\. Lea",
    ),
    ({"total_timesteps": 10}, r"`total_timesteps` is 10, too few for one optimizer step\. Raise it\."),
]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(("settings", "told"), EVERYWHERE, ids=[next(iter(s)) for s, _ in EVERYWHERE])
def test_settings_out_of_range_are_refused(config: type[AgentConfig], settings: dict[str, Any], told: str):
    with pytest.raises(ConfigError, match=told):
        make(config, **settings)


OF_DQN = [
    ({"learning_starts": 0}, r"`learning_starts` must be >= 1 and finite; got 0"),
    ({"target_update_interval": 0}, r"`target_update_interval` must be >= 1 and finite; got 0"),
    ({"n_steps": 0}, r"`n_steps` must be >= 1 and finite; got 0"),
    ({"train_freq": 0.0}, r"`train_freq` must be > 0 and finite; got 0"),
    ({"tau": 0.0}, r"`tau` must be > 0 and finite; got 0"),
    ({"tau": 1.5}, r"`tau` must be between 0 and 1 and finite; got 1.5"),
    ({"huber_delta": 0.0}, r"`huber_delta` must be > 0 and finite; got 0"),
    ({"exploration": "boltzman"}, r"`exploration` names 'boltzman'.*Did you mean 'boltzmann'\?"),
    ({"exploration_schedule": "lineal"}, r"must be one of constant, linear.*Did you mean 'linear'\?"),
    ({"exploration_initial_eps": 1.5}, r"`exploration_initial_eps` must be between 0 and 1 and finite; got"),
    ({"exploration_final_eps": -0.1}, r"`exploration_final_eps` must be between 0 and 1 and finite; got -0"),
    ({"exploration_fraction": 2.0}, r"`exploration_fraction` must be between 0 and 1 and finite; got 2"),
    ({"exploration_initial_temperature": 0.0}, r"`exploration_initial_temperature` must be > 0 and finite"),
    ({"exploration_final_temperature": 0.0}, r"`exploration_final_temperature` must be > 0 and finite; got"),
    ({"exploration": "thompson"}, r"`exploration: thompson` draws networks by dropout, and `dropout` is 0\."),
    (
        {"learning_starts": 8},
        r"`learning_starts` is 8, so that the first update comes before any of `num_envs=8` environments has",
    ),
    (
        {"buffer_size": 999},
        r"`buffer_size` is 999; it must hold the 1000 steps of `learning_starts`, and 3 of each of `num_envs",
    ),
    ({"buffer_size": 20, "learning_starts": 9}, r"`buffer_size` is 20; it must hold the 9 steps"),
]


@pytest.mark.parametrize(("settings", "told"), OF_DQN)
def test_settings_of_dqn_out_of_range_are_refused(settings: dict[str, Any], told: str):
    with pytest.raises(ConfigError, match=told):
        make(DQNConfig, **settings)


OF_ROLLOUTS = [
    ({"num_ppo_epochs": 0}, r"`num_ppo_epochs` must be >= 1 and finite; got 0"),
    ({"num_mini_batches": 0}, r"`num_mini_batches` must be >= 1 and finite; got 0"),
    ({"gradient_accumulation_steps": 0}, r"`gradient_accumulation_steps` must be >= 1"),
    ({"warm_up_steps": 0}, r"`warm_up_steps` must be >= 1 and finite; got 0"),
    (
        {"num_envs": 3, "per_device_train_batch_size": 16, "num_mini_batches": 2},
        r"a rollout has 32 steps .*, which `num_envs=3` environments cannot share evenly\. Make it a",
    ),
    ({"vf_coef": -1.0}, r"`vf_coef` must be >= 0 and finite; got -1"),
    ({"entropy_coef": -1.0}, r"`entropy_coef` must be >= 0 and finite; got -1"),
    ({"lam": 1.5}, r"`lam` must be between 0 and 1 and finite; got 1.5"),
    ({"early_stop_kl": 0.0}, r"`early_stop_kl` must be > 0 and finite; got 0"),
    ({"critic_learning_rate": 0.0}, r"`critic_learning_rate` must be > 0 and finite; got 0"),
    (
        {"early_stop_kl": 0.1, "num_ppo_epochs": 1, "num_mini_batches": 1},
        r"`early_stop_kl` is 0.1, but a rollout gets one optimizer step .* Leave it out\.",
    ),
    ({"advantage_estimator": "group"}, r"`advantage_estimator` must be gae, td, monte_carlo; got 'group'\."),
]


@pytest.mark.parametrize("config", [AgentPPOConfig, AgentA2CConfig])
@pytest.mark.parametrize(("settings", "told"), OF_ROLLOUTS)
def test_settings_of_rollouts_out_of_range_are_refused(
    config: type[AgentConfig], settings: dict[str, Any], told: str
):
    with pytest.raises(ConfigError, match=told):
        make(config, **settings)


@pytest.mark.parametrize("name", ["cliprange", "cliprange_value"])
def test_clip_ranges_of_ppo_are_not_negative(name: str):
    with pytest.raises(ConfigError, match=rf"`{name}` must be >= 0; got -0.1"):
        make(AgentPPOConfig, **{name: -0.1})
    assert make(AgentPPOConfig, **{name: float("inf")}).max_steps > 0
