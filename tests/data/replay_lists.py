"""What a replay buffer should give, from plain lists that forget nothing."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmft.data.replay import ReplayBuffer

NUM_ACTIONS = 3


def numbered(number: float) -> dict[str, Tensor]:
    """A state that says which one it is."""
    return {"x": torch.tensor([float(number)])}


def numbers(states: Mapping[str, Tensor]) -> list[float]:
    return states["x"].squeeze(1).tolist()


@dataclass
class Position:
    """A state and the step that was taken there, if any."""

    number: float
    legal: list[bool]
    action: int | None = None
    reward: float = 0.0
    terminated: bool = False
    last: bool = False


@dataclass
class Window:
    """A start, the steps from it on and where they led."""

    start: Position
    steps: list[Position]
    after: Position

    @property
    def rewards(self) -> list[float]:
        return [step.reward for step in self.steps]

    @property
    def terminated(self) -> bool:
        return self.steps[-1].terminated

    def columns(self, num_steps: int) -> list[object]:
        """As a batch should hold it: nothing stands beyond the end of the window."""
        index = len(self.steps) - 1
        before, beyond = [False] * index, [False] * (num_steps - len(self.steps))
        return [
            self.start.action,
            self.start.legal,
            self.rewards + [0.0] * len(beyond),
            [*before, True, *beyond],
            [*before, self.terminated, *beyond],
            index,
            self.after.number,
            self.after.legal,
        ]


class Lists:
    """All that ever happened in each stream."""

    def __init__(self, num_streams: int, seed: int) -> None:
        self.random = random.Random(seed)
        self.streams: list[list[Position]] = [[] for _ in range(num_streams)]
        self.num_states = 0

    def step(self, stream: int) -> tuple[Position, Position | None]:
        """A random step, and where it led if it was truncated there."""
        step = self._position()
        step.action = self.random.randrange(NUM_ACTIONS)
        step.reward = self.random.randrange(-40, 40) / 8  # the same number in float32
        step.terminated = self.random.random() < 0.15
        step.last = step.terminated or self.random.random() < 0.15
        final = self._position() if step.last and not step.terminated else None
        self.streams[stream] += [step] if final is None else [step, final]
        return step, final

    def break_off(self, stream: int) -> Position:
        """A state in which the stream's episode may end unexpectedly: it does if the episode still runs."""
        found, newest = self._position(), self.streams[stream][-1:]
        if newest and newest[0].action is not None and not newest[0].terminated:
            newest[0].last = True
            self.streams[stream].append(found)
        return found

    def _position(self) -> Position:
        self.num_states += 1
        return Position(self.num_states, [self.random.random() < 0.5 for _ in range(NUM_ACTIONS)])

    def windows(self, num_positions: int, num_steps: int) -> Iterator[Window]:
        """All that a buffer with so many positions a stream can still give."""
        for stream in self.streams:
            kept = stream[-num_positions:]
            for place in range(len(kept)):
                window = _window(kept[place:], num_steps)
                if window is not None:
                    yield window


def _window(positions: list[Position], num_steps: int) -> Window | None:
    steps: list[Position] = []
    after = positions[0]
    for position, following in zip(positions, [*positions[1:], None], strict=True):
        if position.action is None or len(steps) == num_steps:
            break
        if position.terminated:
            steps, after = [*steps, position], position
            break
        if following is None:
            break
        steps, after = [*steps, position], following
        if position.last:
            break
    return Window(positions[0], steps, after) if steps else None


def append(buffer: ReplayBuffer, stream: int, step: Position, final: Position | None) -> None:
    assert step.action is not None
    buffer.append(
        stream,
        numbered(step.number),
        step.action,
        step.reward,
        terminated=step.terminated,
        last=step.last,
        legal=torch.tensor(step.legal),
        final_state=None if final is None else numbered(final.number),
        final_legal=None if final is None else torch.tensor(final.legal),
    )


def extend(
    buffer: ReplayBuffer, steps: list[tuple[Position, Position | None]], streams: Sequence[int] | None = None
) -> None:
    """One step of every stream or of those named, and a final state that must not be read where nothing was
    truncated."""
    unread = Position(float("nan"), [False] * NUM_ACTIONS)
    taken, finals = [step for step, _ in steps], [final or unread for _, final in steps]
    buffer.extend(
        {"x": torch.tensor([[float(step.number)] for step in taken])},
        torch.tensor([step.action for step in taken]),
        torch.tensor([step.reward for step in taken]),
        terminated=torch.tensor([step.terminated for step in taken]),
        last=torch.tensor([step.last for step in taken]),
        legal=torch.tensor([step.legal for step in taken]),
        final_states={"x": torch.tensor([[float(final.number)] for final in finals])},
        final_legal=torch.tensor([final.legal for final in finals]),
        streams=None if streams is None else torch.tensor(streams),
    )


def cut(buffer: ReplayBuffer, streams: Sequence[int], found: Sequence[Position]) -> None:
    """Where the episodes of some streams broke off."""
    buffer.cut(
        torch.tensor(streams),
        {"x": torch.tensor([[float(position.number)] for position in found])},
        torch.tensor([position.legal for position in found]),
    )


def check_draws(buffer: ReplayBuffer, lists: Lists, num_positions: int, num_steps: int) -> None:
    """Every start of the lists is drawn, nothing else is, and all that comes with it is as in the lists."""
    windows = {w.start.number: w.columns(num_steps) for w in lists.windows(num_positions, num_steps)}
    assert len(windows) < 60  # else 600 draws need not hit all of them
    batch = buffer.sample(600, torch.Generator().manual_seed(lists.num_states), num_steps=num_steps)
    columns = (
        batch.actions.tolist(),
        batch.legal.tolist(),
        batch.rewards.tolist(),
        batch.window_last.tolist(),
        batch.window_terminated.tolist(),
        batch.bootstrap_index.tolist(),
        numbers(batch.next_states),
        batch.next_legal.tolist(),
    )
    assert {start: row for start, *row in zip(numbers(batch.states), *columns, strict=True)} == windows
