"""Writes coco_caption.json: what pycocoevalcap's Bleu, Rouge and Cider say of small tokenised corpora.

Run `python -m tests.golden.make_coco_caption` after a change of the corpora or of the library's version.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

CORPORA: dict[str, list[tuple[str, list[str]]]] = {
    "five references": [
        (
            "a man rides a wave on a board",
            [
                "a man in a black wetsuit rides a wave on a white surfboard",
                "a surfer riding a small wave in the ocean",
                "a person is surfing on top of a breaking wave",
                "a man riding a wave on top of a surfboard",
                "man on a board in the sea",
            ],
        ),
        (
            "two dogs sleep on a couch",
            [
                "two dogs are sleeping on a brown couch in the living room",
                "a pair of dogs asleep on a sofa",
                "two brown dogs lie next to each other on a couch",
                "two dogs sleep on a couch",
                "dogs on the couch",
            ],
        ),
        (
            "a plate of food on a table",
            [
                "a white plate topped with meat and vegetables",
                "a plate of food sits on a wooden table",
                "food on a plate",
                "a meal of rice and beans on a plate",
                "a plate of food on a table with a fork",
            ],
        ),
    ],
    "one reference": [
        ("a red circle left of a square", ["a red circle is left of a blue square"]),
        ("a blue star", ["a blue star"]),
        ("nothing in common here", ["an owl at night"]),
    ],
    "ragged references": [
        ("a cat on a mat", ["a cat sits on a mat", "cat", "the cat lies on the mat in the sun"]),
        ("a dog", ["a dog barks"]),
    ],
    "an empty caption": [
        ("", ["a red circle above a square", "a circle"]),
        ("a green star below a circle", ["a green star is below a circle", "a star"]),
    ],
    "repeated n-grams": [
        ("the the the the the the", ["the cat is on the mat", "there is a cat on the mat"]),
        ("a cat a cat a cat a cat", ["a cat and a cat", "a cat with a cat and a cat"]),
        ("on the mat on the mat", ["a cat on the mat", "on the mat on the floor on the bed"]),
    ],
    "a single picture": [("a red circle left of a square", ["a red circle is left of a square", "a circle"])],
    "lengths far apart": [
        ("a bus", ["a bus", "a red double decker bus drives down a wet street past old shops in the rain"]),
        (
            "a train a train a train on the track near the old station in the town in the evening light",
            ["a train", "a train on the track", "an old train"],
        ),
    ],
    "one word each": [("cat", ["cat", "dog"]), ("dog", ["bird", "a dog"])],
    "case and signs count": [("A Cat , a dog .", ["a cat , a dog .", "A Cat and a dog"]), ("x", ["X", "y"])],
}


def scores(rows: list[tuple[str, list[str]]]) -> dict[str, Any]:
    """Corpus and per-caption numbers of the three scorers."""
    references = {index: texts for index, (_, texts) in enumerate(rows)}
    captions = {index: [text] for index, (text, _) in enumerate(rows)}
    bleu, bleus = Bleu(4).compute_score(references, captions, verbose=0)
    rouge, rouges = Rouge().compute_score(references, captions)
    cider, ciders = Cider().compute_score(references, captions)
    return {
        "captions": [text for text, _ in rows],
        "references": [texts for _, texts in rows],
        "bleu": [float(value) for value in bleu],
        "bleu_per_caption": [[float(value) for value in order] for order in bleus],
        "rouge_l": float(rouge),
        "rouge_l_per_caption": [float(value) for value in rouges],
        "cider_d": float(cider),
        "cider_d_per_caption": [float(value) for value in ciders],
    }


def record() -> dict[str, Any]:
    return {
        "source": f"pycocoevalcap {version('pycocoevalcap')}",
        "scorers": "bleu.bleu.Bleu(4), closest length; rouge.rouge.Rouge; cider.cider.Cider",
        "script": "golden/make_coco_caption.py",
        "corpora": {name: scores(rows) for name, rows in CORPORA.items()},
    }


if __name__ == "__main__":
    path = Path(__file__).with_name("coco_caption.json")
    path.write_text(json.dumps(record(), indent=1) + "\n", encoding="utf-8")
