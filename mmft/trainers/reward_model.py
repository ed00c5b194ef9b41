"""Learned reward models: from preferences (Bradley-Terry), from ratings, and from ratings with their noise.

The Hugging Face training loop as it is; rows that share a picture and a prompt share their encoding.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback, set_seed

from mmft.data.rows import PromptDataset
from mmft.engine.completion_batch import CompletionBatch, CompletionTokenizer
from mmft.engine.reward_inputs import RewardInputs
from mmft.engine.reward_model import RewardScores, VLMRewardModel
from mmft.errors import ConfigError
from mmft.models.backbone import Backbone, as_backbone
from mmft.models.reward_model import check_loss_type
from mmft.objectives.reward_model import (
    bradley_terry_loss,
    centering_loss,
    heteroscedastic_loss,
    rating_loss,
)
from mmft.trainers.base import BaseTrainer
from mmft.trainers.held_out import held_out_batches
from mmft.trainers.regularization import RegularizationConfig
from mmft.trainers.reward_metrics import reward_metrics, reward_samples
from mmft.trainers.reward_model_data import (
    RewardBatch,
    RewardDataset,
    collate_inputs,
    collate_rewards,
)

if TYPE_CHECKING:
    from peft import PeftConfig

Rows: TypeAlias = "PromptDataset | Dataset | Sequence[Mapping[str, Any]]"


@dataclass
class RewardModelConfig(RegularizationConfig):
    """Settings of `RewardModelTrainer`; names are those of TRL's `RewardConfig` where it has them.

    Example:
        >>> from mmft import RewardModelConfig
        >>> RewardModelConfig(output_dir="runs/example").loss_type  # preferences
        'bradley_terry'
        >>> RewardModelConfig(output_dir="runs/example", loss_type="mse").learns_preferences  # ratings
        False
    """

    per_device_train_batch_size: int = field(
        default=8, metadata={"help": "Rows per device in one forward; a preference has two completions."}
    )
    learning_rate: float = field(default=1e-4, metadata={"help": "Initial learning rate of AdamW."})
    logging_steps: float = field(default=10, metadata={"help": "Optimizer steps between two log lines."})
    # None first: the argument parser of transformers takes the second member of a union for the type of its
    # strings.
    report_to: None | str | list[str] = field(  # noqa: RUF036
        default="none", metadata={"help": "Trackers of transformers (wandb, trackio, tensorboard, ...)."}
    )
    loss_type: str = field(
        default="bradley_terry",
        metadata={"help": "bradley_terry (preferences), mse or heteroscedastic (ratings)."},
    )
    dropout: float = field(default=0.1, metadata={"help": "Of the head; uncertainty by dropout needs some."})
    head_width: int = field(default=256, metadata={"help": "Units of the head's hidden layer."})
    reads_likelihood: bool = field(
        default=False,
        metadata={
            "help": "The head also reads how likely the backbone finds the text (mean and least log-prob "
            "of its tokens): a strong start where the backbone describes such pictures well."
        },
    )
    mc_samples: int = field(
        default=0, metadata={"help": "Dropout samples of `evaluate`; 0 predicts once, without dropout."}
    )
    normalize_ratings: bool = field(
        default=True,
        metadata={"help": "Learn ratings at mean 0 and variance 1; predictions keep their unit."},
    )
    center_rewards_coefficient: float | None = field(
        default=None, metadata={"help": "Weight of (r_chosen + r_rejected)^2, which keeps rewards around 0."}
    )
    max_completion_length: int = field(
        default=256, metadata={"help": "Tokens after which a completion is cut."}
    )
    feature_cache_mb: int = field(
        default=2048,
        metadata={"help": "Memory for encoded prompts while the vision path is frozen; 0 is off."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_loss_type(self.loss_type)
        for name, least in (("mc_samples", 0), ("feature_cache_mb", 0), ("head_width", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"`{name}` must be >= {least}; got {getattr(self, name)}.")
        if self.max_completion_length < 1:
            raise ConfigError(f"`max_completion_length` must be >= 1; got {self.max_completion_length}.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"`dropout` must be at least 0 and below 1; got {self.dropout}.")
        if self.mc_samples and not self.dropout:
            raise ConfigError(
                f"`mc_samples={self.mc_samples}` draws networks by dropout, and `dropout` is 0; set either."
            )
        if self.center_rewards_coefficient is not None and not self.learns_preferences:
            raise ConfigError(
                f"`center_rewards_coefficient` is for preferences; `loss_type` is {self.loss_type!r}, whose "
                "ratings say where rewards are."
            )

    @property
    def learns_preferences(self) -> bool:
        """Whether rows are preferences; else they are ratings."""
        return self.loss_type == "bradley_terry"


class RewardModelTrainer(BaseTrainer):
    """Trains a reward model on what people preferred or how they rated it.

    Args:
        model: hub id or folder, a transformers model, a `Backbone` (frozen: `load_backbone(name,
            trainable=())`), or a `VLMRewardModel`, which then keeps its own head.
        args: the settings.
        train_dataset: rows with `image`/`images`, `prompt`, and `chosen`, `rejected` (and `margin`), or
            `completion` and `rating`.
        eval_dataset: held-out rows of the same form.
        processing_class: the processor; the checkpoint's own by default.
        callbacks: added to the Trainer's.
        optimizers: as in `transformers.Trainer`.
        peft_config: adapters to train instead of the language model's weights.

    Example:
        >>> from mmft import RewardModelConfig, RewardModelTrainer, load_backbone
        >>> from mmft.tiny import load_preferences
        >>> settings = {"max_steps": 2, "dataloader_pin_memory": False}  # without a GPU
        >>> trainer = RewardModelTrainer(
        ...     load_backbone("mmft/tiny-captioner", trainable=()),  # frozen: only the head trains
        ...     RewardModelConfig(output_dir="runs/example", **settings),
        ...     train_dataset=load_preferences("train", 16),
        ...     eval_dataset=load_preferences("validation", 16),
        ... )
        >>> _ = trainer.train()
        {'train_runtime': ...}
        >>> 0 <= trainer.evaluate()["eval_accuracy"] <= 1
        True
    """

    args: RewardModelConfig
    train_dataset: Any
    eval_dataset: Any

    def __init__(
        self,
        model: str | PreTrainedModel | Backbone | VLMRewardModel,
        args: RewardModelConfig,
        train_dataset: Rows | None = None,
        eval_dataset: Rows | None = None,
        processing_class: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        peft_config: PeftConfig | None = None,
    ) -> None:
        set_seed(args.seed)  # head and adapters are drawn here, before the Trainer seeds itself
        is_new = not isinstance(model, VLMRewardModel)
        reward_model = _make_reward_model(model, args, processing_class, peft_config)
        self.reward_model = reward_model
        self.tokenizer_of_completions = CompletionTokenizer(
            reward_model.backbone, reward_model.max_completion_length
        )
        self.eval_samples: list[dict[str, Any]] = []
        backbone = reward_model.backbone
        super().__init__(
            reward_model,
            args=args,
            data_collator=functools.partial(collate_inputs, pad_id=backbone.pad_id),
            train_dataset=self._rows(train_dataset, "train", args),
            eval_dataset=self._rows(eval_dataset, "eval", args),
            processing_class=backbone.processor,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        if is_new and args.normalize_ratings and not args.learns_preferences and self.train_dataset:
            reward_model.reward_head.set_unit(self.train_dataset.targets)
        self.inputs = RewardInputs(
            reward_model,
            args.feature_cache_mb * 2**20,
            reread=True,
            sharded=self._is_sharded,
            anyone=self._anyone,
            autocast=self.accelerator.autocast,
        )
        for rows in (self.train_dataset, self.eval_dataset):
            if rows is not None:
                rows.share_prompts = not self._is_sharded

    def _rows(self, rows: Any, name: str, args: RewardModelConfig) -> RewardDataset | None:
        if rows is None or isinstance(rows, RewardDataset):
            return rows
        prompts = rows if isinstance(rows, PromptDataset) else PromptDataset(rows, name=name)
        return RewardDataset(
            prompts, preferences=args.learns_preferences, tokenize=self.tokenizer_of_completions
        )

    # One update

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        """Rows of the whole optimizer step: all micro-batches of all processes."""
        rows = float(sum(len(inputs["batch"].rows) for inputs in batch_samples))
        return self._sum_over_processes(torch.tensor(rows, device=device))

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Adds what the model is called with: features where the backbone is frozen, else prompts."""
        batch: CompletionBatch = inputs["batch"].completions
        if self.inputs.keeps_readings:
            return inputs | {"call": (None, None), "features": self.inputs.known_features(batch)}
        call = (self.inputs.prompts(batch), batch.completions.to(self.args.device))
        return inputs | {"call": call, "features": None}

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor:
        """Scores a micro-batch with gradients."""
        batch: RewardBatch = inputs["batch"]
        scores = model(*inputs["call"], features=inputs["features"])
        loss = self._loss(scores, batch, num_items_in_batch)
        return self._checked_loss(loss, [row.number for row in batch.rows], "these rows")

    def _loss(self, scores: RewardScores, batch: RewardBatch, num_rows: Tensor) -> Tensor:
        means, targets = batch.by_row(scores.mean), batch.targets.to(scores.mean.device)
        self._log_batch(means.detach(), targets)
        self.metric_log.add_all("cut_share", [float(row.cut) for row in batch.rows])
        if self.args.learns_preferences:
            chosen, rejected = means.unbind(1)
            loss = bradley_terry_loss(chosen, rejected, targets, num_pairs=num_rows)
            if self.args.center_rewards_coefficient is not None:
                center = centering_loss(chosen, rejected, num_pairs=num_rows)
                loss = loss + self.args.center_rewards_coefficient * center
            return loss
        # Losses are those of standardised ratings, whatever their unit.
        head = self.reward_model.reward_head
        shift, scale = head.shift.detach(), head.scale.detach()
        means, targets = (means[:, 0] - shift) / scale, (targets - shift) / scale
        if scores.log_variance is None:
            return rating_loss(means, targets, num_samples=num_rows)
        log_variances = batch.by_row(scores.log_variance)[:, 0] - 2 * torch.log(scale)
        return heteroscedastic_loss(means, log_variances, targets, num_samples=num_rows)

    def _log_batch(self, means: Tensor, targets: Tensor) -> None:
        if self.args.learns_preferences:
            margins = means[:, 0] - means[:, 1]
            self.metric_log.add_all("accuracy", (0.5 * (1 + torch.sign(margins))).tolist())
            self.metric_log.add_all("mean_margin", margins.tolist())
            self.metric_log.add_all("mean_reward", means.flatten().tolist())
        else:
            self.metric_log.add_all("mse", (means[:, 0] - targets).square().tolist())

    # Evaluation

    def evaluate(
        self,
        eval_dataset: Rows | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Predicts every held-out row; one record per row stays in `eval_samples`.

        Preferences: loss, accuracy, mean margin. Ratings: MSE, correlations. With a stated variance or
        `mc_samples`: likelihood, calibration and the standard deviations."""
        dataset = self.eval_dataset if eval_dataset is None else self._rows(eval_dataset, "eval", self.args)
        if dataset is None:
            raise ConfigError("`eval_dataset` is missing; `evaluate` needs held-out rows.")
        self.eval_samples = self._predict_rows(dataset)
        metrics = reward_metrics(self.eval_samples)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _predict_rows(self, dataset: RewardDataset) -> list[dict[str, Any]]:
        process, count = self.accelerator.process_index, self.accelerator.num_processes
        size = self.args.per_device_eval_batch_size
        samples: list[dict[str, Any]] = []
        for indices, fresh in held_out_batches(len(dataset), size, process, count):
            rows = [dataset[index] for index in indices]
            batch = collate_rewards(rows, self.reward_model.backbone.pad_id)
            estimate = self.inputs.estimate(batch.completions, self.args.mc_samples, seed=self.args.seed)
            samples += reward_samples(batch, estimate)[:fresh]
        return sorted(gather_object(samples), key=lambda sample: sample["row"])


def _make_reward_model(
    model: Any, args: RewardModelConfig, processor: Any, peft_config: PeftConfig | None
) -> VLMRewardModel:
    if isinstance(model, Backbone | VLMRewardModel):
        if peft_config is not None:
            raise ConfigError(
                f"`peft_config` is given beside a {type(model).__name__}; put the adapters into it when it "
                "is made (`load_backbone(..., peft_config=...)`)."
            )
        if isinstance(model, VLMRewardModel):
            if model.loss_type != args.loss_type:
                raise ConfigError(
                    f"`loss_type` is {args.loss_type!r}; the reward model was made for {model.loss_type!r}."
                )
            return model
    else:
        model = as_backbone(model, processor, peft_config)
    return VLMRewardModel(
        model,
        loss_type=args.loss_type,
        head_width=args.head_width,
        dropout=args.dropout,
        max_completion_length=args.max_completion_length,
        reads_likelihood=args.reads_likelihood,
    )
