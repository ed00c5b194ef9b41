"""Measurements in processes of their own, in turn: all see the same machine, and memory is counted apart."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any


def alone(module: str, *arguments: str) -> dict[str, Any]:
    """Runs a module offline and on the CPU; what it wrote on its last line, which is JSON."""
    command = [sys.executable, "-m", module, *arguments]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def in_turn(
    names: Sequence[str], rounds: int, measure: Callable[[str], dict[str, Any]]
) -> dict[str, list[dict[str, Any]]]:
    """`measure(name)` for every name in every round, forwards and backwards by turns."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names[:: 1 if number % 2 == 0 else -1]:
            runs[name].append(measure(name))
    return runs
