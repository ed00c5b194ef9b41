"""The seam: the one call a vision-language model makes into its text model.

Everything model-specific (image encoders, projectors, placeholder merging, rotary indices, image masks)
happens before that call. The engine captures its arguments once per prompt and drives the text model itself
from there on.
"""

from __future__ import annotations

import contextlib
from typing import Any, cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from mmft.errors import UnsupportedModelError

TEXT_MODEL_NAMES = ("language_model", "text_model")


class _SeamReached(Exception):
    """Raised inside the hook to stop the forward at the seam; never leaves this module."""


def has_adapters(model: nn.Module) -> bool:
    """True for a model wrapped by PEFT."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def unwrap(model: nn.Module) -> PreTrainedModel:
    """The transformers model under any PEFT wrapper; adapters stay active in it."""
    return cast(PreTrainedModel, cast(Any, model).get_base_model() if has_adapters(model) else model)


def find_text_model(model: nn.Module) -> nn.Module:
    """The causal text model inside a vision-language model: hidden states out, no language-model head.

    Raises:
        UnsupportedModelError: encoder-decoder models, and models whose text model cannot be found.
    """
    config = getattr(model, "config", None)
    text_config = config.get_text_config(decoder=True) if config is not None else None
    if getattr(config, "is_encoder_decoder", False) or getattr(text_config, "is_encoder_decoder", False):
        raise UnsupportedModelError(
            f"{type(model).__name__} is an encoder-decoder model; mmft drives decoder-only text models. "
            "Choose a model such as Qwen2.5-VL, SmolVLM, LLaVA, Gemma 3, PaliGemma or InternVL."
        )
    inner = getattr(model, "model", model)
    for name in TEXT_MODEL_NAMES:
        candidate = getattr(inner, name, None)
        if isinstance(candidate, nn.Module) and _is_headless(candidate):
            return candidate
    candidate = cast(Any, model).get_decoder() if hasattr(model, "get_decoder") else None
    if isinstance(candidate, nn.Module) and candidate is not model and _is_headless(candidate):
        return candidate
    raise UnsupportedModelError(
        f"No text model found in {type(model).__name__}: looked for `model.language_model`, "
        "`model.text_model` and `get_decoder()` without a language-model head. The model is not laid out "
        "like the decoder-style vision-language models of transformers 5."
    )


def _is_headless(module: nn.Module) -> bool:
    embeddings = getattr(module, "get_output_embeddings", None)
    return hasattr(module, "get_input_embeddings") and (embeddings is None or embeddings() is None)


def capture_text_inputs(model: nn.Module, text_model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Any]:
    """Runs `model(**inputs)` up to the call into `text_model` and returns that call's keyword arguments.

    Gradients flow through the captured tensors where the vision path or the projector trains.

    Raises:
        UnsupportedModelError: the text model is never called, or is called with positional arguments.
    """
    captured: dict[str, Any] = {}

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if args:
            raise UnsupportedModelError(
                f"{type(model).__name__} passes positional arguments to its text model; only keyword "
                "arguments can be captured. This model cannot be trained with mmft."
            )
        captured.update(kwargs)
        raise _SeamReached

    handle = text_model.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        with contextlib.suppress(_SeamReached):
            model(**inputs, use_cache=False)
    finally:
        handle.remove()
    if captured.get("inputs_embeds") is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} did not pass `inputs_embeds` to {type(text_model).__name__}; "
            "its seam is unknown to mmft."
        )
    return captured
