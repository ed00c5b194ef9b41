"""Completions that come as text: as tokens, and grouped under the prompts that they share.

Shapes: M completions as they were given, N the same number in the order of their prompts, R tokens.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmft.engine.packing import Completions
from mmft.models.backbone import Backbone
from mmft.types import PromptRow

ANSWER = "answer"


def completion_end_id(processor: Any, end_ids: frozenset[int]) -> int | None:
    """The end token that a policy says: what the chat template puts behind an answer.

    Of the tokens that end a generation there may be several (Gemma: the end of a turn, the end of a text).
    Without a chat template, or where it puts none, the tokenizer's own; None where nothing ends a text."""
    tokenizer = getattr(processor, "tokenizer", processor)
    for token in _ids(tokenizer, _behind_an_answer(processor)):
        if token in end_ids:
            return token
    own = getattr(tokenizer, "eos_token_id", None)
    return own if own in end_ids else min(end_ids, default=None)


def _behind_an_answer(processor: Any) -> str:
    if not getattr(processor, "chat_template", None):
        return ""
    messages = [
        {"role": role, "content": [{"type": "text", "text": text}]}
        for role, text in (("user", "?"), ("assistant", ANSWER))
    ]
    try:
        rendered = str(processor.apply_chat_template(messages, tokenize=False))
    except Exception:  # a template may raise anything about messages it does not like
        return ""
    return rendered.rpartition(ANSWER)[2]


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []


def completion_text(completion: Any) -> str:
    """The text of a completion in either form of the protocol.

    Raises:
        TypeError: it is neither text nor a list of messages.
    """
    if isinstance(completion, str):
        return completion
    if isinstance(completion, list) and all(isinstance(message, dict) for message in completion):
        return "".join(_message_text(message.get("content")) for message in completion)
    raise TypeError(f"a completion is text or a list of messages; got {completion!r}")


def _message_text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(block.get("text") or "" for block in content if isinstance(block, dict))
    return content or ""


class CompletionTokenizer:
    """Texts as the ids that sampling would have given: no special tokens, the end token last.

    Attributes:
        max_length: tokens after which a completion is cut, as sampling would: without an end token.
    """

    def __init__(self, backbone: Backbone, max_length: int) -> None:
        self.max_length = max_length
        self._tokenizer: Any = getattr(backbone.processor, "tokenizer", backbone.processor)
        self._end_id = completion_end_id(backbone.processor, backbone.end_ids)
        self._forbidden = backbone.forbidden_ids

    def __call__(self, text: str) -> list[int]:
        """The ids of one completion, at most `max_length`."""
        return self.whole(text)[: self.max_length]

    def said(self, text: str, ended: bool) -> list[int]:
        """What a policy itself said of one completion: the end token only where it came to the end."""
        ids = self(text)
        return ids if ended or ids[-1:] != [self._end_id] else ids[:-1]

    def whole(self, text: str) -> list[int]:
        """The ids of one completion, however long."""
        # A placeholder would want a picture of its own; no policy can say one.
        ids = [token for token in _ids(self._tokenizer, text) if token not in self._forbidden]
        return ids if self._end_id is None else [*ids, self._end_id]


@dataclass(frozen=True, slots=True)
class CompletionBatch:
    """Completions grouped by prompt, each distinct prompt once."""

    rows: list[PromptRow]
    """The distinct prompts, in order of first use."""
    completions: Completions
    """(N, R)"""
    place: Tensor
    """(M,) where each completion went: `scores[place]` are in the order in which they were given."""


def group_completions(
    rows: Sequence[PromptRow], ids: Sequence[Sequence[int]], pad_id: int
) -> CompletionBatch:
    """Completion i answers `rows[i]`; rows of equal key are one prompt."""
    numbers: dict[Hashable, int] = {}
    distinct: list[PromptRow] = []
    for row in rows:
        if row.key not in numbers:
            numbers[row.key] = len(distinct)
            distinct.append(row)
    index = torch.tensor([numbers[row.key] for row in rows])
    order = index.argsort(stable=True)
    padded, mask = right_padded(ids, pad_id)
    return CompletionBatch(
        rows=distinct,
        completions=Completions(padded[order], mask[order], index[order]),
        place=order.argsort(),
    )


def right_padded(ids: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """(N, R) ids and where they are no padding, from N lists of ids."""
    lengths = torch.tensor([len(each) for each in ids])
    width = max(int(lengths.max()), 1)
    padded = torch.tensor([[*each, *[pad_id] * (width - len(each))] for each in ids])
    return padded, torch.arange(width) < lengths[:, None]
