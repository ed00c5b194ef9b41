"""Page data that tests know every number of."""

from __future__ import annotations

import base64
import io
from typing import Any

from PIL import Image

LONG_WORD = "Donaudampfschifffahrtsgesellschaftskapitän" * 8
GROUPS = ("one object", "two objects", "three objects")


def picture(colour: str = "red", kind: str = "PNG") -> str:
    """A small picture as a data: URI."""
    stream = io.BytesIO()
    Image.new("RGB", (32, 24), colour).save(stream, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"


def answer(text: str, reward: float | None, bleu: float | None, **others: Any) -> dict[str, Any]:
    """One answer, its tokens the words of its text."""
    tokens = [f" {word}" for word in text.split()]
    return {
        "text": text,
        "reward": reward,
        "rewards": {"bleu": bleu},
        "ended": True,
        "tokens": tokens,
        "logps": [-0.1 * (place + 1) for place in range(len(tokens))],
        "values": [0.5 - 0.25 * place for place in range(len(tokens))],
        "advantages": [-0.5 + 0.25 * place for place in range(len(tokens))],
    } | others


def sample(number: int, **others: Any) -> dict[str, Any]:
    """Of three samples, the reward of the first rises, that of the second falls, that of the third stays.

    bleu falls where the reward rises, and rises where it falls; the third's answers are the same.
    """
    change = (0.25, -0.25, 0.0)[number % 3]
    # No two changes are the same, so that their order is known.
    change += 0.001 * number * (change > 0) - 0.001 * number * (change < 0)
    before = answer(f"a red circle number{number} .", 0.5, 0.5)
    after = answer(f"a blue circle number{number} .", 0.5 + change, 0.5 - change)
    return {
        "id": number,
        "key": f"validation {number}",
        "prompt": "Describe the picture.",
        "references": [f"reference {number}", "a blue circle"],
        "pictures": [picture()],
        "columns": {"group": GROUPS[number % 3], "size": number % 2},
        "answers": [before, after if change else dict(before)],
        "diff": [["=", "a "], ["-", "red "], ["+", "blue "], ["=", f"circle number{number} ."]]
        if change
        else None,
        "heat": None,
    } | others


def chart(title: str = "Reward", **others: Any) -> dict[str, Any]:
    """Five steps of 1, 2, 4, 8, 16."""
    return {
        "id": title.lower(),
        "title": title,
        "group": "Rewards",
        "x_label": "step",
        "y_label": "mean",
        "description": f"What {title} is.",
        "series": [
            {
                "run": 0,
                "name": "reward",
                "x": [1, 2, 3, 4, 5],
                "y": [1.0, 2.0, 4.0, 8.0, 16.0],
                "smooth": True,
            }
        ],
        "references": [{"label": "held out, before", "y": 3.0}],
    } | others


def run(name: str = "quickstart", **others: Any) -> dict[str, Any]:
    return {
        "name": name,
        "facts": [["steps", "400"], ["device", "cpu"]],
        "warnings": [],
        "config": {
            "learning_rate": 0.001,
            "seed": 7,
            "reward_funcs": ["bleu", {"name": "Length"}],
            "resume": None,
        },
        "versions": {"torch": "2.13.0"},
        "hardware": {"cpu": "a processor", "gpu": None},
    } | others


def page_data(num_samples: int = 6, **others: Any) -> dict[str, Any]:
    """A run before and after."""
    samples = [sample(number) for number in range(num_samples)]
    return {
        "version": 1,
        "title": "quickstart",
        "subtitle": "PPO on scenes",
        "kind": "policy",
        "runs": [run()],
        "tables": [
            {
                "id": "before-after",
                "title": "Before and after",
                "caption": "Held-out rows.",
                "columns": ["measure", "before", "after", "change", "95% interval"],
                "rows": [
                    {
                        "cells": ["bleu", "0.500", "0.480", "-0.020", "[-0.1, 0.1]"],
                        "tone": "bad",
                        "measure": "rewards/bleu",
                    },
                    {
                        "cells": ["total reward", "0.5", "0.7", "+0.2", "[0.1, 0.3]"],
                        "tone": "good",
                        "measure": "reward",
                    },
                    {"cells": ["tokens", "4", "5", "+1", ""], "tone": None},
                ],
            }
        ],
        "charts": [chart()],
        "measures": [
            {"id": "reward", "label": "total reward", "optimised": True},
            {"id": "rewards/bleu", "label": "bleu", "optimised": False},
            {"id": "completions/mean_length", "label": "tokens", "optimised": False},
        ],
        "columns": ["group", "size"],
        "answers": ["before", "after"],
        "samples": samples,
        "figures": [{"title": "Components", "caption": "Of features.", "src": picture("blue")}],
        "notes": ["Advantages have no KL part."],
    } | others


def comparison(num_samples: int = 6) -> dict[str, Any]:
    """Three runs, one answer of each; the third pays 1.0 more for every sample than the second."""
    names = ["first", "second", "third"]
    samples = []
    for number in range(num_samples):
        row = sample(number)
        third = answer(
            f"a green circle number{number} .", row["answers"][1]["reward"] + 1.0 - 0.1 * number, 0.25
        )
        samples.append(row | {"answers": [*row["answers"], third], "diff": None})
    series = [
        {"run": place, "name": "reward", "x": [1, 2], "y": [float(place), 1.0], "smooth": True}
        for place in range(3)
    ]
    runs = [run(name, config={"learning_rate": 0.001, "seed": place}) for place, name in enumerate(names)]
    return page_data(
        runs=runs,
        answers=names,
        samples=samples,
        tables=[],
        charts=[chart(series=series), chart("Loss", series=series)],
    )


def heat() -> dict[str, Any]:
    """Importance of two rows of three patches and of four tokens."""
    return {
        "of": "completion",
        "grid": [2, 3],
        "patches": [0.0, 1.0, 2.0, 0.5, 0.0, 0.0],
        "tokens": [["Describe", 0.1], [" a", 0.2], [" blue", 0.8], [" circle", 0.0]],
        "shares": {"image": 0.4, "prompt": 0.35, "answer": 0.25},
    }
