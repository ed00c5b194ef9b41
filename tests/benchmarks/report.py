"""How long the report of a large run takes and how large it is: 2,000 rows with pictures of noise.

python -m tests.benchmarks.report

Noise is what JPEG is worst at; photographs take less. The summary tells no interval, so that each is drawn
anew, as for runs of older versions. Prints seconds and megabytes, fails where they are more than a report may
take, and writes the section "The report of a run" of RESULTS.md.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmft.report.page_data import write_report
from mmft.report.record import hardware
from mmft.report.thumbnails import write_thumbnails
from tests.benchmarks.sections import markdown_table, write_section
from tests.report.run_folders import SETTINGS, run_folder, summary

ROWS, TOKENS, STEPS = 2_000, 24, 20_000
MAX_SECONDS, MAX_MEGABYTES = 10.0, 30.0
WORDS = "a an the large small red blue green circle square star left right of above below and is".split()
NUMBERS = 24
"""Names in a log line."""


def main() -> int:
    """Measures once alone and once beside another run."""
    rows = []
    with tempfile.TemporaryDirectory() as place:
        folders = [make_folder(Path(place) / name, seed) for seed, name in enumerate(("one", "other"))]
        for title, compared in (("one run", folders[:1]), ("two runs", folders)):
            start, worked = time.perf_counter(), time.process_time()
            page = write_report(compared, Path(place) / "page.html")
            took = time.perf_counter() - start, time.process_time() - worked
            rows.append((title, *took, page.stat().st_size / 1e6))
    for title, seconds, worked, size in rows:
        print(f"{title}: {seconds:.1f} s ({worked:.1f} s of processor time), {size:.1f} MB")
    write_section(section(rows))
    return int(any(seconds > MAX_SECONDS or size > MAX_MEGABYTES for _, seconds, _, size in rows))


def section(rows: list[tuple[str, float, float, float]]) -> str:
    """What RESULTS.md says."""
    told = [(title, *(f"{number:.1f}" for number in numbers)) for title, *numbers in rows]
    return (
        "# The report of a run\n\n"
        f"`python -m tests.benchmarks.report`, {date.today()}, {hardware()['cpu']}, load "
        f"{os.getloadavg()[0]:.1f}. {ROWS:,} held-out rows with a picture of noise of 256 pixels and two\n"
        f"answers of {TOKENS} tokens with three numbers each; {STEPS:,} log lines of {NUMBERS}"
        f" numbers; no interval in the summary.\nAt most {MAX_SECONDS:.0f} s and {MAX_MEGABYTES:.0f} MB.\n\n"
        + markdown_table(("page", "seconds", "of processor time", "MB"), told)
    )


def make_folder(folder: Path, seed: int) -> Path:
    """A run with everything that a report is made of."""
    drawn, pixels = random.Random(seed), np.random.default_rng(0)
    samples = [make_sample(folder, number, drawn, pixels) for number in range(ROWS)]
    names = [f"rewards/part{number}" for number in range(NUMBERS)]
    history = [
        {"step": step, "loss": drawn.random()} | {name: drawn.random() for name in names}
        for step in range(1, STEPS + 1)
    ]
    run = run_folder(
        folder / "run",
        settings=SETTINGS | {"seed": seed},
        told=summary(ROWS),
        history=history,
        samples=samples,
    )
    (folder / "samples").rename(run / "samples")
    return run


def make_sample(
    folder: Path, number: int, drawn: random.Random, pixels: np.random.Generator
) -> dict[str, Any]:
    """A row with a picture and two answers."""
    picture = Image.fromarray(pixels.integers(0, 256, (256, 256, 3), dtype=np.uint8))
    return {
        "key": ["validation", number],
        "prompt": "Describe the picture.",
        # The same in every run, by which rows are matched.
        "references": [" ".join(random.Random(number).choices(WORDS, k=12))] * 5,
        "pictures": write_thumbnails(folder, number, [picture]),
        "columns": {"group": f"g{number % 7}"},
        "before": make_answer(drawn),
        "after": make_answer(drawn),
    }


def make_answer(drawn: random.Random) -> dict[str, Any]:
    """An answer with numbers for each token."""
    words = drawn.choices(WORDS, k=TOKENS)
    numbers = {
        name: [round(drawn.gauss(0, 1), 4) for _ in words] for name in ("logps", "values", "advantages")
    }
    told = {
        "completion": " ".join(words), "tokens": TOKENS, "ended": True, "reward": drawn.random(),
        "rewards": {"captioning": drawn.random(), "captioning/bleu": drawn.random()},
        "token_texts": [f" {word}" for word in words],
    }  # fmt: skip
    return json.loads(json.dumps(told | numbers))


if __name__ == "__main__":
    sys.exit(main())
