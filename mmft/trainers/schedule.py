"""When what happens: which prompts a rollout uses, and which micro-batch follows which.

The data loader of the Trainer hands out tickets, not data: skipping and prefetching tickets costs nothing, so
the Hugging Face loop can be used as it is, and a run resumes at any optimizer step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, Dataset


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutPlan:
    """The arithmetic of rollouts, the same on every process."""

    num_rows: int
    """Distinct prompts in the data set."""
    groups_per_micro_batch: int
    """Prompt groups per process in one forward."""
    num_micro_batches: int
    """Gradient accumulation: micro-batches per optimizer step."""
    num_mini_batches: int
    """Optimizer steps per pass over a rollout."""
    num_epochs: int
    """Passes over a rollout."""
    num_processes: int
    seed: int

    @property
    def local_groups(self) -> int:
        """Prompt groups of one rollout on one process."""
        return self.groups_per_micro_batch * self.num_micro_batches * self.num_mini_batches

    @property
    def global_groups(self) -> int:
        return self.local_groups * self.num_processes

    @property
    def steps_per_rollout(self) -> int:
        """Optimizer steps per rollout."""
        return self.num_mini_batches * self.num_epochs

    def fingerprint(self) -> dict[str, int]:
        """What a rollout's rows, samples and mini-batches follow from: a saved one fits no other plan."""
        names = ("num_rows", "local_groups", "num_mini_batches", "num_epochs", "num_processes", "seed")
        return {name: getattr(self, name) for name in names}

    @property
    def rollouts_per_epoch(self) -> int:
        """Rollouts in one pass over the data set, at least one."""
        return max(self.num_rows // self.global_groups, 1)

    def rows(self, rollout: int, process: int) -> list[int]:
        """The data set rows of one process's share of a rollout; each pass over the data is shuffled anew."""
        first = rollout * self.global_groups + process * self.local_groups
        places = [divmod(position, self.num_rows) for position in range(first, first + self.local_groups)]
        orders = {epoch: self._permutation(epoch) for epoch in {epoch for epoch, _ in places}}
        return [int(orders[epoch][place]) for epoch, place in places]

    def first_sample(self, process: int, num_generations: int) -> int:
        """The global number of a process's first completion in a rollout; seeds its sampling noise."""
        return process * self.local_groups * num_generations

    def _permutation(self, epoch: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed((self.seed << 20) + epoch)
        return torch.randperm(self.num_rows, generator=generator)

    def mini_batches(self, rollout: int, epoch: int, process: int) -> list[list[int]]:
        """Local group numbers of each mini-batch of one pass; a fresh shuffle per pass."""
        key = ((self.seed * 7919 + rollout) * 7919 + epoch) * 7919 + process
        generator = torch.Generator().manual_seed(key % 2**63)  # seeds of 32 bits would overflow
        order = torch.randperm(self.local_groups, generator=generator).tolist()
        size = self.local_groups // self.num_mini_batches
        return [order[start : start + size] for start in range(0, self.local_groups, size)]


@dataclass(slots=True)
class RolloutClock:
    """Which optimizer step of which rollout comes next; a rollout may end before its last step."""

    rollout: int = 0
    step: int = 0
    """Optimizer steps already taken on this rollout."""

    def tick(self, steps_per_rollout: int) -> None:
        """One optimizer step is done."""
        self.step += 1
        if self.step >= steps_per_rollout:
            self.end_rollout()

    def end_rollout(self) -> None:
        """The next step draws a new rollout."""
        self.rollout, self.step = self.rollout + 1, 0


Ticket = dict[str, int]
"""`{"micro_batch": i}`: the number of a micro-batch within its optimizer step. The Trainer wants mappings."""


class TicketDataset(Dataset[Ticket]):
    """One ticket per micro-batch of an epoch."""

    def __init__(self, plan: RolloutPlan) -> None:
        self.plan = plan

    def __len__(self) -> int:
        return self.plan.rollouts_per_epoch * self.plan.steps_per_rollout * self.plan.num_micro_batches

    def __getitem__(self, index: int) -> Ticket:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return {"micro_batch": index % self.plan.num_micro_batches}


def _only(tickets: list[Ticket]) -> Ticket:
    return tickets[0]


def ticket_loader(plan: RolloutPlan) -> DataLoader[Ticket]:
    """The Trainer's data loader: tickets in order, one at a time."""
    return DataLoader(TicketDataset(plan), batch_size=1, shuffle=False, collate_fn=_only)
