"""What an attribution says, and how it is put together from the importance of each token.

Gradients are taken in `engine.attribution`, the only caller; equations are in `evaluation.importance`.

Shapes: L tokens at the seam.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmft.engine.token_texts import token_texts
from mmft.errors import NonFiniteError
from mmft.evaluation.importance import modality_importance, modality_shares, patch_map
from mmft.models.backbone import Backbone
from mmft.models.embedding import PLACED, placeholder_id
from mmft.models.patch_grids import Size, picture_places
from mmft.models.prompts import PromptInputs

PROMPT, ANSWER = "prompt", "answer"


@dataclass(frozen=True, slots=True)
class TokenImportance:
    """One token of text."""

    text: str
    """What it adds to the text, as `engine.token_texts` says."""
    importance: float
    part: str
    """`prompt`, with what the chat template wrote and the marks around pictures, or `answer`."""


@dataclass(frozen=True, slots=True)
class PictureImportance:
    """One picture."""

    importance: float
    """Of all its rows."""
    grid: tuple[int, int] | None
    """Rows and columns of the map, which spans the whole picture; None where nobody knows where the model's
    image rows look."""
    patches: list[float]
    """rows * columns numbers >= 0, the top row first; empty without a grid."""


@dataclass(frozen=True, slots=True)
class Attribution:
    """What one number hangs on."""

    of: str
    """`completion`, `token`, `value`, `q` or `policy`."""
    value: float
    """The number itself, L: a log-prob, V or Q."""
    importance: dict[str, float]
    """I_m >= 0 per modality: `prompt`, and `image`, `video`, `audio`, `answer`, `numbers` where there are
    any."""
    shares: dict[str, float]
    """The same as shares that add up to 1; all 0 where nothing has any importance."""
    tokens: list[TokenImportance]
    """Of the text, in its order."""
    pictures: list[PictureImportance]
    """In their order; empty where the model does not let them be told apart."""
    action: int | None = None
    """Of a decision: a."""

    @property
    def image_share(self) -> float:
        """0 without pictures."""
        return self.shares.get("image", 0.0)

    @property
    def text_share(self) -> float:
        """Of prompt and answer together."""
        return self.shares.get("prompt", 0.0) + self.shares.get("answer", 0.0)


@dataclass(frozen=True, slots=True)
class ReadText:
    """What a text model was called with for one row."""

    importance: Tensor
    """(L,) of the prompt's tokens, then of the answer's."""
    inputs: PromptInputs
    """The prompt before the seam, batch size 1."""
    answer: Sequence[int] = ()
    sizes: Sequence[Size] = ()
    """Of the prompt's pictures."""
    was_read: bool = True
    """False where only the image rows were taken, and the words not looked at."""

    @property
    def prompt(self) -> Tensor:
        """(P,) ids."""
        return self.inputs.input_ids[0].cpu()

    def placed(self, backbone: Backbone) -> dict[str, Tensor]:
        """(P,) per modality that has rows of its own, True at its placeholders."""
        ids = {name: placeholder_id(backbone, name) for name in PLACED}
        masks = {name: self.prompt == token for name, token in ids.items() if token is not None}
        return {name: mask for name, mask in masks.items() if bool(mask.any())}

    def modalities(self, backbone: Backbone) -> dict[str, float]:
        """I_m of what is in this text."""
        num_prompt, total = len(self.prompt), len(self.importance)
        masks = {
            name: torch.nn.functional.pad(mask, (0, total - num_prompt))
            for name, mask in self.placed(backbone).items()
        }
        is_answer = torch.arange(total) >= num_prompt
        is_prompt = ~is_answer
        for mask in masks.values():
            is_prompt = is_prompt & ~mask
        masks[PROMPT] = is_prompt
        if self.answer:
            masks[ANSWER] = is_answer
        sums = modality_importance(self.importance[None], {name: mask[None] for name, mask in masks.items()})
        return {name: float(each) for name, each in sums.items()}

    def tokens(self, backbone: Backbone) -> list[TokenImportance]:
        """The words, without what stands for pictures."""
        words = torch.ones(len(self.prompt), dtype=torch.bool)
        for mask in self.placed(backbone).values():
            words &= ~mask
        parts = [
            (PROMPT, self.prompt[words].tolist(), self.importance[: len(words)][words]),
            (ANSWER, list(self.answer), self.importance[len(words) :]),
        ]
        return [
            TokenImportance(text, number, part)
            for part, ids, numbers in parts
            for text, number in zip(token_texts(backbone.processor, ids), numbers.tolist(), strict=True)
        ]

    def pictures(self, backbone: Backbone) -> list[PictureImportance]:
        """Each picture, over which its rows are laid."""
        found = []
        for picture in picture_places(backbone, self.inputs, self.sizes):
            rows = self.importance[picture.places]
            if picture.grid is None:
                found.append(PictureImportance(float(rows.sum()), None, []))
                continue
            shape = (picture.grid.rows, picture.grid.columns)
            cells = patch_map(rows, picture.grid).flatten().tolist()
            found.append(PictureImportance(float(rows.sum()), shape, cells))
        return found


def put_together(
    backbone: Backbone,
    of: str,
    value: float,
    texts: Sequence[ReadText],
    *,
    row: object,
    numbers: float | None = None,
) -> Attribution:
    """One attribution from all that was read of a row.

    Raises:
        NonFiniteError: the number or an importance is not finite.
    """
    importance: dict[str, float] = {}
    for text in texts:
        for name, each in text.modalities(backbone).items():
            importance[name] = importance.get(name, 0.0) + each
    if numbers is not None:
        importance["numbers"] = numbers
    if not math.isfinite(value + sum(importance.values())):
        raise NonFiniteError(
            f"row {row}: the {of} is {value} and its gradients weigh {importance}, so that nothing can be "
            "explained. Look for weights or pixels that are not finite, or use float32."
        )
    shares = modality_shares({name: torch.tensor([each]) for name, each in importance.items()})
    return Attribution(
        of=of,
        value=value,
        importance=importance,
        shares={name: float(each) for name, each in shares.items()},
        tokens=[token for text in texts if text.was_read for token in text.tokens(backbone)],
        pictures=[picture for text in texts for picture in text.pictures(backbone)],
    )
