"""The same reward objects in TRL's own trainer: one step of GRPO on pictures."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from mmft.resolve import resolve_rewards
from tests import zoo
from tests.trainers.support import make_rows

SPECS: list[Any] = [
    "bleu",
    "captioning",
    "rouge_l",
    {"name": "cider_d"},
    {
        "name": "composite",
        "scaling": "z-score",
        "parts": {"text": {"name": "detail", "weight": 2.0}, "n": "bleu"},
    },
    {"name": "shaped", "reward": "bleu", "potential": "keyword_coverage"},
    {"name": "potential_shaping", "potential": "keyword_coverage"},
    "exact_match",
    "repetition",
    {"name": "format"},
    {"name": "length", "max_length": 4},
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # TRL's and PEFT's own
def test_rewards_by_short_name_run_in_trl(tmp_path: Path):
    rewards, names = resolve_rewards(SPECS)
    rows = [
        row | {"references": ["a cat", "the cat"], "keywords": ["cat"], "answer": "cat"}
        for row in make_rows(4)
    ]
    for reward in rewards:
        if hasattr(reward, "prepare"):
            reward.prepare(lambda name: [row.get(name) for row in rows])
    for row in rows:
        row["prompt"] = [{"role": "user", "content": row["prompt"]}]
    args = GRPOConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", save_strategy="no", max_steps=1,
        per_device_train_batch_size=4, num_generations=2, max_completion_length=5, disable_tqdm=True,
        logging_steps=1, gradient_checkpointing=False, dataloader_pin_memory=False,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = GRPOTrainer(
            zoo.build_model("llava"),
            rewards,
            args,
            Dataset.from_list(rows),
            processing_class=zoo.build_processor("llava"),
        )
        trainer.train()
    (logged,) = (line for line in trainer.state.log_history if "reward" in line)
    for name in names:
        assert math.isfinite(logged[f"rewards/{name}/mean"]), name
