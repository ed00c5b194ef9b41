"""What two processes do in `test_reward_model.py`; started by torchrun, one folder per scenario."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from mmft.trainers.reward_model import RewardModelTrainer
from tests.trainers.reward_support import (
    make_reward_trainer,
    preferences,
    ratings,
    step_rows,
    trained_weights,
)

SCENARIOS = ("preferences", "ratings", "frozen")


def scenario(name: str, folder: Path, num_processes: int) -> RewardModelTrainer:
    """The trainer of a scenario, for this many processes and the same global batch."""
    # Rows in their order: the sampler deals them out differently to two processes.
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 4 // num_processes,
        "train_sampling_strategy": "sequential",
    }
    if name == "preferences":
        settings |= {"center_rewards_coefficient": 0.1}
        return make_reward_trainer(folder, preferences(16), preferences(6, seed=1), **settings)
    settings |= {"loss_type": "heteroscedastic", "training": "frozen" if name == "frozen" else "full"}
    return make_reward_trainer(folder, ratings(16), ratings(6, seed=1), **settings)


def main(root: Path) -> None:
    number = int(os.environ["RANK"])
    for name in SCENARIOS:
        trainer = scenario(name, root / name, 2)
        assert trainer.accelerator.num_processes == 2
        trainer.train()
        save_file(trained_weights(trainer), root / name / f"weights_{number}.safetensors")
        metrics = trainer.evaluate()
        rows = [sample["row"] for sample in trainer.eval_samples]
        result = {"steps": step_rows(trainer), "metrics": metrics, "rows": rows}
        (root / name / f"result_{number}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
