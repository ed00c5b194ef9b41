"""What the cards of all kinds of run say alike: rewards, data, sample answers, what it was made with.

Names, prompts and answers come from data and models: they stand in code spans, where all else is text.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmft.evaluation.bootstrap import Estimate
from mmft.hub.metadata import one_line
from mmft.hub.portable import ROWS_BEGIN, ROWS_END
from mmft.report.record import Change

if TYPE_CHECKING:
    from PIL.Image import Image

PICTURE_FOLDER = "card"
PICTURE_SIDE = 256
"""Longer side of a picture on a card, in pixels; it is shown at two thirds of that."""
LONGEST = 240
"""Characters of a prompt or an answer."""
NUM_SAMPLES = 4
PIPE = "\\|"


@dataclass(frozen=True, slots=True)
class CardSample:
    """A held-out row as a card shows it."""

    prompt: str
    before: str
    after: str
    reward_before: float | None = None
    reward_after: float | None = None
    picture: str | None = None
    """A file in the run's folder."""


def code(text: Any, length: int = LONGEST) -> str:
    """Any text as Markdown's code on one line: nothing in it means anything there."""
    plain = one_line(str(text), length).replace("<!--", "<! --")
    ticks = "`" * (max((len(run) for run in re.findall("`+", plain)), default=0) + 1)
    pad = " " if "`" in plain or not plain else ""
    return f"{ticks}{pad}{plain}{pad}{ticks}"


def results_table(changes: Sequence[Change], differences: Mapping[str, Estimate], level: float = 0.95) -> str:
    """Before, after and the change with its interval; an interval that nobody drew is left out."""
    drawn = any(change.name in differences for change in changes)
    head = ["measure", "before", "after", "change", *([f"{100 * level:g} % interval"] if drawn else [])]
    rows = [
        [
            _cell(change.label),
            f"{change.before:.3f}",
            f"{change.after:.3f}",
            f"{change.after - change.before:+.3f}",
            *([_interval(differences.get(change.name))] if drawn else []),
        ]
        for change in changes
    ]
    return markdown_rows(head, rows)


def markdown_rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose cells are Markdown already; a pipe in one of them divides nothing."""
    lines = [f"| {' | '.join(cell.replace('|', PIPE) for cell in line)} |" for line in (head, *rows)]
    return "\n".join([lines[0], f"|{'---|' * len(head)}", *lines[1:]])


def sentence(text: str) -> str:
    """A sentence of ours in which a name may be anybody's."""
    return html.escape(one_line(text, 1000), quote=False)


def _cell(label: str) -> str:
    """A measure's name; a strange one as code."""
    return label if re.fullmatch(r"[\w /.-]+", label) else code(label)


def _interval(estimate: Estimate | None) -> str:
    if estimate is None or not estimate.low == estimate.low:  # NaN where there is none
        return ""
    return f"{estimate.low:+.3f} to {estimate.high:+.3f}"


def rewards_section(settings: Mapping[str, Any]) -> str:
    """What was optimised, with weights and arguments, and what was only watched; nothing without either."""
    optimised, watched = settings.get("reward_funcs") or [], settings.get("eval_funcs") or []
    if settings.get("offline"):  # the data's own rewards were optimised; these judge held-out rows only
        optimised, watched = [], [*optimised, *watched]
    weights = settings.get("reward_weights") or [1.0] * len(optimised)
    rows = [
        [_reward_name(spec), f"{float(weight):g}", _arguments(spec)]
        for spec, weight in zip(optimised, weights, strict=False)
    ]
    rows += [[_reward_name(spec), "watched, never optimised", _arguments(spec)] for spec in watched]
    if not rows:
        return ""
    return "\n".join(["## Rewards", "", markdown_rows(["reward", "weight", "arguments"], rows), "", ""])


def _reward_name(spec: Any) -> str:
    return code(spec.get("name") if isinstance(spec, Mapping) else spec)


def _arguments(spec: Any) -> str:
    given = (
        {name: value for name, value in spec.items() if name != "name"} if isinstance(spec, Mapping) else {}
    )
    return code(json.dumps(given, ensure_ascii=False)) if given else ""


