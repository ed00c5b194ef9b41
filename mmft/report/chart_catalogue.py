"""What the numbers of log lines are: a title, a unit, and a sentence on how to read them (charts.yaml).

A number that is not listed there gets a chart too, under the name it was logged by.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml

from mmft.report.page_text import short

CATALOGUE = Path(__file__).with_name("charts.yaml")
OTHER = "Other"
TOKENS_PER_SECOND = "throughput/tokens"
ENVIRONMENT_STEPS_PER_SECOND = "throughput/environment_steps"
STEPS_PER_SECOND = "throughput/steps"
NUM_TOKENS, SECONDS, ENVIRONMENT_STEPS = "completions/num_tokens", "seconds/training", "environment_steps"
"""Logged so that a speed can be told, and no charts of their own."""
PREFIXES = {
    "rewards/": ("Rewards", "mean reward", "A reward, or a part of one, averaged over what was said."),
    "seconds/": ("Speed", "seconds", "Mean seconds of one call of this part of the work."),
    "weights/": ("Policy", "weight", "Of the weights that completions have."),
    "regularization/": ("Loss and optimizer", "value", "Of what holds weights near where they began."),
    "completions/": ("Completions", "value", "Of the completions of training."),
    "importance/": ("Importance", "share", "Share of the answer's gradient."),
}
UNDRAWN = {"step", "epoch", "total_flos", NUM_TOKENS, SECONDS, ENVIRONMENT_STEPS}
UNDRAWN_PREFIXES = ("eval_", "train_", "test_")
"""Of evaluations, which are marks on other charts, and of the last line, which is of the whole run."""
SCHEDULED = {"epsilon", "temperature", "learning_rate", "kl_coef"}
"""What has no noise that an average would take away."""


@dataclass(frozen=True, slots=True)
class ChartKind:
    """What a chart says beside its lines."""

    title: str
    group: str
    unit: str
    text: str


@functools.cache
def catalogue() -> dict[str, ChartKind]:
    """Every number that is described, in the order of the page."""
    groups = yaml.safe_load(CATALOGUE.read_text(encoding="utf-8"))
    return {
        name: ChartKind(told["title"], group, told["unit"], told["text"])
        for group, charts in groups.items()
        for name, told in charts.items()
    }


def chart_kind(name: str) -> ChartKind:
    """What a logged number is."""
    if name in catalogue():
        return catalogue()[name]
    for prefix, (group, unit, text) in PREFIXES.items():
        if name.startswith(prefix):
            return ChartKind(short(name.removeprefix(prefix)), group, unit, text)
    return ChartKind(short(name), OTHER, "value", "As it was logged under this name.")


def is_drawn(name: str) -> bool:
    """Whether a logged number gets a chart."""
    if name.startswith("rewards/") and name.endswith("/masked"):
        return False  # the facts count these over the whole run
    return name not in UNDRAWN and not name.startswith(UNDRAWN_PREFIXES)


def page_order(names: Iterable[str]) -> list[str]:
    """The names by group; within it those that are described first, then as they came."""
    known = [*catalogue()]
    groups = [*dict.fromkeys(kind.group for kind in catalogue().values()), OTHER]

    def place(name: str) -> tuple[int, float]:
        if name in known:
            rank = float(known.index(name))
        else:  # rewards stand right behind their total
            rank = known.index("reward") + 0.5 if name.startswith("rewards/") else float(len(known))
        return groups.index(chart_kind(name).group), rank

    return sorted(names, key=place)
