"""Writes the true captions of a scene, from terse to detailed, in the grammar that `mmft.tiny.facts` reads.

    terse     a red circle.
    list      a red circle and a blue square.
    sizes     a large red circle and a small blue square.
    relation  a large red circle is left of a small blue square.

Lists run from left to right; any object may be the subject of a relation.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmft.tiny.lexicon import SceneObject, dominant_relation


def noun_phrase(item: SceneObject, *, with_size: bool) -> str:
    """`a red circle` or `a large red circle`."""
    words = [item.size] if with_size else []
    words += [item.colour, item.shape]
    article = "an" if words[0][0] in "aeiou" else "a"
    return " ".join([article, *words])


def listing(objects: Sequence[SceneObject], *, with_size: bool) -> str:
    """All objects from left to right: `a red circle, a blue square and a green star.`"""
    phrases = [noun_phrase(item, with_size=with_size) for item in sorted(objects, key=lambda item: item.x)]
    return _joined(phrases) + "."


def relation(anchor: SceneObject, objects: Sequence[SceneObject], *, with_size: bool) -> str:
    """How `anchor` lies to the others: `a red circle is left of a blue square and above a green star.`"""
    others = sorted((item for item in objects if item is not anchor), key=lambda item: item.x)
    places = [
        f"{dominant_relation(anchor, item)} {noun_phrase(item, with_size=with_size)}" for item in others
    ]
    return f"{noun_phrase(anchor, with_size=with_size)} is {_joined(places)}."


def terse_captions(objects: Sequence[SceneObject]) -> list[str]:
    """One caption for each object that names it and nothing else."""
    return [noun_phrase(item, with_size=False) + "." for item in objects]


def reference_captions(objects: Sequence[SceneObject]) -> list[str]:
    """Captions that leave no object out, from short to detailed: what a careful person could write."""
    references = [listing(objects, with_size=False), listing(objects, with_size=True)]
    if len(objects) > 1:
        references += [relation(anchor, objects, with_size=False) for anchor in objects]
        references += [relation(anchor, objects, with_size=True) for anchor in objects]
    return references


def _joined(phrases: Sequence[str]) -> str:
    if len(phrases) == 1:
        return phrases[0]
    return ", ".join(phrases[:-1]) + " and " + phrases[-1]
