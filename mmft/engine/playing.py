"""One step of all environments at a time, in tensors: what was seen, done and earned.

Shapes: E environments, A actions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmft.engine.environment_pool import EnvironmentPool
from mmft.engine.observations import Observation, ObservationReader, digest_of, digest_of_pictures

GREY = (127, 127, 127)
Blanking = Callable[[Observation], Observation]


@dataclass(frozen=True, slots=True)
class Played:
    """What E environments did with one action each."""

    rewards: Tensor
    """(E,)"""
    terminated: Tensor
    """(E,) the episode ended and nothing follows."""
    last: Tensor
    """(E,) the episode ended, for whatever reason."""
    failed: Tensor
    """(E,) the environment failed: the step did not happen, and the episode ended where it began."""
    finals: list[Observation | None]
    """Where truncated episodes ended."""


class Player:
    """Environments behind the reader of their observations.

    Attributes:
        pool: the environments.
        reader: of their observations.
        observations: what each waits with, (E).
        num_played: steps so far that happened, over all environments of the pool.
    """

    def __init__(
        self, pool: EnvironmentPool, reader: ObservationReader, blank: Blanking | None = None
    ) -> None:
        """Takes the environments.

        Args:
            pool: the environments.
            reader: of their observations.
            blank: takes something out of every observation, to see what it was good for.
        """
        self.pool, self.reader, self._blank = pool, reader, blank
        self.num_played = 0
        self.observations: list[Observation] = []

    def start(self) -> None:
        """Reads what the environments wait with; begins their first episodes if they have not begun."""
        self.observations = [self._read(*waiting) for waiting in self.pool.reset()]

    @property
    def legal(self) -> Tensor:
        """(E, A) the actions that may be taken now."""
        return legal_actions(self.observations, self.reader.num_actions)

    def play(self, actions: Tensor) -> Played:
        """(E,) one action for each environment; `observations` moves on."""
        steps = self.pool.step([self.reader.to_action(int(action)) for action in actions])
        finals: list[Observation | None] = [None] * len(steps)
        for number, step in enumerate(steps):
            if step.failed:
                finals[number] = self.observations[number]
            elif step.last and not step.terminated:
                finals[number] = self._read(step.observation, step.info)
            self.observations[number] = self._read(step.next_observation, step.next_info)
        self.num_played += sum(not step.failed for step in steps)
        return Played(
            rewards=torch.tensor([step.reward for step in steps], dtype=torch.float32),
            terminated=torch.tensor([step.terminated for step in steps]),
            last=torch.tensor([step.last for step in steps]),
            failed=torch.tensor([step.failed for step in steps]),
            finals=finals,
        )

    def _read(self, observation: object, info: dict[str, object]) -> Observation:
        seen = self.reader.read(observation, info)
        return seen if self._blank is None else self._blank(seen)


def legal_actions(observations: Sequence[Observation], num_actions: int) -> Tensor:
    """(B, A) True at the actions that may be taken."""
    everything = torch.ones(num_actions, dtype=torch.bool)
    return torch.stack([everything if o.legal is None else o.legal for o in observations])


def without_pictures(observation: Observation) -> Observation:
    """The observation with plain grey in place of each picture."""
    images = tuple(Image.new("RGB", image.size, GREY) for image in observation.images)
    return replace(observation, images=images, image_key=digest_of_pictures(images))


def without_text(observation: Observation) -> Observation:
    """The observation without a word."""
    return replace(observation, text="", text_key=digest_of([b""]))


BLANKS: dict[str, Blanking] = {"image": without_pictures, "text": without_text}
"""What can be taken out of an observation, by modality."""


class Noise:
    """Random numbers that depend on nothing but their place in the run, so that a resumed run draws the same.

    Attributes:
        seed: of the run.
        process: which process draws.
    """

    def __init__(self, seed: int, process: int) -> None:
        self.seed, self.process = seed, process

    def generator(self, purpose: str, number: int, environment: int = 0) -> torch.Generator:
        """A fresh generator on the CPU for the `number`-th draw of that purpose."""
        words = [self.seed, self.process, number, environment, *purpose.encode()]
        state = np.random.SeedSequence(words).generate_state(2, np.uint32)
        return torch.Generator().manual_seed(int(state[0]) << 32 | int(state[1]))

    def uniforms(self, purpose: str, number: int, count: int) -> Tensor:
        """(count,) numbers in [0, 1)."""
        return torch.rand(count, generator=self.generator(purpose, number))
