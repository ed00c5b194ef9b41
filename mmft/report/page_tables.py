"""The tables of a single run: what changed, how sure that is, and how healthy the reward is.

Numbers of the summary, which knows every row, come first; what it does not tell is computed from the samples.
`page_compare` has the tables of several runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mmft.evaluation.bootstrap import Resampling
from mmft.evaluation.compare import compare_rows
from mmft.report.agent_record import AFTER, BEFORE, BLANKED, LENGTH, RANDOM
from mmft.report.page_measures import (
    Values,
    answer_values,
    changed_measures,
    direction,
    judged_values,
    means,
    measure_label,
)
from mmft.report.page_source import RunSource, mapping
from mmft.report.page_text import count, number, short

DASH = "-"
Table = dict[str, Any]
CHANGE_COLUMNS = ("measure", "before", "after", "change", "interval", "wins", "losses")


def run_tables(run: RunSource) -> list[Table]:
    """Every table that the run has something to say in."""
    if run.kind == "agent":
        found = [episode_table(run)]
    elif run.kind == "reward_model":
        found = [change_table(run), group_table(run)]
    elif run.kind == "sft":
        found = [loss_table(run)]
    else:
        found = [change_table(run), health_table(run)]
    return [each for each in found if each is not None]


def resampling(run: RunSource) -> Resampling:
    """How the run draws its intervals."""
    settings = run.settings
    level, seed = number(settings.get("confidence_level")), number(settings.get("seed"))
    return Resampling(
        confidence_level=level if level is not None and 0 < level < 1 else 0.95, seed=int(seed or 0)
    )


def table(
    name: str, title: str, caption: str, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]
) -> Table:
    """A table as the page shows it."""
    return {"id": name, "title": title, "caption": caption, "columns": [*columns], "rows": [*rows]}


def row(cells: Sequence[str], tone: str | None = None, measure: str | None = None) -> dict[str, Any]:
    """One line of a table."""
    return {"cells": [*cells], "tone": tone, "measure": measure}


# Before and after


def change_table(run: RunSource) -> Table | None:
    """Every measure before and after, with the interval of its change."""
    before, after, names = means(run, BEFORE), means(run, AFTER), changed_measures(run)
    if not names:
        return None
    computed = sampled_changes(run, names)
    told = mapping(run.summary.get("differences"))
    outcomes = mapping(run.summary.get("outcomes"))
    level = f"{resampling(run).confidence_level:.0%} interval"
    rows = []
    for name in names:
        known = computed.get(name, {})
        change = known | mapping(told.get(name)) | mapping(outcomes.get(name))
        low, high = number(change.get("low")), number(change.get("high"))
        cells = (
            measure_label(name),
            decimal(before[name]),
            decimal(after[name]),
            signed(after[name] - before[name]),
            bounds(low, high),
            share(change.get("wins")),
            share(change.get("losses")),
        )
        rows.append(row(cells, tone(direction(run, name), low, high), short(name)))
    columns = [level if column == "interval" else column for column in CHANGE_COLUMNS]
    return table("before-after", "Before and after", _change_caption(run), columns, rows)


def _change_caption(run: RunSource) -> str:
    rows = number(run.summary.get("held_out_rows"))
    counted = count(int(rows), "held-out row") if rows else "Held-out rows"
    temperature = number(run.summary.get("eval_temperature"))
    said = ""
    if run.kind == "policy" and temperature is not None:
        said = f", answered {'greedily' if temperature == 0 else f'at temperature {temperature:g}'}"
    return (
        f"{counted}{said}, the same before and after training. The interval is that of the mean change over "
        "rows; wins and losses are the shares of rows that got a higher or a lower value."
    )


def sampled_changes(run: RunSource, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What the samples say of measures that the summary tells no change of."""
    told = mapping(run.summary.get("differences"))
    known = mapping(run.summary.get("outcomes"))
    missing = [name for name in names if name not in told or name not in known]
    if not missing or not run.samples:
        return {}
    read = judged_values if run.kind == "reward_model" else answer_values
    rows = [(read(sample, BEFORE), read(sample, AFTER)) for sample in run.samples]
    return {name: change_of(name, rows, resampling(run)) for name in missing}


def change_of(name: str, rows: Sequence[tuple[Values, Values]], drawing: Resampling) -> dict[str, Any]:
    """The change of a measure over pairs of rows; empty where no pair has numbers."""
    pairs = [(one.get(name), other.get(name)) for one, other in rows]
    both = [(one, other) for one, other in pairs if one is not None and other is not None]
    if not both:
        return {}
    found = compare_rows([one for one, _ in both], [other for _, other in both], drawing)
    change = found.difference
    return {
        "value": change.value, "low": change.low, "high": change.high, "count": change.count,
        "wins": found.wins, "losses": found.losses,
    }  # fmt: skip


# Other kinds of runs


