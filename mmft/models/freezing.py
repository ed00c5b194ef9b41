"""Which weights train: every pretrained parameter belongs to exactly one of four parts."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn
from transformers import PreTrainedModel

from mmft.errors import ConfigError
from mmft.models.seam import find_text_model, has_adapters, unwrap

PARTS = ("vision", "projector", "language", "head")
VISION_NAMES = frozenset({"vision_tower", "vision_model", "visual", "vision_encoder", "vision_embedder"})
PROJECTOR_NAMES = frozenset({
    "multi_modal_projector", "connector", "merger", "deepstack_merger_list", "projector", "image_newline",
    "embed_vision", "modality_projection", "perceiver_resampler", "view_separator",
})  # fmt: skip


def parameter_parts(base: PreTrainedModel) -> Iterator[tuple[str, str, nn.Parameter]]:
    """Yields (part, name, parameter) over the transformers model; adapters count to the part they sit in.

    The head is the language-model head, also where its weights are the input embedding. The projector is
    everything between encoder and text model; Qwen-style mergers live inside the vision module and still
    count as projector."""
    head = base.get_output_embeddings()
    head_parameters = {id(p) for p in head.parameters()} if head is not None else set()
    text_parameters = {id(p) for p in find_text_model(base).parameters()}
    for name, parameter in base.named_parameters():
        path = set(name.split("."))
        if id(parameter) in head_parameters:
            yield "head", name, parameter
        elif id(parameter) in text_parameters:
            yield "language", name, parameter
        elif path & PROJECTOR_NAMES or not path & VISION_NAMES:
            yield "projector", name, parameter
        else:
            yield "vision", name, parameter


def is_adapter(name: str) -> bool:
    """True for parameters that PEFT added: a part of their name carries a tuner's prefix."""
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

    # Read anew: methods may be registered at any time.
    prefixes = (*PEFT_TYPE_TO_PREFIX_MAPPING.values(), "modules_to_save", "trainable_tokens_")
    return any(part.startswith(prefixes) for part in name.split("."))


def apply_freeze_rules(model: nn.Module, trainable: Sequence[str]) -> None:
    """Freezes every pretrained weight that is not named; adapters keep what PEFT decided.

    Args:
        model: a transformers model, or the `PeftModel` around it.
        trainable: parts, where `language` is the text model and its head and `head` the head alone, or
            patterns over parameter names, such as `*language_model.layers.3.*`.

    Raises:
        ConfigError: an entry that matches nothing, or a weight that is quantised; nothing was changed.
    """
    adapted = has_adapters(model)
    weights = {
        name: (part, parameter)
        for part, name, parameter in parameter_parts(unwrap(model))
        if not (adapted and is_adapter(name))
    }
    parts = {name: part for name, (part, _) in weights.items()}
    chosen = {name for entry in trainable for name in _matches(entry, parts)}
    for name in sorted(chosen):
        if not weights[name][1].is_floating_point():
            raise ConfigError(
                f"`trainable` chooses {name}, which is quantised ({weights[name][1].dtype}) and has no "
                "gradient. Train adapters (`use_peft: true`), or load the model without quantisation."
            )
    for name, (_, parameter) in weights.items():
        parameter.requires_grad_(name in chosen)


def _matches(entry: str, parts: Mapping[str, str]) -> list[str]:
    """The names that an entry of `trainable` chooses, never none."""
    if entry in PARTS:
        found = [
            name for name, part in parts.items() if part == entry or (entry, part) == ("language", "head")
        ]
        if not found:
            present = ", ".join(part for part in PARTS if part in parts.values())
            raise ConfigError(
                f"`trainable` names {entry!r}, and this model has no such weights; it has {present}."
            )
        return found
    if "*" not in entry and "." not in entry:
        nearest = difflib.get_close_matches(entry, PARTS, n=1)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise ConfigError(
            f"`trainable` names {entry!r}, which is not one of {', '.join(PARTS)} and no pattern over names "
            f"of parameters (such as '*layers.3.*').{hint}"
        )
    # PEFT moves a weight that it adapts into `base_layer`; patterns mean the model's own names.
    found = [name for name in parts if fnmatchcase(name.replace(".base_layer.", "."), entry)]
    if not found:
        raise ConfigError(
            f"`trainable` has the pattern {entry!r}, which matches no parameter of the model. Its names are "
            f"like {next(iter(parts))!r}."
        )
    return found


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
    before = ("vision", "projector")
    return any(part in before and p.requires_grad for part, _, p in parameter_parts(base))
