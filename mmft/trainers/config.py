"""Settings that every online trainer honours: how rollouts are drawn, scored and cached."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from mmft.engine.reward_calls import Isolation
from mmft.engine.sampling import SamplingParams
from mmft.errors import ConfigError
from mmft.trainers.importance_settings import ImportanceSettings
from mmft.trainers.regularization import RegularizationConfig


@dataclass
class OnlineConfig(ImportanceSettings, RegularizationConfig):
    """Fields of `transformers.TrainingArguments`, and those of a rollout.

    One rollout draws `per_device_train_batch_size * gradient_accumulation_steps * num_mini_batches`
    completions on each process and is trained on for `num_ppo_epochs` passes of `num_mini_batches` optimizer
    steps."""

    per_device_train_batch_size: int = field(
        default=8,
        metadata={"help": "Completions per device in one forward; a multiple of `num_generations`."},
    )
    learning_rate: float = field(default=1e-5, metadata={"help": "Initial learning rate of AdamW."})
    logging_steps: float = field(default=1, metadata={"help": "Optimizer steps between two log lines."})
    # None first: the argument parser of transformers takes the second member of a union for the type of its
    # strings.
    report_to: None | str | list[str] = field(  # noqa: RUF036
        default="none", metadata={"help": "Trackers of transformers (wandb, trackio, tensorboard, ...)."}
    )
    num_ppo_epochs: int = field(default=4, metadata={"help": "Passes over each rollout."})
    num_mini_batches: int = field(default=1, metadata={"help": "Optimizer steps per pass."})
    num_generations: int = field(default=8, metadata={"help": "G, completions per distinct prompt, >= 1."})
    max_completion_length: int = field(
        default=64, metadata={"help": "Tokens after which a completion is cut."}
    )
    temperature: float = field(default=1.0, metadata={"help": "Of the policy, in sampling and in scoring."})
    top_p: float = field(default=1.0, metadata={"help": "Nucleus of the sampler; 1 keeps every token."})
    top_k: int = field(default=0, metadata={"help": "Tokens the sampler keeps; 0 keeps all."})
    eval_temperature: float = field(
        default=0.0,
        metadata={"help": "Of held-out completions; 0 is greedy, `temperature` shows the policy."},
    )
    reward_weights: list[float] | None = field(
        default=None, metadata={"help": "One weight per reward function; all 1 if unset."}
    )
    reward_time_limit: float | None = field(
        default=None,
        metadata={"help": "Seconds one call of a reward may take; a reward's own `time_limit` goes first."},
    )
    reward_on_error: str = field(
        default="raise",
        metadata={
            "help": "`raise`: a failing reward stops the run; `mask`: its samples are left out and counted. "
            "A reward's own `on_error` goes first."
        },
    )
    feature_cache_mb: int = field(
        default=2048,
        metadata={"help": "Memory for encoded prompts while the vision path is frozen; 0 is off."},
    )
    rollout_batch_size: int | None = field(
        default=None,
        metadata={"help": "Completions decoded together per device; the whole rollout if unset."},
    )
    num_tracked_samples: int = field(
        default=4,
        metadata={
            "help": "Held-out rows whose pictures and completions go to TensorBoard, trackio or wandb at "
            "each evaluation, or rows of the last rollout where none are held out; 0 is off."
        },
    )
    tracked_samples_steps: int | None = field(
        default=None,
        metadata={
            "help": "Optimizer steps after which these rows are answered and judged anew; unset: 20 times a "
            "run, at most every tenth rollout; 0: at evaluations only."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.sampling_params()
        self.isolation()
        self.check_importance()
        check_range(self, "num_tracked_samples", low=0)
        check_range(self, "tracked_samples_steps", low=0)
        for name in ("num_ppo_epochs", "num_mini_batches"):
            if getattr(self, name) < 1:
                raise ConfigError(f"`{name}` must be >= 1; got {getattr(self, name)}.")
        if self.eval_temperature < 0:
            raise ConfigError(f"`eval_temperature` must be >= 0; got {self.eval_temperature}. 0 is greedy.")
        if self.temperature == 0:
            raise ConfigError(
                "`temperature` must be > 0 in training; got 0. A greedy policy explores nothing."
            )
        if self.per_device_train_batch_size % self.num_generations:
            raise ConfigError(
                f"`per_device_train_batch_size={self.per_device_train_batch_size}` counts completions and "
                f"must be a multiple of `num_generations={self.num_generations}`: prompt groups stay whole."
            )
        if self.rollout_batch_size is not None and self.rollout_batch_size < self.num_generations:
            raise ConfigError(
                f"`rollout_batch_size={self.rollout_batch_size}` must be at least "
                f"`num_generations={self.num_generations}`: the completions of a prompt are decoded together."
            )
        if self.feature_cache_mb < 0:
            raise ConfigError(
                f"`feature_cache_mb` must be >= 0; got {self.feature_cache_mb}. 0 switches it off."
            )

    def isolation(self) -> Isolation:
        """Time limit and error policy of rewards that bring none of their own."""
        return Isolation(self.reward_time_limit, self.reward_on_error)

    def sampling_params(self) -> SamplingParams:
        """The sampler's settings in training."""
        return SamplingParams(
            num_generations=self.num_generations,
            max_completion_length=self.max_completion_length,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
        )


def check_range(
    config: Any,
    name: str,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    above: float = -math.inf,
    finite: bool = True,
) -> None:
    """Refuses a number outside [low, high], not above `above`, or without end; None means unset and passes.

    Raises:
        ConfigError: names the field, its value and the range.
    """
    value = getattr(config, name)
    if value is None or (low <= value <= high and above < value and (value < math.inf or not finite)):
        return
    wanted = f"between {low} and {high}" if high < math.inf else f">= {low}"
    wanted = f"> {above}" if above > -math.inf else wanted
    raise ConfigError(f"`{name}` must be {wanted}{' and finite' if finite else ''}; got {value}.")
