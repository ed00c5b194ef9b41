"""What the trainer tests share: rows of different lengths, rewards that read token ids, small trainers."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig
from PIL import Image
from torch import Tensor

from mmft.engine.actor_critic import VLMActorCritic
from mmft.engine.packing import Completions
from mmft.models.backbone import make_backbone
from mmft.trainers.config import OnlineConfig
from mmft.trainers.experience import Experience
from mmft.trainers.online import OnlineTrainer
from mmft.trainers.ppo import PPOConfig, PPOTrainer
from tests import zoo
from tests.zoo.vocabulary import VOCAB_SIZE

LENGTH = 6
END_IDS = frozenset(range(2, VOCAB_SIZE, 6))
"""A sixth of the vocabulary ends a completion, so that lengths differ."""
TEXT_ATTENTION = r".*language_model.*\.(q|v)_proj"
EVERY_ATTENTION = r".*\.(q|v)_proj"
"""That of the vision tower too."""
SETTINGS: dict[str, Any] = {
    "use_cpu": True,
    "disable_tqdm": True,
    "per_device_train_batch_size": 4,
    "num_generations": 2,
    "num_mini_batches": 2,
    "num_ppo_epochs": 2,
    "max_completion_length": LENGTH,
    "max_steps": 8,
    "learning_rate": 1e-2,
    "save_strategy": "no",
    "dataloader_pin_memory": False,
}
"""Rollouts of 4 prompts and 8 completions, 4 optimizer steps each."""


def make_rows(count: int) -> list[dict[str, Any]]:
    """Pictures of noise, prompts of different lengths."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return [
        {"image": Image.fromarray(picture), "prompt": "what" + " now" * (number % 3), "number": number}
        for number, picture in enumerate(pixels)
    ]


def token_reward(completion_ids: list[list[int]], **columns: Any) -> list[float | None]:
    """Differs from sample to sample and from row to row, with no outside state."""
    return [
        sum(token % 7 for token in ids) / 10 + 0.1 * (number % 2)
        for ids, number in zip(completion_ids, columns["number"], strict=True)
    ]


def make_trainer(
    folder: Path,
    *,
    trainer_class: type[OnlineTrainer] = PPOTrainer,
    config_class: type[OnlineConfig] = PPOConfig,
    family: str = "llava",
    rewards: Any = token_reward,
    rows: list[dict[str, Any]] | None = None,
    lora: bool = True,
    lora_dropout: float = 0.0,
    lora_targets: str = TEXT_ATTENTION,
    trainable: Sequence[str] | None = None,
    end_ids: frozenset[int] = END_IDS,
    callbacks: list[Any] | None = None,
    eval_rows: list[dict[str, Any]] | None = None,
    **settings: Any,
) -> Any:
    """A trainer of a zoo model, whose weights are the same whenever its arguments are."""
    torch.manual_seed(0)
    args = config_class(output_dir=str(folder), **(SETTINGS | settings))
    peft_config = LoraConfig(r=2, target_modules=lora_targets, lora_dropout=lora_dropout)
    with warnings.catch_warnings():
        # PEFT 0.21 still reads the old name of a transformers attribute.
        warnings.filterwarnings("ignore", message=".is_gradient_checkpointing. is", category=FutureWarning)
        backbone = make_backbone(
            zoo.build_model(family),
            zoo.build_processor(family),
            peft_config=peft_config if lora else None,
            trainable=trainable,
        )
    backbone.end_ids = end_ids
    actor_critic = VLMActorCritic(
        backbone, critic=trainer_class.needs_critic(args), reference=trainer_class.needs_reference(args)
    )
    return trainer_class(
        actor_critic,
        rewards,
        args,
        make_rows(16) if rows is None else rows,
        eval_rows,
        callbacks=callbacks,
    )


def trained_weights(trainer: PPOTrainer) -> dict[str, Tensor]:
    """Copies of every weight that trains, adapters and critic alike."""
    named = trainer.actor_critic.named_parameters()
    return {name: weight.detach().clone() for name, weight in named if weight.requires_grad}


def step_rows(trainer: PPOTrainer) -> list[dict[str, float]]:
    """What was logged per optimizer step, without times."""
    rows = [row for row in trainer.state.log_history if "loss" in row]
    return [{name: value for name, value in row.items() if not name.startswith("seconds/")} for row in rows]


def without_cache(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    """Logged numbers that do not depend on what a process happens to hold: a resumed run's cache is empty."""
    return [{name: value for name, value in row.items() if name != "cache/hit_rate"} for row in rows]


def of_the_update(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    """Logged numbers of the whole update: each process explains answers of its own."""
    return [
        {name: value for name, value in row.items() if not name.startswith("importance/")}
        for row in without_cache(rows)
    ]


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """Names of the weights that differ."""
    return {name for name in before if not torch.equal(before[name], after[name])}


def random_experience(
    num_prompts: int = 3, num_generations: int = 2, seed: int = 0, dense: bool = False
) -> Experience:
    """Random numbers in the shape of a rollout, of completions of 1 to LENGTH tokens; prompts are names."""
    generator = torch.Generator().manual_seed(seed)
    count = num_prompts * num_generations
    lengths = torch.tensor([LENGTH, 2, 3, 1, 5, 4, LENGTH, 1])[torch.arange(count) % 8]
    mask = torch.arange(LENGTH) < lengths[:, None]

    def numbers(scale: float = 1.0) -> Tensor:
        return scale * torch.randn(count, LENGTH, generator=generator, dtype=torch.float64) * mask

    ids = torch.randint(0, VOCAB_SIZE, (count, LENGTH), generator=generator)
    index = torch.arange(num_prompts).repeat_interleave(num_generations)
    return Experience(
        number=3,
        rows=[10 + prompt for prompt in range(num_prompts)],
        prompts=[f"prompt {prompt}" for prompt in range(num_prompts)],  # type: ignore[arg-type]
        completions=Completions(ids, mask, index),
        scores=torch.randn(count, generator=generator, dtype=torch.float64),
        ended=torch.arange(count) % 3 != 1,
        train_mask=mask,
        old_logps=numbers() - 2 * mask,
        ref_logps=numbers() - 2 * mask,
        values=numbers(),
        token_rewards=numbers(0.1) if dense else None,
    )
