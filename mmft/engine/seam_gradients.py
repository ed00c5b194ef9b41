"""Gradients with respect to what a text model is called with, whoever makes the call.

A call's embeddings are cut from what made them and become leaves: nothing before the seam and no weight gets
a gradient, and gradients exist where nothing trains. Features that a model adds to image rows in later layers
(deepstack) are leaves too, and belong to the row that they are added to.

Shapes: B rows, L tokens at the seam, D width (of an embedding and, behind it, its deepstack features).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmft.errors import UnsupportedModelError
from mmft.evaluation.importance import gradient_importance, gradient_times_input, relative_importance
from mmft.models.backbone import Backbone

Method = Literal["gradient", "relative", "gradient_x_input"]


@dataclass(frozen=True, slots=True)
class SeamCall:
    """One call into the text model; its tensors are leaves."""

    embeds: Tensor
    """(B, L, D)"""
    deepstack: tuple[Tensor, ...] = ()
    """Per layer (image rows of all B, D)."""
    visual_mask: Tensor | None = None
    """(B, L) True at the rows that `deepstack` is added to."""

    @property
    def leaves(self) -> list[Tensor]:
        return [self.embeds, *self.deepstack]


@contextlib.contextmanager
def watched_seam(backbone: Backbone) -> Iterator[list[SeamCall]]:
    """Cuts every call into the text model at the seam, and lists the calls in their order.

    Raises:
        UnsupportedModelError: a call without `inputs_embeds`.
    """
    calls: list[SeamCall] = []

    def cut(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if kwargs.get("inputs_embeds") is None:
            raise UnsupportedModelError(
                f"{type(backbone.base).__name__} did not pass `inputs_embeds` to {type(module).__name__}; "
                "its seam is unknown to mmft."
            )
        deepstack = tuple(_leaf(features) for features in kwargs.get("deepstack_visual_embeds") or ())
        call = SeamCall(_leaf(kwargs["inputs_embeds"]), deepstack, kwargs.get("visual_pos_masks"))
        calls.append(call)
        added = {"deepstack_visual_embeds": list(deepstack)} if deepstack else {}
        return args, kwargs | {"inputs_embeds": call.embeds} | added

    handle = backbone.text_model.register_forward_pre_hook(cut, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_()


def seam_importance(total: Tensor, calls: Sequence[SeamCall], method: Method) -> list[Tensor]:
    """(B, L) importance of every token of each call for a number.

    Args:
        total: the number, a sum over rows that do not see each other.
        calls: what it was computed from.
        method: which of the equations of `evaluation.importance`.
    """
    leaves = [leaf for call in calls for leaf in call.leaves]
    found = torch.autograd.grad(total, leaves, allow_unused=True)
    gradients = iter(torch.zeros_like(x) if g is None else g for g, x in zip(found, leaves, strict=True))
    importance = []
    for call in calls:
        own = [next(gradients) for _ in call.leaves]
        importance.append(_importance(_by_row(call, own), _by_row(call, call.leaves), method))
    return importance


def _importance(gradients: Tensor, embeddings: Tensor, method: Method) -> Tensor:
    everywhere = torch.ones_like(gradients[:, :, 0], dtype=torch.bool)
    if method == "gradient":
        return gradient_importance(gradients, everywhere)
    equation = relative_importance if method == "relative" else gradient_times_input
    return equation(gradients, embeddings, everywhere)


def _by_row(call: SeamCall, tensors: Sequence[Tensor]) -> Tensor:
    """(B, L, D) what belongs to each row of the seam, side by side."""
    embeds, *deepstack = (tensor.detach() for tensor in tensors)
    parts = [embeds]
    for features in deepstack:
        mask = call.visual_mask
        if mask is not None:
            parts.append(torch.zeros_like(embeds).masked_scatter(mask[..., None], features.to(embeds)))
    return torch.cat(parts, dim=2)
