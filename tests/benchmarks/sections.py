"""RESULTS.md: every benchmark writes its own section and leaves the others as they are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

RESULTS = Path(__file__).with_name("RESULTS.md")


def write_section(text: str, path: Path = RESULTS) -> None:
    """Puts a section, its `# Heading` first, in the place of an older one, or at the end."""
    heading = re.escape(text.partition("\n")[0])
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    old = re.search(rf"^{heading}\n.*?(?=^# |\Z)", before, re.MULTILINE | re.DOTALL)
    text = text.rstrip() + "\n"
    if old is None:
        after = f"{before.rstrip()}\n\n{text}".lstrip()
    else:
        rest = before[old.end() :]
        after = before[: old.start()] + text + ("\n" + rest if rest else "")
    path.write_text(after, encoding="utf-8")


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The rows under their column names."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
