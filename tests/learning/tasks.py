"""Small worlds with a known best policy: eight letters to say, pictures of two colours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmft.engine.actor_critic import VLMActorCritic
from mmft.models.backbone import make_backbone
from mmft.trainers.config import OnlineConfig
from mmft.trainers.online import OnlineTrainer
from mmft.trainers.ppo import PPOConfig, PPOTrainer
from tests import zoo
from tests.zoo.vocabulary import EOS_ID, FIRST_TEXT_ID, VOCAB_SIZE

LETTERS = "abcdefgh"
LETTER_IDS = [FIRST_TEXT_ID + ord(letter) for letter in LETTERS]


WORD_OF = {"red": LETTER_IDS[2], "blue": LETTER_IDS[5]}
SPELLING = [LETTER_IDS[2], LETTER_IDS[0], LETTER_IDS[1], EOS_ID]


def name_colour(completion_ids: list[list[int]], colour: list[str], **columns: Any) -> list[float | None]:
    """1 for the word of the colour as the first token. Blind, nothing earns more than 0.5 on average."""
    return [float(ids[0] == WORD_OF[name]) for ids, name in zip(completion_ids, colour, strict=True)]


def spell(completion_ids: list[list[int]], **columns: Any) -> list[float | None]:
    """A quarter for each right token, the end among them, paid only when all is said."""
    return [sum(a == b for a, b in zip(ids, SPELLING, strict=False)) / 4 for ids in completion_ids]


def picture(colour: str, generator: np.random.Generator) -> Image.Image:
    """Mostly red or mostly blue, never twice the same."""
    pixels = generator.integers(0, 120, (32, 32, 3), dtype=np.uint8)
    pixels[..., 0 if colour == "red" else 2] += 135
    return Image.fromarray(pixels)


def colour_rows(count: int, seed: int) -> list[dict[str, Any]]:
    """As many red as blue pictures, with their colour as a column."""
    generator = np.random.default_rng(seed)
    colours = ["red", "blue"] * (count // 2)
    return [{"image": picture(colour, generator), "prompt": "?", "colour": colour} for colour in colours]


def make_learner(
    folder: Path,
    reward: Any,
    rows: list[dict[str, Any]],
    eval_rows: list[dict[str, Any]],
    *,
    trainer_class: type[OnlineTrainer] = PPOTrainer,
    config_class: type[OnlineConfig] = PPOConfig,
    **settings: Any,
) -> Any:
    """A LLaVA of a few thousand random weights whose language model learns all of them."""
    defaults = {
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "dataloader_pin_memory": False,
        "lr_scheduler_type": "constant",
        "per_device_eval_batch_size": 16,
        "seed": 1,
    }
    args = config_class(output_dir=str(folder), **(defaults | settings))
    backbone = make_backbone(zoo.build_model("llava", seed=1), zoo.build_processor("llava"))
    backbone.forbidden_ids = frozenset(range(VOCAB_SIZE)) - {*LETTER_IDS, EOS_ID}
    actor_critic = VLMActorCritic(
        backbone, critic=trainer_class.needs_critic(args), reference=trainer_class.needs_reference(args)
    )
    return trainer_class(actor_critic, reward, args, rows, eval_rows)
