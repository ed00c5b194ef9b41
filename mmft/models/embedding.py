"""Modality embeddings E_m = f_m(X_m): what a vision-language model makes of pictures, of text, and of both.

Any model whose seam is known will do; nothing here knows a family. Prompts come in batches that are padded on
the right, where every token keeps the position that it has alone. Left out: features that a model adds in
later layers of its text model (deepstack) are no rows at the seam, and count to "fused" only.

Shapes: B rows, P prompt tokens, T tokens of one modality, D width of the text model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from mmft.errors import UnsupportedModelError
from mmft.models.modalities import Modalities
from mmft.models.prompts import PromptInputs
from mmft.models.seam import capture_text_inputs

if TYPE_CHECKING:
    from mmft.models.backbone import Backbone

PLACED = ("image", "video", "audio")
"""Modalities that the model's own encoders turn into rows at the seam, one for each placeholder token."""
STATES = ("text", "fused")
"""Modalities that are last hidden states of the text model; every model has them."""


class _StatesReached(Exception):
    """Raised inside the hook to stop the forward before the language-model head; never leaves this module."""


def supported_modalities(backbone: Backbone) -> tuple[str, ...]:
    """The modalities that this model can embed."""
    return (*STATES, *(name for name in PLACED if placeholder_id(backbone, name) is not None))


def embed(backbone: Backbone, inputs: PromptInputs, modalities: Sequence[str]) -> Modalities:
    """Embeddings of several prompts, all from one forward, with gradients where the model trains.

        image, video, audio   (B, T, D) what encoder and projector hand to the text model
        fused                 (B, 1, D) last hidden state at the last token, from which the next is predicted
        text                  (B, P, D) last hidden states of a prompt without pictures, video or sound

    A row that lacks a modality has no True in its mask. The text model runs only for `fused` and `text`, its
    language-model head never.

    Args:
        backbone: the model; its adapters are active.
        inputs: B prompts, padded on the right (`engine.prompt_encoder.process_rows`).
        modalities: names out of `supported_modalities`.

    Raises:
        UnsupportedModelError: the model has no such modality, or its seam is unknown.
        ValueError: prompts that are padded on the left, or `text` of prompts that hold more than text.
    """
    _check_modalities(backbone, modalities)
    valid = _valid_tokens(inputs)
    if "text" in modalities:
        _check_nothing_placed(backbone, inputs.input_ids, valid)
    inputs, valid = inputs.to(backbone.device, backbone.dtype), valid.to(backbone.device)
    if any(name in STATES for name in modalities):
        seam, states = _seam_and_states(backbone, inputs)
    else:
        captured = capture_text_inputs(backbone.base, backbone.text_model, inputs.tensors)
        seam = states = captured["inputs_embeds"]  # no one asks for states
    embeddings: dict[str, Tensor] = {}
    masks: dict[str, Tensor] = {}
    for name in modalities:
        if name == "text":
            embeddings[name], masks[name] = states, valid
        elif name == "fused":
            embeddings[name], masks[name] = _last_token(states, valid)
        else:
            chosen = valid & (inputs.input_ids == placeholder_id(backbone, name))
            embeddings[name], masks[name] = _gather_tokens(seam, chosen)
    return Modalities(embeddings, masks)


def embed_text(backbone: Backbone, inputs: PromptInputs) -> Modalities:
    """E_text of prompts that were rendered without their pictures: `embed` of `text` alone."""
    return embed(backbone, inputs, ("text",))


def placeholder_id(backbone: Backbone, name: str) -> int | None:
    """The token that stands for one row of this modality's features, if the model has such a modality."""
    config = backbone.base.config
    found: int | None = getattr(config, f"{name}_token_id", None)
    return getattr(config, f"{name}_token_index", None) if found is None else found


def _check_modalities(backbone: Backbone, modalities: Sequence[str]) -> None:
    supported = supported_modalities(backbone)
    for name in modalities:
        if name not in supported:
            raise UnsupportedModelError(
                f"{type(backbone.base).__name__} has no modality {name!r} to embed; it has "
                f"{', '.join(supported)}. Ask for those, or choose another model."
            )
    configs = cast(Any, backbone.model).peft_config.values() if backbone.has_adapters else ()
    if any(config.is_prompt_learning for config in configs) and any(name in STATES for name in modalities):
        raise UnsupportedModelError(
            "prompt-learning adapters add virtual tokens around the model, which embeddings do not see. "
            "Choose adapters that act inside it, such as LoRA."
        )


def _valid_tokens(inputs: PromptInputs) -> Tensor:
    """(B, P) True at real tokens."""
    mask = inputs.tensors.get("attention_mask")
    if mask is None:
        return torch.ones_like(inputs.input_ids, dtype=torch.bool)
    valid = mask.bool()
    if not valid[:, 0].all() or (valid[:, 1:] & ~valid[:, :-1]).any():
        raise ValueError(
            "`inputs` must be padded on the right and hold a token in every row, but `attention_mask` begins "
            "with a 0 or has one before a 1. Make them with `engine.prompt_encoder.process_rows`, or with "
            "`padding_side='right'`."
        )
    return valid


def _check_nothing_placed(backbone: Backbone, input_ids: Tensor, valid: Tensor) -> None:
    placeholders = torch.tensor(sorted(backbone.forbidden_ids), device=input_ids.device)
    rows = (torch.isin(input_ids, placeholders) & valid).any(1).nonzero()
    if len(rows):
        raise ValueError(
            f"`text` is embedded without pictures, video or sound, but row {rows[0].item()} of `inputs` has "
            "placeholder tokens. Render the prompts without them for `text`, and embed what has them in "
            "another call."
        )


def _seam_and_states(backbone: Backbone, inputs: PromptInputs) -> tuple[Tensor, Tensor]:
    """(B, P, D) what the text model is called with, and (B, P, D) its last hidden states."""
    model, text_model = backbone.base, backbone.text_model
    captured: dict[str, Tensor | None] = {}

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        captured.update(seam=kwargs.get("inputs_embeds"), states=output.last_hidden_state)
        raise _StatesReached

    handle = text_model.register_forward_hook(hook, with_kwargs=True)
    try:
        with contextlib.suppress(_StatesReached):
            cast(Any, model)(**inputs.tensors, use_cache=False)
    finally:
        handle.remove()
    seam, states = captured.get("seam"), captured.get("states")
    if seam is None or states is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} did not pass `inputs_embeds` to {type(text_model).__name__}; "
            "its seam is unknown to mmft."
        )
    return seam, states


def _last_token(states: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """(B, 1, D) the state at the last real token of each row, and its mask."""
    last = valid.sum(1) - 1
    rows = torch.arange(len(states), device=states.device)
    return states[rows, last][:, None], valid[:, :1]


def _gather_tokens(tokens: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """(B, T, D) the chosen tokens of each row in their order, and their mask; T is at least 1."""
    counts = chosen.sum(1)
    length = max(int(counts.max()), 1)
    order = chosen.byte().argsort(dim=1, descending=True, stable=True)[:, :length]
    mask = torch.arange(length, device=tokens.device) < counts[:, None]
    gathered = tokens.gather(1, order[..., None].expand(-1, -1, tokens.shape[-1]))
    return torch.where(mask[..., None], gathered, 0), mask
