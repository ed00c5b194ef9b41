"""Weighted means between two log lines."""

from __future__ import annotations

import math
import time

import pytest

from mmft.trainers import metric_log
from mmft.trainers.metric_log import MetricLog


def test_means_are_weighted():
    log = MetricLog()
    log.add("loss", 1.0, weight=1)
    log.add("loss", 4.0, weight=2)
    assert log.flush() == {"loss": 3.0}  # (1 * 1 + 4 * 2) / 3


def test_what_was_not_measured_stays_out():
    log = MetricLog()
    log.add("reward", math.nan)
    log.add("entropy", 5.0, weight=0)
    log.add_all("kl", [1.0, math.nan, 2.0])
    assert log.flush() == {"kl": 1.5}


def test_counts_are_summed():
    log = MetricLog()
    log.count("masked", 2)
    log.count("masked", 3)
    assert log.flush() == {"masked": 5.0}
    assert log.flush() == {}


def test_a_flush_starts_anew():
    log = MetricLog()
    log.add("loss", 1.0)
    log.flush()
    assert log.flush() == {}
    log.add("loss", 3.0)
    assert log.flush() == {"loss": 3.0}


def test_processes_count_by_their_weight(monkeypatch: pytest.MonkeyPatch):
    sums = {"loss": (10.0, 1.0), "only there": (6.0, 2.0)}  # sums and weights of another process
    other = (sums, {"masked": 2.0, "masked there": 1.0})
    monkeypatch.setattr(metric_log, "gather_object", lambda mine: [*mine, other])
    log = MetricLog()
    log.add("loss", 2.0, weight=3)
    log.add("only here", 1.0)
    log.count("masked", 3)
    means = {"loss": 4.0, "only here": 1.0, "only there": 3.0}  # (2 * 3 + 10) / 4
    assert log.flush() == means | {"masked": 5.0, "masked there": 1.0}


def test_times_are_seconds():
    log = MetricLog()
    with log.timed("sleep"):
        time.sleep(0.02)
    assert 0.02 <= log.flush()["seconds/sleep"] < 2
