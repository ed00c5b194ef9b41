"""Pictures of scenes with a true and a false caption, for reward models: what only the picture can decide.

Each row begins with two scenes that differ in one fact and with the same kind of caption of either. A coin
says which of the two is drawn: its caption is `chosen`, the other one `rejected`. So every false caption is a
true one of a scene that could have been, and whoever does not look at the picture is right half of the time,
by construction and not by balance of words.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmft.tiny.captions import listing, noun_phrase, relation
from mmft.tiny.drawing import draw_scene
from mmft.tiny.facts import share_true
from mmft.tiny.lexicon import CANVAS, COLOURS, DIAMETERS, SHAPES, SceneObject
from mmft.tiny.scenes import PROMPT, Scene, random_stream, sample_centre, sample_objects, well_apart

if TYPE_CHECKING:
    from datasets import Dataset

Objects = tuple[SceneObject, ...]
Alter = Callable[[Objects, int, random.Random], Objects | None]
"""Makes one fact of a scene another: (objects, which of them, random stream); None where it does not fit."""
Forms = tuple[Callable[[Objects], str], ...]
NUMBERS = {2: "two", 3: "three"}
ALTERATIONS = 8  # tries to alter a scene before another one is drawn
PLACEMENTS = 20  # tries to find an object a place


@dataclass(frozen=True, slots=True)
class Preference:
    """A picture, a caption that is true of it, and one that says one fact wrong."""

    scene: Scene
    chosen: str
    rejected: str
    kind: str
    """The fact that `rejected` says wrong: colour, shape, size, relation or number."""


def make_preference(split: str, index: int, seed: int = 0) -> Preference:
    """Preference number `index` of `split`; the same arguments always give the same row."""
    stream = random_stream("scenes-preferences", split, seed, index)
    kind = stream.choice(tuple(KINDS))
    pair = None
    while pair is None:
        pair = _two_scenes(kind, stream)
    shown, other = pair if stream.random() < 0.5 else pair[::-1]
    objects = tuple(sorted(shown.objects, key=lambda item: item.x))
    return Preference(Scene(draw_scene(objects, stream), objects), shown.caption, other.caption, kind)


def load_preferences(split: str = "train", size: int = 1000, seed: int = 0) -> Dataset:
    """The first `size` preferences of a split, whose pictures are in none of the splits of `load_scenes`.

    Columns: `image`; `prompt`; `chosen` and `rejected`, captions of the same kind that differ in one fact;
    `kind`, which fact that is; `facts`, as in `load_scenes`.

    Example:
        >>> from mmft.tiny import load_preferences
        >>> row = load_preferences("train", 1)[0]
        >>> row["kind"], row["chosen"], row["rejected"]
        ('shape', 'a small red cross and a large green circle.', 'a small red cross and a large green star.')
    """
    from datasets import Value

    columns = {name: Value("string") for name in ("chosen", "rejected", "kind")}
    return _dataset(columns, split, size, seed, lambda row, _: {name: getattr(row, name) for name in columns})


def load_ratings(split: str = "train", size: int = 1000, seed: int = 0) -> Dataset:
    """The same pictures with one of their two captions and the share of its facts that is true.

    Columns: `image`, `prompt`, `completion`, `rating` from 0 to 1, `kind` and `facts`.

    Example:
        >>> from mmft.tiny import load_ratings
        >>> for row in load_ratings("train", 3):
        ...     print(row["completion"], round(row["rating"], 2))
        a small red cross and a large green star. 0.5
        three shapes, one of them a black circle. 1.0
        a pink square is right of a green cross and above an orange cross. 1.0
    """
    from datasets import Value

    def rated(row: Preference, index: int) -> dict[str, Any]:
        coin = random_stream("scenes-ratings", split, seed, index)
        completion = coin.choice((row.chosen, row.rejected))
        rating = share_true(completion, row.scene.objects)
        return {"completion": completion, "rating": rating, "kind": row.kind}

    columns = {"completion": Value("string"), "rating": Value("float32"), "kind": Value("string")}
    return _dataset(columns, split, size, seed, rated)


def _dataset(
    columns: dict[str, Any],
    split: str,
    size: int,
    seed: int,
    told: Callable[[Preference, int], dict[str, Any]],
) -> Dataset:
    """Picture, prompt and facts of each preference, and the columns that `told` makes of it."""
    if size < 1:
        raise ValueError(f"`size` must be >= 1; got {size}. It is the number of rows to draw.")
    from datasets import Dataset, Features, Image, List, Value

    text = Value("string")
    fact = {"colour": text, "shape": text, "size": text, "x": Value("float32"), "y": Value("float32")}
    features = Features({"image": Image(), "prompt": text, **columns, "facts": List(fact)})
    rows = []
    for index in range(size):
        preference = make_preference(split, index, seed)
        facts = [item.as_dict() for item in preference.scene.objects]
        given = {"image": preference.scene.image, "prompt": PROMPT, "facts": facts}
        rows.append(told(preference, index) | given)
    return Dataset.from_dict({name: [row[name] for row in rows] for name in features}, features=features)


@dataclass(frozen=True, slots=True)
class _Described:
    objects: Objects
    caption: str


def _two_scenes(kind: str, stream: random.Random) -> tuple[_Described, _Described] | None:
    """Two scenes that differ in one fact of that kind, and their captions; None where none were found."""
    alter, forms = KINDS[kind]
    write = stream.choice(forms)
    objects = sample_objects(stream)
    if len(objects) == 1 and write not in SUITS_ONE_OBJECT:
        return None
    for _ in range(ALTERATIONS):
        # In random order: the first is the subject of captions that have one.
        ordered = tuple(stream.sample(objects, len(objects)))
        place = 0 if write in NAMES_THE_FIRST else stream.randrange(len(objects))
        altered = alter(ordered, place, stream)
        if altered is None or not well_apart(altered):
            continue
        one, other = _Described(ordered, write(ordered)), _Described(altered, write(altered))
        if _num_differences(one.caption, other.caption) == 1 and _contradict(one, other):
            return one, other
    return None


def _contradict(one: _Described, other: _Described) -> bool:
    """Whether each caption is false of the other scene: far above and a little to the left is both."""
    return 1.0 not in (share_true(one.caption, other.objects), share_true(other.caption, one.objects))


def _num_differences(one: str, other: str) -> int:
    """Words that differ, `left of` being one word and `an` another form of `a`; -1 for unequal lengths."""
    words = [text.replace(" of", "_of").replace("an ", "a ").split() for text in (one, other)]
    if len(words[0]) != len(words[1]):
        return -1
    return sum(first != second for first, second in zip(*words, strict=True))


def _recolour(objects: Objects, place: int, stream: random.Random) -> Objects:
    seen = {item.colour for item in objects}
    colour = stream.choice([name for name in COLOURS if name not in seen])
    return _with(objects, place, colour=colour)


def _reshape(objects: Objects, place: int, stream: random.Random) -> Objects:
    shape = stream.choice([name for name in SHAPES if name != objects[place].shape])
    return _with(objects, place, shape=shape)


def _resize(objects: Objects, place: int, stream: random.Random) -> Objects | None:
    item = objects[place]
    (size,) = DIAMETERS.keys() - {item.size}
    margin = DIAMETERS[size][1] // 2 + 1
    if not all(margin <= centre <= CANVAS - margin for centre in (item.x, item.y)):
        return None
    return _with(objects, place, size=size)


def _move(objects: Objects, place: int, stream: random.Random) -> Objects | None:
    """Moves one of the objects that the first is compared with."""
    place = max(place, 1)
    for _ in range(PLACEMENTS):
        x, y = sample_centre(objects[place].size, stream)
        moved = _with(objects, place, x=x, y=y)
        if well_apart(moved) and _relation(moved) != _relation(objects):
            return moved
    return None


def _add_or_remove(objects: Objects, place: int, stream: random.Random) -> Objects | None:
    """Two objects and three, the first among them."""
    if len(objects) == 3:
        return objects[:-1]
    seen = {item.colour for item in objects}
    colour = stream.choice([name for name in COLOURS if name not in seen])
    shape, size = stream.choice(SHAPES), stream.choice(tuple(DIAMETERS))
    for _ in range(PLACEMENTS):
        more = (*objects, SceneObject(colour, shape, size, *sample_centre(size, stream)))
        if well_apart(more):
            return more
    return None


def _with(objects: Objects, place: int, **changes: Any) -> Objects:
    changed = dataclasses.replace(objects[place], **changes)
    return (*objects[:place], changed, *objects[place + 1 :])


# Captions, whose subject is the first object if they have one.


def _name(objects: Objects) -> str:
    return noun_phrase(objects[0], with_size=False) + "."


def _sized_name(objects: Objects) -> str:
    return noun_phrase(objects[0], with_size=True) + "."


def _number(objects: Objects) -> str:
    return (
        f"{NUMBERS.get(len(objects), 'no')} shapes, one of them {noun_phrase(objects[0], with_size=False)}."
    )


def _listing(objects: Objects) -> str:
    return listing(objects, with_size=False)


def _sized_listing(objects: Objects) -> str:
    return listing(objects, with_size=True)


def _relation(objects: Objects) -> str:
    return relation(objects[0], objects, with_size=False)


def _sized_relation(objects: Objects) -> str:
    return relation(objects[0], objects, with_size=True)


NAMES_THE_FIRST = (_name, _sized_name)
SUITS_ONE_OBJECT = (_name, _sized_name, _listing, _sized_listing)
EVERY_FORM: Forms = (_name, _sized_name, _listing, _sized_listing, _relation, _sized_relation)
KINDS: dict[str, tuple[Alter, Forms]] = {
    "colour": (_recolour, EVERY_FORM),
    "shape": (_reshape, EVERY_FORM),
    "size": (_resize, (_sized_name, _sized_listing, _sized_relation)),
    "relation": (_move, (_relation, _sized_relation)),
    "number": (_add_or_remove, (_number,)),
}
"""How a fact of that kind is altered, and the captions that say it."""
