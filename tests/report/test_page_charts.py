"""Log lines as charts: what is drawn, where, and what a long curve may not hide."""

from __future__ import annotations

import itertools
import math
import random
from pathlib import Path
from typing import Any

import pytest

from mmft.report.chart_catalogue import catalogue, chart_kind, is_drawn, page_order
from mmft.report.page_charts import ALL_POINTS, MAX_CHARTS, MAX_POINTS, charts, thinned
from mmft.report.page_source import RunSource, read_run
from tests.report.run_folders import HISTORY, SETTINGS, run_folder, summary


def source(history: list[dict[str, Any]], label: str = "x", **fields: Any) -> RunSource:
    return RunSource(Path(label), label, fields.pop("kind", "policy"), history=history, **fields)


def drawn(*runs: RunSource) -> dict[str, dict[str, Any]]:
    return {chart["id"]: chart for chart in charts(runs, [])}


def test_a_number_over_the_steps_is_a_chart_with_its_words(tmp_path: Path):
    chart = drawn(read_run(run_folder(tmp_path / "x")))["reward"]
    assert chart["series"] == [{"run": 0, "name": "training", "x": [1, 2], "y": [0.25, 0.5], "smooth": True}]
    assert (chart["title"], chart["group"], chart["x_label"]) == ("Total reward", "Rewards", "optimizer step")
    assert chart["references"] == [
        {"label": "held out, before", "y": 0.25},
        {"label": "held out, after", "y": 0.5},
    ]


def test_numbers_that_are_none_are_gaps_and_a_number_that_never_was_one_has_no_chart():
    history = [
        {
            "step": 1,
            "loss": 1.0,
            "reward": math.nan,
            "explained_variance": None,
            "note": "text",
            "flag": True,
        },
        {"step": 2, "loss": math.inf, "reward": 0.5, "explained_variance": math.nan},
        {"step": math.nan, "loss": 5.0, "reward": 5.0},
        {"loss": 6.0, "reward": 6.0},
        {"step": 3, "loss": 2.0, "reward": None},
    ]
    found = drawn(source(history))
    assert found["reward"]["series"][0]["y"] == [None, 0.5, None]
    assert found["loss"]["series"][0]["y"] == [1.0, None, 2.0]
    assert set(found) == {"reward", "loss"}


def test_lines_of_evaluations_and_of_the_whole_run_are_no_points():
    history = [*HISTORY, {"step": 2, "eval_reward": 9.0, "epoch": 1.0}]
    found = drawn(source(history))
    assert found["reward"]["series"][0]["x"] == [1, 2]
    assert not [name for name in found if name.startswith(("eval_", "train_"))]
    assert "epoch" not in found


def test_speed_is_what_was_done_since_the_last_line_by_the_seconds_it_took():
    history = [
        {"step": 1, "loss": 1.0, "completions/num_tokens": 300.0, "seconds/training": 2.0},
        {"step": 5, "loss": 1.0, "completions/num_tokens": 100.0, "seconds/training": 8.0},
        {"step": 6, "loss": 1.0, "completions/num_tokens": 100.0, "seconds/training": 0.0},
    ]
    found = drawn(source(history))
    # 300 / 2 and 100 / 8 tokens; (5 - 1) / 8 steps: what the first line took since is not known.
    assert found["throughput/tokens"]["series"][0]["y"] == [150.0, 12.5]
    assert found["throughput/steps"]["series"][0] | {"smooth": True} == {
        "run": 0, "name": "training", "x": [5], "y": [0.5], "smooth": True,
    }  # fmt: skip
    assert "seconds/training" not in found
    assert "completions/num_tokens" not in found


def test_the_seconds_between_two_rollouts_count():
    tokens = [600.0, None, None, 900.0]
    steps_made = [100, 100, 100, 190]
    history = [
        {"step": step, "loss": 1.0, "environment_steps": made, "seconds/training": 3.0}
        | ({"completions/num_tokens": number} if number else {})
        for step, (number, made) in enumerate(zip(tokens, steps_made, strict=True), 1)
    ]
    found = drawn(source(history))
    # 600 / 3; then 900 tokens and 190 - 100 steps in the 3 + 3 + 3 seconds since.
    assert found["throughput/tokens"]["series"][0]["y"] == [200.0, 100.0]
    assert found["throughput/environment_steps"]["series"][0]["y"] == [10.0]


