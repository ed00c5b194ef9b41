"""Rollouts as the data source of the Hugging Face training loop, whatever is rolled out.

A rollout is collected where the last one is used up, cut into mini-batches for several passes, and saved with
a checkpoint in its middle. What it holds is the business of `trainers.online` (completions of prompts) and
`trainers.agent_rollouts` (steps in environments).
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from transformers.trainer_utils import TrainOutput

from mmft.errors import ConfigError
from mmft.trainers.experience import check_saved_rollouts
from mmft.trainers.resuming import ResumableTrainer
from mmft.trainers.schedule import RolloutClock, RolloutPlan, Ticket, ticket_loader

if TYPE_CHECKING:
    from torch.utils.data import DataLoader


class Rollout(Protocol):
    """What a process holds of a rollout."""

    @property
    def number(self) -> int: ...

    @property
    def train_mask(self) -> Tensor: ...

    def take(self, groups: list[int]) -> Any:
        """A part of it, of the same kind."""

    def save(self, path: Path, fingerprint: dict[str, int]) -> None:
        """Writes it, with the plan it belongs to."""


class RolloutTrainer(ResumableTrainer, abc.ABC):
    """Trains on rollouts that it collects itself.

    Attributes:
        experience: this process's part of the current rollout.
        clock: which optimizer step of which rollout comes next.
    """

    experience: Any
    """A `Rollout`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.experience = None
        self._micro_batches: list[Any] = []
        self._resume_folder: Path | None = None
        self.clock = RolloutClock()
        super().__init__(*args, **kwargs)

    @property
    @abc.abstractmethod
    def plan(self) -> RolloutPlan:
        """The rollout arithmetic of this run."""

    @abc.abstractmethod
    def collect(self, number: int) -> Any:
        """One rollout of this process, with everything that is learned from it."""

    @abc.abstractmethod
    def read_rollout(self, path: Path) -> Any:
        """The rollout that was saved with a checkpoint."""

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """As in `transformers.Trainer`; a second call draws its own rollouts."""
        self.experience, self._resume_folder, self.clock = None, None, RolloutClock()
        return super().train(*args, **kwargs)

    def get_train_dataloader(self) -> DataLoader[Ticket]:
        """Tickets; `_prepare_inputs` turns them into micro-batches of a rollout."""
        return ticket_loader(self.plan)

    def _prepare_inputs(self, inputs: Any) -> dict[str, Any]:
        """The micro-batch of this ticket, from a new rollout wherever the last one is used up."""
        ticket: Ticket = inputs
        plan, number = self.plan, self.clock.rollout
        if self.experience is None or self.experience.number != number:
            self.experience = self._resumed(number) if self.clock.step else self.collect(number)
        if ticket["micro_batch"] == 0:
            epoch, mini_batch = divmod(self.clock.step, plan.num_mini_batches)
            groups = plan.mini_batches(number, epoch, self.accelerator.process_index)[mini_batch]
            size = plan.groups_per_micro_batch
            self._micro_batches = [
                self.experience.take(groups[start : start + size]) for start in range(0, len(groups), size)
            ]
            tokens = sum(int(batch.train_mask.sum()) for batch in self._micro_batches)
            self._num_tokens = self._sum_over_processes(torch.tensor(float(tokens), device=self.args.device))
        batch = self._micro_batches[ticket["micro_batch"]]
        return {"batch": batch, "num_tokens": self._num_tokens.clamp(min=1)}

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """As in `transformers.Trainer`; counts the optimizer steps of the rollout."""
        loss = super().training_step(*args, **kwargs)
        if self.accelerator.sync_gradients:
            self.clock.tick(self.plan.steps_per_rollout)
        return loss

    # Checkpoints

    def _resumed(self, number: int) -> Any:
        """The rollout that a checkpoint was saved in the middle of."""
        path = None if self._resume_folder is None else self._resume_folder / self._rollout_file
        if path is None or not path.is_file():
            raise ConfigError(
                f"`resume_from_checkpoint`: {self._rollout_file} is missing in {self._resume_folder}. The "
                f"checkpoint was saved in the middle of rollout {number}, which cannot be drawn again; "
                "resume from a checkpoint that has the file, or from one at the end of a rollout."
            )
        return self.read_rollout(path)

    def progress(self) -> dict[str, Any]:
        """As in `ResumableTrainer`, and where the run stands in its rollouts."""
        return super().progress() | {"rollout": self.clock.rollout, "step_of_rollout": self.clock.step}

    def restore_progress(self, progress: Mapping[str, Any]) -> None:
        """Takes up what `progress` gave."""
        super().restore_progress(progress)
        self.clock = RolloutClock(progress["rollout"], progress["step_of_rollout"])

    @property
    def _rollout_file(self) -> str:
        return f"rollout_{self.accelerator.process_index}.safetensors"

    def save_state(self, folder: Path) -> None:
        """As in `ResumableTrainer`, and the rollout that is being trained on."""
        path = folder / self._rollout_file
        path.unlink(missing_ok=True)  # of an earlier run into the same folder
        if self.clock.step and self.experience is not None and not self.args.save_only_model:
            self.experience.save(path, self.plan.fingerprint())
        super().save_state(folder)

    def load_state(self, folder: Path) -> None:
        """As in `ResumableTrainer`; the rollout is read when it is needed."""
        self._resume_folder = folder
        check_saved_rollouts(folder, self.plan.fingerprint())
        super().load_state(folder)
