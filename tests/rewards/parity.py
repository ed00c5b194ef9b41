"""Random captions over few words, so that n-grams repeat and match, and what pycocoevalcap says of them."""

from __future__ import annotations

import random
from collections.abc import Iterator

from tests.golden.load import golden

CORPORA = golden("coco_caption")["corpora"]
Rows = list[tuple[str, list[str]]]


def golden_rows(name: str) -> Rows:
    """Captions with their references."""
    return list(zip(CORPORA[name]["captions"], CORPORA[name]["references"], strict=True))


def random_corpora(count: int, seed: int = 0) -> Iterator[Rows]:
    """One to six pictures, one to five references of one to fifteen words each; some captions are empty."""
    chance = random.Random(seed)

    def text(least: int) -> str:
        return " ".join(chance.choices("abcdef", k=chance.randint(least, chance.choice([2, 5, 15]))))

    for _ in range(count):
        yield [(text(0), [text(1) for _ in range(chance.randint(1, 5))]) for _ in range(chance.randint(1, 6))]
