"""A dataset of pictures, texts and labels as an environment: say the label of a row, in one step.

What a contextual bandit is to supervised learning: the reward says whether the answer was right and not which
one was. Left out on purpose: rewards between right and wrong, and answers in words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import datasets
import gymnasium
import numpy as np
from datasets import Dataset
from gymnasium import spaces
from PIL.Image import Image, Resampling

from mmft.data.images import load_image
from mmft.data.rows import load_split
from mmft.data.splits import held_out_rows
from mmft.environments.observations import Picture
from mmft.errors import ConfigError, DataError

PARTS = ("train", "held_out")
Label = bool | int | str
Rows: TypeAlias = Dataset | Sequence[Mapping[str, Any]]
Observation = dict[str, Any]


class RowsEnvironment(gymnasium.Env[Observation, Any]):
    """One row per episode, drawn by the episode's seed: 1 for the action of its label, else 0.

    Observation: `image`, all of one size, and `text`. `info` holds `optimal_return` and `row` at the reset,
    and `is_success`, `row` and `answer`, the right label, at the step.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 1}  # noqa: RUF012  (gymnasium declares it)

    def __init__(
        self,
        rows: Rows | None = None,
        *,
        dataset_name: str | None = None,
        split: str = "train",
        data_dir: str | None = None,
        held_out_share: float | None = None,
        part: str = "train",
        group_column: str | None = None,
        split_seed: int = 0,
        image_column: str = "image",
        text_column: str = "sentence",
        label_column: str = "label",
        image_size: Sequence[int] | None = None,
        label_names: Sequence[Label] | None = None,
        render_mode: str | None = None,
    ) -> None:
        """Read texts and labels; pictures are read when they are shown.

        Both parts have the same spaces, which depend on all rows.

        Args:
            rows: a `datasets.Dataset` or a list of dicts; or name a dataset instead.
            dataset_name: as `mmft.data.rows.load_split` takes it, `split` and `data_dir` too.
            split: name of the split.
            data_dir: folder for a format such as `imagefolder`.
            held_out_share: hold this share of the rows out.
            part: of the rows, `train` or `held_out`.
            group_column: with `held_out_share`, rows of equal value here stay on one side.
            split_seed: decides which rows are held out.
            image_column: the pictures.
            text_column: what is said or asked of them.
            label_column: the answers: booleans, whole numbers or texts.
            image_size: (height, width) that all pictures are resized to; default the first one's.
            label_names: the labels in the order of the actions; default sorted.
            render_mode: `rgb_array` or None.

        Raises:
            ConfigError: settings are wrong or at odds.
            DataError: a row or column cannot be used; the message names it.
        """
        if (rows is None) == (dataset_name is None):
            raise ConfigError("give either `rows` or `dataset_name`; they say where the rows are.")
        if rows is None:
            rows = load_split(str(dataset_name), split, data_dir=data_dir)
        self._texts = [_text(text, row) for row, text in enumerate(_values(rows, text_column))]
        self.label_names, self._answers = _answers(rows, label_column, label_names)
        self._pictures = _Pictures(rows, image_column)
        self.rows = _chosen(rows, held_out_share, part, group_column, split_seed)
        """Numbers of the rows of this part, which `reset(options={"row": number})` takes."""
        self.render_mode = render_mode
        height, width = self._read(0).size[::-1] if image_size is None else _checked_size(image_size)
        longest, characters = max(map(len, self._texts)), frozenset("".join(self._texts))
        self.observation_space = spaces.Dict(
            {
                "image": spaces.Box(0, 255, (height, width, 3), np.uint8),
                "text": spaces.Text(longest, charset=characters),
            }
        )
        self.action_space = spaces.Discrete(len(self.label_names))
        self.row = self.rows[0]
        """Of the episode at hand."""
        self._size = (width, height)
        self._picture: Picture | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Shows a row: the one of `options`, or any."""
        super().reset(seed=seed)
        chosen = (options or {}).get("row")
        if chosen is None:
            chosen = self.rows[int(self.np_random.integers(len(self.rows)))]
        if not 0 <= chosen < len(self._texts):
            raise ValueError(f"`options['row']` is {chosen}; the data has rows 0 to {len(self._texts) - 1}.")
        self.row = int(chosen)
        self._picture = np.asarray(self._read(self.row).resize(self._size, Resampling.BILINEAR))
        return self._observe(), {"optimal_return": 1.0, "row": self.row}

    def step(self, action: int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Judges the answer and ends the episode."""
        answer = self._answers[self.row]
        right = int(action) == answer
        info = {"is_success": right, "row": self.row, "answer": self.label_names[answer]}
        return self._observe(), float(right), True, False, info

    def render(self) -> Picture | None:
        """The picture."""
        return None if self.render_mode is None else self._shown()

    def _observe(self) -> Observation:
        return {"image": self._shown(), "text": self._texts[self.row]}

    def _shown(self) -> Picture:
        if self._picture is None:
            raise gymnasium.error.ResetNeeded("call `reset` before `step` and `render`.")
        return self._picture.copy()

    def _read(self, row: int) -> Image:
        try:
            return load_image(self._pictures[row])
        except DataError as error:
            raise DataError(f"row {row}: {error}") from error


