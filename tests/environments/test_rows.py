"""Rows as an environment: which row, which answer, which picture, which part, and rows that are of no use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import gymnasium
import numpy as np
import PIL.Image
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value

from mmft.environments.rows import RowsEnvironment
from mmft.errors import ConfigError, DataError
from tests.data.pictures import BLUE, GREEN, RED, encoded, rgba, two_pixels

PICTURES = [two_pixels(RED, GREEN), two_pixels(BLUE, BLUE), two_pixels(GREEN, RED)]


def rows(labels: Any = ("yes", "no", "yes"), **columns: Any) -> list[dict[str, Any]]:
    """Three rows; columns replace the given ones."""
    given = {"image": PICTURES, "sentence": ["one", "two words", "three"], "label": list(labels)} | columns
    return [dict(zip(given, row, strict=True)) for row in zip(*given.values(), strict=True)]


def test_a_row_is_shown_and_its_label_is_the_right_action():
    env = RowsEnvironment(rows())
    assert env.label_names == ("no", "yes")
    for row, (answer, right) in enumerate([("yes", 1), ("no", 0), ("yes", 1)]):
        for action in (0, 1):
            observation, info = env.reset(options={"row": row})
            assert info == {"optimal_return": 1.0, "row": row}
            np.testing.assert_array_equal(observation["image"], np.asarray(PICTURES[row]))
            assert observation["text"] == rows()[row]["sentence"]
            told = {"is_success": action == right, "row": row, "answer": answer}
            after, *judged = env.step(action)
            assert judged == [float(action == right), True, False, told]
            np.testing.assert_array_equal(after["image"], observation["image"])
            assert after["image"] is not observation["image"]


@pytest.mark.parametrize(
    ("labels", "names"),
    [((3, 1, 10), (1, 3, 10)), ((True, False, True), (False, True)), (("b", "a", "c"), ("a", "b", "c"))],
)
def test_actions_are_the_labels_in_sorted_order(labels: Any, names: Any):
    env = RowsEnvironment(rows(labels))
    assert env.label_names == names
    assert env.action_space == gymnasium.spaces.Discrete(len(names))
    env.reset(options={"row": 0})
    assert env.step(names.index(labels[0]))[1] == 1


def test_label_names_fix_the_order_and_may_know_more_than_the_rows():
    env = RowsEnvironment(rows(), label_names=["yes", "perhaps", "no"])
    env.reset(options={"row": 1})
    assert env.step(2)[1] == 1
    assert env.action_space.n == 3


def test_class_labels_keep_the_order_of_their_feature():
    features = Features(
        {"image": Image(), "sentence": Value("string"), "label": ClassLabel(names=["yes", "no"])}
    )
    columns = {name: [row[name] for row in rows((0, 1, 0))] for name in features}
    env = RowsEnvironment(Dataset.from_dict(columns, features=features))
    assert env.label_names == ("yes", "no")
    env.reset(options={"row": 1})
    assert env.step(1)[1] == 1


def test_a_class_label_that_stands_for_none_is_refused():
    features = Features(
        {"image": Image(), "sentence": Value("string"), "label": ClassLabel(names=["yes", "no"])}
    )
    columns = {name: [row[name] for row in rows((0, 1, -1))] for name in features}
    with pytest.raises(DataError, match=r"row 2: the label -1 is not among `label_names`, yes, no"):
        RowsEnvironment(Dataset.from_dict(columns, features=features))


def test_a_dataset_that_was_filtered_keeps_its_rows_apart():
    columns = {name: [row[name] for row in rows()] for name in rows()[0]}
    features = Features({"image": Image(), "sentence": Value("string"), "label": Value("string")})
    env = RowsEnvironment(Dataset.from_dict(columns, features=features).select([2, 1]))
    observation, _ = env.reset(options={"row": 0})
    assert observation["text"] == "three"
    np.testing.assert_array_equal(observation["image"], np.asarray(PICTURES[2]))
    assert env.step(1)[1] == 1


def test_the_row_is_a_function_of_the_seed_and_every_row_comes():
    env, again = RowsEnvironment(rows()), RowsEnvironment(rows())
    seen = [env.reset(seed=seed)[1]["row"] for seed in range(300)]
    assert [again.reset(seed=seed)[1]["row"] for seed in range(40, 60)] == seen[40:60]
    # a third each, with a standard deviation of 0.027
    np.testing.assert_allclose(np.bincount(seen) / 300, 1 / 3, atol=0.1)


def test_pictures_have_the_size_of_the_first_one():
    large = PIL.Image.new("RGB", (8, 6), BLUE)
    env = RowsEnvironment(rows(image=[large, *PICTURES[1:]]))
    assert env.observation_space["image"].shape == (6, 8, 3)
    observation, _ = env.reset(options={"row": 2})
    # green on the left, red on the right, blended between
    assert observation["image"][3, 0].tolist() == list(GREEN)
    assert observation["image"][3, 7].tolist() == list(RED)


def test_pictures_have_the_size_that_is_asked_for():
    env = RowsEnvironment(rows(), image_size=[3, 5])
    assert env.observation_space["image"].shape == (3, 5, 3)
    assert env.observation_space.contains(env.reset(options={"row": 0})[0])


def test_what_is_transparent_is_white_and_grey_becomes_rgb():
    grey = PIL.Image.new("L", (2, 1), 100)
    env = RowsEnvironment(rows(image=[rgba(), encoded(grey), grey]))
    # half-transparent blue over white: 127, 127, 255
    assert env.reset(options={"row": 0})[0]["image"].tolist() == [[list(RED), [127, 127, 255]]]
    assert env.reset(options={"row": 1})[0]["image"].tolist() == [[[100] * 3] * 2]


def test_every_observation_is_of_its_space():
    env = RowsEnvironment(rows(sentence=["é!", "a\nb", "x" * 300]), render_mode="rgb_array")
    for row in env.rows:
        observation, _ = env.reset(options={"row": row})
        assert env.observation_space.contains(observation)
        np.testing.assert_array_equal(env.render(), observation["image"])
    silent = RowsEnvironment(rows())
    silent.reset(seed=0)
    assert silent.render() is None


def test_columns_may_have_other_names():
    data = [{"photo": row["image"], "question": row["sentence"], "answer": row["label"]} for row in rows()]
    names = {"image_column": "photo", "text_column": "question", "label_column": "answer"}
    env = RowsEnvironment(data, **names)
    assert env.reset(options={"row": 1})[0]["text"] == "two words"


def many(count: int = 40) -> list[dict[str, Any]]:
    return [
        {"image": PICTURES[0], "sentence": f"number {i // 2}", "label": bool(i % 3)} for i in range(count)
    ]


def test_held_out_rows_are_never_trained_on():
    parts = [RowsEnvironment(many(), held_out_share=0.25, part=part) for part in ("train", "held_out")]
    assert [len(part.rows) for part in parts] == [30, 10]
    assert sorted(parts[0].rows + parts[1].rows) == list(range(40))
    for part in parts:
        assert {part.reset(seed=seed)[1]["row"] for seed in range(200)} <= set(part.rows)
    other = RowsEnvironment(many(), held_out_share=0.25, part="held_out", split_seed=1)
    assert other.rows != parts[1].rows


def test_rows_of_one_group_stay_on_one_side():
    parts = [
        RowsEnvironment(many(), held_out_share=0.25, part=part, group_column="sentence")
        for part in ("train", "held_out")
    ]
    groups = [{many()[row]["sentence"] for row in part.rows} for part in parts]
    assert groups[0] & groups[1] == set()
    assert [len(group) for group in groups] == [15, 5]


def test_both_parts_have_the_same_spaces():
    # the only row with another label, a long text and a strange letter is on one side
    data = [*many(), {"image": PICTURES[1], "sentence": "a rather long text, ü", "label": False}]
    for row in data[:-1]:
        row["label"] = True
    parts = [RowsEnvironment(data, held_out_share=0.25, part=part) for part in ("train", "held_out")]
    assert parts[0].observation_space == parts[1].observation_space
    assert parts[0].action_space == parts[1].action_space == gymnasium.spaces.Discrete(2)


def test_a_dataset_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    home = tmp_path / "pictures" / "train"
    home.mkdir(parents=True)
    lines = []
    for number, row in enumerate(rows()):
        row.pop("image").save(home / f"{number}.png")
        lines.append(json.dumps(row | {"file_name": f"{number}.png"}))
    (home / "metadata.jsonl").write_text("\n".join(lines))
    env = RowsEnvironment(dataset_name="imagefolder", data_dir=str(tmp_path / "pictures"), split="train[1:]")
    observation, _ = env.reset(options={"row": 0})
    assert observation["text"] == "two words"
    np.testing.assert_array_equal(observation["image"], np.asarray(PICTURES[1]))
    assert env.step(0)[1] == 1


def test_a_broken_picture_is_named_when_it_is_shown():
    data = rows(image=[encoded(PICTURES[0]), b"no picture", None])
    features = Features({"image": Image(), "sentence": Value("string"), "label": Value("string")})
    for given in (data, Dataset.from_list(data, features=features)):
        env = RowsEnvironment(given)
        with pytest.raises(DataError, match="row 1: cannot read a picture"):
            env.reset(options={"row": 1})
        with pytest.raises(DataError, match="row 2: a picture must be"):
            env.reset(options={"row": 2})


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"sentence": ["one", None, "three"]}, "row 1: the text is None. Give it one"),
        ({"sentence": ["one", "two", " "]}, "row 2: the text is ' '"),
        ({"label": ["yes", None, "no"]}, "row 1: the label is None; it must be true or false"),
        ({"label": [0.5, 1.5, 0.5]}, "row 0: the label is 0.5; it must be"),
        ({"label": [1, "no", 1]}, "row 1: the label is 'no', but 1 in row 0"),
        ({"label": ["yes", "yes", "yes"]}, "every label in 'label' is 'yes'; there is nothing to choose"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(columns: Any, message: str):
    with pytest.raises(DataError, match=message):
        RowsEnvironment(rows(**columns))


@pytest.mark.parametrize("name", ["image_column", "text_column", "label_column"])
def test_a_column_that_is_not_there_is_named(name: str):
    for data in (rows(), Dataset.from_list([{"image": "", "sentence": "a", "label": i} for i in range(2)])):
        with pytest.raises(DataError, match="there is no column 'x'; the rows have image, "):
            RowsEnvironment(data, **{name: "x"})


def test_an_unknown_label_and_no_rows_are_refused():
    with pytest.raises(DataError, match="row 1: the label 'no' is not among `label_names`, yes, maybe"):
        RowsEnvironment(rows(), label_names=["yes", "maybe"])
    with pytest.raises(DataError, match="there are no rows"):
        RowsEnvironment([])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dataset_name": "imagefolder"}, "give either `rows` or `dataset_name`"),
        ({"part": "test"}, "`part` must be one of train, held_out; got 'test'"),
        ({"part": "held_out"}, "`part` and `group_column` need `held_out_share`"),
        ({"group_column": "sentence"}, "`part` and `group_column` need `held_out_share`"),
        ({"held_out_share": 0.1}, "`held_out_share` 0.1 of 3 rows is 0; both sides need at least one"),
        ({"held_out_share": 1.0, "group_column": "label"}, "1.0 of 2 values of `label` is 2"),
        ({"image_size": [3]}, r"`image_size` must be \(height, width\) in pixels; got \[3\]"),
        ({"image_size": [0, 4]}, r"`image_size` must be .* got \[0, 4\]"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        RowsEnvironment(rows(), **settings)


def test_neither_rows_nor_a_name_are_refused():
    with pytest.raises(ConfigError, match="give either `rows` or `dataset_name`"):
        RowsEnvironment()


def test_a_row_that_is_not_there_and_a_step_before_the_reset_are_refused():
    env = RowsEnvironment(rows())
    with pytest.raises(gymnasium.error.ResetNeeded, match="call `reset` before"):
        env.step(0)
    for row in (3, -1):
        with pytest.raises(ValueError, match=rf"`options\['row'\]` is {row}; the data has rows 0 to 2"):
            env.reset(options={"row": row})
