"""One measurement in a process of its own: a few training steps of one system, as one line of JSON.

python -m tests.benchmarks.worker SYSTEM SHAPE NUM_GENERATIONS
"""

from __future__ import annotations

import json
import logging
import resource
import sys
import tempfile
import threading
import time
import warnings
from typing import Any

import psutil
import torch
from peft import LoraConfig
from transformers import TrainerCallback

from tests.benchmarks.models import build, build_rows

NUM_PROMPTS = 2
COMPLETION_TOKENS = 24
KL_COEF = 0.05
WARM_UP, MEASURED = 1, 2


class StepClock(TrainerCallback):
    """Seconds from the beginning of an optimizer step to its end: sampling, rewards, scoring, update."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds.append(time.perf_counter() - self.start)


class PeakMemory(threading.Thread):
    """Samples this process's resident memory; its peak above what was resident at the start."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.process = psutil.Process()
        self.before = self.peak = self.process.memory_info().rss
        self.running = True

    def run(self) -> None:
        while self.running:
            self.peak = max(self.peak, self.process.memory_info().rss)
            time.sleep(0.005)

    def stop(self) -> tuple[float, float]:
        self.running = False
        self.join()
        return (self.peak - self.before) / 2**20, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def base_settings(folder: str, batch_size: int, max_steps: int) -> dict[str, Any]:
    """Of every trainer of transformers."""
    return {
        "output_dir": folder,
        "use_cpu": True,
        "bf16": False,
        "per_device_train_batch_size": batch_size,
        "max_steps": max_steps,
        "learning_rate": 1e-4,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def shared_settings(folder: str, num_generations: int) -> dict[str, Any]:
    """Of every trainer that samples."""
    return base_settings(folder, NUM_PROMPTS * num_generations, WARM_UP + MEASURED) | {
        "num_generations": num_generations,
        "max_completion_length": COMPLETION_TOKENS,
        "temperature": 1.0,
    }


def make_trainer(system: str, shape: str, num_generations: int, folder: str, clock: StepClock) -> Any:
    from rewards import CaptioningReward

    model, processor = build(shape)
    rows = build_rows(NUM_PROMPTS * (WARM_UP + MEASURED))
    settings = shared_settings(folder, num_generations)
    lora = LoraConfig(r=16, lora_alpha=32, target_modules=r".*(language_model|text_model).*(q|k|v|o)_proj")
    common = {"processing_class": processor, "peft_config": lora, "callbacks": [clock]}
    if system == "trl":
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer

        args = GRPOConfig(**settings, beta=KL_COEF, top_k=0)
        return GRPOTrainer(model, CaptioningReward(), args, Dataset.from_list(rows), **common)
    from mmft.trainers.ppo import PPOConfig, PPOTrainer

    args = PPOConfig(**settings, kl_coef=KL_COEF, num_ppo_epochs=1)
    return PPOTrainer(model, CaptioningReward(), args, rows, **common)


def main(system: str, shape: str, num_generations: int) -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    clock = StepClock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(system, shape, num_generations, folder, clock)
        memory = PeakMemory()
        memory.start()
        trainer.train()
        above, total = memory.stop()
    history = [row for row in trainer.state.log_history if "completions/mean_length" in row]
    result = {
        "system": system,
        "shape": shape,
        "num_generations": num_generations,
        "seconds": clock.seconds[WARM_UP:],
        "peak_mb": above,
        "resident_mb": total,
        "mean_length": history[-1]["completions/mean_length"],
        "threads": torch.get_num_threads(),
        "parts": {k.split("/")[1]: v for k, v in history[-1].items() if k.startswith("seconds/")},
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
