"""What two processes do in `test_reward_weighted_two_processes.py`; started by torchrun."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from mmft.errors import ConfigError
from mmft.trainers.reward_weighted import RewardWeightedConfig, RewardWeightedTrainer
from tests.trainers.support import make_rows, make_trainer, step_rows, token_reward, trained_weights

SCENARIOS: dict[str, dict[str, Any]] = {
    "exponential": {"baseline": "group", "tau": 0.3},
    "top_fraction": {"weighting": "top_fraction", "top_fraction": 0.3},
    "offline": {"offline": True, "tau": 0.3},
}
BASE: dict[str, Any] = {
    "num_mini_batches": 1,
    "num_ppo_epochs": 2,
    "gradient_accumulation_steps": 2,
    "max_steps": 6,
}
"""Three batches of 8 prompt groups over all processes, two passes over each."""


def choosy_reward(completion_ids: list[list[int]], **columns: Any) -> list[float | None]:
    """Gives more to rows of high number, and nothing at all to some."""
    rewards = token_reward(completion_ids, **columns)
    numbers = columns["number"]
    return [None if n % 5 == 0 else r + n / 10 for n, r in zip(numbers, rewards, strict=True)]


def below_zero(completion_ids: list[list[int]], **columns: Any) -> list[float | None]:
    """Negative on one row only."""
    return [-0.5 if number == 3 else 1.0 for number in columns["number"]]


def nothing(completion_ids: list[list[int]], **columns: Any) -> list[float | None]:
    """Pays nobody."""
    return [0.0] * len(completion_ids)


def answered_rows() -> list[dict[str, Any]]:
    """Ten chunks of up to 2 completions: a whole batch, and one that leaves nothing to the second process."""
    shown = make_rows(6)
    return [
        shown[prompt] | {"completion": "abcde"[: 1 + (prompt + n) % 4], "reward": n / 3 + prompt / 10}
        for n in range(3)
        for prompt in range(6)
        if n == 0 or prompt + n < 6
    ]


def scenario(name: str, folder: Path, num_processes: int, **changes: Any) -> RewardWeightedTrainer:
    """The trainer of a scenario, for this many processes and the same global batch."""
    settings = BASE | {"per_device_train_batch_size": 8 // num_processes} | SCENARIOS[name] | changes
    rows = answered_rows() if name == "offline" else make_rows(16)
    return make_trainer(
        folder,
        trainer_class=RewardWeightedTrainer,
        config_class=RewardWeightedConfig,
        rewards=settings.pop("rewards", choosy_reward),
        rows=rows,
        **settings,
    )


def main(root: Path) -> None:
    number = int(os.environ["RANK"])
    for name in SCENARIOS:
        trainer = scenario(name, root / name, 2, save_strategy="steps", save_steps=1)
        assert trainer.accelerator.num_processes == 2
        trainer.train()
        resumed = scenario(name, root / f"{name} again", 2)
        resumed.train(resume_from_checkpoint=str(root / name / "checkpoint-3"))
        for run, folder in ((trainer, root / name), (resumed, root / f"{name} again")):
            save_file(trained_weights(run), folder / f"weights_{number}.safetensors")
            (folder / f"steps_{number}.json").write_text(json.dumps(step_rows(run)))
    unpaid = scenario("exponential", root / "unpaid", 2, weighting="reward", rewards=nothing)
    unpaid.train()
    (root / f"unpaid_{number}.json").write_text(json.dumps(step_rows(unpaid)))
    try:
        scenario("exponential", root / "refused", 2, weighting="reward", rewards=below_zero).train()
    except ConfigError as error:
        (root / f"refused_{number}.txt").write_text(str(error))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
