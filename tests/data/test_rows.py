"""Rows as prompts: columns, prompt forms, laziness, and errors that name the row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest

from mmft.data.rows import PromptDataset
from mmft.errors import ConfigError, DataError
from tests.data.pictures import BLUE, GREEN, RED, encoded, pixels, two_pixels

IMAGE = {"type": "image"}
TEXT = {"type": "text", "text": "Describe."}


def picture_rows(count: int = 3, **columns: Any) -> list[dict[str, Any]]:
    colours = [RED, GREEN, BLUE]
    return [{"image": two_pixels(colours[index % 3], RED), **columns} for index in range(count)]


def test_a_row_carries_prompt_messages_pictures_and_every_other_column():
    data = PromptDataset(
        [{"image": two_pixels(RED, GREEN), "prompt": "Describe.", "references": ["a"], "score": 3}]
    )
    row = data[0]
    assert (row.key, row.prompt) == (("train", 0), "Describe.")
    assert row.messages == [{"role": "user", "content": [IMAGE, TEXT]}]
    assert [pixels(image) for image in row.images] == [[[RED, GREEN]]]
    assert row.columns == {"references": ["a"], "score": 3}


def test_instruction_is_the_prompt_of_every_row():
    data = PromptDataset(
        picture_rows(2), name="validation", instruction="Describe.", system_prompt="Be brief."
    )
    assert [data[index].prompt for index in range(2)] == ["Describe."] * 2
    assert data[1].key == ("validation", 1)
    assert [message["role"] for message in data[1].messages] == ["system", "user"]


def test_rewards_get_the_prompt_as_the_user_wrote_it():
    prompt = [{"role": "user", "content": "Describe."}]
    row = PromptDataset(picture_rows(1, prompt=prompt), system_prompt="Be brief.")[0]
    assert row.prompt == prompt


def test_several_pictures_and_none():
    rows = [
        {"images": [two_pixels(RED, GREEN), encoded(two_pixels(BLUE, RED))]},
        {"images": []},
        {"images": None},
        {},
    ]
    data = PromptDataset(rows, instruction="Describe.")
    assert [pixels(image) for image in data[0].images] == [[[RED, GREEN]], [[BLUE, RED]]]
    assert [data[index].images for index in (1, 2, 3)] == [[], [], []]
    assert data[3].messages == [{"role": "user", "content": [TEXT]}]


def test_a_hugging_face_dataset_gives_the_same_rows_as_a_list():
    rows = [{"image": two_pixels(RED, GREEN), "prompt": "Describe.", "references": ["a", "b"]}] * 2
    for mine, theirs in zip(
        PromptDataset(rows), PromptDataset(datasets.Dataset.from_list(rows)), strict=True
    ):  # both end at IndexError
        assert [pixels(image) for image in mine.images] == [pixels(image) for image in theirs.images]
        assert (mine.key, mine.prompt, mine.columns) == (theirs.key, theirs.prompt, theirs.columns)


def test_lists_and_further_columns_of_pictures_are_decoded():
    rows = [{"images": [two_pixels(RED, GREEN)] * 2, "depth": two_pixels(BLUE, BLUE)}]
    row = PromptDataset(datasets.Dataset.from_list(rows), instruction="Describe.")[0]
    assert [pixels(image) for image in row.images] == [[[RED, GREEN]]] * 2
    assert pixels(row.columns["depth"]) == [[BLUE, BLUE]]


def test_message_prompts_survive_arrow():
    rows = [{"image": two_pixels(RED, GREEN), "prompt": [{"role": "user", "content": [IMAGE, TEXT]}]}]
    row = PromptDataset(datasets.Dataset.from_list(rows))[0]
    assert row.messages == [{"role": "user", "content": [IMAGE, TEXT]}]


def test_length_and_negative_indices():
    data = PromptDataset(picture_rows(3), instruction="Describe.")
    assert len(data) == 3
    assert data[-1].key == ("train", 2)
    with pytest.raises(IndexError, match="the split 'train' has 3 rows; got index 3"):
        data[3]


@pytest.mark.parametrize("lazily", [False, True])
def test_an_unreadable_picture_names_its_row_and_column(lazily: bool, tmp_path: Path):
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    two_pixels(RED, GREEN).save(good)
    bad.write_bytes(b"not a picture")
    rows: Any = [{"image": str(good)}, {"image": str(bad)}]
    if lazily:
        rows = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    data = PromptDataset(rows, instruction="Describe.")
    assert pixels(data[0].images[0]) == [[RED, GREEN]]
    with pytest.raises(
        DataError, match=r"row 1 of 'train': column `image`: cannot read a picture from '.*bad.png'"
    ):
        data[1]


def test_an_unreadable_picture_in_a_list_names_its_row(tmp_path: Path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"not a picture")
    features = datasets.Features({"images": datasets.List(datasets.Image())})
    rows = datasets.Dataset.from_list([{"images": []}, {"images": [str(bad)]}], features=features)
    data = PromptDataset(rows, instruction="Describe.")
    assert data[0].images == []
    with pytest.raises(
        DataError, match=r"row 1 of 'train': cannot be read \(UnidentifiedImageError.*bad.png"
    ):
        data[1]


@pytest.mark.parametrize("references", ["a cat", ["a cat", ""], ("a cat",), None])
def test_references_may_be_one_several_or_none(references: Any):
    row = PromptDataset(picture_rows(1, references=references), instruction="Describe.")[0]
    assert row.columns["references"] == references


@pytest.mark.parametrize(
    ("references", "message"),
    [
        ([], r"row 0 of 'train': `references` is empty \(\[\]\). Write one, drop the row, or set it to None"),
        ("", r"row 0 of 'train': `references` is empty \(''\)"),
        (["", " "], r"row 0 of 'train': `references` is empty"),
        ([1], r"row 0 of 'train': `references` must be a string or a list of strings; got \[1\]"),
        (1.5, r"row 0 of 'train': `references` must be a string or a list of strings; got 1.5"),
    ],
)
def test_empty_references_name_the_row(references: Any, message: str):
    with pytest.raises(DataError, match=message):
        PromptDataset(picture_rows(1, references=references), instruction="Describe.")[0]


def test_a_missing_prompt_and_a_wrong_number_of_blocks_name_the_row():
    rows = [{"prompt": None}, {"prompt": [{"role": "user", "content": [IMAGE, TEXT]}]}]
    data = PromptDataset(rows)
    with pytest.raises(DataError, match=r"row 0 of 'train': `prompt` is None. Give the row a prompt, or set"):
        data[0]
    with pytest.raises(
        DataError, match=r"row 1 of 'train': `prompt` has 1 image blocks and the row has 0 pictures"
    ):
        data[1]


@pytest.mark.parametrize(
    ("row", "instruction", "error", "message"),
    [
        (
            {"image": None, "images": []},
            "Hi",
            DataError,
            r"has both `image` and `images`. Rename one",
        ),
        ({"completions": "x"}, "Hi", DataError, r"column `completions` is named like an argument of rewards"),
        (
            {"prompt": "x"},
            "Hi",
            ConfigError,
            r"`instruction` is 'Hi' but the split 'train' has a `prompt` column",
        ),
        (
            {"image": None, "text": "x"},
            None,
            ConfigError,
            r"no `prompt` column \(it has image, text\). Set `instr",
        ),
        ({"image": None}, "  ", ConfigError, r"has no `prompt` column"),
    ],
)
def test_columns_are_checked_before_any_row_is_read(
    row: dict[str, Any], instruction: str | None, error: type[Exception], message: str
):
    with pytest.raises(error, match=message):
        PromptDataset([row], instruction=instruction)


def test_a_split_without_rows_is_an_error():
    with pytest.raises(DataError, match=r"the split 'test' has no rows. Check `split`"):
        PromptDataset([], name="test", instruction="Hi")


def test_validate_lists_every_problem_and_reads_as_many_rows_as_asked():
    rows = [{"prompt": "Hi", "references": ["a"] if index % 2 else []} for index in range(8)]
    data = PromptDataset(rows)
    assert [problem.partition(":")[0] for problem in data.validate()] == [
        f"row {index} of 'train'" for index in (0, 2, 4, 6)
    ]
    assert len(data.validate(max_problems=2)) == 2
    assert len(data.validate(max_rows=2)) == 2, "rows 0 and 4"
    assert len(data.validate(max_rows=100)) == 4
    assert PromptDataset(rows[1:2]).validate() == []
