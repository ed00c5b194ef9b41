"""Which rows are held out where a dataset has no split for it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from mmft.errors import ConfigError


def held_out_rows(keys: Sequence[Any], share: float, *, seed: int, what: str) -> set[int]:
    """The numbers of the rows that are held out: a share of the distinct keys, with all rows that have them.

    Args:
        keys: one per row; equal ones stay on one side.
        share: of the distinct keys.
        seed: decides which.
        what: the keys are, for the error.

    Raises:
        ConfigError: a side would be empty.
    """
    distinct = sorted(set(keys))
    count = round(share * len(distinct))
    if not 0 < count < len(distinct):
        raise ConfigError(
            f"`held_out_share` {share} of {len(distinct)} {what} is {count}; both sides need at least one."
        )
    chosen = set(random.Random(seed).sample(distinct, count))
    return {row for row, key in enumerate(keys) if key in chosen}
