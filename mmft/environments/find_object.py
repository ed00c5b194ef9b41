"""A grid to walk: the picture says where things are, the mission which of them to go to.

What is to be found is drawn by lot among the objects of the finished picture, so that neither the picture nor
the mission alone says where to go. Left out on purpose: walls, turning and partial views, which MiniGrid has.
"""

from __future__ import annotations

import difflib
import random
from collections import deque
from collections.abc import Collection, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from mmft.environments.observations import Picture, check_blank, picture_space, sentence_space, shown
from mmft.errors import ConfigError
from mmft.tiny.drawing import draw_scene
from mmft.tiny.lexicon import CANVAS, COLOURS, SHAPES, SceneObject

AGENT = ("black", "cross")
"""Colour and shape of the agent; no object is black."""
MOVES = ((0, -1), (1, 0), (0, 1), (-1, 0))
"""(columns, rows) of the actions 0 up, 1 right, 2 down, 3 left."""
SIZES = (2, 3, 4)
"""Cells of 16 pixels are the smallest that hold a small shape."""
LARGEST_STEP_COST = 0.1
"""Beyond it the way to the target can cost more than ending the episode at the wrong object."""
BLANK_MISSION = "go to the object"

Cell = tuple[int, int]
"""(column, row)"""
Kind = tuple[str, str]
"""(colour, shape)"""
Observation = dict[str, Any]