def test_an_agent_is_drawn_over_its_steps_in_environments():
    history = [
        {
            "step": 10,
            "loss": 1.0,
            "environment_steps": 100,
            "return": 0.5,
            "epsilon": 0.9,
            "seconds/training": 1.0,
        },
        {"step": 10, "eval_return": 0.6},
        {
            "step": 20,
            "loss": 0.5,
            "environment_steps": 300,
            "return": 0.75,
            "epsilon": 0.1,
            "seconds/training": 4.0,
        },
        {"step": 20, "eval_return": 0.9},
    ]
    best = [{"evaluation": "after", "optimal_return": value} for value in (1.0, 0.5, None)]
    told = {"before": {"return": 0.1}, "after": {"return": 0.9}, "before_acts_at_random": True}
    episodes = [*best, {"evaluation": "random", "optimal_return": 9.0}]
    found = drawn(source(history, kind="agent", summary=told, episodes=episodes))
    chart = found["return"]
    assert chart["x_label"] == "steps in environments"
    # Evaluated at step 10, where 100 steps had been made.
    assert [each["x"] for each in chart["series"]] == [[100, 300], [0, 100, 300]]
    assert chart["series"][1] | {"x": []} == {
        "run": 0, "name": "held out", "x": [], "y": [0.1, 0.6, 0.9], "smooth": False,
    }  # fmt: skip
    assert chart["references"] == [{"label": "best possible", "y": 0.75}]
    assert found["epsilon"]["series"][0]["smooth"] is False
    assert found["throughput/environment_steps"]["series"][0]["y"] == [50.0]


def test_evaluations_of_a_run_that_crashed_are_drawn():
    history = [
        {"step": 10, "loss": 1.0, "reward": 0.5},
        {"step": 10, "eval_reward": 0.6},
        {"step": 20, "loss": 1.0, "reward": 0.7},
    ]
    series = drawn(source(history))["reward"]["series"]
    assert [(each["name"], each["x"], each["y"]) for each in series] == [
        ("training", [10, 20], [0.5, 0.7]),
        ("held out", [10], [0.6]),
    ]


def test_without_evaluations_in_between_both_ends_are_lines():
    told = {"before": {"return": 0.1}, "after": {"return": 0.9}, "before_acts_at_random": True}
    history = [{"step": 10, "loss": 1.0, "environment_steps": 100, "return": 0.5}]
    chart = drawn(source(history, kind="agent", summary=told))["return"]
    assert chart["references"] == [{"label": "random", "y": 0.1}, {"label": "after", "y": 0.9}]


def test_the_target_of_kl_is_a_line_and_none_is_none():
    aimed = drawn(source(HISTORY, settings=SETTINGS | {"kl_target": 6.0}))["kl"]
    assert aimed["references"] == [{"label": "target", "y": 6.0}]
    assert drawn(source(HISTORY, settings=SETTINGS))["kl"]["references"] == []


def test_each_run_has_a_series_of_its_own():
    other = [{"step": 4, "loss": 1.0, "reward": 0.75}]
    found = drawn(source(HISTORY, "a", summary=summary()), source(other, "b", summary=summary(after=0.75)))
    assert [(each["run"], each["name"], each["x"]) for each in found["reward"]["series"]] == [
        (0, "a", [1, 2]),
        (1, "b", [4]),
    ]
    assert [each["run"] for each in found["kl"]["series"]] == [0]
    assert found["reward"]["references"] == [
        {"label": "a: held out, after", "y": 0.5},
        {"label": "b: held out, after", "y": 0.75},
    ]


# Thinning


def points(values: list[float | None]) -> list[tuple[float, float | None]]:
    return [(float(place), value) for place, value in enumerate(values)]


