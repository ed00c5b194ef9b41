"""A run that logs to trackers which read the environment when they are imported; tests start it as a program.

It prints as JSON what was said at each evaluation.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from tests.trainers.support import make_rows, make_trainer


def main() -> None:
    torch.set_num_threads(1)
    trainer = make_trainer(
        Path(sys.argv[1]),
        eval_rows=make_rows(6),
        report_to=["trackio", "wandb"],
        tracked_samples_steps=4,
        num_tracked_samples=2,
    )
    said = []
    for work in (trainer.evaluate, trainer.train, trainer.evaluate):
        work()
        said.append([sample["completion"] for sample in trainer.eval_samples])
    print("SAID " + json.dumps(said))


if __name__ == "__main__":
    main()