def episode_table(run: RunSource) -> Table | None:
    """What an agent earned, before, after, and with a modality hidden from it."""
    evaluations: dict[str, tuple[Values, str]] = {
        BEFORE: (means(run, BEFORE), RANDOM if run.summary.get("before_acts_at_random") else BEFORE),
        AFTER: (means(run, AFTER), AFTER),
    }
    for modality, values in mapping(run.summary.get("blanked")).items():
        name = BLANKED.get(modality, f"without the {modality}")
        evaluations[name] = (
            {each: found for each in mapping(values) if (found := number(mapping(values)[each])) is not None},
            name,
        )
    names = [*dict.fromkeys(name for values, _ in evaluations.values() for name in values)]
    if not names:
        return None
    intervals = mapping(run.summary.get("intervals"))
    rows = [
        row(
            [
                measure_label(name),
                *(
                    _with_interval(values.get(name), mapping(intervals.get(told)).get(name), name)
                    for values, told in evaluations.values()
                ),
            ],
            measure=short(name),
        )
        for name in names
    ]
    episodes = number(run.summary.get("episodes"))
    counted = count(int(episodes), "episode") if episodes else "Episodes"
    acted = " Before training the agent acted at random." if run.summary.get("before_acts_at_random") else ""
    caption = (
        f"{counted} with seeds of their own, played greedily, with intervals of 95% over episodes.{acted} An "
        "agent from which a modality is hidden was not trained so, and may do worse than chance."
    )
    return table("episodes", "Episodes", caption, ["measure", *map(short, evaluations)], rows)


def _with_interval(value: float | None, interval: Any, name: str) -> str:
    if value is None:
        return DASH
    digits = 1 if name == LENGTH else 3
    low, high = interval if isinstance(interval, (list, tuple)) and len(interval) == 2 else (None, None)
    told = bounds(number(low), number(high), digits)
    return f"{value:.{digits}f}" + ("" if told == DASH else f" {told}")


def group_table(run: RunSource) -> Table | None:
    """How well a reward model tells rows of each group."""
    groups = {name: mapping(each) for name, each in mapping(run.summary.get("groups")).items()}
    if not groups:
        return None
    rows = [
        row(
            [
                short(name),
                f"{number(each.get('rows')) or 0:.0f}",
                *(decimal(each.get(w)) for w in (BEFORE, AFTER)),
            ]
        )
        for name, each in groups.items()
    ]
    caption = "The share of rows told right, or the squared error of ratings, by group."
    return table("groups", "By group", caption, ["group", "rows", "before", "after"], rows)


def loss_table(run: RunSource) -> Table | None:
    """The loss of a warm start."""
    before, after = means(run, BEFORE), means(run, AFTER)
    if not ({*before} & {*after}):
        return None
    rows = [
        row(
            (
                measure_label(name),
                decimal(before[name]),
                decimal(after[name]),
                signed(after[name] - before[name]),
            ),
            tone(direction(run, name), after[name] - before[name], after[name] - before[name]),
            short(name),
        )
        for name in before
        if name in after
    ]
    caption = "Of the held-out captions; lower is better."
    return table("before-after", "Before and after", caption, ["measure", "before", "after", "change"], rows)


HEALTH = {
    "mean_words": "words per completion",
    "duplicate_share": "equal to another row's",
    "degenerate_share": "degenerate",
}


def health_table(run: RunSource) -> Table | None:
    """Signs that the reward is pleased rather than the task done."""
    health = mapping(run.summary.get("health"))
    told = [mapping(health.get(when)) for when in (BEFORE, AFTER)]
    if not all(told):
        return None
    rows = [
        row([title, *(_healthy(name, each.get(name)) for each in told)]) for name, title in HEALTH.items()
    ]
    correlations = [mapping(each.get("reward_words")) for each in told]
    rows.append(
        row(
            [
                "correlation of reward and number of words",
                *(decimal(each.get("value"), 2) for each in correlations),
            ]
        )
    )
    for name in ("distinct_1", "distinct_2"):
        title = f"distinct {'words' if name.endswith('1') else 'pairs of words'}"
        rows.append(row([title, *(decimal(mapping(each.get("distinct")).get(name)) for each in told)]))
    caption = (
        "A reward that follows length alone, one completion for all rows, or text that says nothing are the "
        "usual ways in which a reward is gamed. Degenerate: empty, without words, one word repeated, or cut."
    )
    return table("health", "Reward health", caption, ["sign", "before", "after"], rows)


def _healthy(name: str, value: Any) -> str:
    return decimal(value, 1) if name == "mean_words" else share(value)


# Cells


def decimal(value: Any, digits: int = 3) -> str:
    """A number, or a dash."""
    found = number(value)
    return DASH if found is None else f"{found:.{digits}f}"


def signed(value: float) -> str:
    """A change."""
    return f"{value:+.3f}" if math.isfinite(value) else DASH


def bounds(low: float | None, high: float | None, digits: int = 3) -> str:
    """[low, high], or a dash."""
    known = low is not None and high is not None and math.isfinite(low) and math.isfinite(high)
    return f"[{low:.{digits}f}, {high:.{digits}f}]" if known else DASH


def share(value: Any) -> str:
    """Per cent, or a dash."""
    found = number(value)
    return DASH if found is None else f"{found:.0%}"


def tone(wanted: int, low: float | None, high: float | None) -> str | None:
    """Whether a change is sure and for the better or the worse.

    Args:
        wanted: 1 where more is better, -1 where less is, 0 where nobody has said.
        low: of the interval of the change.
        high: of the interval of the change.
    """
    if low is None or high is None or wanted == 0:
        return None
    better, worse = (low > 0, high < 0) if wanted > 0 else (high < 0, low > 0)
    return "good" if better else "bad" if worse else "neutral"
