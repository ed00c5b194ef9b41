"""Measures of a score that is to tell true from false: how often it is right, and how well it orders."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from mmft.errors import DataError


def is_binary(targets: Sequence[float]) -> bool:
    """Whether the targets are 0 and 1 and both occur."""
    return set(targets) == {0.0, 1.0}


def area_under_roc(scores: Sequence[float], targets: Sequence[float]) -> float:
    """Probability that a true row scores higher than a false one, ties half (Hanley & McNeil 1982, eq. 1).

        AUC = (sum of the ranks of true rows - n1 (n1 + 1) / 2) / (n1 n0),   equal scores sharing their ranks

    1 is a perfect order, 0.5 none. Of N scores and N targets of 0 or 1.
    """
    pairs = sorted(zip(scores, targets, strict=True))
    num_true = sum(target == 1 for _, target in pairs)
    num_false = len(pairs) - num_true
    if not num_true or not num_false:
        raise DataError(
            f"the area under the curve needs true and false rows; {num_true} of {len(pairs)} are true."
        )
    ranks, below = 0.0, 0
    for _, group in groupby(pairs, key=lambda pair: pair[0]):
        labels = [target for _, target in group]
        ranks += sum(label == 1 for label in labels) * (below + (len(labels) + 1) / 2)
        below += len(labels)
    return (ranks - num_true * (num_true + 1) / 2) / (num_true * num_false)


def binary_report(scores: Sequence[float], targets: Sequence[float]) -> dict[str, float]:
    """Accuracy of scores cut at 1/2, the commoner target's share (which a constant reaches), the AUC."""
    right = sum((score > 0.5) == (target == 1) for score, target in zip(scores, targets, strict=True))
    share = sum(target == 1 for target in targets) / len(targets)
    return {
        "accuracy": right / len(targets),
        "majority_share": max(share, 1 - share),
        "auc": area_under_roc(scores, targets),
    }