class _Pictures:
    """A column of pictures as they are stored, one at a time; `datasets` could not name a broken one."""

    def __init__(self, rows: Rows, column: str) -> None:
        _check_column(rows, column)
        if isinstance(rows, Dataset):
            rows = rows.with_format(None).select_columns([column])
            if isinstance(rows.features[column], datasets.Image):
                rows = rows.cast_column(column, datasets.Image(decode=False))
        self._rows, self._column = rows, column

    def __getitem__(self, row: int) -> Any:
        return self._rows[row].get(self._column)


def _values(rows: Rows, column: str) -> list[Any]:
    """A column as it is stored, one entry per row."""
    _check_column(rows, column)
    if isinstance(rows, Dataset):
        return list(rows.with_format(None)[column])
    return [row.get(column) for row in rows]


def _check_column(rows: Rows, column: str) -> None:
    if len(rows) == 0:
        raise DataError("there are no rows. Check `split` and filters.")
    known = rows.column_names if isinstance(rows, Dataset) else sorted({key for row in rows for key in row})
    if column not in known:
        raise DataError(f"there is no column {column!r}; the rows have {', '.join(known)}. Name one of them.")


def _text(value: Any, row: int) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"row {row}: the text is {value!r}. Give it one, or drop the row.")
    return value


def _answers(rows: Rows, column: str, names: Sequence[Label] | None) -> tuple[tuple[Label, ...], list[int]]:
    """The label of each action, and the right action of each row."""
    labels = _values(rows, column)
    for row, label in enumerate(labels):
        if not isinstance(label, bool | int | str):
            raise DataError(
                f"row {row}: the label is {label!r}; it must be true or false, a whole number or a text."
            )
        if type(label) is not type(labels[0]):
            raise DataError(
                f"row {row}: the label is {label!r}, but {labels[0]!r} in row 0. Give all the same type."
            )
    feature = rows.features[column] if isinstance(rows, Dataset) else None
    if isinstance(feature, datasets.ClassLabel):
        known = dict(enumerate(feature.names))  # -1 stands for no label and is kept, to be complained of
        labels, names = [known.get(label, label) for label in labels], names or feature.names
    actions = {name: action for action, name in enumerate(sorted(set(labels)) if names is None else names)}
    if len(actions) < 2:
        raise DataError(f"every label in {column!r} is {labels[0]!r}; there is nothing to choose from.")
    for row, label in enumerate(labels):
        if label not in actions:
            raise DataError(
                f"row {row}: the label {label!r} is not among `label_names`, {', '.join(map(str, actions))}."
            )
    return tuple(actions), [actions[label] for label in labels]


def _chosen(rows: Rows, share: float | None, part: str, column: str | None, seed: int) -> list[int]:
    """The rows of a part, where a share of the rows or of the values of a column is held out."""
    if part not in PARTS:
        raise ConfigError(f"`part` must be one of {', '.join(PARTS)}; got {part!r}.")
    if share is None:
        if part != PARTS[0] or column is not None:
            raise ConfigError("`part` and `group_column` need `held_out_share`, the share that is held out.")
        return list(range(len(rows)))
    keys = list(range(len(rows))) if column is None else [str(value) for value in _values(rows, column)]
    what = "rows" if column is None else f"values of `{column}`"
    held_out = held_out_rows(keys, share, seed=seed, what=what)
    return [row for row in range(len(rows)) if (row in held_out) == (part == "held_out")]


def _checked_size(size: Sequence[int]) -> tuple[int, int]:
    if len(size) != 2 or not all(isinstance(pixels, int) and pixels > 0 for pixels in size):
        raise ConfigError(f"`image_size` must be (height, width) in pixels; got {size}.")
    return size[0], size[1]
