"""Held-out rows as the gallery gets them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from mmft.report.page_budget import PICTURES_OF
from mmft.report.page_samples import MAX_REFERENCES, MAX_TOKENS, group_columns, samples
from mmft.report.page_source import RunSource, read_run
from tests.report.run_folders import HOSTILE, answer, run_folder, sample, summary


def found(tmp_path: Path, *rows: dict[str, Any], **files: Any) -> list[dict[str, Any]]:
    return samples([read_run(run_folder(tmp_path / "x", samples=rows, **files))], [])[1]


def test_a_row_has_both_answers_with_everything_that_is_known(tmp_path: Path):
    critic = {"values": [0.5, 0.25, 0.0], "advantages": [0.1, None, math.nan], "ended": False}
    row = sample(3, after=0.5, pictures=["samples/00003.jpg"])
    row["after"] |= critic
    (told,) = found(tmp_path, row)
    assert (told["id"], told["key"], told["prompt"]) == (0, "validation 3", "Describe the picture.")
    assert told["references"] == ["a red circle 3."]
    assert told["pictures"] == ["samples/00003.jpg"]
    before, after = told["answers"]
    assert before == {
        "text": "a circle.", "reward": 0.25, "rewards": {"captioning/bleu": 0.25}, "ended": True,
        "tokens": ["a", "circle."], "logps": [-0.5, -0.5], "values": None, "advantages": None,
    }  # fmt: skip
    assert (after["values"], after["advantages"], after["ended"]) == (
        [0.5, 0.25, 0.0],
        [0.1, None, None],
        False,
    )
    assert told["diff"] == [["=", "a"], ["+", " red"], ["=", " circle."]]
    assert told["heat"] is None


def test_a_reward_that_is_the_total_is_not_told_twice(tmp_path: Path):
    (told,) = found(tmp_path, sample(0))
    assert set(told["answers"][0]["rewards"]) == {"captioning/bleu"}
    both = summary(1)
    both["after"]["rewards/captioning"] = 0.75
    (told,) = samples([read_run(run_folder(tmp_path / "y", samples=[sample(0)], told=both))], [])[1]
    assert set(told["answers"][0]["rewards"]) == {"captioning", "captioning/bleu"}


def test_an_old_or_odd_row_is_shown_as_far_as_it_goes(tmp_path: Path):
    odd: dict[str, Any] = {
        "key": {"a": 1},
        "before": None,
        "after": {"completion": 3, "reward": "high", "rewards": [1], "tokens": "x", "logps": [1.0]},
        "references": "one",
        "pictures": "no list",
        "columns": [1],
        "prompt": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
            "x",
            None,
        ],
    }
    told, empty = found(tmp_path, odd, {})
    assert told["prompt"] == "What?"
    assert told["references"] == ["one"]
    assert (told["pictures"], told["columns"]) == ([], {})
    assert told["answers"][1] == {
        "text": "3",
        "reward": None,
        "rewards": {},
        "ended": None,
        "tokens": [],
        "logps": None,
        "values": None,
        "advantages": None,
    }
    assert (empty["key"], empty["prompt"], empty["diff"]) == ("None", "", [])


def test_numbers_of_tokens_that_do_not_fit_are_left_out(tmp_path: Path):
    row = sample(0)
    row["after"] |= {"logps": [-0.5], "values": [1.0] * 9, "token_texts": ["a", HOSTILE]}
    after = found(tmp_path, row)[0]["answers"][1]
    assert (after["logps"], after["values"]) == (None, [1.0, 1.0])
    assert after["tokens"] == ["a", "</script><script>alert(1)</script>\ufffd\ufffd\u202e"]


def test_a_text_without_end_is_cut_and_that_is_said(tmp_path: Path):
    notes: list[str] = []
    row = sample(0, prompt="p" * 5_000) | {"references": ["r" * 5_000] * 20}
    _, (told,) = samples([read_run(run_folder(tmp_path / "x", samples=[row]))], notes)
    assert len(told["prompt"]) == 4_000
    assert len(told["references"]) == 12
    assert notes == [
        "13 texts longer than 4,000 characters (names: 120) are cut, and end with ….",
        "Of 1 row the first 12 references are shown.",
    ]


def test_pictures_that_the_run_left_out_are_said(tmp_path: Path):
    notes: list[str] = []
    rows = [sample(0, pictures_left_out=2), sample(1, pictures_left_out=1), sample(2)]
    samples([read_run(run_folder(tmp_path / "x", samples=rows))], notes)
    assert notes == ["3 pictures of rows that show many are left out."]


def test_without_rows_there_are_no_answers_to_name(tmp_path: Path):
    assert samples([read_run(run_folder(tmp_path / "x", samples=[]))], []) == ([], [])


# Columns


def test_columns_with_few_values_are_to_choose_by(tmp_path: Path):
    rows = [
        sample(
            number,
            columns={
                "group": f"g{number % 2}",
                "name": f"row {number}",
                "same": 1,
                "odd": None,
                "x": number > 20,
            },
        )
        for number in range(30)
    ]
    told = found(tmp_path, *rows)
    assert group_columns(told) == ["group", "x"]
    assert told[3]["columns"] == {"group": "g1", "x": False}


def test_of_few_rows_every_column_may_be_to_choose_by():
    rows = [{"columns": {"name": f"row {number}"}} for number in range(3)]
    assert group_columns(rows) == ["name"]
    assert group_columns(rows[:1]) == []
    assert group_columns([{"columns": {"name": str(number)}} for number in range(24)]) == []


# Several runs


def test_rows_of_several_runs_are_joined_by_key(tmp_path: Path):
    one = read_run(run_folder(tmp_path / "one", samples=[sample(0), sample(1), sample(2)]))
    rows = [sample(2, after=0.75), sample(0, after=0.25), sample(5)]
    other = read_run(run_folder(tmp_path / "other", samples=rows))
    notes: list[str] = []
    names, told = samples([one, other], notes)
    assert names == ["one", "other"]
    assert [each["key"] for each in told] == ["validation 0", "validation 2"]
    assert [[answer["reward"] for answer in each["answers"]] for each in told] == [[0.5, 0.25], [0.5, 0.75]]
    assert set(told[0]["answers"][1]["rewards"]) == {"captioning/bleu"}
    assert notes == ["2 rows of 4 were answered by every run; the others are not shown."]


def test_rows_of_another_data_set_are_not_taken_for_the_same(tmp_path: Path):
    one = read_run(run_folder(tmp_path / "one", samples=[sample(0)]))
    other = read_run(run_folder(tmp_path / "other", samples=[sample(0, references=["something else"])]))
    assert samples([one, other], [])[1] == []


# Reward models


def test_a_pair_is_shown_with_the_preferred_completion_last(tmp_path: Path):
    row = {
        "key": ["held out", 4],
        "prompt": None,
        "chosen": "a red circle",
        "rejected": "a circle",
        "kind": "colour",
        "before": {"chosen_reward": 0.0, "rejected_reward": 0.0},
        "after": {
            "chosen_reward": 1.5,
            "rejected_reward": -0.5,
            "chosen_epistemic": 0.25,
            "rejected_epistemic": 0.0,
        },
    }
    other = row | {"key": ["held out", 5], "kind": "shape"}
    notes: list[str] = []
    settings = {"rating_column": "rating", "group_column": "kind"}
    run = read_run(
        run_folder(tmp_path / "x", settings=settings, told={"loss_type": "bt"}, samples=[row, other])
    )
    names, (told, _) = samples([run], notes)
    assert names == ["rejected", "chosen"]
    assert [each["text"] for each in told["answers"]] == ["a circle", "a red circle"]
    assert [each["reward"] for each in told["answers"]] == [-0.5, 1.5]
    assert told["answers"][1]["rewards"] == {"before training": 0.0, "uncertainty of the model": 0.5}
    assert told["columns"] == {"kind": "colour"}
    assert "its margin, which is above zero where the pair was told right" in notes[0]


def test_a_rated_completion_is_shown_beside_its_rating(tmp_path: Path):
    row = {
        "key": ["held out", 0], "completion": "fine", "rating": 0.5,
        "before": {"reward": 0.0}, "after": {"reward": 0.25, "aleatoric": 0.01},
    }  # fmt: skip
    run = read_run(run_folder(tmp_path / "x", settings={}, told={"loss_type": "mse"}, samples=[row]))
    names, (told,) = samples([run], [])
    assert names == ["completion"]
    assert told["answers"][0]["reward"] == 0.25
    assert told["answers"][0]["rewards"] == {
        "before training": 0.0,
        "rating": 0.5,
        "noise of the ratings": 0.1,
    }
    assert told["diff"] == []


# Heat


def explained(tmp_path: Path, told: Any, key: Any = ("validation", 0)) -> Any:
    run = RunSource(
        tmp_path, "x", "policy", samples=[sample(0, key=[*key])],
        explained={"of": "value", "samples": {json.dumps([*key]): told}},
    )  # fmt: skip
    return samples([run], [])[1][0]["heat"]


HEAT = {
    "grid": [1, 2],
    "patches": [0.0, 0.5],
    "tokens": [["a", 0.25]],
    "shares": {"image": 0.75, "prompt": None},
}


def test_what_an_answer_depends_on_is_laid_over_its_row(tmp_path: Path):
    assert explained(tmp_path, HEAT) == HEAT | {"of": "value", "shares": {"image": 0.75}}
    assert explained(tmp_path, HEAT, key=("größer", 0)) is not None


@pytest.mark.parametrize(
    "broken",
    [
        {"grid": [2, 2]},
        {"grid": [1.5, 2]},
        {"grid": [-1, -2]},
        {"grid": [0, 0], "patches": []},
        {"grid": "ab"},
        {"patches": [0.0, "x"]},
        {"patches": [0.0, -1.0]},
        {"patches": None},
        {"grid": [100, 100], "patches": [0.5] * 10_000},
    ],
)
def test_a_map_that_does_not_fit_its_grid_is_left_out_and_its_tokens_are_not(
    tmp_path: Path, broken: dict[str, Any]
):
    heat = explained(tmp_path, HEAT | broken)
    assert (heat["grid"], heat["patches"], heat["tokens"]) == ([0, 0], [], [["a", 0.25]])


def test_an_explanation_of_nothing_is_none(tmp_path: Path):
    assert explained(tmp_path, {"grid": [1, 1], "tokens": ["a", ["b"]], "shares": {}}) is None
    assert explained(tmp_path, [1]) is None


def test_rewards_without_a_number_are_none(tmp_path: Path):
    (told,) = found(tmp_path, sample(0, before=math.nan, after=None))
    assert [each["reward"] for each in told["answers"]] == [None, None]
    assert answer("x", None)["rewards"]["captioning"] is None


def test_heat_is_of_the_model_and_the_answer_that_were_explained(tmp_path: Path):
    row, key = sample(0), json.dumps(["validation", 0])

    def heats(text: str, baseline: str, num_runs: int) -> tuple[Any, list[str]]:
        told = {"of": "value", "baseline": baseline, "samples": {key: HEAT | {"text": text}}}
        run = RunSource(tmp_path, "mine", "policy", samples=[row], explained=told)
        notes: list[str] = []
        return samples([run, RunSource(tmp_path, "b", "policy", samples=[row])][:num_runs], notes)[1][0][
            "heat"
        ], notes

    assert heats("a red circle.", "saved", 1)[0]["of"] == "value"
    assert heats("a circle.", "base", 1)[0]["of"] == "value before training"
    assert heats("a red circle.", "saved", 2)[0]["of"] == "value of mine"
    left_out = "1 explanation left out: of answers that this page does not show."
    assert heats("a dog.", "saved", 1) == (None, [left_out])
    assert heats("a circle.", "base", 2) == (None, [left_out])


def test_pictures_of_a_comparison_are_those_of_the_first_run_that_names_some(tmp_path: Path):
    with_picture = sample(0, pictures=["samples/00000.jpg"])
    runs = [
        RunSource(tmp_path, label, "policy", samples=[row])
        for label, row in (("a", sample(0)), ("b", with_picture), ("c", with_picture))
    ]
    (told,) = samples(runs, [])[1]
    assert (told["pictures"], told[PICTURES_OF]) == (["samples/00000.jpg"], 1)


def test_references_and_tokens_that_are_cut_off_are_said_to_be(tmp_path: Path):
    row = sample(0, references=["one"] * (MAX_REFERENCES + 1))
    row["after"] |= {"token_texts": ["a"] * (MAX_TOKENS + 1)}
    notes: list[str] = []
    (told,) = samples([RunSource(tmp_path, "x", "policy", samples=[row, sample(1)])], notes)[1][:1]
    assert (len(told["references"]), len(told["answers"][1]["tokens"])) == (MAX_REFERENCES, MAX_TOKENS)
    assert notes == [
        "Of 1 row the first 12 references are shown.",
        "Of 1 text the first 1,000 tokens are shown.",
    ]