class FindObject(gymnasium.Env[Observation, Any]):
    """The agent, a black cross, goes to the object that the mission names.

    Observation: `image`, 64 x 64, and `mission`, such as "go to the red circle". Actions: 0 up, 1 right,
    2 down, 3 left; a move against the border stays. Arriving at the named object gives 1 and at any other
    one `wrong_reward`, both end the episode; each step costs `step_cost`, the last one too.

    `info` holds `optimal_return` at the reset and `is_success` at the end of the episode.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012  (gymnasium declares it)
    ACTION_NAMES = ("up", "right", "down", "left")

    def __init__(
        self,
        *,
        size: int = 4,
        num_objects: int = 2,
        step_cost: float = 0.05,
        wrong_reward: float = -1.0,
        max_steps: int | None = None,
        jitter: bool = True,
        blank: str = "none",
        colours: Sequence[str] | None = None,
        shapes: Sequence[str] | None = None,
        kinds: Sequence[Sequence[str]] | None = None,
        render_mode: str | None = None,
    ) -> None:
        """Check the settings.

        Args:
            size: cells per side, 2 to 4.
            num_objects: objects in the picture, the target among them; at most half of the cells.
            step_cost: what each step costs, 0 to 0.1.
            wrong_reward: for arriving at another object, -1 to 0. At 0 it pays to walk to any object, and
                what is left to learn is which; below, an agent that cannot tell them apart first learns to
                keep away from both.
            max_steps: steps after which the episode is truncated; default 4 * size.
            jitter: vary colours and sizes a little from episode to episode; without, a layout always looks
                the same, so that frozen features of it are computed once.
            blank: for ablations, what the observation lacks: none, image or text.
            colours: colours of the objects; default all but black.
            shapes: shapes of the objects; default all.
            kinds: (colour, shape) of each object that there may be; default every colour in every shape.
            render_mode: `rgb_array` or None.

        Raises:
            ConfigError: a setting is out of its range, or the kinds are fewer than the objects.
        """
        self._kinds = _checked_kinds(kinds, colours, shapes)
        self.max_steps = 4 * size if max_steps is None else max_steps
        _check_settings(size, num_objects, step_cost, wrong_reward, self.max_steps, len(self._kinds))
        self.size, self.num_objects, self.step_cost = size, num_objects, step_cost
        self.wrong_reward, self.jitter = wrong_reward, jitter
        self.blank = check_blank(blank)
        self.render_mode = render_mode
        self.observation_space = spaces.Dict({"image": picture_space(), "mission": sentence_space()})
        self.action_space = spaces.Discrete(len(MOVES))
        self.objects: dict[Cell, Kind] = {}
        """What lies where."""
        self.agent: Cell = (0, 0)
        self.target: Cell = (0, 0)
        self._distances: dict[Cell, int] = {}
        self._num_steps = 0
        self._jitter = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Draws a new picture and mission."""
        super().reset(seed=seed)
        kinds = self._draw_kinds()
        while not self._place(kinds):
            pass
        self.target = list(self.objects)[int(self.np_random.integers(len(self.objects)))]
        self._distances = self._distances_to(self.target)
        self._num_steps = 0
        self._jitter = int(self.np_random.integers(2**32)) if self.jitter else 0
        return self._observe(), {"optimal_return": 1 - self.step_cost * self._distances[self.agent]}

    def step(self, action: int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Moves the agent by one cell."""
        self.agent = self._moved(self.agent, action)
        self._num_steps += 1
        found, terminated = self.agent == self.target, self.agent in self.objects
        truncated = not terminated and self._num_steps >= self.max_steps
        arrived = 1.0 if found else self.wrong_reward if terminated else 0.0
        info = {"is_success": found} if terminated or truncated else {}
        return self._observe(), arrived - self.step_cost, terminated, truncated, info

    def render(self) -> Picture | None:
        """The picture, also where the observation lacks it."""
        return None if self.render_mode is None else self._picture("none")

    def optimal_actions(self) -> set[int]:
        """The first moves of the shortest ways to the target; empty once the agent stands on an object."""
        if self.agent in self.objects:
            return set()
        here = self._distances[self.agent]
        return {
            action
            for action in range(len(MOVES))
            if self._distances.get(self._moved(self.agent, action)) == here - 1
        }

    def mission(self) -> str:
        """What to do, also where the observation lacks it."""
        return "go to the {} {}".format(*self.objects[self.target])

    def _draw_kinds(self) -> list[Kind]:
        """Different kinds; half of the others share the colour or the shape of the first, the rest neither.

        Where one of the two sorts is used up the other one is taken.
        """
        chosen = [self._one_of(self._kinds)]
        colour, shape = chosen[0]
        for _ in range(self.num_objects - 1):
            left = [kind for kind in self._kinds if kind not in chosen]
            alike = [kind for kind in left if kind[0] == colour or kind[1] == shape]
            unlike = [kind for kind in left if kind not in alike]
            wanted = alike if self.np_random.random() < 0.5 else unlike
            chosen.append(self._one_of(wanted or left))
        return chosen

    def _one_of(self, kinds: Sequence[Kind]) -> Kind:
        return kinds[int(self.np_random.integers(len(kinds)))]

    def _place(self, kinds: Sequence[Kind]) -> bool:
        """Puts agent and objects on cells; whether each object can be reached in time around the others.

        Each and not the target alone: else the picture would tell which of the objects it cannot be.
        """
        numbers = self.np_random.permutation(self.size**2)[: len(kinds) + 1]
        self.agent, *cells = [(int(number) % self.size, int(number) // self.size) for number in numbers]
        self.objects = dict(zip(cells, kinds, strict=True))
        return all(self._distances_to(cell).get(self.agent, np.inf) <= self.max_steps for cell in cells)

    def _distances_to(self, target: Cell) -> dict[Cell, int]:
        """Steps to `target` from each cell from which it can be reached around the other objects."""
        distances, queue = {target: 0}, deque([target])
        while queue:
            cell = queue.popleft()
            for action in range(len(MOVES)):
                neighbour = self._moved(cell, action)
                if neighbour not in distances and neighbour not in self.objects:
                    distances[neighbour] = distances[cell] + 1
                    queue.append(neighbour)
        return distances

    def _moved(self, cell: Cell, action: int) -> Cell:
        column, row = (min(max(x + dx, 0), self.size - 1) for x, dx in zip(cell, MOVES[action], strict=True))
        return column, row

    def _observe(self) -> Observation:
        mission = BLANK_MISSION if self.blank == "text" else self.mission()
        return {"image": self._picture(self.blank), "mission": mission}

    def _picture(self, blank: str) -> Picture:
        items = [*self.objects.items(), (self.agent, AGENT)]
        # The same stream for each picture of an episode, so that nothing flickers from step to step.
        return shown(draw_scene([self._drawn(*item) for item in items], random.Random(self._jitter)), blank)

    def _drawn(self, cell: Cell, kind: Kind) -> SceneObject:
        x, y = ((number + 0.5) * CANVAS / self.size for number in cell)
        return SceneObject(*kind, "small", x, y)


def _checked_kinds(
    kinds: Sequence[Sequence[str]] | None, colours: Sequence[str] | None, shapes: Sequence[str] | None
) -> list[Kind]:
    others = [colour for colour in COLOURS if colour != AGENT[0]]
    if kinds is None:
        return [
            (colour, shape)
            for colour in _words("colours", colours, others)
            for shape in _words("shapes", shapes, SHAPES)
        ]
    if colours is not None or shapes is not None:
        raise ConfigError("`kinds` and `colours` or `shapes` exclude each other; give either.")
    for kind in kinds:
        if isinstance(kind, str) or len(kind) != 2:
            raise ConfigError(f"`kinds` must be pairs such as [red, circle]; got {kind!r}.")
        _words("kinds", [kind[0]], others)
        _words("kinds", [kind[1]], SHAPES)
    return list(dict.fromkeys((colour, shape) for colour, shape in kinds))


def _words(name: str, given: Sequence[str] | None, known: Collection[str]) -> list[str]:
    if given is None:
        return list(known)
    words = [given] if isinstance(given, str) else list(dict.fromkeys(given))
    for word in words:
        if word not in known:
            near = difflib.get_close_matches(str(word), known, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"They may be {', '.join(known)}."
            reason = "which is the agent's" if word in AGENT else "which is not drawn"
            raise ConfigError(f"`{name}` names {word!r}, {reason}. {hint}")
    return words


def _check_settings(
    size: int, num_objects: int, step_cost: float, wrong_reward: float, max_steps: int, num_kinds: int
) -> None:
    if size not in SIZES:
        raise ConfigError(f"`size` must be one of {', '.join(map(str, SIZES))}; got {size}.")
    if not 1 <= num_objects <= size**2 // 2:
        raise ConfigError(
            f"`num_objects` must be from 1 to {size**2 // 2} on a grid of {size} x {size}, so that there are "
            f"ways around them; got {num_objects}."
        )
    if num_objects > num_kinds:
        raise ConfigError(
            f"`num_objects` is {num_objects}, but `colours` and `shapes` make {num_kinds} kinds. Allow more."
        )
    if not 0 <= step_cost <= LARGEST_STEP_COST:
        raise ConfigError(
            f"`step_cost` must be from 0 to {LARGEST_STEP_COST}, beyond which the wrong object can pay; "
            f"got {step_cost}."
        )
    if not -1 <= wrong_reward <= 0:
        raise ConfigError(f"`wrong_reward` must be from -1 to 0; got {wrong_reward}.")
    if max_steps < 2 * (size - 1):
        raise ConfigError(
            f"`max_steps` must be at least {2 * (size - 1)}, the way from corner to corner; got {max_steps}."
        )
