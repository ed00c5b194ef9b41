"""What the tests of reward-model training share: judged pictures of two colours, small trainers."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig
from torch import Tensor

from mmft.models.backbone import make_backbone
from mmft.trainers.reward_model import RewardModelConfig, RewardModelTrainer
from tests import zoo
from tests.learning.tasks import colour_rows
from tests.trainers.support import TEXT_ATTENTION

OTHER = {"red": "blue", "blue": "red"}
SETTINGS: dict[str, Any] = {
    "use_cpu": True,
    "disable_tqdm": True,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "max_steps": 4,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "save_strategy": "no",
    "dataloader_pin_memory": False,
    "dropout": 0.0,
    "head_width": 16,
}
"""Steps of 8 rows."""
LEARNING: dict[str, Any] = {
    "training": "full",
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "head_width": 32,
}
"""What learns fast; one forward a step."""


def preferences(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """The colour of the picture over the other one."""
    rows = colour_rows(count, seed)
    return [
        {"image": row["image"], "prompt": "?", "chosen": row["colour"], "rejected": OTHER[row["colour"]]}
        for row in rows
    ]


def ratings(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """3 for the right colour, 1 for the wrong one, with texts of different length."""
    generator = np.random.default_rng(seed)
    rows = []
    for row in colour_rows(count, seed):
        said = str(generator.choice(["red", "blue"]))
        rating = 3.0 if said == row["colour"] else 1.0
        rows.append({"image": row["image"], "prompt": "?", "completion": said, "rating": rating})
    return rows


def make_reward_trainer(
    folder: Path,
    rows: list[dict[str, Any]] | None = None,
    eval_rows: list[dict[str, Any]] | None = None,
    *,
    training: str = "lora",
    lora_dropout: float = 0.0,
    callbacks: list[Any] | None = None,
    **settings: Any,
) -> RewardModelTrainer:
    """A trainer of a zoo model, whose weights are the same whenever its arguments are."""
    torch.manual_seed(0)
    args = RewardModelConfig(output_dir=str(folder), **(SETTINGS | settings))
    lora = LoraConfig(r=2, target_modules=TEXT_ATTENTION, lora_dropout=lora_dropout)
    with warnings.catch_warnings():
        # PEFT 0.21 still reads the old name of a transformers attribute.
        warnings.filterwarnings("ignore", message=".is_gradient_checkpointing. is", category=FutureWarning)
        backbone = make_backbone(
            zoo.build_model("llava", seed=1),
            zoo.build_processor("llava"),
            peft_config=lora if training == "lora" else None,
            trainable={"full": ("language",), "vision": ("vision", "projector", "language")}.get(
                training, ()
            ),
        )
    rows = preferences(16) if rows is None else rows
    return RewardModelTrainer(backbone, args, rows, eval_rows, callbacks=callbacks)


def trained_weights(trainer: RewardModelTrainer) -> dict[str, Tensor]:
    """Copies of every weight that trains, and of the head's unit."""
    model = trainer.reward_model
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    trained |= {"reward_head.shift", "reward_head.scale"}
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items() if name in trained}


def step_rows(trainer: RewardModelTrainer) -> list[dict[str, float]]:
    """What was logged per optimizer step, without times."""
    rows = [row for row in trainer.state.log_history if "loss" in row]
    return [{name: value for name, value in row.items() if not name.startswith("seconds/")} for row in rows]
