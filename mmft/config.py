"""Settings of a run: flat dataclasses, and everything one command was told. `cli.arguments` reads them.

What trains and scores a policy serves `ppo`, `a2c`, `rwl`, `evaluate`, `generate` and `check` alike; what
trains and plays an agent serves `dqn`, and `ppo`, `a2c`, `evaluate` and `check` of recipes with `env`.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import yaml

from mmft.errors import ConfigError
from mmft.evaluation.settings import EvaluationSettings
from mmft.hub.secrets import named_secrets, without_secrets
from mmft.models.adapter_settings import AdapterSettings
from mmft.trainers.registry import ALGORITHMS, DEFAULT_ALGORITHM
from mmft.trl_bridge import ModelConfig

if TYPE_CHECKING:
    from transformers import TrainingArguments

DEVICE_FIELDS = ("output_dir", "use_cpu", "bf16", "fp16", "activation_checkpointing")
ALWAYS_RECORDED = (
    *DEVICE_FIELDS, "seed", "learning_rate", "lr_scheduler_type", "per_device_train_batch_size",
    "gradient_accumulation_steps", "max_steps", "num_train_epochs",
)  # fmt: skip
RewardSpecs = list[Any]
"""Names of rewards, or mappings of `name` and arguments."""


@dataclass
class DataConfig(AdapterSettings):
    """Which rows are used, what is asked about each picture, and what trains."""

    TRAINS: ClassVar[tuple[str, ...]] = ("language",)
    """Pretrained weights that train where neither `trainable` nor `use_peft` says so."""

    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Hub id, folder, file, `imagefolder`, `parquet`, `json`, or the built-in `mmft/scenes`, "
            "`mmft/scenes-preferences`, `mmft/scenes-ratings`, `mmft/scenes-rated-captions`."
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a hub dataset."})
    dataset_data_dir: str | None = field(
        default=None, metadata={"help": "Folder of `imagefolder` and other formats."}
    )
    # TRL's parser takes the second member of a union as the type of the command line's strings.
    dataset_data_files: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Files of `parquet` or `json`: a path, a list, or splits."}
    )
    train_split: str = field(default="train", metadata={"help": "Rows to train on."})
    eval_split: str | None = field(
        default=None, metadata={"help": "Held-out rows: scored before and after, and by `evaluate`."}
    )
    max_train_rows: int | None = field(
        default=None, metadata={"help": "Use the first so many training rows."}
    )
    max_eval_rows: int | None = field(default=None, metadata={"help": "Use the first so many held-out rows."})
    rename_columns: dict[str, str] | str | None = field(
        default=None, metadata={"help": "Old name to new, as {captions: references}."}
    )
    instruction: str | None = field(
        default=None, metadata={"help": "The prompt of every row, for data without a `prompt` column."}
    )
    system_prompt: str | None = field(
        default=None, metadata={"help": "Put before every prompt without a system message."}
    )
    trainable: list[str] | None = field(
        default=None,
        metadata={
            "help": "Pretrained weights that train: vision, projector, language (with its head), head, or "
            "patterns over names such as '*layers.3.*'. Unset: language, or none with use_peft."
        },
    )
    adapter_path: str | None = field(
        default=None, metadata={"help": "Folder of a PEFT adapter to put on the model first."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.rename_columns = _mapping(self.rename_columns, "rename_columns", "old names to new ones")
        if isinstance(self.dataset_data_files, str) and self.dataset_data_files[:1] in "[{":
            self.dataset_data_files = _from_text(self.dataset_data_files, "dataset_data_files")
        self.trainable = _listed(self.trainable)


def _names_that(do: str) -> str:
    return ", ".join(name for name, each in ALGORITHMS.items() if getattr(each, do))


@dataclass
class ScriptConfig(EvaluationSettings, DataConfig):
    """Settings of online trainers' commands, `evaluate`, `generate` and `check` beside the model's and the
    trainer's."""

    algorithm: str = field(
        default=DEFAULT_ALGORITHM,
        metadata={
            "help": f"Whose recipe this is, for evaluate, generate and check: {_names_that('writes')}."
        },
    )
    reward_funcs: list[str] = field(
        default_factory=list,
        metadata={
            "help": "What to optimise: captioning, bleu, detail, trl:NAME, my_module:my_reward, "
            "or {name: captioning, alpha: 1.0}."
        },
    )
    eval_funcs: list[str] = field(
        default_factory=list,
        metadata={"help": "Rewards that are reported on held-out rows and never optimised."},
    )
    num_samples: int = field(default=5, metadata={"help": "Completions shown at the end."})
    do_sample: bool = field(
        default=False,
        metadata={"help": "`generate` only: sample `num_generations` per prompt instead of one greedy."},
    )
    output_file: str | None = field(
        default=None, metadata={"help": "`evaluate` and `generate`: where to write; default in `output_dir`."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.reward_funcs = _rewards(self.reward_funcs, "reward_funcs")
        self.eval_funcs = _rewards(self.eval_funcs, "eval_funcs")
        self.metrics = _rewards(self.metrics, "metrics")
        self.by, self.correlate_with = _listed(self.by) or [], _listed(self.correlate_with) or []
        self.resampling(seed=0)  # refuses impossible numbers
        if self.num_samples < 0:
            raise ConfigError(f"`num_samples` must be >= 0; got {self.num_samples}.")


@dataclass
class AgentScriptConfig(AdapterSettings):
    """Settings of an agent's commands beside the model's and the trainer's."""

    TRAINS: ClassVar[tuple[str, ...]] = ()
    """As in `DataConfig`: the pretrained model is frozen unless something else is said."""

    algorithm: str = field(
        default=DEFAULT_ALGORITHM,
        metadata={"help": f"Whose recipe this is, for evaluate and check: {_names_that('acts')}."},
    )
    env: str | None = field(
        default=None,
        metadata={
            "help": "An id of gymnasium's registry such as mmft/FindObject-v0, a MiniGrid-... or BabyAI-... "
            "id, or your own environment as my_module:my_make."
        },
    )
    env_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Its arguments, as {size: 3}."}
    )
    eval_env_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Arguments that differ where the agent is evaluated, as {part: held_out}."},
    )
    trainable: list[str] | None = field(
        default=None,
        metadata={
            "help": "Pretrained weights that train: vision, projector, language, or patterns over names such "
            "as '*layers.3.*'. Unset: none."
        },
    )
    adapter_path: str | None = field(
        default=None, metadata={"help": "Folder of a PEFT adapter that becomes part of the model first."}
    )
    agent_path: str | None = field(
        default=None, metadata={"help": "`evaluate`: folder of the agent; `output_dir` if unset."}
    )
    num_samples: int = field(default=3, metadata={"help": "Episodes drawn at the end."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.env_kwargs = _mapping(self.env_kwargs, "env_kwargs", "the environment's arguments")
        self.eval_env_kwargs = _mapping(
            self.eval_env_kwargs, "eval_env_kwargs", "the environment's arguments"
        )
        self.trainable = _listed(self.trainable)
        if self.num_samples < 0:
            raise ConfigError(f"`num_samples` must be >= 0; got {self.num_samples}.")

    def arguments(self, *, evaluation: bool = False) -> dict[str, Any]:
        """Of the environment, in training or where the agent is evaluated."""
        given = [self.env_kwargs, self.eval_env_kwargs if evaluation else None]
        return {name: value for each in given if isinstance(each, dict) for name, value in each.items()}


@dataclass
class SFTScriptConfig(DataConfig):
    """Settings of `mmft sft` beside the model's and TRL's SFTConfig."""

    CHOICES = ("first", "random", "all")

    completion_column: str = field(
        default="references", metadata={"help": "Column with the text to learn, or a list of texts."}
    )
    completion_choice: str = field(
        default="first",
        metadata={"help": "Of a list: the first text, one at random, or all as rows of their own."},
    )
    save_merged: bool = field(
        default=True, metadata={"help": "With adapters, also write the whole model to `output_dir`/merged."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.completion_choice not in self.CHOICES:
            raise ConfigError(
                f"`completion_choice` must be {', '.join(self.CHOICES)}; got {self.completion_choice!r}."
            )


@dataclass
class RewardModelScriptConfig(DataConfig):
    """Settings of `mmft reward-model` beside the model's and the trainer's.

    Rows hold a picture, a prompt (or `instruction`) and either two completions of which one is preferred
    (`loss_type: bradley_terry`), or one completion and its rating (`mse`, `heteroscedastic`)."""

    chosen_column: str = field(default="chosen", metadata={"help": "Column with the preferred completion."})
    rejected_column: str = field(default="rejected", metadata={"help": "Column with the other completion."})
    margin_column: str | None = field(
        default=None, metadata={"help": "Column with how much better the preferred completion is."}
    )
    completion_column: str = field(
        default="completion", metadata={"help": "Column with the completion that is rated."}
    )
    rating_column: str = field(
        default="rating", metadata={"help": "Column with its rating: a number, or true (1) and false (0)."}
    )
    held_out_share: float | None = field(
        default=None, metadata={"help": "Without `eval_split`: hold out this share of the training rows."}
    )
    split_column: str | None = field(
        default=None,
        metadata={"help": "With `held_out_share`: rows of equal value here stay on one side, as identifier."},
    )
    group_column: str | None = field(
        default=None, metadata={"help": "Report held-out accuracy or error by the values of this column too."}
    )
    num_samples: int = field(default=6, metadata={"help": "Held-out rows shown at the end."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_samples < 0:
            raise ConfigError(f"`num_samples` must be >= 0; got {self.num_samples}.")
        if self.held_out_share is not None and not 0 < self.held_out_share < 1:
            raise ConfigError(f"`held_out_share` must be between 0 and 1; got {self.held_out_share}.")
        if self.held_out_share is not None and self.eval_split is not None:
            raise ConfigError(
                f"`eval_split` {self.eval_split!r} and `held_out_share` {self.held_out_share} exclude each "
                "other; give either."
            )
        if self.split_column is not None and self.held_out_share is None:
            raise ConfigError(
                f"`split_column` is {self.split_column!r}; set `held_out_share` to the share to hold out."
            )


@dataclass(frozen=True, slots=True)
class RunConfig:
    """Everything one command was told."""

    script: Any
    """`ScriptConfig`, or `AgentScriptConfig` where there is an `env`; `SFTScriptConfig` for `sft`,
    `RewardModelScriptConfig` for `reward-model`."""
    model: ModelConfig
    training: Any
    """The algorithm's config; TRL's `SFTConfig` for `sft`, `RewardModelConfig` for `reward-model`."""

    @property
    def acts(self) -> bool:
        """Whether this is about an agent in an environment."""
        return isinstance(self.script, AgentScriptConfig)

    def resolved(self) -> dict[str, Any]:
        """Every setting by which this run can be repeated.

        Fields of transformers' TrainingArguments are listed where they differ from their default; the version
        of the library, which decides on the others, is in summary.json."""
        own = _own_fields(type(self.training))
        # The device and what depends on it are taken over: half precision is refused where there is no GPU.
        device = {name: getattr(self.training, name) for name in DEVICE_FIELDS}
        defaults = _plain(type(self.training)(**device))
        training = {
            name: value
            for name, value in _plain(self.training).items()
            if name in own or name in ALWAYS_RECORDED or value != defaults[name]
        }
        # A run that is repeated begins at the beginning; the length of an agent's run is `total_timesteps`.
        for name in ("resume_from_checkpoint", *(("max_steps", "num_train_epochs") if self.acts else ())):
            training.pop(name, None)
        settings: dict[str, Any] = without_secrets(_plain(self.script) | _plain(self.model) | training)
        return settings

    def save(self, path: Path) -> None:
        """Writes `resolved` as YAML that the same command accepts, and says which secrets it leaves out."""
        path.parent.mkdir(parents=True, exist_ok=True)
        given = [_plain(each) for each in (self.script, self.training)]
        left_out = dict.fromkeys(name for name, _ in named_secrets(given))
        told = "".join(f"# `{name}` is a secret, and is not written here.\n" for name in left_out)
        text = yaml.safe_dump(self.resolved(), sort_keys=False, allow_unicode=True)
        path.write_text(told + text, encoding="utf-8")


def _own_fields(training: type[TrainingArguments]) -> set[str]:
    """Fields that a trainer's config adds to transformers' TrainingArguments."""
    from transformers import TrainingArguments

    return {each.name for each in dataclasses.fields(training)} - {
        each.name for each in dataclasses.fields(TrainingArguments)
    }


def _plain(settings: Any) -> dict[str, Any]:
    """Fields by name, as YAML can hold them."""
    values = {each.name: getattr(settings, each.name) for each in dataclasses.fields(settings) if each.init}
    return {name: _plain_value(value) for name, value in values.items()}


def _plain_value(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: _plain_value(each) for name, each in dataclasses.asdict(value).items()}
    if isinstance(value, Mapping):
        return {str(name): _plain_value(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain_value(each) for each in value]
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)


def _from_text(text: str, name: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"`{name}` is no YAML or JSON: {text!r}.") from error


def _mapping(value: Any, name: str, content: str) -> dict[str, Any] | None:
    value = _from_text(value, name) if isinstance(value, str) else value
    if value is not None and not isinstance(value, dict):
        raise ConfigError(f"`{name}` must be a mapping of {content}; got {value!r}.")
    return value


def _listed(value: Any) -> list[Any] | None:
    return [value] if isinstance(value, (str, dict)) else value


def _rewards(value: Any, name: str) -> RewardSpecs:
    """Reward names and mappings; on the command line a mapping is written as JSON or flow YAML."""
    specs = _listed(value) or []
    return [
        _from_text(spec, name) if isinstance(spec, str) and spec.startswith("{") else spec for spec in specs
    ]
