"""Offline training with weights sharded over two processes; started by torchrun."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from accelerate import PartialState

from tests.trainers.support import step_rows
from tests.trainers.two_processes_rwl import scenario
from tests.trainers.two_processes_sharded import make_state_as_on_gpus


def main(root: Path) -> None:
    PartialState.__init__ = make_state_as_on_gpus
    for name, checkpoint in {"whole": None, "resumed": str(root / "whole" / "checkpoint-3")}.items():
        trainer = scenario("offline", root / name, 2, save_strategy="steps", save_steps=3)
        trainer.train(resume_from_checkpoint=checkpoint)
        assert trainer.is_fsdp_enabled
        trainer.save_model(str(root / name))
        if os.environ["RANK"] == "0":
            (root / "steps.json").write_text(json.dumps(step_rows(trainer)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
