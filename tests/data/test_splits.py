"""Rows that are held out: by key, all of a key on one side, the same for the same seed."""

from __future__ import annotations

import pytest

from mmft.data.splits import held_out_rows
from mmft.errors import ConfigError

KEYS = ["a", "b", "a", "c", "d", "b", "a"]


def test_all_rows_of_a_key_are_on_one_side():
    for seed in range(20):
        held_out = held_out_rows(KEYS, 0.5, seed=seed, what="values")
        names = {KEYS[row] for row in held_out}
        assert len(names) == 2  # half of four
        assert held_out == {row for row, key in enumerate(KEYS) if key in names}


def test_the_seed_decides_and_nothing_else():
    assert held_out_rows(KEYS, 0.5, seed=3, what="") == held_out_rows(KEYS, 0.5, seed=3, what="")
    assert len({frozenset(held_out_rows(KEYS, 0.5, seed=seed, what="")) for seed in range(20)}) > 3


@pytest.mark.parametrize("share", [0.1, 0.95])
def test_a_side_without_rows_is_refused(share: float):
    with pytest.raises(ConfigError, match=rf"`held_out_share` {share} of 4 names is \d; both sides need"):
        held_out_rows(KEYS, share, seed=0, what="names")
