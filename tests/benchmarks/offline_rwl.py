"""One optimizer step of offline reward-weighted likelihood beside TRL's SFTTrainer on the same rows.

python -m tests.benchmarks.offline_rwl                 both systems, each in processes of its own, in turn
python -m tests.benchmarks.offline_rwl SYSTEM GROUP    one measurement, as one line of JSON

With all weights 1 both minimise the same likelihood. Writes the section "Offline reward-weighted likelihood"
of RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from datetime import date
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from peft import LoraConfig
from transformers import TrainerCallback

from tests.benchmarks.models import build, build_rows
from tests.benchmarks.processes import alone, in_turn
from tests.benchmarks.sections import markdown_table, write_section
from tests.benchmarks.worker import COMPLETION_TOKENS, PeakMemory, base_settings

SYSTEMS = ("trl", "mmft")
COMPLETIONS = 8
"""Per optimizer step."""
GROUPS = (8, 1)
"""Completions that share a prompt."""
WARM_UP, MEASURED = 1, 3
LORA = {"r": 16, "lora_alpha": 32, "target_modules": r".*language_model.*(q|k|v|o)_proj"}


class StepEnds(TrainerCallback):
    """Seconds from the end of one optimizer step to the end of the next, reading and collating included."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.last = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now = time.perf_counter()
        self.seconds.append(now - self.last)
        self.last = now


def answered_rows(group: int) -> list[dict[str, Any]]:
    """Rows of every step: a new picture for each group of completions, which are all of the same length."""
    rng = np.random.default_rng(1)
    words = COMPLETION_TOKENS - 1  # and the end
    return [
        {
            "image": row["image"],
            "prompt": row["prompt"],
            "completion": " ".join(f"w{n}" for n in rng.integers(0, 20_000, words)),
            "reward": 1.0,
        }
        for row in build_rows((WARM_UP + MEASURED) * COMPLETIONS // group)
        for _ in range(group)
    ]


def make_trainer(system: str, group: int, folder: str, clock: StepEnds) -> Any:
    model, processor = build("llava")
    rows = answered_rows(group)
    common = {"processing_class": processor, "peft_config": LoraConfig(**LORA), "callbacks": [clock]}
    if system == "trl":
        from datasets import Dataset

        from mmft.trl_bridge import SFTConfig, SFTTrainer

        # TRL's form: pictures in a list, the completion as a message.
        table = Dataset.from_list(
            [
                {
                    "images": [row["image"]],
                    "prompt": row["prompt"],
                    "completion": [{"role": "assistant", "content": row["completion"]}],
                }
                for row in rows
            ]
        )
        return SFTTrainer(
            model,
            SFTConfig(**base_settings(folder, COMPLETIONS, WARM_UP + MEASURED), max_length=None),
            train_dataset=table,
            **common,
        )
    from mmft.trainers.reward_weighted import RewardWeightedConfig, RewardWeightedTrainer

    args = RewardWeightedConfig(
        **base_settings(folder, COMPLETIONS, WARM_UP + MEASURED),
        offline=True,
        weighting="reward",
        num_generations=group,
        max_completion_length=COMPLETION_TOKENS,
    )
    return RewardWeightedTrainer(model, (), args, rows, **common)


def run_system(system: str, group: int) -> dict[str, Any]:
    """Trains a few steps; seconds of each, and peak memory above what was resident before."""
    clock = StepEnds()
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(system, group, folder, clock)
        memory = PeakMemory()
        memory.start()
        trainer.train()
        above, _ = memory.stop()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return {"seconds": clock.seconds[WARM_UP:], "peak_mb": above, "loss": losses[0]}


def measure(rounds: int, group: int) -> dict[str, list[dict[str, Any]]]:
    """The runs of both systems."""
    return in_turn(SYSTEMS, rounds, lambda system: alone("tests.benchmarks.offline_rwl", system, str(group)))


COLUMNS = (
    "completions per prompt", "prompts per step", "SFTTrainer s/step", "mmft s/step", "speed-up",
    "SFTTrainer peak MB", "mmft peak MB",
)  # fmt: skip


def table(results: dict[int, dict[str, list[dict[str, Any]]]]) -> str:
    """One line per size of a group: medians of all measured steps, highest peaks."""
    rows = []
    for group, runs in results.items():
        seconds = {s: statistics.median(t for run in runs[s] for t in run["seconds"]) for s in SYSTEMS}
        memory = {s: max(run["peak_mb"] for run in runs[s]) for s in SYSTEMS}
        rows.append((
            str(group), str(COMPLETIONS // group), f"{seconds['trl']:.2f}", f"{seconds['mmft']:.2f}",
            f"{seconds['trl'] / seconds['mmft']:.1f}x", f"{memory['trl']:.0f}", f"{memory['mmft']:.0f}",
        ))  # fmt: skip
    return markdown_table(COLUMNS, rows)


def report(results: dict[int, dict[str, list[dict[str, Any]]]], rounds: int) -> str:
    return f"""# Offline reward-weighted likelihood

{date.today().isoformat()}, {os.cpu_count()} CPU cores ({platform.machine()}), fp32,
torch {torch.__version__}, TRL {version("trl")}. `python -m tests.benchmarks.offline_rwl` writes this section.

One optimizer step of `RewardWeightedTrainer` on given rows, all weights 1, and of TRL's `SFTTrainer`: the
same {COMPLETIONS} completions of {COMPLETION_TOKENS} tokens, LoRA r={LORA["r"]} on the language model's
attention, a new picture for every prompt. Random weights, about 40M parameters. A step counts from the end of
the one before, reading and collating included. Medians of {rounds * MEASURED} steps in {rounds} process(es)
of each system, which take turns; peak memory is above what was resident before training began.

{table(results)}

With one completion per prompt nothing is shared. In later passes over the data mmft also takes the encoded
pictures from its cache, which is not counted here.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("system", nargs="?", choices=SYSTEMS)
    parser.add_argument("group", nargs="?", type=int, default=GROUPS[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dry-run", action="store_true", help="print the section and leave the file alone")
    arguments = parser.parse_args()
    if arguments.system:
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        sys.stdout.write(json.dumps(run_system(arguments.system, arguments.group)) + "\n")
        return
    text = report({group: measure(arguments.rounds, group) for group in GROUPS}, arguments.rounds)
    sys.stdout.write(text)
    if not arguments.dry_run:
        write_section(text)


if __name__ == "__main__":
    main()
