"""Every number of the log lines as a chart: one series for each run, thinned where a run was long."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mmft.report.agent_curves import PLACE, STEPS
from mmft.report.agent_record import AFTER, BEFORE, RANDOM
from mmft.report.chart_catalogue import (
    ENVIRONMENT_STEPS,
    ENVIRONMENT_STEPS_PER_SECOND,
    NUM_TOKENS,
    SCHEDULED,
    SECONDS,
    STEPS_PER_SECOND,
    TOKENS_PER_SECOND,
    chart_kind,
    is_drawn,
    page_order,
)
from mmft.report.figures import OPTIMIZER_STEPS
from mmft.report.page_measures import REWARDS, repeated_rewards
from mmft.report.page_source import RunSource, mapping
from mmft.report.page_text import number, rounded, short

MAX_POINTS = 1_000
"""Of a series; a longer one keeps the extremes of each of its parts."""
ALL_POINTS = 200_000
"""Of all series together, which many runs beside each other have to share."""
MAX_CHARTS = 120
"""Of a page: a hostile log has as many names as it likes."""
TRAINING, HELD_OUT, EVALUATED = "training", "held out", "eval_"
Points = list[tuple[float, float | None]]
"""Place and value; None is a gap."""


def charts(runs: Sequence[RunSource], notes: list[str]) -> list[dict[str, Any]]:
    """Charts as the page draws them; what was left out goes to `notes`."""
    over = PLACE if all(_counts_environment_steps(run) for run in runs) else "step"
    by_run = [_points(run, over) for run in runs]
    evaluations = [_evaluations(run, over) for run in runs]
    names = page_order(dict.fromkeys(name for points in by_run for name in points))
    if len(names) > MAX_CHARTS:
        notes.append(f"The log has {len(names):,} numbers; {MAX_CHARTS} of them have a chart.")
    limit = min(MAX_POINTS, max(ALL_POINTS // max(len(names[:MAX_CHARTS]) * len(runs), 1), 5))
    drawn = [_chart(name, runs, by_run, evaluations, over, limit) for name in names[:MAX_CHARTS]]
    longest = max((len(points) for each in by_run for points in each.values()), default=0)
    if longest > limit:
        notes.append(
            f"Curves have up to {longest:,} points, of which at most {limit:,} are drawn: the smallest "
            "and the largest value of each stretch."
        )
    return drawn


def _chart(
    name: str,
    runs: Sequence[RunSource],
    by_run: Sequence[Mapping[str, Points]],
    evaluations: Sequence[Sequence[tuple[float, Mapping[str, Any]]]],
    over: str,
    limit: int,
) -> dict[str, Any]:
    kind, alone = chart_kind(name), len(runs) == 1
    series, references = [], []
    for place, (run, points, lines) in enumerate(zip(runs, by_run, evaluations, strict=True)):
        if name in points:
            label = TRAINING if alone else run.label
            shown = thinned(points[name], limit)
            series.append(_series(place, label, shown, smooth=name not in SCHEDULED))
        # Where nothing was evaluated during training, before and after are references.
        during = any(number(line.get(name)) is not None for _, line in lines[1:-1])
        if during:
            known = [(where, value) for where, line in lines if (value := number(line.get(name))) is not None]
            series.append(_series(place, HELD_OUT, thinned([*known], limit), smooth=False))
        references += _references(name, run, alone=alone, evaluated=not during)
    return {
        "id": short(name),
        "title": kind.title,
        "group": kind.group,
        "x_label": STEPS if over == PLACE else OPTIMIZER_STEPS,
        "y_label": kind.unit,
        "description": kind.text,
        "series": series,
        "references": references,
    }


def _series(run: int, name: str, points: Points, *, smooth: bool) -> dict[str, Any]:
    return {
        "run": run,
        "name": name,
        "x": [rounded(x) for x, _ in points],
        "y": [rounded(y) for _, y in points],
        "smooth": smooth,
    }


# Points


def _counts_environment_steps(run: RunSource) -> bool:
    return any(number(line.get(PLACE)) is not None for line in run.history)


def _points(run: RunSource, over: str) -> dict[str, Points]:
    """Every logged number that has a finite value somewhere, over the steps."""
    found: dict[str, Points] = {}
    speeds = _Speeds()
    again = {f"{REWARDS}{name}" for name in repeated_rewards(run)}
    drawn: dict[str, bool] = {}
    for line in run.history:
        place = number(line.get(over))
        if place is None or "loss" not in line:
            continue
        for name, value in itertools.chain(line.items(), speeds.of(line)):
            if name not in drawn:
                drawn[name] = is_drawn(name) and name not in again
            known = number(value) if drawn[name] else None
            if known is not None or (drawn[name] and (value is None or isinstance(value, float))):
                found.setdefault(name, []).append((place, known))
    return {name: points for name, points in found.items() if any(value is not None for _, value in points)}


class _Speeds:
    """What was done by the seconds that passed since something was last done.

    Several lines may lie between two rollouts; their seconds count too.
    """

    def __init__(self) -> None:
        self._waited: dict[str, float] = {}
        self._before: dict[str, float] = {}

    def of(self, line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
        """The speeds that are known at a line; lines come in their order."""
        seconds = max(number(line.get(SECONDS)) or 0.0, 0.0)
        tokens = number(line.get(NUM_TOKENS))
        yield from self._speed(TOKENS_PER_SECOND, seconds, tokens, done=tokens is not None)
        for name, counted in ((ENVIRONMENT_STEPS_PER_SECOND, ENVIRONMENT_STEPS), (STEPS_PER_SECOND, "step")):
            now, before = number(line.get(counted)), self._before.get(name)
            made = None if now is None or before is None else now - before
            yield from self._speed(name, seconds, made, done=now is not None and made != 0)
            if now is not None:
                self._before[name] = now

    def _speed(
        self, name: str, seconds: float, amount: float | None, *, done: bool
    ) -> Iterator[tuple[str, float]]:
        waited = self._waited.get(name, 0.0) + seconds
        self._waited[name] = 0.0 if done else waited
        if done and amount is not None and amount >= 0 and waited > 0:
            yield name, amount / waited


def thinned(points: Points, limit: int = MAX_POINTS) -> Points:
    """At most `limit` points: the ends, the least and largest of each stretch, and a gap where it has one.

    Extremes and gaps are what a thinner curve must not hide; between them an even choice would do."""
    if len(points) <= limit:
        return points
    first, *between, last = points
    num_parts = (limit - 2) // 3
    kept: Points = [first]
    for part in range(num_parts):
        stretch = between[part * len(between) // num_parts : (part + 1) * len(between) // num_parts]
        known = [each for each in enumerate(stretch) if each[1][1] is not None]
        places = {place for place, (_, value) in enumerate(stretch) if value is None and known}
        chosen = {min(places)} if places else set()
        if known:
            chosen |= {f(known, key=_value)[0] for f in (min, max)}
        else:
            chosen = {0}
        kept += [stretch[place] for place in sorted(chosen)]
    return [*kept, last]


def _value(item: tuple[int, tuple[float, float | None]]) -> float:
    return item[1][1] or 0.0


# What a curve is compared with


def _evaluations(run: RunSource, over: str) -> list[tuple[float, Mapping[str, Any]]]:
    """Where the evaluations were, before and after training too, and what they gave."""
    told = [(number(line.get("step")), number(line.get(over))) for line in run.history if "loss" in line]
    known = [(step, place) for step, place in told if step is not None and place is not None]
    if not known:
        return []
    steps, places = zip(*known, strict=True)
    found = [(0.0, mapping(run.summary.get(BEFORE)))]
    for line in run.history:
        step = number(line.get("step"))
        values = {name.removeprefix(EVALUATED): line[name] for name in line if name.startswith(EVALUATED)}
        if values and step is not None and 0 < step < steps[-1]:
            found.append((float(np.interp(step, steps, places)), values))
    return [*found, (places[-1], mapping(run.summary.get(AFTER)))]


def _references(name: str, run: RunSource, *, alone: bool, evaluated: bool) -> list[dict[str, Any]]:
    """What held-out rows or episodes gave before and after, and what a setting aims at.

    Args:
        name: of the number.
        run: whose.
        alone: no other run is on the page; else only the last evaluation has a line.
        evaluated: draw evaluations.
    """
    lines = _evaluated(name, run) if evaluated else []
    lines = lines if alone else lines[-1:]
    target = number(run.settings.get("kl_target")) if name == "kl" else None
    if target is not None:
        lines.append(("target", target))
    if name == "return" and (best := _best_return(run)) is not None:
        lines.append(("best possible", best))
    prefix = "" if alone else f"{run.label}: "
    # Read beside the line, where six digits are no better than four.
    return [{"label": prefix + label, "y": float(f"{value:.4g}")} for label, value in lines]


def _evaluated(name: str, run: RunSource) -> list[tuple[str, float]]:
    found = []
    for when in (BEFORE, AFTER):
        value = number(mapping(run.summary.get(when)).get(name))
        label = RANDOM if when == BEFORE and run.summary.get("before_acts_at_random") else when
        if value is not None:
            found.append((label if run.kind == "agent" else f"{HELD_OUT}, {label}", value))
    return found


def _best_return(run: RunSource) -> float | None:
    best = [number(each.get("optimal_return")) for each in run.episodes if each.get("evaluation") == AFTER]
    known = [value for value in best if value is not None]
    return sum(known) / len(known) if known else None
