"""Weights sharded over two processes with FSDP2; started by torchrun for `test_two_processes.py`.

Accelerate turns FSDP on for accelerators only. Told that processes on CPU have one, it does the same here.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType

from tests.trainers.support import make_rows, make_trainer, step_rows
from tests.trainers.two_processes import BASE, HELD

RUNS: dict[str, tuple[str, str | None]] = {
    "whole": ("held lora", None),
    "resumed": ("held lora", "whole/checkpoint-3"),
    "weights": ("held weights", None),
    "resumed weights": ("held weights", "weights/checkpoint-3"),
}
"""By name, the scenario and the checkpoint to go on from."""
make_state = PartialState.__init__


def make_state_as_on_gpus(self: PartialState, *args: Any, **kwargs: Any) -> None:
    make_state(self, *args, **kwargs)
    if self.distributed_type == DistributedType.MULTI_CPU:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def main(root: Path) -> None:
    PartialState.__init__ = make_state_as_on_gpus
    settings = BASE | {"per_device_train_batch_size": 4, "save_strategy": "steps", "save_steps": 3}
    for name, (held, checkpoint) in RUNS.items():
        trainer = make_trainer(root / name, rows=make_rows(16), **(settings | HELD[held]))
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(root / checkpoint))
        assert trainer.is_fsdp_enabled
        assert any(type(p).__name__ == "DTensor" for p in trainer.actor_critic.parameters())
        trainer.save_model(str(root / name))
        if os.environ["RANK"] == "0":
            (root / f"steps {name}.json").write_text(json.dumps(step_rows(trainer)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
