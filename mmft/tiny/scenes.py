"""Procedural pictures of one to three coloured shapes with captions and facts: endless, exact, seeded.

Every scene has a random stream of its own, seeded by (split, seed, index): splits never share a stream, and
row 7 is the same whether 10 or 10,000 rows are made.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmft.tiny.captions import reference_captions, terse_captions
from mmft.tiny.drawing import draw_scene
from mmft.tiny.lexicon import CANVAS, COLOURS, DIAMETERS, SHAPES, SceneObject

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL.Image import Image

SPLITS = ("train", "validation", "test")
PROMPT = "Describe the picture."
"""The instruction the packaged captioner was taught; it has seen no other."""

NUM_OBJECTS_WEIGHTS = {1: 0.15, 2: 0.45, 3: 0.4}
# A pair further apart on one axis by this factor has one obvious relation.
DOMINANCE = 1.4
GAP = 2.0
# Captions list objects from left to right, so no two share a column.
COLUMN_GAP = 3.0


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture and the objects it shows."""

    image: Image
    objects: tuple[SceneObject, ...]


def make_scene(split: str, index: int, seed: int = 0) -> Scene:
    """Scene number `index` of `split`; the same arguments always give the same pixels."""
    stream = random_stream("scenes", split, seed, index)
    objects = sample_objects(stream)
    return Scene(draw_scene(objects, stream), objects)


def random_stream(dataset: str, split: str, seed: int, index: int) -> random.Random:
    """The random numbers of one row, which no other row of any dataset, split or seed shares."""
    if split not in SPLITS:
        raise ValueError(f"`split` must be one of {', '.join(SPLITS)}; got {split!r}.")
    digest = hashlib.sha256(f"{dataset}/{split}/{seed}/{index}".encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))


def load_scenes(split: str = "train", size: int = 1000, seed: int = 0) -> Dataset:
    """The first `size` scenes of a split as a dataset.

    Columns: `image`; `references`, several complete captions from short to detailed; `facts`, the objects
    with colour, shape, size and centre; `caption`, one terse caption that names the leftmost object only.

    Args:
        split: train, validation or test; their random streams are disjoint.
        size: how many scenes; a larger dataset begins with the rows of a smaller one.
        seed: another seed gives other scenes of the same kind.

    Example:
        >>> from mmft.tiny import load_scenes
        >>> scenes = load_scenes("validation", 2)
        >>> scenes[0]["caption"], scenes[0]["references"][0]
        ('a blue star.', 'a blue star.')
        >>> scenes[0]["image"].size
        (64, 64)
    """
    if size < 1:
        raise ValueError(f"`size` must be >= 1; got {size}. It is the number of scenes to draw.")
    from datasets import Dataset, Features, Image, List, Value

    text = Value("string")
    fact = {"colour": text, "shape": text, "size": text, "x": Value("float32"), "y": Value("float32")}
    features = Features({"image": Image(), "references": List(text), "facts": List(fact), "caption": text})
    rows = [_row(make_scene(split, index, seed)) for index in range(size)]
    columns = {name: [row[name] for row in rows] for name in features}
    return Dataset.from_dict(columns, features=features)


def sample_objects(stream: random.Random) -> tuple[SceneObject, ...]:
    """One to three objects from left to right: colours differ, nothing touches, relations are plain."""
    counts, weights = zip(*NUM_OBJECTS_WEIGHTS.items(), strict=True)
    count = stream.choices(counts, weights)[0]
    kinds = [
        (colour, stream.choice(SHAPES), stream.choice(tuple(DIAMETERS)))
        for colour in stream.sample(tuple(COLOURS), count)
    ]
    while True:
        placed = [SceneObject(*kind, *sample_centre(kind[2], stream)) for kind in kinds]
        if well_apart(placed):
            return tuple(sorted(placed, key=lambda item: item.x))


def _row(scene: Scene) -> dict[str, Any]:
    return {
        "image": scene.image,
        "references": reference_captions(scene.objects),
        "facts": [item.as_dict() for item in scene.objects],
        "caption": terse_captions(scene.objects)[0],
    }


def sample_centre(size: str, stream: random.Random) -> tuple[float, float]:
    """A centre that keeps the shape inside, in quarter pixels so that float32 columns hold it exactly."""
    margin = DIAMETERS[size][1] // 2 + 1
    x, y = (stream.randint(4 * margin, 4 * (CANVAS - margin)) / 4 for _ in range(2))
    return x, y


def well_apart(objects: Sequence[SceneObject]) -> bool:
    """Whether nothing touches, every relation is plain and no two objects share a column."""
    return all(_pair_is_clear(first, second) for first, second in itertools.combinations(objects, 2))


def _pair_is_clear(first: SceneObject, second: SceneObject) -> bool:
    dx, dy = abs(first.x - second.x), abs(first.y - second.y)
    near, far = sorted((dx, dy))
    touching = (DIAMETERS[first.size][1] + DIAMETERS[second.size][1]) / 2 + GAP
    return far >= touching and far >= DOMINANCE * near and dx >= COLUMN_GAP
