"""The measures of a run: what each held-out row or episode scored, and which of them were optimised."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from mmft.report.agent_record import AFTER, BEFORE, LENGTH, MEASURES, RETURN, SUCCESS
from mmft.report.page_source import RunSource, items, mapping
from mmft.report.page_text import number, short
from mmft.report.record import METRIC, Evaluation, compare, label

REWARD, REWARDS = "reward", "rewards/"
TOKENS, UNENDED = "completions/mean_length", "completions/no_eos_share"
ACCURACY, SQUARED_ERROR = "accuracy", "mse"
LABELS = MEASURES | {SQUARED_ERROR: "squared error"}
Values = dict[str, float]
"""By measure."""


def measure_label(name: str) -> str:
    """A measure as tables show it."""
    return short(LABELS.get(name, label(name)).replace("_", " ") if "/" not in name else label(name))


def means(run: RunSource, when: str) -> Values:
    """What the summary says of an evaluation."""
    told = {name: number(value) for name, value in mapping(run.summary.get(when)).items()}
    return {name: value for name, value in told.items() if value is not None}


def changed_measures(run: RunSource) -> list[str]:
    """Measures that both evaluations have, the total first; a reward that is the total is not said twice."""
    before, after = means(run, BEFORE), means(run, AFTER)
    return (
        [change.name for change in compare(Evaluation(before, []), Evaluation(after, []))] if before else []
    )


def repeated_rewards(*runs: RunSource) -> set[str]:
    """Rewards, as samples name them, that are the total in every one of the runs."""
    found = []
    for run in runs:
        both = {*means(run, BEFORE)} & {*means(run, AFTER)}
        again = both - {*changed_measures(run)}
        found.append({name.removeprefix(REWARDS) for name in again if name.startswith(REWARDS)})
    return set.intersection(*found)


def weights(run: RunSource) -> Values:
    """What each reward weighs; in older summaries, which do not tell, what the settings say."""
    told = {name: number(value) for name, value in mapping(run.summary.get("reward_weights")).items()}
    if told:
        return {name: value for name, value in told.items() if value is not None}
    names = [
        name.removeprefix(REWARDS)
        for name in means(run, AFTER)
        if name.startswith(REWARDS) and name.count("/") == 1
    ]
    paid = len(items(run.settings.get("reward_funcs")))
    given = [number(value) for value in items(run.settings.get("reward_weights"))] or [1.0] * paid
    padded = [*given, *[0.0] * len(names)]
    return {name: weight or 0.0 for name, weight in zip(names, padded, strict=False)}


def direction(run: RunSource, name: str) -> int:
    """1 where more of a measure is what was wanted, -1 where less is, 0 where nobody has said.

    A reward that was only reported, or a metric, is wanted too; parts of rewards may be penalties."""
    if run.kind == "policy":
        if name == REWARD or name.startswith(METRIC):
            return 1
        weight = weights(run).get(name.removeprefix(REWARDS)) if name.startswith(REWARDS) else None
        return 0 if weight is None else -1 if weight < 0 else 1
    if name in ("loss", SQUARED_ERROR, "nll", "calibration_error"):
        return -1
    return 1 if name in (RETURN, SUCCESS, "optimal_share", ACCURACY, "pearson", "spearman", "auc") else 0


def is_optimised(run: RunSource, name: str) -> bool:
    """Whether training was about this measure."""
    if run.kind == "policy":
        return name == REWARD or weights(run).get(name.removeprefix(REWARDS), 0.0) != 0
    return name in {"agent": (RETURN,), "reward_model": (ACCURACY, SQUARED_ERROR), "sft": ("loss",)}[run.kind]


def measures(run: RunSource, names: Iterable[str]) -> list[dict[str, Any]]:
    """The measures as the page lists them."""
    return [
        {"id": short(name), "label": measure_label(name), "optimised": is_optimised(run, name)}
        for name in names
    ]


# Rows


def row_key(sample: Mapping[str, Any]) -> str:
    """What names a row in all runs: its key, and what was asked, so that another data set has other rows."""
    told = [sample.get(name) for name in ("key", "prompt", "references", "chosen", "rejected", "completion")]
    return json.dumps(told, default=str)


def row_values(run: RunSource) -> dict[str, Values]:
    """By row or episode, what the trained model scored by measure."""
    if run.kind == "agent":
        # An episode is a function of the environment, the run's seed, and the two numbers.
        world = [run.summary.get("environment"), run.summary.get("eval_env_kwargs"), run.settings.get("seed")]
        return {
            json.dumps([*world, each.get("environment"), each.get("episode")], default=str): _known(
                {
                    RETURN: each.get("return"),
                    SUCCESS: _share(each.get("success")),
                    LENGTH: each.get("length"),
                }
            )
            for each in run.episodes
            if each.get("evaluation") == AFTER
        }
    read = judged_values if run.kind == "reward_model" else answer_values
    return {row_key(sample): read(sample, AFTER) for sample in run.samples}


def answer_values(sample: Mapping[str, Any], when: str) -> Values:
    """What an answer scored, by the measures' names."""
    answer = mapping(sample.get(when))
    values = {REWARD: answer.get(REWARD)}
    values |= {REWARDS + str(name): value for name, value in mapping(answer.get("rewards")).items()}
    values |= {TOKENS: answer.get("tokens"), UNENDED: _share(answer.get("ended"), negated=True)}
    return _known(values)


def judged_values(sample: Mapping[str, Any], when: str) -> Values:
    """Whether a preference was told right, or how far off a rating was."""
    told = mapping(sample.get(when))
    chosen, rejected = number(told.get("chosen_reward")), number(told.get("rejected_reward"))
    if chosen is not None and rejected is not None:
        return {ACCURACY: 0.5 if chosen == rejected else float(chosen > rejected)}
    predicted, rating = number(told.get("reward")), number(sample.get("rating"))
    if predicted is None or rating is None:
        return {}
    right = {ACCURACY: float((predicted > 0.5) == (rating == 1))} if rating in (0, 1) else {}
    return {SQUARED_ERROR: (predicted - rating) ** 2} | right


def _share(value: Any, *, negated: bool = False) -> float | None:
    return float(value is not negated) if isinstance(value, bool) else None


def _known(values: Mapping[str, Any]) -> Values:
    numbers = {name: number(value) for name, value in values.items()}
    return {name: value for name, value in numbers.items() if value is not None}
