"""States and weights that the tests of fusions share."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from mmft.models.fusion import make_fusion
from mmft.models.modalities import Modalities

# Two widths are the state's, so that both kinds of P_m occur.
WIDTHS = {"text": 3, "image": 4, "numbers": 2, "fused": 4}
SIZE = 4
OPTIONS = {"cross_modal": {"num_heads": 2}, "all_modality": {"num_heads": 2}, "shared": {"num_heads": 2}}


def built(name: str, widths: dict[str, int] = WIDTHS, **options: Any) -> Any:
    """A fusion with every weight away from its start, in float64."""
    fusion = make_fusion(name, widths, SIZE, **(OPTIONS.get(name, {}) | options)).double()
    with torch.no_grad():
        for weight in fusion.parameters():
            weight.normal_()
    return fusion


def states() -> Modalities:
    """Five rows: one with everything, one with padding, and one each without image, text and numbers."""
    lengths = {
        "text": [3, 2, 3, 0, 1],
        "image": [3, 1, 0, 3, 2],
        "numbers": [1, 1, 1, 1, 0],
        "fused": [1, 1, 1, 1, 1],
    }
    embeddings, masks = {}, {}
    for name, width in WIDTHS.items():
        real = torch.tensor(lengths[name])
        embeddings[name] = torch.randn(5, int(real.max()), width, dtype=torch.float64)
        masks[name] = torch.arange(int(real.max())) < real.unsqueeze(1)
    return Modalities(embeddings, masks)


def complete() -> Modalities:
    given = states()
    return Modalities(given.embeddings, {name: torch.ones_like(mask) for name, mask in given.masks.items()})


def without(given: Modalities, name: str) -> Modalities:
    return Modalities(given.embeddings, given.masks | {name: torch.zeros_like(given.masks[name])})


def given_numbers(**modalities: list[list[list[float]]]) -> Modalities:
    """Rows of tokens, right-padded with NaN; an empty row lacks the modality."""
    embeddings, masks = {}, {}
    for name, rows in modalities.items():
        longest = max(len(tokens) for tokens in rows)
        width = next(len(tokens[0]) for tokens in rows if tokens)
        padded = [tokens + [[math.nan] * width] * (longest - len(tokens)) for tokens in rows]
        embeddings[name] = torch.tensor(padded, dtype=torch.float32)
        masks[name] = torch.tensor([[i < len(tokens) for i in range(longest)] for tokens in rows])
    return Modalities(embeddings, masks)


def set_weights(fusion: nn.Module, **weights: Any) -> None:
    """Sets weights by name, `a__b` for `a.b`; all that are not named become 0."""
    parameters = dict(fusion.named_parameters())
    named = {name.replace("__", "."): value for name, value in weights.items()}
    assert named.keys() <= parameters.keys()
    with torch.no_grad():
        for name, parameter in parameters.items():
            value = torch.as_tensor(named.get(name, 0.0), dtype=parameter.dtype)
            parameter.copy_(value.reshape(parameter.shape))
