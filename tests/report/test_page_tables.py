"""The tables of one run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from mmft.report.page_measures import (
    direction,
    is_optimised,
    judged_values,
    measure_label,
    measures,
    repeated_rewards,
    weights,
)
from mmft.report.page_source import RunSource, read_run
from mmft.report.page_tables import bounds, change_of, decimal, resampling, run_tables, share, signed, tone
from tests.report.run_folders import SETTINGS, run_folder, sample, summary


def policy(told: dict[str, Any], samples: list[dict[str, Any]] | None = None, **settings: Any) -> RunSource:
    return RunSource(
        Path("x"), "x", "policy", settings=SETTINGS | settings, summary=told, samples=samples or []
    )


def rows(table: dict[str, Any]) -> dict[str, list[str]]:
    return {each["cells"][0]: each["cells"][1:] for each in table["rows"]}


# Before and after


def test_the_summary_tells_of_all_rows_what_changed():
    differences = {"reward": {"value": 0.25, "low": 0.125, "high": 0.375}}
    outcomes = {"reward": {"wins": 0.75, "ties": 0.125, "losses": 0.125}}
    (table,) = run_tables(policy(summary(256, differences=differences, outcomes=outcomes)))
    assert table["columns"] == ["measure", "before", "after", "change", "95% interval", "wins", "losses"]
    assert table["rows"][0] == {
        "cells": ["total reward", "0.250", "0.500", "+0.250", "[0.125, 0.375]", "75%", "12%"],
        "tone": "good",
        "measure": "reward",
    }
    assert rows(table)["tokens per completion"][3:] == ["-", "-", "-"]
    assert "captioning" not in rows(table), "it is the total"
    assert table["caption"].startswith("256 held-out rows, answered greedily, the same before and after")


def test_an_older_summary_is_completed_from_the_samples():
    samples = [sample(number, before=0.0, after=1.0 + number % 2) for number in range(20)]
    samples += [sample(20, before=3.0, after=0.0), sample(21, before=None, after=1.0)]
    (table,) = run_tables(policy(summary(22), samples))
    low, high = map(float, rows(table)["total reward"][3].strip("[]").split(", "))
    # 10 rises of 1, 10 of 2 and a fall of 3 in 21 rows that have both numbers: 27 / 21.
    assert low < 27 / 21 < high
    assert rows(table)["total reward"][4:] == ["95%", "5%"]
    assert rows(table)["tokens per completion"][4:] == ["100%", "0%"]


def test_without_held_out_rows_there_is_no_table():
    assert run_tables(policy(summary() | {"before": None, "after": None})) == []
    assert run_tables(policy({})) == []


def test_the_caption_tells_how_rows_were_answered():
    (table,) = run_tables(policy(summary(1, eval_temperature=0.7)))
    assert table["caption"].startswith("1 held-out row, answered at temperature 0.7,")


def test_a_change_is_good_or_bad_only_where_it_is_sure_and_somebody_wanted_it():
    assert [tone(1, 0.1, 0.2), tone(1, -0.2, -0.1), tone(1, -0.1, 0.1)] == ["good", "bad", "neutral"]
    assert [tone(-1, 0.1, 0.2), tone(-1, -0.2, -0.1)] == ["bad", "good"]
    assert [tone(0, 0.1, 0.2), tone(1, None, 0.2)] == [None, None]


def test_a_change_over_no_row_is_none():
    assert change_of("reward", [({}, {"reward": 1.0})], resampling(policy({}))) == {}


def test_intervals_are_those_of_the_settings_where_these_are_sound():
    assert resampling(policy({}, confidence_level=0.9, seed=3)).confidence_level == 0.9
    assert resampling(policy({}, confidence_level=0.9, seed=3)).seed == 3
    assert resampling(policy({}, confidence_level=7, seed=None)).confidence_level == 0.95


# Measures


def test_what_is_wanted_of_a_measure():
    told = summary(reward_weights={"captioning": 1.0, "penalty": -0.5, "truth": 0.0})
    run = policy(told)
    names = ["reward", "rewards/captioning", "rewards/penalty", "rewards/truth", "metrics/cider_d"]
    assert [direction(run, name) for name in names] == [1, 1, -1, 1, 1]
    assert [direction(run, name) for name in ("rewards/captioning/length", "completions/mean_length")] == [
        0,
        0,
    ]
    assert [is_optimised(run, name) for name in names] == [True, True, True, False, False]
    assert measures(run, ["rewards/truth"]) == [{"id": "rewards/truth", "label": "truth", "optimised": False}]


def test_older_summaries_leave_the_weights_to_the_settings():
    told = summary() | {"reward_weights": None}
    told["after"] = dict.fromkeys(
        ["reward", "rewards/a", "rewards/a/part", "rewards/b", "rewards/truth"], 1.0
    )
    assert weights(policy(told, reward_funcs=["a", "b"])) == {"a": 1.0, "b": 1.0, "truth": 0.0}
    assert weights(policy(told, reward_funcs=["a", "b"], reward_weights=[0.5, -1])) == {
        "a": 0.5, "b": -1.0, "truth": 0.0,
    }  # fmt: skip


def test_rewards_that_are_the_total_are_known_by_the_names_of_samples():
    assert repeated_rewards(policy(summary())) == {"captioning"}
    assert repeated_rewards(policy({})) == set()


def test_labels_are_those_of_the_terminal():
    names = [
        "reward",
        "rewards/captioning/bleu",
        "metrics/cider_d",
        "completions/mean_length",
        "optimal_share",
    ]
    assert [measure_label(name) for name in names] == [
        "total reward", "captioning/bleu", "cider_d", "tokens per completion", "share of best",
    ]  # fmt: skip


# Other tables


def test_signs_of_a_gamed_reward_have_a_table():
    health = {
        "reward_words": {"value": 0.5}, "mean_words": 4.25, "duplicate_share": 0.5, "degenerate_share": 0.25,
        "distinct": {"distinct_1": 0.125, "distinct_2": 0.5},
    }  # fmt: skip
    found = run_tables(policy(summary(health={"before": health, "after": health | {"reward_words": None}})))[
        1
    ]
    assert (found["id"], found["columns"]) == ("health", ["sign", "before", "after"])
    assert list(rows(found).values()) == [
        ["4.2", "4.2"], ["50%", "50%"], ["25%", "25%"], ["0.50", "-"], ["0.125", "0.125"], ["0.500", "0.500"],
    ]  # fmt: skip


def test_an_agent_has_its_evaluations_side_by_side():
    told = {
        "environment": "x",
        "before_acts_at_random": True,
        "episodes": 64,
        "before": {"return": 0.1, "episode_length": 6.25},
        "after": {"return": 0.9},
        "blanked": {"image": {"return": -0.4, "success": math.nan}, "sound": {"return": 0.2}},
        "intervals": {
            "random": {"return": [0.0, 0.2], "episode_length": [6.0, 6.5]},
            "after": {"return": [None, 1]},
        },
    }
    (table,) = run_tables(RunSource(Path("x"), "x", "agent", summary=told))
    assert table["columns"] == ["measure", "before", "after", "without the picture", "without the sound"]
    assert rows(table) == {
        "return": ["0.100 [0.000, 0.200]", "0.900", "-0.400", "0.200"],
        "length": ["6.2 [6.0, 6.5]", "-", "-", "-"],
    }
    assert "64 episodes" in table["caption"]
    assert "at random" in table["caption"]
    assert run_tables(RunSource(Path("x"), "x", "agent")) == []


def test_a_reward_model_has_its_measures_and_groups(tmp_path: Path):
    samples = [
        {
            "key": ["held out", number],
            "before": {"chosen_reward": 0.0, "rejected_reward": 0.0},
            "after": {"chosen_reward": 1.0, "rejected_reward": 2.0 if number == 0 else 0.0},
        }
        for number in range(4)
    ]
    told = {
        "loss_type": "bradley_terry",
        "held_out_rows": 4,
        "before": {"loss": 0.7, "accuracy": 0.5},
        "after": {"loss": 0.6, "accuracy": 0.75},
        "groups": {"colour": {"rows": 4, "before": 0.5, "after": 0.75}},
    }
    change, groups = run_tables(read_run(run_folder(tmp_path / "x", settings={}, told=told, samples=samples)))
    assert rows(change)["accuracy"][:3] == ["0.500", "0.750", "+0.250"]
    assert rows(change)["accuracy"][4:] == ["75%", "25%"]
    assert rows(change)["loss"] == ["0.700", "0.600", "-0.100", "-", "-", "-"]
    assert rows(groups) == {"colour": ["4", "0.500", "0.750"]}


def test_what_a_reward_model_told_right():
    def judged(after: dict[str, Any], **row: Any) -> dict[str, float]:
        return judged_values(row | {"after": after}, "after")

    assert judged({"chosen_reward": 1.0, "rejected_reward": 0.5}) == {"accuracy": 1.0}
    assert judged({"chosen_reward": 0.5, "rejected_reward": 0.5}) == {"accuracy": 0.5}
    assert judged({"reward": 0.75}, rating=0.25) == {"mse": 0.25}
    assert judged({"reward": 0.75}, rating=1) == {"mse": 0.0625, "accuracy": 1.0}
    assert judged({"reward": 0.25}, rating=1.0)["accuracy"] == 0.0
    assert judged({"reward": 0.5}) == {}


def test_a_warm_start_has_its_loss():
    told = {"before": {"loss": 2.0}, "after": {"loss": 1.5}}
    (table,) = run_tables(RunSource(Path("x"), "x", "sft", summary=told))
    assert table["rows"] == [
        {"cells": ["loss", "2.000", "1.500", "-0.500"], "tone": "good", "measure": "loss"}
    ]
    assert run_tables(RunSource(Path("x"), "x", "sft", summary={"before": {"loss": None}})) == []


@pytest.mark.parametrize("value", [None, math.nan, "x", True])
def test_what_is_no_number_is_a_dash(value: Any):
    assert [decimal(value), share(value)] == ["-", "-"]


def test_cells():
    assert [decimal(0.12345), decimal(2, 1), signed(-0.5), signed(math.nan)] == [
        "0.123",
        "2.0",
        "-0.500",
        "-",
    ]
    assert [bounds(0.0, 1.0), bounds(None, 1.0), bounds(0.0, math.nan)] == ["[0.000, 1.000]", "-", "-"]
