"""What a run must know to go on beside weights, optimizer and random state, and when it is saved and read."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from mmft.trainers.base import BaseTrainer
from mmft.trainers.experience import load_progress, save_progress


class ResumableTrainer(BaseTrainer, abc.ABC):
    """A trainer whose checkpoints hold its `progress` (the same on every process) and more of its own."""

    @property
    @abc.abstractmethod
    def _origin(self) -> dict[str, Any]:
        """The part of the progress that a resumed run must have in common with the stopped one."""

    def progress(self) -> dict[str, Any]:
        """What a resumed run must know; the same everywhere, and JSON."""
        return self._origin

    def restore_progress(self, progress: Mapping[str, Any]) -> None:  # nothing is known here
        """Takes up what `progress` gave."""

    def save_state(self, folder: Path) -> None:
        """Called on every process with each checkpoint, to write what is its own."""
        if self.args.should_save and not self.args.save_only_model:
            save_progress(folder, self.progress())

    def load_state(self, folder: Path) -> None:
        """Called on every process of a resumed run, before its optimizer is read."""
        self.restore_progress(load_progress(folder, self._origin))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self.save_state(Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_progress(Path(resume_from_checkpoint), self._origin)  # refuses weights of another algorithm
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Runs on every resume, however the weights are sharded."""
        if checkpoint is not None:
            self.load_state(Path(checkpoint))
        super()._load_optimizer_and_scheduler(checkpoint)
