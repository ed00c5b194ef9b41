"""Questions about a picture, answered with yes or no in one step.

Each question begins with two scenes and a question for each whose words differ in one place. One coin says
which scene is drawn and another which of the questions is asked of it: its own (yes) or the other's (no). So
whoever looks at the picture or the words alone is right half of the time, by construction.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gymnasium
from gymnasium import spaces
from PIL.Image import Image

from mmft.environments.observations import Picture, check_blank, picture_space, sentence_space, shown
from mmft.errors import ConfigError
from mmft.tiny.captions import noun_phrase
from mmft.tiny.drawing import draw_scene
from mmft.tiny.facts import share_true
from mmft.tiny.lexicon import CANVAS, SHAPES, SceneObject, dominant_relation
from mmft.tiny.preferences import KINDS as ALTERATIONS
from mmft.tiny.scenes import sample_objects, well_apart

ANSWERS = ("no", "yes")
"""By action."""
BLANK_QUESTION = "is it so?"
MOTIONS = tuple(itertools.product((False, True), repeat=3))[1:]
"""Turns and mirrorings of the canvas but for the one that changes nothing: (swap x and y, flip x, flip y)."""

Objects = tuple[SceneObject, ...]
Asked = tuple[Objects, str]
"""A scene and a question whose answer is yes."""
Pairs = Iterator[tuple[Asked, Asked]]
Observation = dict[str, Any]


class SceneQuestions(gymnasium.Env[Observation, Any]):
    """One question about one scene: 0 says no, 1 says yes; 1 if that is right, else 0.

    Observation: `image`, 64 x 64, and `question`. `info` holds `optimal_return` at the reset, `is_success`
    and `answer`, the right one, at the step.
    """

    ACTION_NAMES = ANSWERS
    metadata = {"render_modes": ["rgb_array"], "render_fps": 1}  # noqa: RUF012  (gymnasium declares it)

    def __init__(
        self, *, kinds: Sequence[str] | None = None, blank: str = "none", render_mode: str | None = None
    ) -> None:
        """Check the settings.

        Args:
            kinds: what is asked: existence, relation, count; default all.
            blank: for ablations, what the observation lacks: none, image or text.
            render_mode: `rgb_array` or None.

        Raises:
            ConfigError: an unknown kind or none, or an unknown `blank`.
        """
        self.kinds = list(QUESTIONS) if kinds is None else [kinds] if isinstance(kinds, str) else list(kinds)
        if not self.kinds or not set(self.kinds) <= set(QUESTIONS):
            raise ConfigError(f"`kinds` may name {', '.join(QUESTIONS)}, one at least; got {self.kinds}.")
        self.blank = check_blank(blank)
        self.render_mode = render_mode
        self.observation_space = spaces.Dict({"image": picture_space(), "question": sentence_space()})
        self.action_space = spaces.Discrete(len(ANSWERS))
        self.kind = self.kinds[0]
        """Of the question at hand."""
        self.objects: Objects = ()
        self.question = BLANK_QUESTION
        self.answer = 0
        """The right action."""
        self._scene: Image | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Draws a scene and asks."""
        super().reset(seed=seed)
        stream = random.Random(int(self.np_random.integers(2**63)))
        self.kind = stream.choice(self.kinds)
        pair = None
        while pair is None:
            pair = ask_of_two(self.kind, stream)
        drawn, other = pair if stream.random() < 0.5 else pair[::-1]
        self.objects = tuple(sorted(drawn[0], key=lambda item: item.x))
        self.answer = int(stream.random() < 0.5)
        self.question = drawn[1] if self.answer else other[1]
        self._scene = draw_scene(self.objects, stream)
        return self._observe(), {"optimal_return": 1.0}

    def step(self, action: int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Judges the answer and ends the episode."""
        right = int(action) == self.answer
        info = {"is_success": right, "answer": ANSWERS[self.answer]}
        return self._observe(), float(right), True, False, info

    def render(self) -> Picture | None:
        """The picture, also where the observation lacks it."""
        return None if self.render_mode is None else self._picture("none")

    def _observe(self) -> Observation:
        question = BLANK_QUESTION if self.blank == "text" else self.question
        return {"image": self._picture(self.blank), "question": question}

    def _picture(self, blank: str) -> Picture:
        if self._scene is None:
            raise gymnasium.error.ResetNeeded("call `reset` before `step` and `render`.")
        return shown(self._scene, blank)


def is_true(question: str, objects: Sequence[SceneObject]) -> bool:
    """Whether the answer is yes: all that the question states is borne out by the scene."""
    return share_true(question, objects) == 1.0


def ask_of_two(kind: str, stream: random.Random) -> tuple[Asked, Asked] | None:
    """Two scenes, each with a question that is true of it and not of the other; None where none was found.

    The two questions differ in one word, `left of` being one.
    """
    for pair in QUESTIONS[kind](stream):
        (one, asked), (other, asked_of_other) = pair
        answers = [is_true(text, objects) for objects in (one, other) for text in (asked, asked_of_other)]
        # Far above and a little to the left is both, and would not tell two scenes apart.
        if answers == [True, False, False, True]:
            return pair
    return None


def _ask_existence(stream: random.Random) -> Pairs:
    """Of an object by colour and shape; in the other scene it has another colour or another shape."""
    objects = sample_objects(stream)
    place = stream.randrange(len(objects))
    alter, _ = ALTERATIONS[stream.choice(("colour", "shape"))]
    altered = alter(objects, place, stream) or objects
    one, other = (
        (scene, f"is there {noun_phrase(scene[place], with_size=False)}?") for scene in (objects, altered)
    )
    yield one, other


def _ask_relation(stream: random.Random) -> Pairs:
    """How one object lies to another; the other scene is turned or mirrored."""
    objects = sample_objects(stream)
    if len(objects) == 1:
        return
    first, second, *rest = stream.sample(objects, len(objects))
    if second.shape in [item.shape for item in (first, *rest)]:
        return  # "the square" must say which one
    for motion in stream.sample(MOTIONS, len(MOTIONS)):
        moved = tuple(_moved(item, *motion) for item in (first, second, *rest))
        if well_apart(moved):  # turned, two objects may share a column
            asked, asked_of_moved = _relation_question(first, second), _relation_question(*moved[:2])
            yield ((first, second, *rest), asked), (moved, asked_of_moved)


def _moved(item: SceneObject, swap: bool, flip_x: bool, flip_y: bool) -> SceneObject:
    x, y = (item.y, item.x) if swap else (item.x, item.y)
    return dataclasses.replace(item, x=CANVAS - x if flip_x else x, y=CANVAS - y if flip_y else y)


def _relation_question(first: SceneObject, second: SceneObject) -> str:
    subject = noun_phrase(first, with_size=False)
    return f"is there {subject} {dominant_relation(first, second)} the {second.shape}?"


def _ask_count(stream: random.Random) -> Pairs:
    """Two of one shape or two of another among three objects, or two and three of a shape."""
    objects = sample_objects(stream)
    if len(objects) != 3:
        return
    objects = tuple(stream.sample(objects, 3))
    shape, another = stream.sample(SHAPES, 2)
    if stream.random() < 0.5:
        one, other = _shaped(objects, shape, shape, another), _shaped(objects, shape, another, another)
        yield (one, _count_question("two", shape)), (other, _count_question("two", another))
    else:
        three = _shaped(objects, shape, shape, shape)
        yield (three, _count_question("three", shape)), (three[:2], _count_question("two", shape))


def _shaped(objects: Objects, *shapes: str) -> Objects:
    return tuple(dataclasses.replace(item, shape=shape) for item, shape in zip(objects, shapes, strict=True))


def _count_question(number: str, shape: str) -> str:
    return f"are there {number} {shape}{'es' if shape.endswith('s') else 's'}?"


QUESTIONS: dict[str, Callable[[random.Random], Pairs]] = {
    "existence": _ask_existence,
    "relation": _ask_relation,
    "count": _ask_count,
}
"""Makers of two scenes and questions of a kind, which need not tell the scenes apart yet."""
