"""Scenes with several rated captions each: what offline training on rewards learns from, without sampling.

The captions are those of careless people: half of them name one object only, half of them name every object,
and in half of either kind some of what they say is not so. The reward tells them apart:

    reward = (objects rightly named / objects there) * (true facts / stated facts)

Imitating all captions alike makes a captioner as terse and as careless as they are.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mmft.tiny.captions import listing, noun_phrase, reference_captions
from mmft.tiny.facts import share_true, stated_facts
from mmft.tiny.lexicon import COLOURS, SHAPES, SceneObject
from mmft.tiny.scenes import PROMPT, make_scene, random_stream

if TYPE_CHECKING:
    from datasets import Dataset

CAPTIONS_PER_PICTURE = 8
"""Rows of one picture in the training split, side by side; held-out splits have one row for each picture."""
KINDS = ("terse", "terse, false", "full", "full, false")


def load_rated_captions(split: str = "train", size: int = 1000, seed: int = 0) -> Dataset:
    """The first `size` rated captions of a split, whose pictures are those of `load_scenes`.

    Columns: `image`, `prompt`, `completion`, `reward` from 0 to 1, `kind` of caption, and `references` and
    `facts` as in `load_scenes`.

    Example:
        >>> from mmft.tiny import load_rated_captions
        >>> for row in load_rated_captions("train", 3):
        ...     print(row["kind"], row["completion"], round(row["reward"], 2), sep=" | ")
        full | an orange triangle and a yellow circle. | 1.0
        terse | a yellow circle. | 0.5
        terse, false | a red triangle. | 0.0
    """
    if size < 1:
        raise ValueError(f"`size` must be >= 1; got {size}. It is the number of rows to draw.")
    from datasets import Dataset, Features, Image, List, Value

    text = Value("string")
    fact = {"colour": text, "shape": text, "size": text, "x": Value("float32"), "y": Value("float32")}
    told = {"prompt": text, "completion": text, "reward": Value("float32"), "kind": text}
    features = Features({"image": Image(), **told, "references": List(text), "facts": List(fact)})
    count = CAPTIONS_PER_PICTURE if split == "train" else 1
    rows: list[dict[str, Any]] = []
    for index in range(-(-size // count)):
        scene = make_scene(split, index, seed)
        shown = {
            "image": scene.image,
            "prompt": PROMPT,
            "references": reference_captions(scene.objects),
            "facts": [item.as_dict() for item in scene.objects],
        }
        stream = random_stream("rated-captions", split, seed, index)
        rows += [each | shown for each in rated_captions(scene.objects, count, stream)]
    return Dataset.from_dict(
        {name: [row[name] for row in rows[:size]] for name in features}, features=features
    )


def rated_captions(objects: Sequence[SceneObject], count: int, stream: random.Random) -> list[dict[str, Any]]:
    """`count` times completion, kind and reward; every kind equally often if `count` is a multiple of 4."""
    first = stream.randrange(len(KINDS))
    kinds = [KINDS[(first + number) % len(KINDS)] for number in range(count)]
    stream.shuffle(kinds)
    captions = [write_caption(objects, kind, stream) for kind in kinds]
    return [
        {"completion": text, "kind": kind, "reward": caption_reward(text, objects)}
        for text, kind in zip(captions, kinds, strict=True)
    ]


def write_caption(objects: Sequence[SceneObject], kind: str, stream: random.Random) -> str:
    """A caption of that kind; a false one gives one object a colour or a shape that it does not have."""
    told = [stream.choice(objects)] if kind.startswith("terse") else list(objects)
    if kind.endswith("false"):
        place = stream.randrange(len(told))
        told[place] = _mistaken(told[place], objects, stream)
    return noun_phrase(told[0], with_size=False) + "." if len(told) == 1 else listing(told, with_size=False)


def caption_reward(caption: str, objects: Sequence[SceneObject]) -> float:
    """(objects rightly named / objects there) * (true facts / stated facts); 0 where nothing is stated."""
    named = {
        item
        for fact in stated_facts(caption)
        for item in objects
        if fact.kind == "object" and fact.subject.colour and fact.subject.shape and fact.subject.fits(item)
    }
    return len(named) / len(objects) * (share_true(caption, objects) or 0.0)


def _mistaken(item: SceneObject, objects: Sequence[SceneObject], stream: random.Random) -> SceneObject:
    """The object with a colour that nothing has, or with another shape."""
    if stream.random() < 0.5:
        seen = {each.colour for each in objects}
        return dataclasses.replace(item, colour=stream.choice([name for name in COLOURS if name not in seen]))
    return dataclasses.replace(item, shape=stream.choice([name for name in SHAPES if name != item.shape]))
