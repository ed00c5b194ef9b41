"""Several runs beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmft.report.page_compare import MAX_PAIRED, comparison_tables, measure_table
from mmft.report.page_source import RunSource
from tests.report.run_folders import SETTINGS, sample, summary
from tests.report.test_page_tables import rows


def run(label: str, told: dict[str, Any], samples: list[dict[str, Any]], **settings: Any) -> RunSource:
    return RunSource(
        Path(label), label, "policy", settings=SETTINGS | settings, summary=told, samples=samples
    )


def test_measures_stand_side_by_side_with_the_difference_on_the_same_rows():
    one = run("one", summary(20, after=0.5), [sample(number, after=0.5) for number in range(20)])
    # The other run's rows come in another order; a fourth of them got 0.75 less and the rest 0.25 more.
    scores = [(number, 0.75 if number % 4 else -0.25) for number in reversed(range(20))]
    other = run("other", summary(20, after=0.5), [sample(number, after=score) for number, score in scores])
    table = comparison_tables([one, other], [])[0]
    assert table["columns"] == ["measure", "one", "other", "other over one"]
    first, second, told = rows(table)["total reward"]
    assert (first, second) == ("0.500", "0.500")
    # 15 rows of +0.25 and 5 of -0.75: the mean is 0.
    assert told.startswith("+0.000 [-")
    assert told.endswith("higher in 75%, lower in 25%")
    assert table["rows"][0]["tone"] == "neutral"


def test_a_reward_that_is_the_total_of_every_run_is_not_told_twice():
    different = summary(reward_weights={"captioning": 2.0})
    different["after"]["rewards/captioning"] = 0.25
    one, other = run("one", summary(), []), run("other", different, [])
    assert "captioning" not in rows(measure_table([one, one], []))
    assert rows(measure_table([one, other], []))["captioning"] == ["0.500", "0.250", "-"]


def test_a_run_that_is_surely_better_is_told_by_its_tone():
    one = run("one", summary(9), [sample(number, after=0.5) for number in range(9)])
    better = run(
        "b", summary(9, after=0.75), [sample(number, after=0.75 + number / 100) for number in range(9)]
    )
    assert measure_table([one, better], [])["rows"][0]["tone"] == "good"
    assert measure_table([better, one], [])["rows"][0]["tone"] == "bad"
    assert measure_table([one, better, one], [])["rows"][0]["tone"] is None


def test_only_common_rows_are_compared_and_that_is_said():
    notes: list[str] = []
    one = run("one", summary(3), [sample(number) for number in range(3)])
    other = run("other", summary(4), [sample(number) for number in (1, 2, 3, 4)])
    measure_table([one, other], notes)
    assert notes == ["one and other have 2 rows in common, of 3 and 4; the others are not compared."]
    strangers: list[str] = []
    table = measure_table([one, run("b", summary(1), [sample(0, prompt="other")])], strangers)
    assert rows(table)["total reward"][2] == "-"
    assert "have 0 rows in common" in strangers[0]


def test_measures_that_a_run_lacks_are_dashes():
    told = summary()
    told["after"]["metrics/cider_d"] = 3.5
    table = measure_table([run("one", summary(), []), run("other", told, [])], [])
    assert rows(table)["cider_d"] == ["-", "3.500", "-"]
    assert measure_table([run("one", {}, []), run("other", {}, [])], []) is None


def test_episodes_are_the_same_only_in_the_same_environment_with_the_same_seed():
    def agent(label: str, returns: list[float], seed: int = 0, **told: Any) -> RunSource:
        episodes = [
            {
                "evaluation": "after",
                "environment": 0,
                "episode": number,
                "return": each,
                "success": each > 0,
                "length": 3,
            }
            for number, each in enumerate(returns)
        ]
        episodes.append(episodes[0] | {"evaluation": "random", "return": -9.0})
        means = {"return": sum(returns) / len(returns), "success": 1.0}
        means_told = {"environment": "x", "eval_env_kwargs": {}, "after": means} | told
        return RunSource(
            Path(label), label, "agent", settings={"seed": seed}, summary=means_told, episodes=episodes
        )

    one = agent("one", [1.0, 1.0, 1.0])
    told = rows(measure_table([one, agent("b", [2.0, 3.0, 4.0])], []))
    assert told["return"][2].startswith("+2.000 [")
    assert told["success"][2] == "+0.000 [0.000, 0.000], higher in 0%, lower in 0%"
    for stranger in (agent("b", [2.0], seed=1), agent("b", [2.0], eval_env_kwargs={"size": 9})):
        notes: list[str] = []
        assert rows(measure_table([one, stranger], notes))["return"][2] == "-"
        assert notes == ["one and b have 0 episodes in common, of 3 and 1; the others are not compared."]


def test_settings_that_differ_are_listed_and_places_are_not():
    one = run("one", summary(), [], learning_rate=1e-3, output_dir="a")
    other = run("other", summary(), [], learning_rate=3e-4, output_dir="b", extra={"a": [1, None]})
    table = comparison_tables([one, other], [])[1]
    assert table["columns"] == ["setting", "one", "other"]
    assert rows(table) == {"learning_rate": ["0.001", "0.0003"], "extra": ["-", '{"a": [1, null]}']}


def test_runs_of_the_same_settings_and_other_versions_are_said_to_be():
    notes: list[str] = []
    other = summary(versions={"python": "3.12"})
    tables = comparison_tables([run("one", summary(), []), run("other", other, [])], notes)
    assert len(tables) == 1
    assert notes == [
        "The runs have the same settings, but for where they are.",
        "The runs were made with different versions of libraries; see the settings.",
    ]


def test_of_countless_measures_the_first_get_intervals():
    def many(label: str) -> RunSource:
        names = [f"part{number}" for number in range(MAX_PAIRED + 5)]
        rewards = dict.fromkeys(names, 0.5)
        told = {"after": {"reward": 0.5} | {f"rewards/{name}": 0.5 for name in names}}
        row = sample(0)
        row["after"]["rewards"] = rewards
        return run(label, told, [row])

    notes: list[str] = []
    table = measure_table([many("one"), many("b"), many("c")], notes)
    assert [cells[3] for cells in rows(table).values()].count("-") == 30 - MAX_PAIRED
    assert notes == [f"Of 30 measures the first {MAX_PAIRED} have an interval of their difference."]
