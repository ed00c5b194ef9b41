"""Episodes as an agent plays them: what it sees, what it thinks of every action, and what comes of it.

Recording is here, drawing in `report.episode_pictures`. The pictures are those of the observation, not those
that `render` would give: what is drawn is all that the agent knows.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import torch
from PIL import Image

from mmft.engine.environment_pool import EnvironmentPool
from mmft.engine.observations import Observation, ObservationReader
from mmft.errors import EnvError
from mmft.trainers.held_out_episodes import Act

NAMING = ("action_names", "ACTION_NAMES", "label_names", "actions")
"""Attributes by which environments name their actions: ours, that of rows, and MiniGrid's enumeration."""
GAP = 2
"""Pixels between pictures that are seen together."""
RECORDED_STEPS = 200
"""After which a recording stops."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One step of an agent."""

    picture: Image.Image | None
    """What it saw, several pictures side by side."""
    text: str
    """What it read."""
    scores: tuple[float, ...] = ()
    """Of every action: its value, or its probability; empty at the end of an episode."""
    legal: tuple[bool, ...] = ()
    """Which actions may be taken."""
    action: int | None = None
    """What it did; None at the end of an episode."""
    reward: float | None = None
    """What that brought."""


@dataclass(frozen=True, slots=True)
class Recording:
    """An episode, or its beginning.

    Attributes:
        frames: the steps, and what the episode ended with.
        action_names: of each action.
        success: what the environment says of it.
        ended: whether it came to its end.
    """

    frames: Sequence[Frame]
    action_names: tuple[str, ...]
    success: bool | None = None
    ended: bool = True

    @property
    def num_steps(self) -> int:
        """Actions that were taken."""
        return sum(frame.action is not None for frame in self.frames)

    @property
    def total_reward(self) -> float:
        """Of the recorded steps."""
        return sum(frame.reward or 0.0 for frame in self.frames)

    @property
    def outcome(self) -> str:
        """What came of it, in words."""
        success = {None: "", True: ", success", False: ", no success"}[self.success]
        return f"return {self.total_reward:.2f}{success}" + ("" if self.ended else " so far")


def record_episodes(
    make: Callable[[], gymnasium.Env[Any, Any]],
    act: Act,
    count: int,
    *,
    name: str,
    seed: int,
    reading: dict[str, Any],
    time_limit: float | None = None,
) -> list[Recording]:
    """Plays the first episodes of one environment.

    Args:
        make: makes it.
        act: what to do, and the scores that say so.
        count: episodes.
        name: what errors call the environment.
        seed: of the pool whose first environment this is.
        reading: keys and instruction, for `ObservationReader`.
        time_limit: seconds that a step may take.

    Raises:
        EnvError: the environment fails.
    """
    made: list[gymnasium.Env[Any, Any]] = []

    def make_and_keep() -> gymnasium.Env[Any, Any]:
        made.append(make())
        return made[-1]

    pool = EnvironmentPool(make_and_keep, 1, name=name, seed=seed, time_limit=time_limit)
    try:
        reader = ObservationReader(pool.observation_space, pool.action_space, environment=name, **reading)
        names = action_names(made[0], reader)
        return [record_episode(pool, reader, act, names) for _ in range(count)]
    finally:
        pool.close()


@torch.no_grad()
def record_episode(
    pool: EnvironmentPool, reader: ObservationReader, act: Act, names: tuple[str, ...]
) -> Recording:
    """Plays the episode that a pool of one environment is at the beginning of, for so many steps at most."""
    ((observation, info),) = pool.reset()
    frames: list[Frame] = []
    while len(frames) < RECORDED_STEPS:
        seen = reader.read(observation, info)
        legal = (
            torch.ones(1, reader.num_actions, dtype=torch.bool) if seen.legal is None else seen.legal[None]
        )
        actions, scores = act([seen], legal)
        (step,) = pool.step([reader.to_action(int(actions[0]))])
        frames.append(
            Frame(
                picture=side_by_side(seen.images),
                text=seen.text,
                scores=tuple(scores[0].tolist()),
                legal=tuple(legal[0].tolist()),
                action=int(actions[0]),
                reward=step.reward,
            )
        )
        if step.last:
            frames += _end(reader, step.observation, seen)
            (episode,) = pool.finished()
            return Recording(frames, names, episode.success)
        observation, info = step.next_observation, step.next_info
    return Recording(frames, names, ended=False)


def _end(reader: ObservationReader, observation: Any, before: Observation) -> list[Frame]:
    """What the episode ended with, where there is anything new to see."""
    try:
        seen = reader.read(observation, {})
    except EnvError:  # nothing is left to do, and the environment may say so in its mask
        return []
    return [] if seen.key == before.key else [Frame(side_by_side(seen.images), seen.text)]


def action_names(env: gymnasium.Env[Any, Any], reader: ObservationReader) -> tuple[str, ...]:
    """What an environment calls its actions, or their numbers."""
    for attribute in NAMING:
        try:
            named = env.get_wrapper_attr(attribute)
        except AttributeError:
            continue
        if isinstance(named, type) and issubclass(named, enum.Enum):
            named = [each.name for each in named]
        if isinstance(named, Sequence) and not isinstance(named, str) and len(named) == reader.num_actions:
            return tuple(map(str, named))
    return tuple(str(reader.to_action(index)) for index in range(reader.num_actions))


def side_by_side(images: Sequence[Image.Image]) -> Image.Image | None:
    """The pictures of an observation as one."""
    if len(images) < 2:
        return images[0] if images else None
    width = sum(image.width for image in images) + GAP * (len(images) - 1)
    joined = Image.new("RGB", (width, max(image.height for image in images)), "white")
    left = 0
    for image in images:
        joined.paste(image, (left, 0))
        left += image.width + GAP
    return joined


def evenly(frames: Sequence[Frame], count: int) -> list[tuple[int, Frame]]:
    """At most `count` frames, the first and the last among them, with their places."""
    last = len(frames) - 1
    if len(frames) <= count:
        return list(enumerate(frames))
    places = [round(number * last / (count - 1)) for number in range(count)]
    return [(place, frames[place]) for place in places]
