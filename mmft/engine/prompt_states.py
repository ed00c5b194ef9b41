"""What a policy sees of a row, as one vector: the embeddings of each modality pooled, side by side.

Shape legend: N rows, P prompt tokens, D width, M modalities.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmft.engine.prompt_encoder import PromptEncoder
from mmft.errors import UnsupportedModelError
from mmft.types import PromptRow

MODALITIES = ("image", "text")


@torch.no_grad()
def combined_states(encoder: PromptEncoder, rows: Sequence[PromptRow]) -> Tensor:
    """(N, M * D) on the CPU: the mean image embedding, then the mean text embedding, of every prompt.

    Embeddings are those that the text model is called with, after vision tower and projector. A row without
    pictures has NaN in place of the first.

    Raises:
        UnsupportedModelError: the model does not put its embeddings where its input ids are.
    """
    return torch.stack([_state(encoder, row) for row in rows])


def _state(encoder: PromptEncoder, row: PromptRow) -> Tensor:
    ids = encoder.inputs(row).input_ids[0]
    (encoding,) = encoder.encode([row])
    embeds = encoding.embeds.float().cpu()
    if len(ids) != len(embeds):
        raise UnsupportedModelError(
            f"row {row.key}: the prompt has {len(ids)} token ids and {len(embeds)} embeddings, so that image "
            "and text cannot be told apart. Leave `correlate_state` out for this model."
        )
    # Marks around a picture count as image: they stand for no word.
    placeholders = torch.tensor(sorted(encoder.backbone.forbidden_ids), dtype=ids.dtype)
    is_image = torch.isin(ids.cpu(), placeholders)
    return torch.cat([pooled(embeds, is_image), pooled(embeds, ~is_image)])


def pooled(embeds: Tensor, chosen: Tensor) -> Tensor:
    """(D,) mean of the (P, D) embeddings where `chosen` (P,) is True; NaN where it never is."""
    return embeds[chosen].mean(dim=0)
