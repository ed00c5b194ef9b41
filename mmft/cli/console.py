"""What the commands say on the terminal; under several processes only the first one speaks."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Sequence
from typing import Any

from mmft.report.record import Change


def quiet_libraries() -> None:
    """Leaves the terminal to the run's own lines: no bars for loading weights, no remarks on deprecations."""
    import datasets
    import transformers

    transformers.utils.logging.set_verbosity_warning()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    # PEFT compares vocabularies with the base model's config on the hub, where the packaged one is not.
    warnings.filterwarnings("ignore", message="Unable to fetch remote file due to the following error")
    warnings.filterwarnings("ignore", message="Could not find a config file in mmft/")


def is_main_process() -> bool:
    """True on the process that writes and prints; launchers set RANK."""
    return int(os.environ.get("RANK", "0")) == 0


def say(text: str = "") -> None:
    """Prints on the first process."""
    if is_main_process():
        print(text, flush=True)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned for reading: the first to the left, numbers to the right."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    text = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    rule = "  ".join("-" * width for width in widths)
    return "\n".join([text[0], rule, *text[1:]])


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same for a Markdown page."""
    cells = [list(header), ["---", *("---:" for _ in header[1:])], *(list(row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def change_table(changes: Sequence[Change]) -> str:
    """Before and after, side by side."""
    rows = [
        (
            each.label,
            f"{each.before:.3f}",
            f"{each.after:.3f}",
            "" if each.relative is None else f"{each.relative:+.0%}",
        )
        for each in changes
    ]
    return table(("held-out rows", "before", "after", "change"), rows)


def said_lines(key: Any, answers: Sequence[tuple[str, float | None, str]]) -> str:
    """A row's key, and below it what was said: (label, reward, completion) each."""
    name = " ".join(map(str, key)) if isinstance(key, (list, tuple)) else str(key)
    width = max((len(label) for label, _, _ in answers), default=0)
    lines = [
        f"  {label:{width}}  {number(reward)}  {' '.join(text.split())}" for label, reward, text in answers
    ]
    return "\n".join([name, *lines])


def number(value: float | None) -> str:
    """A reward in five characters; a sample that nothing judged has none."""
    return "  n/a" if value is None or math.isnan(value) else f"{value:5.2f}"
