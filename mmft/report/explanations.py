"""Explanations of answers and of decisions as files: a picture of each, and explain.json for the report.

The numbers come from `engine.attribution`, the pictures from `report.heat_maps`; what is explained is the
business of `cli.explain` and of whoever ends a run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL.Image import Image

from mmft.engine.attribution import Attribution
from mmft.report.heat_maps import Choice, HeatMap, HeatPicture, HeatToken, draw_heat_map
from mmft.report.record import write_json

EXPLAIN_FOLDER, EXPLAIN_FILE = "explain", "explain.json"
TITLES = {
    "completion": "log-prob of the answer",
    "token": "log-prob of the marked token",
    "value": "the critic's value",
    "q": "Q of the chosen action",
    "policy": "log-prob of the chosen action",
}
"""What is explained, above a picture."""
SYMBOLS = {"completion": "log p", "token": "log p", "value": "V", "q": "Q", "policy": "log p"}
UNITS = {"relative": "||d{}/dE|| ||E||", "gradient": "||d{}/dE||", "gradient_x_input": "|E . d{}/dE|"}
"""What the heat is, by method; E is the row that a patch or a token becomes."""
NUM_TOP_TOKENS = 4
DIGITS = 6
"""Significant ones, in explain.json."""


@dataclass(frozen=True, slots=True)
class Explained:
    """One answer or decision with what it hangs on."""

    key: Hashable | Sequence[Any]
    """As in samples.jsonl; of an agent the episode and the step."""
    text: str
    """What was said or done."""
    pictures: Sequence[Image]
    """What was seen."""
    found: Attribution
    position: int | None = None
    """Of the token that is explained, within the answer."""
    choices: Sequence[Choice] = field(default=())
    """Of an agent: what it thinks of each action."""
    score: str = "score"
    """What the scores of the choices are."""

    @property
    def marked(self) -> int | None:
        """Of all tokens the one that is explained."""
        if self.position is None:
            return None
        answer = [number for number, token in enumerate(self.found.tokens) if token.part == "answer"]
        return answer[self.position]


@dataclass(frozen=True, slots=True)
class Figure:
    """Another picture beside the heat maps."""

    file: str
    """Its name within the folder."""
    title: str
    caption: str


def heat_map(explained: Explained, method: str = "relative") -> HeatMap:
    """What the picture of one explanation shows."""
    found, marked = explained.found, explained.marked
    what = TITLES[found.of] if found.of != "token" or marked is None else _of_token(found, marked)
    return HeatMap(
        title=f"{what}: {found.value:.3g}",
        pictures=[
            HeatPicture(picture, seen.grid, seen.patches)
            for picture, seen in zip(explained.pictures, found.pictures, strict=False)
        ],
        tokens=[
            HeatToken(token.text, token.importance, token.part, marked=number == marked)
            for number, token in enumerate(found.tokens)
        ],
        shares=found.shares,
        unit=UNITS[method].format(SYMBOLS[found.of]),
        choices=explained.choices,
        score=explained.score,
    )


def _of_token(found: Attribution, marked: int) -> str:
    return f"log-prob of {found.tokens[marked].text.strip()!r}"


def write_explanations(
    folder: Path,
    explained: Sequence[Explained],
    *,
    baseline: str = "saved",
    method: str = "relative",
    figures: Sequence[Figure] = (),
    say: Callable[[str], None] = lambda text: None,
) -> Path:
    """Draws every explanation and writes explain.json, in the place of what an earlier call wrote there.

    Args:
        folder: where; files are named from the folder above it.
        explained: the answers or decisions.
        baseline: which policy this is of: `saved` or `base`.
        method: of the attribution.
        figures: that were drawn into the folder before.
        say: told of each picture that could not be laid over.

    Returns:
        The path of explain.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    forget(folder, [figure.file for figure in figures])
    samples: dict[str, Any] = {}
    shown = [_figure(folder, each.file, each.title, each.caption) for each in figures]
    for number, each in enumerate(explained):
        name = f"{number}_heat.png"
        draw_heat_map(heat_map(each, method), folder / name)
        samples[json.dumps(each.key)] = record(each) | {"picture": _named(folder, name)}
        if each.choices:  # an agent has no samples that the report could show it with
            shown.append(_figure(folder, name, f"{each.text}", f"{TITLES[each.found.of]}, {_key(each.key)}"))
        if each.pictures and any(seen.grid is None for seen in each.found.pictures):
            say(f"{_key(each.key)}: the layout of this model's image rows is unknown; no heat is drawn")
    page = {
        "of": explained[0].found.of if explained else None,
        "baseline": baseline,
        "method": method,
        "samples": samples,
        "figures": shown,
    }
    write_json(folder / EXPLAIN_FILE, page)
    return folder / EXPLAIN_FILE


def record(explained: Explained) -> dict[str, Any]:
    """One explanation as explain.json holds it; patches and grid are those of the first picture."""
    found = explained.found
    pictures = [
        {"grid": list(seen.grid) if seen.grid else None, "patches": [_short(each) for each in seen.patches]}
        for seen in found.pictures
    ]
    first = pictures[0] if pictures else {"grid": None, "patches": []}
    more: dict[str, Any] = {"pictures": pictures} if len(pictures) > 1 else {}
    return {
        "text": explained.text,
        "value": _short(found.value),
        **first,
        "tokens": [[token.text, _short(token.importance)] for token in found.tokens],
        "num_prompt_tokens": sum(token.part == "prompt" for token in found.tokens),
        "marked": explained.marked,
        "shares": {name: _short(share) for name, share in found.shares.items()},
    } | more


def forget(folder: Path, kept: Sequence[str] = ()) -> None:
    """Removes the pictures that an earlier explain.json of this folder names."""
    path = folder / EXPLAIN_FILE
    if not path.is_file():
        return
    try:
        page = json.loads(path.read_text(encoding="utf-8"))
        named = [each["picture"] for each in page["samples"].values()]
        named += [each["file"] for each in page["figures"]]
    except (ValueError, LookupError, TypeError, AttributeError):  # not one of ours
        return
    for name in {Path(str(each)).name for each in named} - set(kept):
        if name.endswith(".png"):
            (folder / name).unlink(missing_ok=True)


def table_rows(explained: Sequence[Explained]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table: the shares of each explanation, and the tokens that count most."""
    names = list(dict.fromkeys(name for each in explained for name in each.found.shares))
    header = ["row", *(f"{name} share" for name in names), "value", "tokens that count most"]
    return header, [
        [
            _key(each.key),
            *(f"{each.found.shares[name]:.0%}" if name in each.found.shares else "-" for name in names),
            f"{each.found.value:.3g}",
            ", ".join(top_tokens(each.found)),
        ]
        for each in explained
    ]


def top_tokens(found: Attribution, count: int = NUM_TOP_TOKENS) -> list[str]:
    """The texts of the tokens of the largest importance, that largest first."""
    ranked = sorted(found.tokens, key=lambda token: -token.importance)
    return [" ".join(token.text.split()) or repr(token.text) for token in ranked[:count] if token.importance]


def _figure(folder: Path, file: str, title: str, caption: str) -> dict[str, str]:
    return {"file": _named(folder, file), "title": title, "caption": caption}


def _named(folder: Path, file: str) -> str:
    """A file as seen from the folder above; resolved, since `.` has no name."""
    return f"{folder.resolve().name}/{file}"


def _key(key: Any) -> str:
    return " ".join(map(str, key)) if isinstance(key, (list, tuple)) else str(key)


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
