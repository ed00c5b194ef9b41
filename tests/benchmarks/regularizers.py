"""What holding weights costs: the same training step with and without each regulariser, and without a critic.

python -m tests.benchmarks.regularizers          every case, each in processes of its own, in turn
python -m tests.benchmarks.regularizers CASE     one measurement, as one line of JSON

Writes the section "Regularisers" of RESULTS.md.
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
import warnings
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import torch
from peft import LoraConfig

from tests.benchmarks.models import build, build_rows
from tests.benchmarks.processes import alone, in_turn
from tests.benchmarks.sections import markdown_table, write_section
from tests.benchmarks.worker import (
    COMPLETION_TOKENS,
    MEASURED,
    NUM_PROMPTS,
    WARM_UP,
    PeakMemory,
    StepClock,
    shared_settings,
)

NUM_GENERATIONS = 8
LORA: dict[str, Any] = {"r": 16, "lora_alpha": 32, "target_modules": r".*language_model.*(q|k|v|o)_proj"}


@dataclass(frozen=True)
class Case:
    """A run; beside it, `base` is the same run without what is measured."""

    label: str
    base: str | None
    lora: bool = True
    settings: dict[str, Any] = field(default_factory=dict)


CASES = {
    "full": Case("language model", None, lora=False),
    "full-l2": Case(
        "L2 to pretrained, language model", "full", lora=False, settings={"l2_pretrained_coef": 0.01}
    ),
    "group": Case("LoRA, group advantages", None, settings={"advantage_estimator": "group"}),
    "lora": Case("critic (against group advantages)", "group"),
    "lora-l2": Case("L2 to pretrained, LoRA in closed form", "lora", settings={"l2_pretrained_coef": 0.01}),
    "lora-beta": Case("L2 of the adapters, LoRA", "lora", settings={"l2_adapter_coef": 0.01}),
}


def run_case(name: str, generations: int) -> dict[str, Any]:
    """Trains a few steps; seconds per step and in the regulariser, and peak memory above the model's."""
    from mmft.trainers.ppo import PPOConfig, PPOTrainer
    from rewards import CaptioningReward

    case, clock = CASES[name], StepClock()
    model, processor = build("llava")
    rows = build_rows(NUM_PROMPTS * (WARM_UP + MEASURED))
    with tempfile.TemporaryDirectory() as folder:
        settings = shared_settings(folder, generations) | {"kl_coef": 0.0, "num_ppo_epochs": 1}
        args = PPOConfig(**settings, **case.settings)
        memory = PeakMemory()
        memory.start()  # before the trainer, which makes the copy
        trainer = PPOTrainer(
            model,
            CaptioningReward(),
            args,
            rows,
            processing_class=processor,
            peft_config=LoraConfig(**LORA) if case.lora else None,
            callbacks=[clock],
        )
        trainer.train()
        peak_mb, _ = memory.stop()
    steps = [row for row in trainer.state.log_history if "loss" in row][WARM_UP:]
    regularizer = trainer.regularizer
    copied = 0 if regularizer is None else regularizer.num_copied
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    return {
        "seconds": clock.seconds[WARM_UP:],
        "regularization": [row.get("seconds/regularization", 0.0) for row in steps],
        "peak_mb": peak_mb,
        "copied_mb": copied * 4 / 2**20,
        "trained": trained,
    }


def measure(rounds: int, generations: int) -> dict[str, list[dict[str, Any]]]:
    """The runs of every case."""
    options = ("--generations", str(generations))
    return in_turn(list(CASES), rounds, lambda name: alone("tests.benchmarks.regularizers", name, *options))


COLUMNS = (
    "cost of", "s/step without", "s/step with", "step time", "of it in the regulariser", "peak MB without",
    "peak MB with", "copied MB",
)  # fmt: skip


def table(runs: dict[str, list[dict[str, Any]]]) -> str:
    """One line per regulariser: medians of all measured steps, highest peaks."""
    rows = []
    for name, case in CASES.items():
        if case.base is None:
            continue
        seconds = {each: statistics.median(_all(runs[each], "seconds")) for each in (case.base, name)}
        memory = {each: statistics.median(run["peak_mb"] for run in runs[each]) for each in (case.base, name)}
        spent = statistics.median(_all(runs[name], "regularization"))
        rows.append((
            case.label, f"{seconds[case.base]:.2f}", f"{seconds[name]:.2f}",
            f"{seconds[name] / seconds[case.base] - 1:+.1%}",
            f"{spent / seconds[name]:.2%}" if case.settings else "",
            f"{memory[case.base]:.0f}", f"{memory[name]:.0f}", f"{runs[name][0]['copied_mb']:.0f}",
        ))  # fmt: skip
    return markdown_table(COLUMNS, rows)


def _all(runs: list[dict[str, Any]], key: str) -> list[float]:
    return [value for run in runs for value in run[key]]


def report(runs: dict[str, list[dict[str, Any]]], rounds: int, generations: int) -> str:
    trained = {name: runs[name][0]["trained"] / 1e6 for name in ("full", "lora")}
    machine = f"{os.cpu_count()} CPU cores ({platform.machine()}), fp32, torch {torch.__version__}"
    return f"""# Regularisers

{date.today().isoformat()}, {machine}.
`python -m tests.benchmarks.regularizers` writes this section.

One step of `PPOTrainer` with and without each regulariser: {NUM_PROMPTS} prompts with one new picture each,
{generations} completions of {COMPLETION_TOKENS} tokens per prompt, one optimizer step per rollout, AdamW,
no KL to a reference. The LLaVA-shaped model of 40M parameters trains {trained["full"]:.1f}M weights
(language model and tied head) or {trained["lora"]:.2f}M (LoRA r=16 on attention). Runs take turns,
{rounds} rounds of {MEASURED} steps after a first; medians. The time in the regulariser is clocked inside
the step: what else the machine does weighs less there than in the difference of two runs. Peak memory is
above that of the model. Where a reference policy is kept for the KL, it is the copy: nothing is copied.

{table(runs)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("case", nargs="?", choices=tuple(CASES))
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--generations", type=int, default=NUM_GENERATIONS)
    parser.add_argument("--dry", action="store_true", help="show the section and write nothing")
    arguments = parser.parse_args()
    if arguments.case:
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        sys.stdout.write(json.dumps(run_case(arguments.case, arguments.generations)) + "\n")
        return
    text = report(measure(arguments.rounds, arguments.generations), arguments.rounds, arguments.generations)
    sys.stdout.write(text)
    if not arguments.dry:
        write_section(text)


if __name__ == "__main__":
    main()
