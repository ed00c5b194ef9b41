"""What two processes do in `test_two_processes.py`; started by torchrun, one folder per scenario.

Every process writes the weights it ends with, so that the test sees both.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from mmft.errors import RewardError
from mmft.trainers.ppo import PPOTrainer
from rewards import CompositeReward
from tests.trainers.support import make_rows, make_trainer, step_rows, token_reward, trained_weights

BASE: dict[str, Any] = {
    "num_mini_batches": 1,
    "num_ppo_epochs": 2,
    "gradient_accumulation_steps": 2,
    "max_steps": 6,
    "whiten_rewards": True,
    "missing_eos_penalty": 0.5,
}
"""Three rollouts of 8 prompts and 16 completions over all processes; every ingredient of the reward is on."""


def unjudged_reward(completion_ids: list[list[int]], **columns: Any) -> list[float | None]:
    """Cannot judge the rows that the second process holds in the first rollout."""
    rewards = token_reward(completion_ids, **columns)
    return [None if skip else reward for skip, reward in zip(columns["skip"], rewards, strict=True)]


def failing_reward(completion_ids: list[list[int]], **columns: Any) -> list[float | None]:
    """Fails on the rows that the second process holds in the first rollout, and on none later."""
    if any(columns["skip"]):
        raise ZeroDivisionError("no luck")
    return token_reward(completion_ids, **columns)


def stalling_reward(completion_ids: list[list[int]], **columns: Any) -> list[float | None]:
    """Stalls where `failing_reward` fails."""
    if any(columns["skip"]):
        time.sleep(20)
    return token_reward(completion_ids, **columns)


def scaled_reward() -> CompositeReward:
    """Two parts on scales of their own, brought to one by statistics over all samples."""

    def length(completion_ids: list[list[int]], **columns: Any) -> list[float | None]:
        return [100.0 * len(ids) for ids in completion_ids]

    return CompositeReward({"tokens": token_reward, "length": (length, -0.5)}, scaling="z-score")


def scenario(name: str, folder: Path, num_processes: int) -> PPOTrainer:
    """The trainer of a scenario, for this many processes and the same global batch."""
    settings = BASE | {"per_device_train_batch_size": 8 // num_processes}
    rows = make_rows(16)
    if name == "full weights":
        settings |= {"lora": False, "max_steps": 4}
    settings |= CONTROLLED.get(name, {})
    settings |= HELD.get(name, {})
    if name == "scaled":
        settings |= {"rewards": scaled_reward()}
    if name in ("unjudged", "masked", "failing", "stalling"):
        plan = make_trainer(folder, rows=rows, **settings).plan
        second = plan.rows(0, 1) if num_processes == 2 else plan.rows(0, 0)[4:]
        rows = [row | {"skip": row["number"] in second} for row in rows]
        settings |= {"rewards": unjudged_reward, "max_steps": 4} | SPOILED.get(name, {})
    if name == "saving":
        settings |= {"save_strategy": "steps", "save_steps": 1, "lora_dropout": 0.1}
    return make_trainer(folder, rows=rows, eval_rows=make_rows(5), **settings)


CONTROLLED: dict[str, dict[str, Any]] = {
    "controlled": {
        "num_ppo_epochs": 3,
        "kl_target": 1e-3,
        "kl_horizon": 50,
        "early_stop_kl": 1e-4,
        "entropy_coef": 0.02,
        "critic_learning_rate": 3e-2,
    },
    "group": {"advantage_estimator": "group"},
}
"""Controllers that look at all samples, and the critic-free case."""
HELD: dict[str, dict[str, Any]] = {
    "held lora": {"l2_pretrained_coef": 0.5, "l2_adapter_coef": {"language": 0.1}},
    "held weights": {
        "lora": False,
        "l2_pretrained_coef": {"language": 0.5, "head": 0.2},
        "kl_coef": 0.0,
        "max_steps": 4,
    },
}
"""Weights that regularisers hold."""
SPOILED: dict[str, dict[str, Any]] = {
    "masked": {"rewards": failing_reward, "reward_on_error": "mask"},
    "failing": {"rewards": failing_reward},
    "stalling": {"rewards": stalling_reward, "reward_time_limit": 0.5},
}
"""Rewards that break down on the rows of the second process."""


def record(trainer: PPOTrainer, folder: Path, number: int) -> None:
    """Weights and logs of one process."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(trained_weights(trainer), folder / f"weights_{number}.safetensors")
    lengths = trainer.experience.completions.lengths.tolist()
    (folder / f"log_{number}.json").write_text(json.dumps({"steps": step_rows(trainer), "lengths": lengths}))


def main(root: Path) -> None:
    number = int(os.environ["RANK"])
    for name in ("failing", "stalling"):
        try:
            scenario(name, root / name, 2).train()
        except RewardError as error:
            (root / f"{name}_{number}.txt").write_text(str(error))
    for name in ("lora", "full weights", "unjudged", "masked", "scaled", "controlled", "group"):
        trainer = scenario(name, root / name, 2)
        assert trainer.accelerator.num_processes == 2
        trainer.train()
        record(trainer, root / name, number)
    trainer = scenario("saving", root / "saving", 2)
    trainer.train()
    record(trainer, root / "saving", number)
    for step in (2, 3):
        resumed = scenario("saving", root / "other", 2)
        resumed.train(resume_from_checkpoint=str(root / "saving" / f"checkpoint-{step}"))
        record(resumed, root / f"resumed {step}", number)
    metrics = trainer.evaluate()
    (root / f"evaluation_{number}.json").write_text(json.dumps(metrics))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
