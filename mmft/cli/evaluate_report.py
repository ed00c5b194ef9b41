"""Every statistic of an evaluation, from answers and columns to what evaluation.json says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from mmft.evaluation.bootstrap import Array, Estimate, Resampling
from mmft.evaluation.compare import Comparison
from mmft.evaluation.correlation import Correlation, correlate
from mmft.evaluation.health import RewardHealth, health_warnings
from mmft.evaluation.state import StateCorrelation, correlate_with_state
from mmft.evaluation.subgroups import Subgroups, by_group
from mmft.report.record import METRIC, Evaluation
from mmft.report.statistics import answers, compare_evaluations

MAX_DECISIONS = 5
"""With so many different completions at most, saying one of them is a decision that the state may explain."""


@dataclass(frozen=True, slots=True)
class Versus:
    """The comparison with another run, which comes first: a positive difference favours the evaluated one."""

    label: str
    """The name of the other run in tables."""
    first: str
    """The other run in full: model and adapter, or its file."""
    second: str
    """The evaluated run in full."""
    measures: dict[str, Comparison]
    warnings: list[str]
    notes: list[str]
    """Settings by which the two differ."""


@dataclass(frozen=True, slots=True)
class Report:
    """Everything measured."""

    evaluation: Evaluation
    estimates: dict[str, Estimate]
    health: RewardHealth
    subgroups: dict[str, dict[str, Subgroups]]
    """By column, then by measure."""
    correlations: dict[str, dict[str, Correlation]]
    """By column, then by measure."""
    state: dict[str, StateCorrelation]
    """By what counts as action."""
    versus: Versus | None


def completions(evaluation: Evaluation) -> list[str]:
    """What was said to each row."""
    return [sample["completion"] for sample in evaluation.samples]


def subgroups(
    evaluation: Evaluation, groups: Mapping[str, list[Hashable]], resampling: Resampling
) -> dict[str, dict[str, Subgroups]]:
    """Every measure by every column; corpus BLEU takes the rows of a group as a corpus of their own."""
    measures = evaluation.measures()
    of_rows = evaluation.corpus.of_rows if evaluation.corpus else {}
    return {
        column: {
            name: by_group(values, names, resampling, score=of_rows.get(name.removeprefix(METRIC)))
            for name, values in measures.items()
        }
        for column, names in groups.items()
    }


def correlations(
    evaluation: Evaluation, numbers: Mapping[str, list[float | None]], resampling: Resampling
) -> dict[str, dict[str, Correlation]]:
    """Every measure with every column; of corpus metrics the score of the single row."""
    measures = evaluation.measures()
    return {
        column: {name: correlate(given, values, resampling) for name, values in measures.items()}
        for column, given in numbers.items()
    }


def state_correlations(
    evaluation: Evaluation, states: Array, resampling: Resampling
) -> dict[str, StateCorrelation]:
    """What the policy did to each row, with what it saw.

    Actions: the number of tokens; their mean log-prob; and where the completions are few, such as yes and no,
    whether the row got this one."""
    samples = evaluation.samples
    actions: dict[str, list[float]] = {
        "tokens per completion": [float(sample["tokens"]) for sample in samples],
        "mean log-prob of a token": [sample["mean_logp"] for sample in samples],
    }
    said = Counter(completions(evaluation))
    if 1 < len(said) <= MAX_DECISIONS:
        for text, _ in said.most_common(len(said) if len(said) > 2 else 1):
            actions[f"says {text!r}"] = [float(sample["completion"] == text) for sample in samples]
    return {name: correlate_with_state(values, states, resampling) for name, values in actions.items()}


def versus_other(
    evaluation: Evaluation,
    other: Evaluation,
    *,
    names: tuple[str, str, str],
    notes: list[str],
    watched: list[str],
    resampling: Resampling,
) -> Versus:
    """The other run first, the evaluated one second.

    Args:
        evaluation: of the evaluated run.
        other: of the run to compare with.
        names: of the other run in tables, of the other run in full, of the evaluated one in full.
        notes: what makes the two hard to compare.
        watched: names of the measures that were not optimised.
        resampling: how intervals are drawn.
    """
    label, first, second = names
    return Versus(
        label=label,
        first=first,
        second=second,
        measures=compare_evaluations(other, evaluation, resampling),
        warnings=health_warnings(answers(other), answers(evaluation), watched=watched, resampling=resampling),
        notes=notes,
    )
