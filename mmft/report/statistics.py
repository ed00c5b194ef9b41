"""From evaluations to statistics: intervals, comparisons and warnings, measure by measure."""

from __future__ import annotations

import dataclasses

import numpy as np

from mmft.evaluation.bootstrap import Estimate, Numbers, Resampling, as_numbers, mean_estimate
from mmft.evaluation.compare import Comparison, compare_corpus, compare_rows, corpus_estimate
from mmft.evaluation.health import Answers
from mmft.report.record import METRIC, Evaluation


def estimates(evaluation: Evaluation, resampling: Resampling) -> dict[str, Estimate]:
    """Every measure with its interval over rows.

    Corpus BLEU is no mean over rows: it is computed anew from every draw of rows. The others are means."""
    found = {name: mean_estimate(values, resampling) for name, values in evaluation.measures().items()}
    if evaluation.corpus is not None:
        for name, of_rows in evaluation.corpus.of_rows.items():
            judged = np.flatnonzero(np.isfinite(as_numbers(evaluation.corpus.per_sample[name])))
            found[METRIC + name] = corpus_estimate(of_rows, judged, resampling)
    return found


def compare_evaluations(
    first: Evaluation, second: Evaluation, resampling: Resampling
) -> dict[str, Comparison]:
    """Every measure that both have, `second.samples[i]` being for the row of `first.samples[i]`.

    Corpus BLEU gets the paired bootstrap of corpus scores; its winners are by row, from the smoothed sentence
    scores. CIDEr-D, ROUGE-L and CLIPScore are means over rows, their references being the same in both."""
    one, other = first.measures(), second.measures()
    found = {
        name: compare_rows(values, other[name], resampling) for name, values in one.items() if name in other
    }
    if first.corpus is None or second.corpus is None:
        return found
    for name, of_rows in first.corpus.of_rows.items():
        if name in second.corpus.of_rows:
            whole = compare_corpus(of_rows, second.corpus.of_rows[name], len(first.samples), resampling)
            rows = found[METRIC + name]
            found[METRIC + name] = dataclasses.replace(
                whole, wins=rows.wins, ties=rows.ties, losses=rows.losses
            )
    return found


def answers(evaluation: Evaluation) -> Answers:
    """What the checks of reward health read."""
    samples = evaluation.samples
    nothing: list[float | None] = [None] * len(samples)
    return Answers(
        completions=[sample["completion"] for sample in samples],
        measures={"reward": nothing} | evaluation.measures(),
        tokens=[sample["tokens"] for sample in samples],
        ended=[sample["ended"] for sample in samples],
    )


def distinct_measures(evaluation: Evaluation) -> list[str]:
    """The names of all measures without rewards that are the total, which is then not said twice."""
    measures = evaluation.measures()
    total = measures.get("reward")
    return [
        name
        for name, values in measures.items()
        if not (name.startswith("rewards/") and _equal(values, total))
    ]


def _equal(one: Numbers, other: Numbers | None) -> bool:
    # Totals are summed in single precision.
    return other is not None and np.allclose(
        as_numbers(one), as_numbers(other), rtol=0, atol=1e-5, equal_nan=True
    )
