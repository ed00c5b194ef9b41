"""Rows: a dataset by its name, and its rows as prompts.

Everything a user's data can get wrong is found here and reported with the row, the column and what to do.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset

from mmft.data.content import stored_digest
from mmft.data.images import load_image
from mmft.data.messages import to_messages
from mmft.errors import ConfigError, DataError
from mmft.types import Prompt, PromptRow

IMAGE_COLUMNS = ("image", "images")
BUILDERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv"}
# What rewards are called with beside the columns; a column of that name would be passed twice.
RESERVED = frozenset("prompts completions completion_ids trainer_state log_extra log_metric".split())
CHUNK = 256
"""Rows that are read together where all of them are looked at."""

DataFiles = str | Sequence[str] | Mapping[str, str | Sequence[str]]
MakeSplit = Callable[[str, int | None], Dataset]
"""Makes a split of a dataset that is built in rather than stored: (split, max_rows) -> rows."""


def load_split(
    dataset_name: str,
    split: str = "train",
    *,
    data_dir: str | None = None,
    data_files: DataFiles | None = None,
    config_name: str | None = None,
    max_rows: int | None = None,
    rename_columns: Mapping[str, str] | None = None,
    builtin: Mapping[str, MakeSplit] | None = None,
) -> Dataset:
    """Load one split through `datasets`, from the hub, from files, or from what is built in.

    Args:
        dataset_name: A hub id, a folder, a file (.parquet, .json, .jsonl, .csv), a format of `datasets`
            (`imagefolder`, `parquet`, `json`) together with `data_dir` or `data_files`, or a name in
            `builtin`.
        split: Name of the split; slices such as "train[:100]" work too.
        data_dir: Folder for a format, as in `datasets.load_dataset`.
        data_files: Files for a format, as in `datasets.load_dataset`.
        config_name: Configuration of a hub dataset.
        max_rows: Keep the first so many rows.
        rename_columns: Old name to new name, to turn say `captions` into `references`.
        builtin: Datasets that are made on demand, by name.

    Raises:
        DataError: The data cannot be found or has no such split or column.
    """
    if max_rows is not None and max_rows < 1:
        raise ConfigError(f"`max_rows` must be at least 1; got {max_rows}. Leave it out to use every row.")
    builtin = builtin or {}
    if dataset_name in builtin:
        rows = builtin[dataset_name](split, max_rows)
    else:
        name, data_files = _format_of(dataset_name, data_files)
        rows = _load(dataset_name, name, split, data_dir, data_files, config_name, builtin)
        folder = data_dir or (name if Path(name).is_dir() else None)
        rows = _with_full_image_paths(rows, _folder_of(folder, data_files, split))
    if max_rows is not None and max_rows < len(rows):
        rows = rows.select(range(max_rows))
    return _renamed(rows, rename_columns or {}, dataset_name)


class PromptDataset:
    """The rows of a dataset as `PromptRow`s; each is decoded when it is asked for.

    Columns: `image` or `images`; `prompt`, text or chat messages, unless `instruction` gives one prompt to
    all rows; everything else, `references` among it, is kept for the rewards. A row without a picture is a
    text prompt.
    """

    def __init__(
        self,
        rows: Dataset | Sequence[Mapping[str, Any]],
        *,
        name: str = "train",
        instruction: str | None = None,
        system_prompt: str | None = None,
    ) -> None:
        """Check the columns; no row is read yet.

        Args:
            rows: A `datasets.Dataset` or a list of dicts.
            name: Name of the split, for row keys and messages.
            instruction: The prompt of every row, for data without a `prompt` column.
            system_prompt: Put before every prompt that has no system message of its own.
        """
        if len(rows) == 0:
            raise DataError(f"the split {name!r} has no rows. Check `split`, `data_files` and filters.")
        columns = (
            set(rows.column_names) if isinstance(rows, Dataset) else {key for row in rows for key in row}
        )
        _check_columns(columns, name, instruction)
        self.name = name
        self.instruction = instruction
        self.system_prompt = system_prompt
        self._picture_columns = _picture_columns(rows) & columns
        self._rows = _undecoded(rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> PromptRow:
        if not -len(self) <= index < len(self):
            raise IndexError(f"the split {self.name!r} has {len(self)} rows; got index {index}.")
        index %= len(self)
        try:
            return self._prompt_row(index, self._stored_row(index))
        except DataError as error:
            raise DataError(f"row {index} of {self.name!r}: {error}") from error

    def column(self, name: str) -> list[Any] | None:
        """A column as it is stored, one entry per row; None if there is no such column."""
        if isinstance(self._rows, Dataset):
            return list(self._rows[name]) if name in self._rows.column_names else None
        return [row.get(name) for row in self._rows] if any(name in row for row in self._rows) else None

    def content_digests(self) -> list[bytes]:
        """One digest per row, equal where rows show the same pictures and say the same words.

        Stored pictures are told apart by path or bytes and not decoded (`mmft.data.content.stored_digest`).

        Raises:
            DataError: a picture cannot be read; the message names its row.
        """
        known: dict[int, bytes] = {}
        digests = []
        for index, row in enumerate(self._undecoded_prompts()):
            pictures = [picture for column in IMAGE_COLUMNS for picture in _as_list(row.get(column))]
            prompt = row.get("prompt") if self.instruction is None else self.instruction
            try:
                digests.append(stored_digest(prompt, pictures, known))
            except DataError as error:
                raise DataError(f"row {index} of {self.name!r}: {error}") from error
        return digests

    def _undecoded_prompts(self) -> Iterator[Mapping[str, Any]]:
        """The columns of the prompts as they are stored, lists of pictures too."""
        if not isinstance(self._rows, Dataset):
            yield from self._rows
            return
        names = [name for name in (*IMAGE_COLUMNS, "prompt") if name in self._rows.column_names]
        stored = self._rows.with_format("arrow")  # `datasets` decodes in every other format
        for start in range(0, len(stored), CHUNK):
            table = stored[start : start + CHUNK]
            columns = [table.column(name).to_pylist() for name in names]
            for number in range(table.num_rows):
                yield {name: column[number] for name, column in zip(names, columns, strict=True)}

    def validate(self, max_rows: int | None = None, max_problems: int = 10) -> list[str]:
        """Read `max_rows` rows spread over the split (default all) and return what is wrong with them."""
        count = len(self) if max_rows is None else min(max_rows, len(self))
        problems: list[str] = []
        for number in range(count):
            try:
                self[number * len(self) // count]
            except DataError as error:
                problems.append(str(error))
            if len(problems) == max_problems:
                break
        return problems

    def _stored_row(self, index: int) -> dict[str, Any]:
        try:
            return dict(self._rows[index])
        except Exception as error:  # `datasets` decodes lists of pictures itself and does not name the row
            raise DataError(
                f"cannot be read ({type(error).__name__}: {error}). Repair it or drop it."
            ) from error

    def _prompt_row(self, index: int, row: dict[str, Any]) -> PromptRow:
        for column in self._picture_columns:
            row[column] = _load_pictures(row.get(column), column)
        images = [image for column in IMAGE_COLUMNS for image in _as_list(row.pop(column, None))]
        written = row.pop("prompt", None)
        prompt: Prompt = self.instruction if self.instruction is not None else written
        if prompt is None:
            raise DataError("`prompt` is None. Give the row a prompt, or set `instruction` for all rows.")
        messages = to_messages(prompt, len(images), self.system_prompt)
        _check_references(row)
        return PromptRow((self.name, index), prompt, messages, images, row)


def as_prompts(rows: Any, name: str) -> PromptDataset | None:
    """Rows of any kind that trainers take as prompts; None stays None."""
    return rows if rows is None or isinstance(rows, PromptDataset) else PromptDataset(rows, name=name)


def _check_columns(columns: set[str], name: str, instruction: str | None) -> None:
    if set(IMAGE_COLUMNS) <= columns:
        raise DataError(f"the split {name!r} has both `image` and `images`. Rename one (`rename_columns`).")
    if clash := sorted(columns & RESERVED):
        raise DataError(
            f"column `{clash[0]}` is named like an argument of rewards. Rename it (`rename_columns`)."
        )
    if "prompt" in columns and instruction is not None:
        raise ConfigError(
            f"`instruction` is {instruction!r} but the split {name!r} has a `prompt` column. Drop either."
        )
    if "prompt" not in columns and not (instruction or "").strip():
        raise ConfigError(
            f"the split {name!r} has no `prompt` column (it has {', '.join(sorted(columns))}). Set "
            "`instruction` to the prompt of all rows, or rename a column (`rename_columns`)."
        )


def _check_references(row: Mapping[str, Any]) -> None:
    """None is allowed (rewards cannot judge such a row); an empty string or list is a mistake in the data."""
    value = row.get("references")
    if value is None:
        return
    phrases = [value] if isinstance(value, str) else value
    if not isinstance(phrases, Sequence) or not all(isinstance(phrase, str) for phrase in phrases):
        raise DataError(f"`references` must be a string or a list of strings; got {reprlib.repr(value)}.")
    if not any(phrase.strip() for phrase in phrases):
        raise DataError(f"`references` is empty ({value!r}). Write one, drop the row, or set it to None.")


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _load_pictures(value: Any, column: str) -> Any:
    try:
        if isinstance(value, (list, tuple)):
            return [load_image(item) for item in value]
        return None if value is None else load_image(value)
    except DataError as error:
        raise DataError(f"column `{column}`: {error}") from error


def _is_picture(feature: Any) -> bool:
    return isinstance(getattr(feature, "feature", feature), datasets.Image)


def _picture_columns(rows: Dataset | Sequence[Mapping[str, Any]]) -> set[str]:
    typed = rows.features if isinstance(rows, Dataset) else {}
    return {*IMAGE_COLUMNS, *(column for column, feature in typed.items() if _is_picture(feature))}


def _undecoded(rows: Dataset | Sequence[Mapping[str, Any]]) -> Dataset | Sequence[Mapping[str, Any]]:
    """Leave pictures as bytes and paths: were `datasets` to decode them, a broken file could not be named.

    Lists of pictures stay as they are, because casting them would write the whole dataset anew.
    """
    if not isinstance(rows, Dataset):
        return rows
    rows = rows.with_format(None)
    for column, feature in rows.features.items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(column, datasets.Image(decode=False))
    return rows


def _format_of(dataset_name: str, data_files: DataFiles | None) -> tuple[str, DataFiles | None]:
    """A file's name becomes its format and itself; other names stay."""
    path = Path(dataset_name)
    if not path.is_file():
        return dataset_name, data_files
    if path.suffix not in BUILDERS:
        raise DataError(
            f"`dataset_name` {dataset_name!r} ends in {path.suffix!r}; files may be {', '.join(BUILDERS)}."
        )
    if data_files is not None:
        raise ConfigError(f"`dataset_name` is the file {dataset_name!r}; leave `data_files` out.")
    return BUILDERS[path.suffix], str(path)


