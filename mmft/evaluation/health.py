"""Reward health: signs that a policy has learned to please its reward rather than to do its task.

A reward is hacked most often by length, by one completion for all rows, or by text that says nothing. What
only a human sees (a fluent, wrong caption) shows at best as a fall of the measures that nobody optimised.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mmft.evaluation.bootstrap import Estimate, Numbers, Resampling
from mmft.evaluation.compare import Comparison, compare_rows
from mmft.evaluation.correlation import pearson_estimate

LENGTH_CORRELATION = 0.8
"""Beyond it, length alone tells two thirds of the reward."""
MIN_ROWS = 10
"""Of a correlation, or of a fall beside a rise, that is warned about: an interval of fewer is too short."""
LENGTH_GROWTH = 2.5
"""Completions so many times as long as before have exploded."""
NOTABLE_RISE = 0.05
"""Of a share; a smaller rise is not worth a warning, however sure."""
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Answers:
    """What a policy said to each row, and what it got for it."""

    completions: Sequence[str]
    measures: Mapping[str, Numbers]
    """One number per row by measure; "reward" is what was optimised."""
    tokens: Sequence[int] | None = None
    ended: Sequence[bool] | None = None
    """Whether the completion ended by itself, rather than by being cut."""


@dataclass(frozen=True, slots=True)
class RewardHealth:
    """Signs of a hacked reward in one set of answers."""

    reward_words: Estimate
    """Pearson's rho of the reward with the number of words."""
    reward_tokens: Estimate | None
    """The same with the number of tokens."""
    mean_words: float
    duplicate_share: float
    """Of completions that another row got as well."""
    degenerate_share: float
    """Of completions that are degenerate in any way."""
    degenerate: dict[str, float]
    """Share by kind: empty, wordless, one_word_repeated, cut."""
    distinct: dict[str, float]
    """Different n-grams by all n-grams, of one and of two words."""


def reward_health(answers: Answers, resampling: Resampling) -> RewardHealth:
    """Every sign, on the rows of one split."""
    texts, reward = answers.completions, answers.measures["reward"]
    counts = [len(words(text)) for text in texts]
    kinds = [degeneration(text, ended) for text, ended in zip(texts, _ended(answers), strict=True)]
    found = Counter(kinds)
    total = max(len(texts), 1)
    tokens = answers.tokens
    return RewardHealth(
        reward_words=pearson_estimate(reward, counts, resampling),
        reward_tokens=None if tokens is None else pearson_estimate(reward, tokens, resampling),
        mean_words=sum(counts) / total,
        duplicate_share=sum(duplicates(texts)) / total,
        degenerate_share=sum(kind is not None for kind in kinds) / total,
        degenerate={kind: found[kind] / total for kind in ("empty", "wordless", "one_word_repeated", "cut")},
        distinct={f"distinct_{n}": distinct_share(texts, n) for n in (1, 2)},
    )


def words(text: str) -> list[str]:
    """Runs of letters and digits, in lower case."""
    return _WORD.findall(text.lower())


def degeneration(text: str, ended: bool = True) -> str | None:
    """In which way a completion says nothing, or None if it may say something."""
    if not text.strip():
        return "empty"
    said = words(text)
    if not said:
        return "wordless"
    if len(said) > 1 and len(set(said)) == 1:
        return "one_word_repeated"
    return None if ended else "cut"


def duplicates(texts: Sequence[str]) -> list[bool]:
    """For each completion whether another row has the same, but for case and spaces."""
    plain = [" ".join(text.lower().split()) for text in texts]
    counts = Counter(plain)
    return [counts[text] > 1 for text in plain]


def distinct_share(texts: Sequence[str], n: int) -> float:
    """distinct-n (Li et al. 2016, arXiv:1510.03055): different n-grams by all n-grams; 0 without any."""
    grams: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        said = words(text)
        grams.update(tuple(said[place : place + n]) for place in range(len(said) - n + 1))
    total = sum(grams.values())
    return len(grams) / total if total else 0.0


