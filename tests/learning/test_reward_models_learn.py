"""Reward models learn what only the picture tells: a preference, a rating, the noise of ratings."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.learning.tasks import colour_rows
from tests.trainers.reward_support import LEARNING, make_reward_trainer, preferences

pytestmark = pytest.mark.learning


def with_swapped_pictures(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every red row gets the picture of the blue one after it, and the other way round."""
    images = [row["image"] for row in rows]
    images[::2], images[1::2] = images[1::2], images[::2]
    return [row | {"image": image} for row, image in zip(rows, images, strict=True)]


def test_a_reward_model_learns_a_preference_that_only_the_picture_tells(tmp_path: Path):
    held_out = preferences(32, seed=1)
    trainer = make_reward_trainer(tmp_path, preferences(32), held_out, max_steps=50, **LEARNING)
    before = trainer.evaluate()
    assert before["eval_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert before["eval_accuracy"] == 0.5
    trainer.train()
    assert trainer.evaluate()["eval_accuracy"] >= 0.95
    assert trainer.evaluate()["eval_mean_margin"] > 1
    swapped = trainer.evaluate(with_swapped_pictures(held_out))
    assert swapped["eval_accuracy"] <= 0.05


def by_intensity(count: int, seed: int) -> list[dict[str, Any]]:
    """Grey pictures of noise; the rating is how bright they are."""
    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        level = generator.uniform()
        pixels = (255 * level * generator.uniform(0.5, 1, (32, 32, 3))).astype(np.uint8)
        rating = 50 + 20 * level
        rows.append({"image": Image.fromarray(pixels), "prompt": "?", "completion": "x", "rating": rating})
    return rows


def test_a_reward_model_learns_ratings_in_their_own_unit(tmp_path: Path):
    settings = LEARNING | {"loss_type": "mse", "training": "frozen", "learning_rate": 1e-2}
    trainer = make_reward_trainer(
        tmp_path, by_intensity(64, 0), by_intensity(32, 1), max_steps=120, **settings
    )
    seen, unseen = ([row["rating"] for row in by_intensity(*split)] for split in ((64, 0), (32, 1)))
    assert trainer.evaluate()["eval_mse"] == pytest.approx(np.mean((np.array(unseen) - np.mean(seen)) ** 2))
    trainer.train()
    metrics = trainer.evaluate()
    assert metrics["eval_mse"] < 0.1 * np.var(unseen)
    assert metrics["eval_pearson"] > 0.95
    assert metrics["eval_spearman"] > 0.9


NOISE = {"red": 0.2, "blue": 2.0}


def with_known_noise(count: int, seed: int) -> list[dict[str, Any]]:
    """Ratings around 0 whose standard deviation only the colour of the picture tells."""
    generator = np.random.default_rng(seed)
    return [
        {
            "image": row["image"],
            "prompt": "?",
            "completion": "x",
            "rating": generator.normal(0, NOISE[row["colour"]]),
        }
        for row in colour_rows(count, seed)
    ]


def test_a_heteroscedastic_model_recovers_the_noise_of_two_groups(tmp_path: Path):
    settings: dict[str, Any] = {
        "loss_type": "heteroscedastic",
        "training": "frozen",
        "learning_rate": 3e-3,
        "head_width": 8,
        "per_device_train_batch_size": 64,
        "gradient_accumulation_steps": 1,
        "max_steps": 100,
    }
    trainer = make_reward_trainer(tmp_path, with_known_noise(256, 0), with_known_noise(128, 1), **settings)
    before = trainer.evaluate()
    trainer.train()
    metrics = trainer.evaluate()
    stated = [math.sqrt(sample["aleatoric"]) for sample in trainer.eval_samples]
    # Red pictures and blue ones take turns.
    assert np.mean(stated[::2]) == pytest.approx(NOISE["red"], rel=0.25)
    assert np.mean(stated[1::2]) == pytest.approx(NOISE["blue"], rel=0.25)
    assert metrics["eval_nll"] < before["eval_nll"] - 0.5
    assert metrics["eval_calibration_error"] < 0.1 < before["eval_calibration_error"]
    assert metrics["eval_aurc"] < 0.5 * metrics["eval_aurc_random"]
