"""Rows that people have judged: preferences and ratings, checked before training, as tokens after.

Shapes: B rows, C completions per row (2 of a preference, 1 of a rating).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mmft.data.content import content_key
from mmft.data.rows import PromptDataset
from mmft.engine.completion_batch import (
    CompletionBatch,
    CompletionTokenizer,
    group_completions,
)
from mmft.trainers.columns import finite_numbers, needed_column, row_error, texts, token_ids
from mmft.types import PromptRow

PREFERENCE = ("chosen", "rejected")
RATING = ("completion",)
TARGETS = {PREFERENCE: "margin", RATING: "rating"}


@dataclass(frozen=True, slots=True)
class RewardRow:
    """One row: a prompt, what was said about it, and what people made of that."""

    number: int
    """In its split."""
    prompt: PromptRow
    texts: list[str]
    """Chosen and rejected, or the one completion."""
    ids: list[list[int]]
    cut: bool
    """Whether a completion is longer than the model reads."""
    target: float
    """The margin of a preference (0 if the data has none), or the rating."""


@dataclass(frozen=True, slots=True)
class RewardBatch:
    """B rows, their completions grouped under shared prompts."""

    rows: list[RewardRow]
    completions: CompletionBatch
    targets: Tensor
    """(B,)"""

    def by_row(self, scores: Tensor) -> Tensor:
        """(N,) scores in the order of the grouped completions to (B, C)."""
        return self.given(scores[self.completions.place.to(scores.device)])

    def given(self, scores: Tensor) -> Tensor:
        """(M,) scores in the order in which completions were given to (B, C)."""
        return scores.view(len(self.rows), -1)


def collate_rewards(rows: Sequence[RewardRow], pad_id: int) -> RewardBatch:
    """Rows of one batch; those that show and ask the same share their prompt."""
    prompts = [row.prompt for row in rows for _ in row.ids]
    completions = group_completions(prompts, [ids for row in rows for ids in row.ids], pad_id)
    return RewardBatch(list(rows), completions, torch.tensor([row.target for row in rows]))


def collate_inputs(rows: Sequence[RewardRow], pad_id: int) -> dict[str, RewardBatch]:
    """The same as the Trainer wants it: inputs by name."""
    return {"batch": collate_rewards(rows, pad_id)}


class RewardDataset(Dataset[RewardRow]):
    """Preferences or ratings.

    Columns: those of `PromptDataset`, and `chosen`, `rejected` and optionally `margin`, or `completion` and
    `rating`. Completions are text or `[{"role": "assistant", "content": text}]`.
    """

    def __init__(
        self,
        prompts: PromptDataset,
        *,
        preferences: bool,
        tokenize: CompletionTokenizer,
        share_prompts: bool = True,
    ) -> None:
        """Checks every completion and target; pictures are read later.

        Args:
            prompts: the rows.
            preferences: whether they are preferences or ratings.
            tokenize: text to ids, cut where sampling would cut.
            share_prompts: whether rows of the same content count as one prompt.

        Raises:
            ConfigError: a column is missing.
            DataError: a row cannot be used.
        """
        self.prompts = prompts
        self.tokenize = tokenize
        self.share_prompts = share_prompts
        columns = PREFERENCE if preferences else RATING
        stored = [needed_column(prompts, name, _purpose(preferences)) for name in columns]
        read = [texts(prompts, name, values) for name, values in zip(columns, stored, strict=True)]
        self.texts = [list(row) for row in zip(*read, strict=True)]
        self.targets = self._targets(preferences)
        if preferences:
            self._check_difference()

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, number: int) -> RewardRow:
        prompt = self.prompts[number]
        if self.share_prompts:
            prompt = dataclasses.replace(prompt, key=content_key(prompt))
        said, longest = self.texts[number], self.tokenize.max_length
        whole = [token_ids(self.prompts, number, text, self.tokenize) for text in said]
        cut = any(len(ids) > longest for ids in whole)
        return RewardRow(number, prompt, said, [ids[:longest] for ids in whole], cut, self.targets[number])

    def _targets(self, preferences: bool) -> list[float]:
        name = TARGETS[PREFERENCE if preferences else RATING]
        if preferences and self.prompts.column(name) is None:
            return [0.0] * len(self.texts)
        values = needed_column(self.prompts, name, _purpose(preferences))
        return finite_numbers(self.prompts, name, values)

    def _check_difference(self) -> None:
        for number, (chosen, rejected) in enumerate(self.texts):
            if chosen == rejected:
                problem = f"`chosen` and `rejected` are both {chosen!r}. Drop the row."
                raise row_error(self.prompts, number, problem)


def _purpose(preferences: bool) -> str:
    kind = "preferences (`loss_type: bradley_terry`)" if preferences else "ratings (`loss_type: mse`)"
    needed = "`chosen` and `rejected`" if preferences else "`completion` and `rating`"
    return (
        f"{kind} need {needed}. Rename a column (`rename_columns`), or set `loss_type` to what the data has."
    )