def health_warnings(
    before: Answers, after: Answers, *, watched: Sequence[str], resampling: Resampling
) -> list[str]:
    """One sentence for each sign that training exploited the reward; none is no proof of the opposite.

    Args:
        before: answers of the policy that training started from, or of another one.
        after: answers of the trained one to the same rows, in the same order.
        watched: names of measures that were not optimised, of which more is better.
        resampling: chance is ruled out by paired bootstrap intervals at its level, which those of the watched
            measures have together.
    """
    health = reward_health(after, resampling)
    return [
        *_fallen(before, after, watched, resampling),
        *_length_correlation(health, reward_health(before, resampling)),
        *_length_growth(before, after, resampling),
        *_risen_shares(before, after, resampling),
    ]


def _fallen(before: Answers, after: Answers, watched: Sequence[str], resampling: Resampling) -> list[str]:
    reward = compare_rows(before.measures["reward"], after.measures["reward"], resampling)
    if not reward.difference.is_above_zero:
        return []
    measured = [name for name in watched if name in before.measures and name in after.measures]
    shared = among(resampling, len(measured))
    sentences = []
    for name in measured:
        change = compare_rows(before.measures[name], after.measures[name], shared)
        if change.difference.is_below_zero and change.difference.count >= MIN_ROWS:
            sentences.append(
                f"The optimised reward rose from {reward.first:.3f} to {reward.second:.3f}, while "
                f"{name.removeprefix('rewards/')}, which was not optimised, fell from {change.first:.3f} "
                f"to {change.second:.3f} ({_interval(change, shared)}): the reward may be exploited."
            )
    return sentences


def among(resampling: Resampling, count: int) -> Resampling:
    """The level at which `count` intervals hold together (Bonferroni): of many measures that are looked at,
    one falls by chance sooner than a single one would."""
    outside = (1 - resampling.confidence_level) / max(count, 1)
    return replace(resampling, confidence_level=1 - outside)


def _length_correlation(after: RewardHealth, before: RewardHealth) -> list[str]:
    rho = after.reward_words
    if rho.count < MIN_ROWS or not abs(rho.value) > LENGTH_CORRELATION:
        return []
    which = "longer" if rho.value > 0 else "shorter"
    return [
        f"The reward follows the length of a completion: their correlation is {rho.value:.2f} over "
        f"{rho.count} rows (before {before.reward_words.value:.2f}), {which} ones score higher."
    ]


def _length_growth(before: Answers, after: Answers, resampling: Resampling) -> list[str]:
    first, second = ([len(words(text)) for text in each.completions] for each in (before, after))
    change = compare_rows(first, second, resampling)
    if not (change.difference.is_above_zero and change.second > LENGTH_GROWTH * max(change.first, 1.0)):
        return []
    return [f"Completions grew from {change.first:.1f} to {change.second:.1f} words on average."]


def _risen_shares(before: Answers, after: Answers, resampling: Resampling) -> list[str]:
    """Duplicates depend on one another, which their interval leaves out of account."""
    kinds = {
        "Completions that equal another row's": [duplicates(each.completions) for each in (before, after)],
        "Degenerate completions (empty, without words, one word repeated, or cut)": [
            [
                degeneration(text, ended) is not None
                for text, ended in zip(each.completions, _ended(each), strict=True)
            ]
            for each in (before, after)
        ],
    }
    sentences = []
    for name, (first, second) in kinds.items():
        change = compare_rows(first, second, resampling)
        if change.difference.is_above_zero and change.difference.value >= NOTABLE_RISE:
            sentences.append(
                f"{name} rose from {change.first:.0%} to {change.second:.0%} of the rows "
                f"({_interval(change, resampling)})."
            )
    return sentences


def _ended(answers: Answers) -> Sequence[bool]:
    return [True] * len(answers.completions) if answers.ended is None else answers.ended


def _interval(change: Comparison, resampling: Resampling) -> str:
    difference = change.difference
    return (
        f"{100 * resampling.confidence_level:.3g}% interval of the change {difference.low:+.3f} to "
        f"{difference.high:+.3f}"
    )
