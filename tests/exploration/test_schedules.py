"""Schedules: hand numbers, exact ends, and what is refused."""

from __future__ import annotations

import math
import pickle
from itertools import pairwise

import pytest

from mmft.errors import ConfigError
from mmft.exploration.schedules import KINDS, Schedule

MOVING = [kind for kind in KINDS if kind != "constant"]


def values(kind: str, start: float, end: float, duration: int, *steps: int) -> list[float]:
    schedule = Schedule(kind, start, end, duration)
    return [schedule.at(step) for step in steps]


def test_linear_hand_computed():
    # from 1 to 0 in 4 steps: a quarter each
    assert values("linear", 1.0, 0.0, 4, 0, 1, 2, 3, 4, 5) == [1, 0.75, 0.5, 0.25, 0, 0]


def test_exponential_hand_computed():
    # from 16 to 1 in 4 steps: half each
    assert values("exponential", 16.0, 1.0, 4, 0, 1, 2, 3, 4, 5) == [16, 8, 4, 2, 1, 1]


def test_cosine_hand_computed():
    # (1 - cos(pi x)) / 2 at x = 1/3, 1/2, 2/3: cos = 0.5, 0, -0.5, so 0.25, 0.5, 0.75 of the way from 2 to 4
    assert values("cosine", 2.0, 4.0, 6, 0, 2, 3, 4, 6, 7) == pytest.approx([2, 2.5, 3, 3.5, 4, 4], rel=1e-15)


def test_constant_stays_at_its_start():
    assert values("constant", 0.1, 0.9, 10, 0, 5, 10, 99) == [0.1] * 4
    assert values("constant", 0.1, 0.9, 0, 0, 1) == [0.1] * 2


@pytest.mark.parametrize("kind", MOVING)
@pytest.mark.parametrize(("start", "end"), [(1.0, 0.05), (0.1, 0.7), (1 / 3, 1e-9), (0.3, 0.3)])
@pytest.mark.parametrize("duration", [1, 7, 1000])
def test_both_ends_are_exact_and_the_way_is_monotonic(kind: str, start: float, end: float, duration: int):
    schedule = Schedule(kind, start, end, duration)
    way = [schedule.at(step) for step in range(duration + 3)]
    assert way[0] == start
    assert way[duration:] == [end] * 3
    assert way == sorted(way, reverse=start > end)


@pytest.mark.parametrize("kind", MOVING)
def test_a_duration_of_zero_is_the_end_from_the_first_step_on(kind: str):
    assert values(kind, 1.0, 0.5, 0, 0, 1, 100) == [0.5] * 3


@pytest.mark.parametrize("kind", MOVING)
def test_a_way_and_its_return_meet(kind: str):
    there, back = Schedule(kind, 1.0, 0.05, 40), Schedule(kind, 0.05, 1.0, 40)
    assert [there.at(step) for step in range(41)] == pytest.approx([back.at(40 - step) for step in range(41)])


def test_a_step_of_an_exponential_is_always_the_same_factor():
    way = values("exponential", 1.0, 0.01, 20, *range(21))
    assert [b / a for a, b in pairwise(way)] == pytest.approx([0.01 ** (1 / 20)] * 20)


def test_a_cosine_is_slow_at_both_ends():
    way = values("cosine", 0.0, 1.0, 100, *range(101))
    steps = [b - a for a, b in pairwise(way)]
    assert steps[:50] == sorted(steps[:50])
    assert steps[50:] == sorted(steps[50:], reverse=True)
    assert steps[0] < 0.001 < 0.015 < steps[50]


def test_a_schedule_is_a_value():
    schedule = Schedule("linear", 1.0, 0.1, 10)
    assert pickle.loads(pickle.dumps(schedule)) == schedule
    with pytest.raises(AttributeError, match="cannot assign to field 'start'"):
        schedule.start = 2.0  # type: ignore[misc]


def test_an_unknown_kind_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"got 'linaer'. Did you mean 'linear'\?"):
        Schedule("linaer", 1.0, 0.1, 10)
    with pytest.raises(ConfigError, match=r"one of constant, linear, exponential, cosine; got 'xyz'\.$"):
        Schedule("xyz", 1.0, 0.1, 10)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_refused(value: float):
    with pytest.raises(ConfigError, match=f"`start` of a schedule must be a finite number; got {value}"):
        Schedule("linear", value, 0.1, 10)
    with pytest.raises(ConfigError, match=f"`end` of a schedule must be a finite number; got {value}"):
        Schedule("constant", 1.0, value, 10)


def test_a_duration_below_zero_is_refused():
    with pytest.raises(
        ConfigError, match=r"`duration` must be >= 0 steps; got -1\. 0 is `end` from the first"
    ):
        Schedule("linear", 1.0, 0.1, -1)


@pytest.mark.parametrize(("start", "end"), [(1.0, 0.0), (0.0, 1.0), (-1.0, -2.0)])
def test_an_exponential_without_a_ratio_is_refused(start: float, end: float):
    message = f"`kind: exponential` needs `start` and `end` above 0; got {start} and {end}. Choose a small"
    with pytest.raises(ConfigError, match=message):
        Schedule("exponential", start, end, 10)
    assert Schedule("linear", start, end, 10).at(10) == end
