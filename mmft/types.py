"""Types that cross package borders: the reward protocol and one distinct prompt.

Tensors that cross borders are dataclasses beside their maker (`engine.packing`, `engine.rollout`).
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from PIL.Image import Image

Message = dict[str, Any]
Prompt = str | list[Message]
"""What a row's `prompt` column holds: plain text or chat messages."""


class RewardFunction(Protocol):
    """TRL's protocol: scores every completion, or says None where it cannot judge.

    `completions[i]` answers `prompts[i]`. Where the prompt is text the completion is a string; where it is
    chat messages the completion is `[{"role": "assistant", "content": ...}]`. `columns` holds every other
    column of the rows, `images` among them, each a list as long as `completions`.
    """

    def __call__(
        self, prompts: list[Prompt], completions: list[Any], **columns: Any
    ) -> list[float | None]: ...


@dataclass(frozen=True, slots=True)
class PromptRow:
    """One distinct prompt of a dataset, ready for the processor and the rewards."""

    key: Hashable
    """Names the row for caches and errors: (split, index)."""
    prompt: Prompt
    """The prompt as the user wrote it; rewards receive this."""
    messages: list[Message]
    """The same prompt as chat messages with an `{"type": "image"}` block for each picture."""
    images: list[Image]
    """RGB pictures, upright."""
    columns: dict[str, Any] = field(default_factory=dict)
    """Every other column of the row."""
