"""Pictures as their reference captions: scenes of two and three shapes, emoji, and photos.

Written for these tests. `degenerate` turns references into captions that no one would write.
"""

from __future__ import annotations

import random
import re

from rewards.text import STOP_WORDS

SCENES = [
    [
        "a red circle and a blue square",
        "there is a large red circle to the left of a small blue square",
        "a large red circle beside a blue square",
    ],
    [
        "a green triangle above a yellow star",
        "a small green triangle is above a large yellow star",
        "two shapes: a green triangle and a yellow star below it",
    ],
    [
        "a purple star, a red square and a green circle",
        "a small purple star left of a large red square and a small green circle",
        "a star, a square and a circle",
    ],
]
EMOJI = [
    [
        "an emoji of mahjong red dragon",
        "activities emoji showing mahjong red dragon",
        "a red dragon on a tile",
    ],
    ["an emoji of a grinning cat with smiling eyes", "a smiling cat face", "animal emoji: a cat that grins"],
    ["a flag of Japan", "flags emoji showing the flag of Japan", "a red disc on a white flag"],
]
PHOTOS = [
    [
        "A man in a black wetsuit rides a wave on a white surfboard.",
        "a surfer riding a small wave in the ocean",
        "A person is surfing on top of a breaking wave.",
    ],
    [
        "Two dogs are sleeping on a brown couch in the living room.",
        "a pair of dogs asleep on a sofa",
        "Two brown dogs lie next to each other on a couch.",
    ],
]
PICTURES = SCENES + EMOJI + PHOTOS


def degenerate(references: list[str]) -> dict[str, str]:
    """Captions that game n-grams or words: empty, function words, lists, shuffles, repeats."""
    chance = random.Random(0)
    words = re.findall(r"\w+", " ".join(references).lower())
    richest = re.findall(r"\w+", max(references, key=len).lower())
    content = list(dict.fromkeys(word for word in words if word not in STOP_WORDS))
    shuffled = chance.sample(richest, len(richest))
    return {
        "empty": "",
        "articles": "a a a .",
        "more articles": "a a a a a a a a",
        "function words": "this is a of the and on in it .",
        "punctuation": ". . . . , , ,",
        "word list": " ".join(content),
        "comma list": ", ".join(content),
        "sorted list": " ".join(sorted(content)),
        "list with articles": "a " + " a ".join(content),
        "shuffled reference": " ".join(shuffled),
        "reversed reference": " ".join(reversed(richest)),
        "repeated bigram": " ".join(content[:2] * 6),
        "repeated word": " ".join(content[:1] * 10),
        "repeated reference": " ".join(references[:1] * 4),
        "unrelated words": "quick brown foxes jump over lazy zebras every morning",
    }
