"""Columns of rows that were answered and judged beforehand, checked before training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

from mmft.data.rows import PromptDataset
from mmft.engine.completion_batch import CompletionTokenizer, completion_text
from mmft.errors import ConfigError, DataError


def needed_column(prompts: PromptDataset, name: str, purpose: str) -> list[Any]:
    """A column as it is stored.

    Raises:
        ConfigError: the split has none; `purpose` says who needs it and what else would do.
    """
    values = prompts.column(name)
    if values is None:
        raise ConfigError(f"the split {prompts.name!r} has no `{name}` column; {purpose}")
    return values


def texts(prompts: PromptDataset, name: str, values: Sequence[Any]) -> list[str]:
    """Completions, given as text or messages.

    Raises:
        DataError: a value is neither; the message names its row.
    """
    found = []
    for number, value in enumerate(values):
        try:
            found.append(completion_text(value))
        except TypeError as error:
            raise row_error(prompts, number, f"`{name}`: {error}. Repair or drop it.") from error
    return found


def finite_numbers(prompts: PromptDataset, name: str, values: Sequence[Any]) -> list[float]:
    """Ratings, rewards, margins.

    Raises:
        DataError: a value is no finite number; the message names its row.
    """
    for number, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            raise row_error(prompts, number, f"`{name}` must be a finite number; got {value!r}.")
    return [float(value) for value in values]


def token_ids(prompts: PromptDataset, number: int, text: str, tokenize: CompletionTokenizer) -> list[int]:
    """The ids of a row's completion, however long.

    Raises:
        DataError: there is none.
    """
    ids = tokenize.whole(text)
    if not ids:
        raise row_error(
            prompts, number, "a completion is empty and the model has no end token. Drop the row."
        )
    return ids


def row_error(prompts: PromptDataset, number: int, problem: str) -> DataError:
    """An error that names its row."""
    return DataError(f"row {number} of {prompts.name!r}: {problem}")
