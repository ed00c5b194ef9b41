"""Completions that were given and judged beforehand, as prompt groups for the engine and a plan for passes.

Rows that show and ask the same share their prompt; a chunk is as many of them as share one forward.
Shapes: M rows, N completions of some chunks, R tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmft.data.rows import PromptDataset
from mmft.engine.completion_batch import CompletionTokenizer, right_padded
from mmft.engine.packing import Completions
from mmft.trainers.columns import finite_numbers, needed_column, texts, token_ids
from mmft.trainers.schedule import RolloutPlan
from mmft.types import PromptRow

PURPOSE = (
    "offline training needs `completion` and `reward`. Rename a column (`rename_columns`), or sample "
    "completions in training (`offline: false`)."
)
Chunk = list[int]
"""Rows with the same prompt."""


class OfflineRows:
    """The rows of a data set with `completion` and `reward`.

    Attributes:
        rewards: (M,) float64.
        groups: (M,) which prompt each row answers: rows of the same pictures and words have the same number.
        ids: per row the token ids of its completion, cut where sampling would cut.
        cut: (M,) whether they were cut.
    """

    def __init__(self, prompts: PromptDataset, tokenize: CompletionTokenizer) -> None:
        """Checks and tokenizes every completion; pictures are decoded when they are needed.

        Raises:
            ConfigError: a column is missing.
            DataError: a row cannot be used.
        """
        self.prompts = prompts
        said = texts(prompts, "completion", needed_column(prompts, "completion", PURPOSE))
        rewards = finite_numbers(prompts, "reward", needed_column(prompts, "reward", PURPOSE))
        self.rewards = torch.tensor(rewards, dtype=torch.float64)
        whole = [token_ids(prompts, number, text, tokenize) for number, text in enumerate(said)]
        self.ids = [ids[: tokenize.max_length] for ids in whole]
        self.cut = torch.tensor([len(ids) > tokenize.max_length for ids in whole])
        numbers: dict[bytes, int] = {}
        self._first_rows: list[int] = []
        groups = []
        for row, digest in enumerate(prompts.content_digests()):
            if digest not in numbers:
                numbers[digest] = len(numbers)
                self._first_rows.append(row)
            groups.append(numbers[digest])
        self.groups = torch.tensor(groups)

    def chunks(self, keep: Tensor, size: int) -> list[Chunk]:
        """The rows where `keep` (M,) is True, at most `size` of one prompt together, as evenly as may be."""
        by_prompt: dict[int, Chunk] = {}
        for row in keep.nonzero().flatten().tolist():
            by_prompt.setdefault(int(self.groups[row]), []).append(row)
        return [
            part.tolist()
            for rows in by_prompt.values()
            for part in torch.tensor(rows).tensor_split(-(-len(rows) // size))
        ]

    def prompt_number(self, chunk: Chunk) -> int:
        """The first row that shows and asks what the chunk's rows do: one row, so that caches know it."""
        return self._first_rows[int(self.groups[chunk[0]])]

    def prompt(self, chunk: Chunk) -> PromptRow:
        """What the chunk's rows show and ask."""
        return self.prompts[self.prompt_number(chunk)]

    def completions(self, chunks: list[Chunk], pad_id: int) -> Completions:
        """(N, R) the completions of some chunks, each chunk a prompt of its own."""
        ids, mask = right_padded([self.ids[row] for chunk in chunks for row in chunk], pad_id)
        sizes = torch.tensor([len(chunk) for chunk in chunks])
        return Completions(ids, mask, torch.arange(len(chunks)).repeat_interleave(sizes))


@dataclass(frozen=True, kw_only=True, slots=True)
class OfflinePlan(RolloutPlan):
    """A plan whose rows are chunks of completions, and whose passes over the data leave none out.

    The last batch of a pass is filled up with chunks of the same pass, which must then not train again:
    `num_fresh` says how many of a batch are its own."""

    @property
    def rollouts_per_epoch(self) -> int:
        return -(-self.num_rows // self.global_groups)

    def rows(self, rollout: int, process: int) -> list[int]:
        epoch, first = self._place(rollout, process)
        order = self._permutation(epoch)
        places = range(first, first + self.local_groups)
        return [int(order[place % self.num_rows]) for place in places]

    def num_fresh(self, rollout: int, process: int) -> int:
        """How many of `rows`, counted from the first, this pass has not seen before."""
        _, first = self._place(rollout, process)
        return min(max(self.num_rows - first, 0), self.local_groups)

    def mini_batches(self, rollout: int, epoch: int, process: int) -> list[list[int]]:
        """Dealt out like cards, fresh chunks first: every optimizer step gets its share of them."""
        shuffled = RolloutPlan.mini_batches(self, rollout, epoch, process)
        num_fresh = self.num_fresh(rollout, process)
        order = sorted((group for batch in shuffled for group in batch), key=lambda group: group >= num_fresh)
        return [order[number :: self.num_mini_batches] for number in range(self.num_mini_batches)]

    def _place(self, rollout: int, process: int) -> tuple[int, int]:
        """Which pass over the data, and where in it a process's share begins."""
        epoch, number = divmod(rollout, self.rollouts_per_epoch)
        return epoch, number * self.global_groups + process * self.local_groups
