"""What the tests of the command line share: the settings of a small run, and readers of what it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmft.cli import main

SETTINGS: dict[str, Any] = {
    "dataset_name": "mmft/scenes",
    "instruction": "Describe the picture.",
    "max_train_rows": 8,
    "eval_split": "validation",
    "max_eval_rows": 3,
    "reward_funcs": ["tests.reference.rewards:byte_variety", {"name": "captioning", "gamma": 0.2}],
    "reward_weights": [1.0, 0.5],
    "eval_funcs": ["bleu"],
    "use_peft": True,
    "lora_r": 2,
    "lora_dropout": 0.0,
    "num_generations": 2,
    "per_device_train_batch_size": 4,
    "num_ppo_epochs": 1,
    "max_completion_length": 6,
    "learning_rate": 1e-2,
    "max_steps": 2,
    "save_steps": 2,
    "use_cpu": True,
    "num_samples": 2,
    "seed": 3,
}
SFT_SETTINGS: dict[str, Any] = {
    name: SETTINGS[name]
    for name in (
        "dataset_name",
        "instruction",
        "max_train_rows",
        "eval_split",
        "max_eval_rows",
        "use_cpu",
        "seed",
    )
} | {
    "use_peft": True,
    "lora_r": 2,
    "per_device_train_batch_size": 4,
    "max_steps": 3,
    "learning_rate": 1e-2,
    "bf16": False,
    "activation_checkpointing": False,
    "save_strategy": "no",
}


def write_config(folder: Path, settings: dict[str, Any]) -> str:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings))
    return str(path)


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def refusal(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    assert main(argv) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1, "a mistake is one line, without a traceback"
    return said.err