def data_section(settings: Mapping[str, Any], num_rows: int) -> str:
    """Which rows it saw, which were held out, and what was asked."""
    lines = [f"- data set: {code(settings.get('dataset_name'))}"]
    train, limit = settings.get("train_split"), settings.get("max_train_rows")
    if train is not None:
        lines.append(f"- trained on: split {code(train)}" + (f", the first {limit} rows" if limit else ""))
    if num_rows:
        lines.append(f"- held out: {num_rows} rows of the split {code(settings.get('eval_split'))}")
    if settings.get("instruction"):
        lines.append(f"- asked about each picture: {code(settings['instruction'])}")
    if settings.get("system_prompt"):
        lines.append(f"- system prompt: {code(settings['system_prompt'])}")
    return "\n".join(["## Data", "", *lines, "", ""])


def samples_section(samples: Sequence[CardSample]) -> str:
    """Pictures with what was said of them before and after, between the marks of rows of the data."""
    if not samples:
        return ""
    pictures = any(each.picture for each in samples)
    head = [*(["picture"] if pictures else ["prompt"]), "before", "after"]
    rows = [
        [
            _picture(each) if pictures else code(each.prompt),
            _said(each.before, each.reward_before),
            _said(each.after, each.reward_after),
        ]
        for each in samples
    ]
    table = markdown_rows(head, rows)
    told = "Held-out rows, chosen by their place and not by their result; in parentheses the total reward."
    return "\n".join([ROWS_BEGIN, "", "## Samples", "", told, "", table, "", ROWS_END, "", ""])


def _picture(sample: CardSample) -> str:
    if sample.picture is None or not re.fullmatch(r"[\w-]+/[\w.-]+", sample.picture):
        return ""
    return f'<img src="{sample.picture}" width="{2 * PICTURE_SIDE // 3}" alt="">'


def _said(text: str, reward: float | None) -> str:
    return f"{code(text)}{'' if reward is None else f' ({reward:.2f})'}"


def save_picture(picture: Image, folder: Path, number: int) -> str:
    """Writes a small copy, without what a camera wrote beside the pixels; returns its name in the folder."""
    small = picture.convert("RGB")
    small.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    small.info.clear()
    name = f"{PICTURE_FOLDER}/{number}.jpg"
    (folder / PICTURE_FOLDER).mkdir(parents=True, exist_ok=True)
    small.save(folder / name, quality=85)
    return name


def limits_section(lines: Sequence[str]) -> str:
    """What nobody checked."""
    return "\n".join(["## Limits", "", *(f"- {line}" for line in lines), "", ""])


def limits_of_a_policy(settings: Mapping[str, Any], num_rows: int) -> list[str]:
    """What holds of every policy that was trained on rewards, or on captions."""
    asked = f"the prompt {code(settings['instruction'])}" if settings.get("instruction") else "its prompts"
    lines = [
        f"It was trained on pictures like those of {code(settings.get('dataset_name'))}, with {asked}: other "
        "pictures, other questions, other languages and longer dialogues were not looked at.",
        "It was not trained or tested to be safe: what it says may be wrong, biased or harmful, as what its "
        "base model says may be.",
    ]
    if settings.get("offline"):
        lines.append(
            "It learned from the rewards that its data held for given answers. A reward is not the task: "
            "look at the measures, which were only watched, and at the answers."
        )
    elif settings.get("reward_funcs"):
        lines.append(
            "A reward is not the task: answers that score high may do so for reasons nobody wanted. Look at "
            "the measures that were only watched, and at the answers."
        )
    if not num_rows:
        lines.append("No rows were held out: nothing was measured on rows that training did not see.")
    return lines


def made_with(versions: Mapping[str, str], summary: Mapping[str, Any]) -> str:
    """Libraries, machine and time."""
    lines = [f"- {name} {version}" for name, version in versions.items()]
    machine = summary.get("hardware") or {}
    names = [str(machine[name]) for name in ("gpu", "cpu", "memory") if machine.get(name)]
    if names:
        lines.append(f"- machine: {'; '.join(names)}")
    if summary.get("steps") is not None and summary.get("wall_seconds") is not None:
        count = summary.get("num_processes") or 1
        processes = f" in {count} processes" if count > 1 else ""
        device = f" on {summary['device']}" if summary.get("device") else ""
        lines.append(
            f"- {summary['steps']:,} optimizer steps in {summary['wall_seconds']:.0f} s{device}{processes}"
        )
    return "\n".join(lines)