def test_a_short_curve_is_drawn_whole():
    values: list[float | None] = [0.0] * MAX_POINTS
    assert thinned(points(values)) == points(values)


def test_a_long_curve_keeps_its_extremes_its_order_and_its_gaps():
    values: list[float | None] = [random.Random(0).random() for _ in range(50_000)]
    values[12_345], values[23_456], values[34_567] = 99.0, -99.0, None
    thin = thinned(points(values))
    assert len(thin) <= MAX_POINTS
    assert {(12_345.0, 99.0), (23_456.0, -99.0), (34_567.0, None)} <= set(thin)
    assert thin == sorted(thin, key=lambda point: point[0])
    assert set(thin) <= set(points(values))


def test_a_long_curve_keeps_both_ends():
    wave: list[float | None] = [0.5, *([0.0, 1.0] * 5_000), 0.25]
    thin = thinned(points(wave))
    assert (thin[0], thin[-1]) == ((0.0, 0.5), (10_001.0, 0.25))
    assert len(thinned(points(wave), 5)) <= 5


def test_every_stretch_of_a_long_curve_is_there():
    thin = thinned(points([None] * 10_000 + [1.0] * 10_000))
    places = [place for place, _ in thin]
    assert max(b - a for a, b in itertools.pairwise(places)) <= 3 * 20_000 / MAX_POINTS * 2
    assert [value for place, value in thin if place < 10_000] == [None] * len(
        [p for p in places if p < 10_000]
    )


def test_that_a_curve_is_thinned_is_said():
    notes: list[str] = []
    charts([source([{"step": step, "loss": 1.0} for step in range(1, 1_202)])], notes)
    assert notes == [
        "Curves have up to 1,201 points, of which at most 1,000 are drawn: the smallest and the largest "
        "value of each stretch."
    ]


def test_many_runs_share_the_points_of_a_page():
    notes: list[str] = []
    names = [f"n{number}" for number in range(99)]
    history = [
        {"step": step, "loss": 1.0} | dict.fromkeys(names, random.Random(step).random())
        for step in range(1, 501)
    ]
    found = charts([source(history, f"r{number}") for number in range(8)], notes)
    num_points = sum(len(series["x"]) for chart in found for series in chart["series"])
    assert 0.8 * ALL_POINTS < num_points * 3 / 2 <= ALL_POINTS  # a third of the room is for gaps
    assert "of which at most 250 are drawn" in notes[0]


def test_a_log_of_countless_names_does_not_flood_the_page():
    notes: list[str] = []
    line = {"step": 1, "loss": 1.0} | {f"n{number}": 1.0 for number in range(500)}
    assert len(charts([source([line])], notes)) == MAX_CHARTS
    assert notes == ["The log has 501 numbers; 120 of them have a chart."]


# The catalogue


def test_every_described_number_has_all_its_words():
    for name, kind in catalogue().items():
        assert all((kind.title, kind.group, kind.unit)), name
        assert kind.text.endswith("."), name
        assert is_drawn(name), name


@pytest.mark.parametrize(
    ("name", "title", "group"),
    [
        ("kl", "KL to the pretrained policy", "Policy"),
        ("rewards/captioning/bleu", "captioning/bleu", "Rewards"),
        ("seconds/rollout", "rollout", "Speed"),
        ("my_number", "my_number", "Other"),
        ("x" * 500, "x" * 119 + "…", "Other"),
    ],
)
def test_what_is_not_described_goes_by_its_name(name: str, title: str, group: str):
    assert (chart_kind(name).title, chart_kind(name).group) == (title, group)


def test_charts_stand_by_group_and_rewards_behind_their_total():
    names = ["my_number", "loss", "rewards/unjudged_share", "rewards/b", "kl", "rewards/a", "reward"]
    assert page_order(names) == [
        "reward", "rewards/b", "rewards/a", "rewards/unjudged_share", "kl", "loss", "my_number",
    ]  # fmt: skip


def test_failures_of_rewards_are_counted_elsewhere():
    assert not is_drawn("rewards/judge/masked")
    assert is_drawn("rewards/masked_words")
