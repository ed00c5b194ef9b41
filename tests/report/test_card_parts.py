"""What all cards say alike; whatever the data and the model say stays text."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from PIL import Image

from mmft.evaluation.bootstrap import Estimate
from mmft.hub.portable import ROWS_BEGIN, ROWS_END, without_rows
from mmft.report.card_parts import (
    CardSample,
    code,
    data_section,
    limits_of_a_policy,
    made_with,
    markdown_rows,
    results_table,
    rewards_section,
    samples_section,
    save_picture,
    sentence,
)
from mmft.report.record import Change


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("a red circle.", "`a red circle.`"),
        ("a\n\n# b\tc", "`a # b c`"),
        ("say `x`", "`` say `x` ``"),
        ("``` x", "```` ``` x ````"),
        ("", "`  `"),
        ("<!-- x -->", "`<! -- x -->`"),
        (3, "`3`"),
    ],
)
def test_any_text_becomes_code_on_one_line(text: object, written: str):
    assert code(text) == written


def test_a_long_text_is_cut():
    assert code("x" * 500) == f"`{'x' * 237}...`"


def test_a_pipe_in_a_cell_divides_nothing():
    assert markdown_rows(["a", "b"], [["1|2", code("x|y")]]) == "| a | b |\n|---|---|\n| 1\\|2 | `x\\|y` |"


def test_a_name_in_a_sentence_of_ours_is_no_html():
    assert sentence("fell\nwith <b>x</b> & y") == "fell with &lt;b&gt;x&lt;/b&gt; &amp; y"


def test_the_change_stands_beside_its_interval():
    changes = [
        Change("reward", 0.25, 0.5),
        Change("rewards/other", 1.0, 0.5),
        Change("rewards/a`b", 0.0, 0.0),
    ]
    differences = {"reward": Estimate(0.25, 0.1, 0.4, 12), "rewards/other": Estimate(math.nan)}
    assert results_table(changes, differences, 0.9).splitlines() == [
        "| measure | before | after | change | 90 % interval |",
        "|---|---|---|---|---|",
        "| total reward | 0.250 | 0.500 | +0.250 | +0.100 to +0.400 |",
        "| other | 1.000 | 0.500 | -0.500 |  |",
        "| `` a`b `` | 0.000 | 0.000 | +0.000 |  |",
    ]
    assert results_table(changes[:1], {}).splitlines()[0] == "| measure | before | after | change |"


def test_rewards_are_told_with_weights_and_arguments_and_those_only_watched_too():
    settings = {
        "reward_funcs": ["bleu", {"name": "captioning", "alpha": 2.0, "words": ["a|b"]}],
        "reward_weights": [0.5, 2],
        "eval_funcs": [{"name": "length", "max_length": 9}],
    }
    assert rewards_section(settings).splitlines()[2:] == [
        "| reward | weight | arguments |",
        "|---|---|---|",
        "| `bleu` | 0.5 |  |",
        '| `captioning` | 2 | `{"alpha": 2.0, "words": ["a\\|b"]}` |',
        '| `length` | watched, never optimised | `{"max_length": 9}` |',
        "",
    ]
    assert "| `bleu` | 1 |" in rewards_section({"reward_funcs": ["bleu"]})
    assert rewards_section({"reward_funcs": []}) == ""


def test_offline_no_reward_is_said_to_be_optimised():
    settings = {
        "offline": True, "reward_funcs": ["bleu"], "reward_weights": [2.0], "eval_funcs": ["length"],
        "dataset_name": "x",
    }  # fmt: skip
    assert rewards_section(settings).splitlines()[4:6] == [
        "| `bleu` | watched, never optimised |  |",
        "| `length` | watched, never optimised |  |",
    ]
    told = limits_of_a_policy(settings, 4)
    assert any(line.startswith("It learned from the rewards that its data held") for line in told)
    assert not any("answers that score high" in line for line in told)


def test_the_data_are_told_as_far_as_they_are_known():
    settings = {
        "dataset_name": "some-org/x", "train_split": "train", "max_train_rows": 8, "eval_split": "test",
        "instruction": "What\nis this?", "system_prompt": "Be short.",
    }  # fmt: skip
    assert data_section(settings, 5).splitlines()[2:] == [
        "- data set: `some-org/x`",
        "- trained on: split `train`, the first 8 rows",
        "- held out: 5 rows of the split `test`",
        "- asked about each picture: `What is this?`",
        "- system prompt: `Be short.`",
        "",
    ]
    assert data_section({"dataset_name": "x"}, 0).splitlines()[2:] == ["- data set: `x`", ""]


def test_samples_show_pictures_with_both_answers_between_the_marks():
    samples = [
        CardSample("Say.", "a|b", "<b>c</b>", 0.25, None, "card/0.jpg"),
        CardSample("Say.", f"{ROWS_END} d", "e", None, 1.0, None),
        CardSample("Say.", "f", "g", picture='x" onerror="y'),
    ]
    section = samples_section(samples)
    assert section.splitlines()[6:11] == [
        "| picture | before | after |",
        "|---|---|---|",
        '| <img src="card/0.jpg" width="170" alt=""> | `a\\|b` (0.25) | `<b>c</b>` |',
        "|  | `<! -- end of the rows --> d` | `e` (1.00) |",
        "|  | `f` | `g` |",
    ]
    assert section.startswith(ROWS_BEGIN)
    assert without_rows(f"a\n\n{section}b") == "a\n\nb"
    assert samples_section([]) == ""


def test_samples_without_pictures_show_what_was_asked():
    lines = samples_section([CardSample("Say.", "a", "b")]).splitlines()
    assert lines[6] == "| prompt | before | after |"
    assert lines[8] == "| `Say.` | `a` | `b` |"


def test_a_picture_becomes_small_and_forgets_its_camera(tmp_path: Path):
    picture = Image.new("RGBA", (1000, 500), "red")
    exif = Image.Exif()
    exif[0x010E] = "where I live"
    picture.save(tmp_path / "big.png", exif=exif)
    with Image.open(tmp_path / "big.png") as opened:
        assert save_picture(opened, tmp_path, 3) == "card/3.jpg"
        assert opened.size == (1000, 500), "the row's own picture stays"
    with Image.open(tmp_path / "card" / "3.jpg") as small:
        assert (small.format, small.size) == ("JPEG", (256, 128))
        assert dict(small.getexif()) == {}
    assert b"where I live" not in (tmp_path / "card" / "3.jpg").read_bytes()


def test_limits_name_what_was_not_looked_at():
    settings = {"dataset_name": "x", "instruction": "Say.", "reward_funcs": ["bleu"]}
    told = limits_of_a_policy(settings, 4)
    assert told[0].startswith("It was trained on pictures like those of `x`, with the prompt `Say.`: other")
    assert any("not trained or tested to be safe" in line for line in told)
    assert any(line.startswith("A reward is not the task") for line in told)
    assert not any("No rows were held out" in line for line in told)
    without = limits_of_a_policy({"dataset_name": "x"}, 0)
    assert any("No rows were held out" in line for line in without)
    assert not any("reward" in line for line in without)


def test_machine_and_time_are_told_where_they_are_known():
    summary = {
        "hardware": {"cpu": "Some CPU, 2 cores", "gpu": None, "memory": "24 GiB"}, "steps": 1200,
        "wall_seconds": 61.4, "num_processes": 2, "device": "cuda:0",
    }  # fmt: skip
    assert made_with({"torch": "2.0"}, summary).splitlines() == [
        "- torch 2.0",
        "- machine: Some CPU, 2 cores; 24 GiB",
        "- 1,200 optimizer steps in 61 s on cuda:0 in 2 processes",
    ]
    assert made_with({"torch": "2.0"}, {}) == "- torch 2.0"