def _load(
    dataset_name: str,
    name: str,
    split: str,
    data_dir: str | None,
    data_files: DataFiles | None,
    config_name: str | None,
    builtin: Mapping[str, MakeSplit],
) -> Dataset:
    try:
        if (Path(name) / "state.json").is_file() or (Path(name) / "dataset_dict.json").is_file():
            saved = datasets.load_from_disk(name)
            return saved if isinstance(saved, Dataset) else saved[split]
        return datasets.load_dataset(name, config_name, data_dir=data_dir, data_files=data_files, split=split)
    except Exception as error:  # `datasets` raises a dozen types, several of them nameless
        near = difflib.get_close_matches(dataset_name, builtin, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise DataError(
            f"cannot load `dataset_name` {dataset_name!r}, split {split!r}: "
            f"{type(error).__name__}: {error}.{hint} It may be a hub id, a folder, a file, or "
            "`imagefolder`, `parquet`, `json` with `data_dir` or `data_files`."
        ) from error


def _folder_of(data_dir: str | None, data_files: DataFiles | None, split: str) -> Path | None:
    """The folder that relative picture paths in a table start from: the one the table lies in."""
    if isinstance(data_files, Mapping):
        data_files = data_files.get(split.partition("[")[0])
    files = [data_files] if isinstance(data_files, str) else list(data_files or [])
    folders = {Path(data_dir or "", file).parent for file in files}
    if not folders and data_dir:
        return Path(data_dir)
    return folders.pop() if len(folders) == 1 else None


def _with_full_image_paths(rows: Dataset, folder: Path | None) -> Dataset:
    for column in IMAGE_COLUMNS:
        feature = rows.features.get(column)
        dtype = getattr(getattr(feature, "feature", feature), "dtype", None)
        if folder is None or dtype != "string":
            continue
        values = [_full_path(value, folder) for value in rows[column]]
        # In this order, because a dataset whose last column goes forgets how many rows it has.
        rows = (
            rows.add_column("full paths", values).remove_columns(column).rename_column("full paths", column)
        )
    return rows


def _full_path(value: Any, folder: Path) -> Any:
    if isinstance(value, list):
        return [_full_path(item, folder) for item in value]
    return None if value is None else str(folder / value)  # an absolute path stays as it is


def _renamed(rows: Dataset, names: Mapping[str, str], dataset_name: str) -> Dataset:
    for old, new in names.items():
        if old not in rows.column_names:
            near = difflib.get_close_matches(old, rows.column_names, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"It has {', '.join(rows.column_names)}."
            raise DataError(f"`rename_columns` names {old!r}, which {dataset_name!r} does not have. {hint}")
        if new in rows.column_names:
            raise DataError(
                f"`rename_columns` turns {old!r} into {new!r}, which {dataset_name!r} has. "
                "Rename that one first."
            )
        rows = rows.rename_column(old, new)
    return rows
