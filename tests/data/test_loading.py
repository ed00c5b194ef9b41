"""Datasets by name: folders, tables, slices, names made on demand, and errors that say what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from mmft.data.rows import PromptDataset, load_split
from mmft.errors import ConfigError, DataError
from tests.data.pictures import GREEN, RED, encoded, pixels, two_pixels


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An imagefolder: two splits, captions in metadata.jsonl."""
    for split, names in {"train": "abc", "validation": "d"}.items():
        home = tmp_path / "pictures" / split
        home.mkdir(parents=True)
        for name in names:
            two_pixels(RED, GREEN).save(home / f"{name}.png")
        lines = [{"file_name": f"{name}.png", "captions": [f"picture {name}"]} for name in names]
        (home / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path / "pictures"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A jsonl file with pictures beside it."""
    two_pixels(RED, GREEN).save(tmp_path / "a.png")
    path = tmp_path / "rows.jsonl"
    lines = [{"image": "a.png", "prompt": "Hi", "references": ["x"]}] * 2
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_an_image_folder_by_format_and_by_path(folder: Path):
    for rows in (
        load_split("imagefolder", "train", data_dir=str(folder), rename_columns={"captions": "references"}),
        load_split(str(folder), "train", rename_columns={"captions": "references"}),
    ):
        data = PromptDataset(rows, instruction="Describe.")
        assert [row.columns["references"] for row in data] == [["picture a"], ["picture b"], ["picture c"]]
        assert pixels(data[0].images[0]) == [[RED, GREEN]]


def test_splits_slices_and_max_rows(folder: Path):
    assert len(load_split(str(folder), "validation")) == 1
    assert len(load_split(str(folder), "train[1:]")) == 2
    assert len(load_split(str(folder), "train", max_rows=2)) == 2
    assert len(load_split(str(folder), "train", max_rows=9)) == 3


def test_a_jsonl_file_finds_the_pictures_beside_it(table: Path):
    for rows in (load_split(str(table)), load_split("json", data_files=str(table))):
        assert pixels(PromptDataset(rows)[1].images[0]) == [[RED, GREEN]]


def test_data_files_by_split_and_data_dir_find_their_pictures(table: Path):
    files = {"train": str(table), "validation": str(table)}
    assert PromptDataset(load_split("json", "validation[:1]", data_files=files))[0].images
    assert PromptDataset(load_split("json", data_dir=str(table.parent), data_files="rows.jsonl"))[0].images


def test_a_folder_of_tables_finds_pictures_from_itself(table: Path):
    home = table.parent / "tables"
    home.mkdir()
    (home / "rows.jsonl").write_text(table.read_text().replace("a.png", "../a.png"))
    for rows in (load_split("json", data_dir=str(home)), load_split(str(home))):
        assert pixels(PromptDataset(rows)[0].images[0]) == [[RED, GREEN]]


def test_lists_of_paths_and_missing_ones(tmp_path: Path):
    two_pixels(RED, GREEN).save(tmp_path / "a.png")
    path = tmp_path / "rows.json"
    lines = [{"images": ["a.png", str(tmp_path / "a.png")]}, {"images": None}]
    path.write_text("\n".join(map(json.dumps, lines)))
    data = PromptDataset(load_split(str(path)), instruction="Hi")
    assert [len(row.images) for row in data] == [2, 0]


def test_a_parquet_file_with_pictures_inside(tmp_path: Path):
    path = tmp_path / "rows.parquet"
    rows = [{"image": two_pixels(RED, GREEN), "prompt": "Hi"}]
    datasets.Dataset.from_list(rows).to_parquet(path)
    assert pixels(PromptDataset(load_split(str(path)))[0].images[0]) == [[RED, GREEN]]
    plain = tmp_path / "plain.parquet"
    datasets.Dataset.from_list(
        [{"image": {"bytes": encoded(two_pixels(GREEN, RED))}, "prompt": "Hi"}]
    ).to_parquet(plain)
    assert pixels(PromptDataset(load_split("parquet", data_files=[str(plain)]))[0].images[0]) == [
        [GREEN, RED]
    ]


def test_a_dataset_saved_to_disk(tmp_path: Path):
    rows = datasets.Dataset.from_list([{"prompt": "Hi"}])
    rows.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"test": rows}).save_to_disk(tmp_path / "many")
    assert load_split(str(tmp_path / "one"))[0] == {"prompt": "Hi"}
    assert load_split(str(tmp_path / "many"), "test")[0] == {"prompt": "Hi"}
    with pytest.raises(DataError, match=r"cannot load `dataset_name` '.*many', split 'train': KeyError"):
        load_split(str(tmp_path / "many"))


def test_a_name_made_on_demand_comes_from_the_mapping():
    asked: list[Any] = []

    def make(split: str, max_rows: int | None) -> datasets.Dataset:
        asked.append((split, max_rows))
        return datasets.Dataset.from_list([{"prompt": str(number)} for number in range(5)])

    rows = load_split(
        "made/up", "validation", max_rows=2, rename_columns={"prompt": "p"}, builtin={"made/up": make}
    )
    assert (asked, rows[:]) == ([("validation", 2)], {"p": ["0", "1"]})
    with pytest.raises(DataError, match=r"cannot load `dataset_name` 'made/upp'.* Did you mean 'made/up'?"):
        load_split("made/upp", builtin={"made/up": make})


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (
            "imagefolder",
            {"data_dir": "/no/such"},
            r"cannot load `dataset_name` 'imagefolder', split 'train': Empty",
        ),
        ("no/such", {}, r"cannot load `dataset_name` 'no/such'.*It may be a hub id, a folder, a file"),
        ("json", {"data_files": "/no/such.jsonl"}, r"Unable to find '/no/such.jsonl'"),
        ("PICTURES", {"split": "tset"}, r"split 'tset': ValueError: Unknown split .tset."),
        (
            "PICTURES",
            {"rename_columns": {"caption": "references"}},
            r"names 'caption', which .* Did you mean 'captions'",
        ),
        (
            "PICTURES",
            {"rename_columns": {"xyz": "references"}},
            r"'xyz', .* does not have. It has image, captions",
        ),
        (
            "PICTURES",
            {"rename_columns": {"captions": "image"}},
            r"turns 'captions' into 'image', which .* has. Rename",
        ),
    ],
)
def test_what_cannot_be_loaded_is_named(name: str, arguments: dict[str, Any], message: str, folder: Path):
    with pytest.raises(DataError, match=message):
        load_split(str(folder) if name == "PICTURES" else name, **arguments)


def test_files_of_an_unknown_kind_and_contradictions_are_errors(table: Path):
    other = table.with_suffix(".xlsx")
    other.write_text("")
    with pytest.raises(
        DataError, match=r"`dataset_name` '.*rows.xlsx' ends in '.xlsx'; files may be .parquet, .json"
    ):
        load_split(str(other))
    with pytest.raises(
        ConfigError, match=r"`dataset_name` is the file '.*rows.jsonl'; leave `data_files` out"
    ):
        load_split(str(table), data_files=str(table))
    with pytest.raises(ConfigError, match="`max_rows` must be at least 1; got 0"):
        load_split(str(table), max_rows=0)
