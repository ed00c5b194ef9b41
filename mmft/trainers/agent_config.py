"""Settings that every trainer in environments honours: environments, what of a state is read, the heads."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from mmft.data.normalize import SCALERS
from mmft.errors import ConfigError
from mmft.models.adapter_settings import check_names
from mmft.models.agent_spec import AgentSpec
from mmft.models.fusion import FUSIONS
from mmft.trainers.config import check_range
from mmft.trainers.importance_settings import STEPS_HELP, ImportanceSettings
from mmft.trainers.regularization import RegularizationConfig

SEQUENCE_FUSIONS = ("cross_modal", "all_modality", "shared")
"""In which tokens attend to tokens, so that means would leave little to do."""


@dataclass
class AgentConfig(ImportanceSettings, RegularizationConfig):
    """Fields of `transformers.TrainingArguments`, and those of an agent in environments.

    `max_steps`, the optimizer steps, follows from `total_timesteps`."""

    total_timesteps: int = field(
        default=100_000, metadata={"help": "Steps in environments, over all environments and processes."}
    )
    num_envs: int = field(
        default=8, metadata={"help": "Environments per process; their states are encoded together."}
    )
    env_time_limit: float | None = field(
        default=None, metadata={"help": "Seconds one `step` or `reset` of an environment may take."}
    )
    max_env_restarts: int = field(
        default=10, metadata={"help": "Failed environments that are made anew, before one stops the run."}
    )
    instruction: str | None = field(
        default=None,
        metadata={
            "help": "The prompt, with keys of the observation in braces: '{mission} Which way?'; unset: its "
            "texts."
        },
    )
    image_keys: list[str] | None = field(
        default=None, metadata={"help": "Keys of the observation that are pictures; found by their spaces."}
    )
    text_keys: list[str] | None = field(
        default=None, metadata={"help": "Keys of the observation that are texts; found by their spaces."}
    )
    number_keys: list[str] | None = field(
        default=None, metadata={"help": "Keys of the observation that are numbers; found by their spaces."}
    )
    fusion: str = field(
        default="vlm",
        metadata={
            "help": f"How modalities become a state: {', '.join(FUSIONS)}; vlm is the model's own last "
            "hidden state, the others fuse embeddings of text and picture."
        },
    )
    modalities: list[str] | None = field(
        default=None,
        metadata={
            "help": "What is fused: some of text, image and fused (the last hidden state); unset: fused "
            "alone for vlm, else text and image."
        },
    )
    fusion_size: int | None = field(
        default=None, metadata={"help": "Width of the fused state; the model's hidden size if unset."}
    )
    fusion_heads: int | None = field(
        default=None, metadata={"help": "Attention heads of cross_modal, all_modality and shared."}
    )
    pool_embeddings: bool | None = field(
        default=None,
        metadata={
            "help": "Keep the mean of each embedding sequence, not the sequence; unset: where the fusion has "
            "no attention."
        },
    )
    feature_scaling: str = field(
        default="standard", metadata={"help": f"Of the embeddings: {', '.join(SCALERS)}."}
    )
    pca_components: int | None = field(
        default=None, metadata={"help": "Project scaled embeddings to so many principal components."}
    )
    hidden_sizes: list[int] = field(
        default_factory=lambda: [256, 256], metadata={"help": "Hidden layers of the heads."}
    )
    dropout: float = field(default=0.0, metadata={"help": "Of the heads."})
    head_learning_rate: float | None = field(
        default=None,
        metadata={"help": "Of fusion and heads; `learning_rate` if unset. Same schedule."},
    )
    gamma: float = field(default=0.99, metadata={"help": "Discount per step."})
    feature_cache_mb: int = field(
        default=2048,
        metadata={"help": "Memory for embedded states while the backbone is frozen; 0 is off."},
    )
    encode_batch_size: int = field(
        default=64, metadata={"help": "Observations that go through the backbone together."}
    )
    eval_episodes: int = field(
        default=64, metadata={"help": "Episodes of an evaluation: greedy, the same ones each time."}
    )
    # A look takes as long as three steps with a frozen backbone: 0.6 % of a run.
    importance_steps: int = field(default=500, metadata={"help": STEPS_HELP})
    learning_rate: float = field(default=5e-4, metadata={"help": "Initial learning rate of AdamW."})
    max_grad_norm: float = field(default=10.0, metadata={"help": "Gradients are clipped to this norm."})
    logging_steps: float = field(default=100, metadata={"help": "Optimizer steps between two log lines."})
    # None first: the argument parser of transformers takes the second member of a union for the type of its
    # strings.
    report_to: None | str | list[str] = field(  # noqa: RUF036
        default="none", metadata={"help": "Trackers of transformers (wandb, trackio, tensorboard, ...)."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_names([self.fusion], list(FUSIONS), "fusion")
        check_names([self.feature_scaling], list(SCALERS), "feature_scaling")
        self.check_importance()
        sizes = ("num_envs", "per_device_train_batch_size", "gradient_accumulation_steps")
        for name in ("total_timesteps", *sizes, "encode_batch_size", "eval_episodes"):
            check_range(self, name, low=1)
        for name in ("max_env_restarts", "feature_cache_mb"):
            check_range(self, name, low=0)
        for name in ("env_time_limit", "head_learning_rate"):
            check_range(self, name, above=0)
        check_range(self, "gamma", low=0, high=1)
        self.hidden_sizes = [int(size) for size in self.hidden_sizes]
        if self.fusion_heads is not None and self.fusion not in SEQUENCE_FUSIONS:
            raise ConfigError(
                f"`fusion_heads` is {self.fusion_heads}, but `fusion: {self.fusion}` has no attention. Leave "
                f"it out, or choose {', '.join(SEQUENCE_FUSIONS)}."
            )
        if self.fusion_size is not None and self.fusion == "vlm":
            raise ConfigError(
                f"`fusion_size` is {self.fusion_size}, but `fusion: vlm` is the model's own hidden state. "
                "Leave it out, or narrow the state with `pca_components`."
            )
        self._check_steps()

    def _check_steps(self) -> None:
        if self.max_steps not in (-1, self.num_optimizer_steps):
            raise ConfigError(
                f"`max_steps` is {self.max_steps}, but {self.num_optimizer_steps} optimizer steps follow "
                f"from `total_timesteps` {self.total_timesteps}. Leave `max_steps` out."
            )
        if self.num_optimizer_steps < 1:
            raise ConfigError(
                f"`total_timesteps` is {self.total_timesteps}, too few for one optimizer step. Raise it."
            )
        self.max_steps = self.num_optimizer_steps

    @property
    def num_optimizer_steps(self) -> int:
        """Optimizer steps of the whole run."""
        raise NotImplementedError("an algorithm says how many of its steps an optimizer step takes")

    @property
    def pooled(self) -> bool:
        """Whether the mean of a sequence of embeddings is kept in its place."""
        if self.pool_embeddings is None:
            return self.fusion not in SEQUENCE_FUSIONS
        return self.pool_embeddings

    def reading(self) -> dict[str, Any]:
        """What of an observation is read."""
        names = ("image_keys", "text_keys", "number_keys", "instruction")
        return {name: getattr(self, name) for name in names}

    def agent_spec(self, kind: str, reader: Any, *, dueling: bool = False) -> AgentSpec:
        """The agent for the environments of a reader."""
        modalities = ("fused",) if self.fusion == "vlm" else self._seen(reader)
        modalities = modalities if self.modalities is None else tuple(self.modalities)
        return AgentSpec(
            kind=kind,
            num_actions=reader.num_actions,
            num_numbers=reader.num_numbers,
            modalities=modalities,
            fusion=self.fusion,
            fusion_size=self.fusion_size,
            fusion_options={} if self.fusion_heads is None else {"num_heads": self.fusion_heads},
            pooled=self.pooled,
            hidden_sizes=tuple(self.hidden_sizes),
            dropout=self.dropout,
            dueling=dueling,
            feature_scaling=self.feature_scaling,
            pca_components=self.pca_components,
            reading=self.reading(),
        )

    def _seen(self, reader: Any) -> tuple[str, ...]:
        """Text and image, as far as the observations have them."""
        text = ("text",) if reader.text_keys or self.instruction else ()
        return text + (("image",) if reader.image_keys else ())


def steps_per_share(total: int, world_size: int) -> int:
    """Steps that each process takes of a total."""
    return math.ceil(total / world_size)
