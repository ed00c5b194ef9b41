"""Reads the recorded numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TRL_RUNS = ("trl_ppo_default", "trl_ppo_whiten_rewards", "trl_ppo_k3_gamma_eos_penalty")


def golden(name: str) -> dict[str, Any]:
    """The content of `tests/golden/<name>.json`."""
    return json.loads((Path(__file__).parent / f"{name}.json").read_text(encoding="utf-8"))


def tensors(record: dict[str, Any]) -> dict[str, Tensor]:
    """Every list of a record as a tensor, numbers in double precision."""
    found = {name: torch.tensor(value) for name, value in record.items() if isinstance(value, list)}
    return {name: x.double() if x.is_floating_point() else x for name, x in found.items()}
