"""The settings: their names, their defaults, their errors, and that code honours each."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

import mmft.trainers
from mmft.errors import ConfigError
from mmft.trainers.a2c import A2CConfig
from mmft.trainers.config import OnlineConfig
from mmft.trainers.ppo import PPOConfig


def own_fields(config: type) -> dict[str, Any]:
    """Default by name, of the fields that transformers does not have."""
    inherited = {field.name for field in dataclasses.fields(TrainingArguments)}
    return {field.name: field.default for field in dataclasses.fields(config) if field.name not in inherited}


SOURCES = Path(mmft.trainers.__file__).parent
TRL_PPO = {
    "num_ppo_epochs": 4, "num_mini_batches": 1, "kl_coef": 0.05, "kl_estimator": "k1", "cliprange": 0.2,
    "vf_coef": 0.1, "cliprange_value": 0.2, "gamma": 1.0, "lam": 0.95, "whiten_rewards": False,
    "missing_eos_penalty": None,
}  # fmt: skip
"""Names and defaults of TRL 1.12's PPOConfig."""
TRL_GRPO = {
    "num_generations", "max_completion_length", "temperature", "top_p", "top_k", "reward_weights",
    "scale_rewards",
}  # fmt: skip
OWN = {
    "reward_time_limit", "reward_on_error", "eval_temperature", "feature_cache_mb", "rollout_batch_size",
    "advantage_estimator", "whiten_advantages", "entropy_coef", "kl_target", "kl_horizon", "early_stop_kl",
    "critic_learning_rate", "l2_pretrained_coef", "l2_adapter_coef", "l2_pretrained_device",
    "importance_steps", "importance_method", "num_tracked_samples", "tracked_samples_steps",
}  # fmt: skip
ALGORITHMS = [PPOConfig, A2CConfig]
FIELDS = [(config, name) for config in ALGORITHMS for name in own_fields(config)]


def test_names_are_those_of_trl():
    assert set(own_fields(PPOConfig)) == TRL_PPO.keys() | TRL_GRPO | OWN


@pytest.mark.parametrize("name", TRL_PPO)
def test_defaults_are_those_of_trl(name: str):
    assert own_fields(PPOConfig)[name] == TRL_PPO[name]


@pytest.mark.parametrize("name", dict.fromkeys(name for _, name in FIELDS))
def test_every_field_is_read_by_the_code(name: str):
    code = "".join(
        # The definition of a field does not honour it.
        re.sub(rf"^    {name}: .*$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        for path in SOURCES.glob("*.py")
    )
    assert re.search(rf'(args|self)\.{name}\b|"{name}"', code), f"nothing honours `{name}`"


@pytest.mark.parametrize(("config", "name"), FIELDS)
def test_every_own_field_explains_itself(config: type, name: str):
    (field,) = (field for field in dataclasses.fields(config) if field.name == name)
    assert field.metadata["help"].endswith(".")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_generations": 0}, r"`num_generations` must be >= 1; got 0"),
        ({"max_completion_length": 0}, r"`max_completion_length` must be >= 1; got 0"),
        ({"temperature": -1.0}, r"`temperature` must be >= 0; got -1"),
        ({"temperature": 0.0}, r"`temperature` must be > 0 in training; got 0"),
        ({"top_p": 0.0}, r"`top_p` must be in \(0, 1\]; got 0"),
        ({"top_k": -1}, r"`top_k` must be >= 0; got -1"),
        ({"num_ppo_epochs": 0}, r"`num_ppo_epochs` must be >= 1; got 0"),
        ({"num_mini_batches": 0}, r"`num_mini_batches` must be >= 1; got 0"),
        (
            {"per_device_train_batch_size": 6, "num_generations": 4},
            r"`per_device_train_batch_size=6` .* must be a multiple of `num_generations=4`",
        ),
        (
            {"rollout_batch_size": 3, "num_generations": 4},
            r"`rollout_batch_size=3` must be at least `num_generations=4`",
        ),
        ({"feature_cache_mb": -1}, r"`feature_cache_mb` must be >= 0; got -1"),
    ],
)
def test_impossible_rollouts_are_refused(settings: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=message):
        OnlineConfig(output_dir=str(tmp_path), use_cpu=True, **settings)


IMPOSSIBLE = [
    ({"kl_coef": -0.1}, r"`kl_coef` must be >= 0 and finite; got -0.1"),
    ({"vf_coef": -1.0}, r"`vf_coef` must be >= 0 and finite; got -1"),
    ({"gamma": 1.1}, r"`gamma` must be between 0 and 1 and finite; got 1.1"),
    ({"lam": -0.1}, r"`lam` must be between 0 and 1 and finite; got -0.1"),
    ({"kl_estimator": "k2"}, r"`kl_estimator` must be 'k1' or 'k3'; got 'k2'"),
    ({"entropy_coef": -0.1}, r"`entropy_coef` must be >= 0 and finite; got -0.1"),
    ({"kl_coef": float("inf")}, r"`kl_coef` must be >= 0 and finite; got inf"),
    ({"entropy_coef": float("nan")}, r"`entropy_coef` must be >= 0 and finite; got nan"),
    ({"kl_target": 0.0}, r"`kl_target` must be > 0 and finite; got 0"),
    ({"kl_horizon": 0}, r"`kl_horizon` must be > 0 and finite; got 0"),
    ({"early_stop_kl": -1.0}, r"`early_stop_kl` must be > 0 and finite; got -1"),
    (
        {"early_stop_kl": 0.1, "num_ppo_epochs": 1, "num_mini_batches": 1},
        r"`early_stop_kl` is 0.1, but a rollout gets one optimizer step",
    ),
    ({"critic_learning_rate": 0.0}, r"`critic_learning_rate` must be > 0 and finite; got 0"),
    ({"kl_target": 3.0, "kl_coef": 0.0}, r"`kl_target` is 3.0, but `kl_coef` is 0, which no factor"),
    ({"advantage_estimator": "gea"}, r"`advantage_estimator` must be gae, td, .*; got 'gea'"),
    (
        {"advantage_estimator": "group", "num_generations": 1},
        r"set `num_generations` to at least 2 \(got 1\)",
    ),
    (
        {"advantage_estimator": "group", "critic_learning_rate": 1e-3},
        r"`critic_learning_rate` is 0.001, but `advantage_estimator: group` has no critic",
    ),
]
IMPOSSIBLE_IN_PPO = [
    ({"cliprange": -0.2}, r"`cliprange` must be >= 0; got -0.2"),
    ({"cliprange_value": -0.2}, r"`cliprange_value` must be >= 0; got -0.2"),
]


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [(config, *case) for config in ALGORITHMS for case in IMPOSSIBLE]
    + [(PPOConfig, *case) for case in IMPOSSIBLE_IN_PPO],
)
def test_impossible_objectives_are_refused(
    config: type, settings: dict[str, Any], message: str, tmp_path: Path
):
    with pytest.raises(ConfigError, match=message):
        config(output_dir=str(tmp_path), use_cpu=True, **settings)


def test_the_limits_themselves_are_allowed(tmp_path: Path):
    PPOConfig(
        output_dir=str(tmp_path), use_cpu=True, kl_coef=0, gamma=0, lam=1, cliprange=0, feature_cache_mb=0,
        cliprange_value=float("inf"),
    )  # fmt: skip
