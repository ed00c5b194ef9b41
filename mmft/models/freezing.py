"""Which weights train: every pretrained parameter belongs to exactly one of three parts."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterator, Sequence

from torch import nn
from transformers import PreTrainedModel

from mmft.errors import ConfigError
from mmft.models.seam import find_text_model, has_adapters, unwrap

PARTS = ("vision", "projector", "language")
VISION_NAMES = frozenset({"vision_tower", "vision_model", "visual", "vision_encoder", "vision_embedder"})
PROJECTOR_NAMES = frozenset({
    "multi_modal_projector", "connector", "merger", "deepstack_merger_list", "projector", "image_newline",
    "embed_vision", "modality_projection", "perceiver_resampler", "view_separator",
})  # fmt: skip


def parameter_parts(base: PreTrainedModel) -> Iterator[tuple[str, str, nn.Parameter]]:
    """Yields (part, name, parameter) over the transformers model; adapters count to the part they sit in.

    The projector is everything between encoder and text model; Qwen-style mergers live inside the vision
    module and still count as projector."""
    text_parameters = {id(p) for p in find_text_model(base).parameters()}
    head = base.get_output_embeddings()
    text_parameters |= {id(p) for p in head.parameters()} if head is not None else set()
    for name, parameter in base.named_parameters():
        path = set(name.split("."))
        if id(parameter) in text_parameters:
            yield "language", name, parameter
        elif path & PROJECTOR_NAMES or not path & VISION_NAMES:
            yield "projector", name, parameter
        else:
            yield "vision", name, parameter


@functools.cache
def _adapter_prefixes() -> tuple[str, ...]:
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

    return (*PEFT_TYPE_TO_PREFIX_MAPPING.values(), "modules_to_save", "trainable_tokens_")


def is_adapter(name: str) -> bool:
    """True for parameters that PEFT added: a part of their name carries a tuner's prefix."""
    return any(part.startswith(_adapter_prefixes()) for part in name.split("."))


def apply_freeze_rules(model: nn.Module, trainable: Sequence[str]) -> None:
    """Freezes every pretrained weight whose part is not named; adapters keep what PEFT decided.

    Raises:
        ConfigError: a name that is no part of the model.
    """
    for part in trainable:
        if part not in PARTS:
            nearest = difflib.get_close_matches(part, PARTS, n=1)
            hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
            raise ConfigError(f"`trainable` names {part!r}, which is not one of {', '.join(PARTS)}.{hint}")
    adapted = has_adapters(model)
    for part, name, parameter in parameter_parts(unwrap(model)):
        # Quantised weights are integers and never require gradients.
        if not (adapted and is_adapter(name)):
            parameter.requires_grad_(part in trainable and parameter.is_floating_point())


def trained_pretrained_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The pretrained weights that train, adapters aside, by their name in the transformers model."""
    adapted = has_adapters(model)
    return {
        name: parameter
        for name, parameter in unwrap(model).named_parameters()
        if parameter.requires_grad and not (adapted and is_adapter(name))
    }


def trains_before_seam(base: PreTrainedModel) -> bool:
    """True if a prompt's encoding changes while training: vision, projector or the input embedding trains."""
    if any(p.requires_grad for p in base.get_input_embeddings().parameters()):
        return True
    return any(part != "language" and p.requires_grad for part, _, p in parameter_parts(base))
