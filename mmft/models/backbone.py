"""A pretrained vision-language model, seen as the engine needs it: seam, text model, head and processor."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel
from transformers.cache_utils import Cache

from mmft.errors import ConfigError, UnsupportedModelError
from mmft.models.embedding import embed
from mmft.models.freezing import apply_freeze_rules, trains_before_seam
from mmft.models.heads import LanguageHead
from mmft.models.modalities import Modalities
from mmft.models.packaged import model_path
from mmft.models.prompts import PromptEncoding, PromptInputs, Visibility, encoding_from_call
from mmft.models.seam import capture_text_inputs, find_text_model, has_adapters, unwrap
from mmft.models.special_tokens import end_token_ids, pad_token_id, placeholder_token_ids

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import ProcessorMixin

ATTENTION_KINDS = frozenset({"full_attention", "sliding_attention"})
MASKED_ATTENTION = frozenset({"sdpa", "eager"})
"""Attention implementations that honour an arbitrary 4-D mask, which the shared prompt needs."""


class Backbone(nn.Module):
    """Wraps a model and its processor; owns no weights of its own.

    Attributes:
        model: the `PreTrainedModel`, or the `PeftModel` around it.
        processor: turns messages and pictures into the model's inputs.
        source: the name the pretrained weights were loaded by, or None where they may exist nowhere else.
    """

    def __init__(self, model: nn.Module, processor: ProcessorMixin, source: str | None = None) -> None:
        super().__init__()
        self.model = model
        self.processor = processor
        self.source = source
        self.end_ids = end_token_ids(self.base, processor)
        self.pad_id = pad_token_id(processor, self.end_ids)
        self.forbidden_ids = placeholder_token_ids(self.base, processor) - self.end_ids
        find_text_model(self.base)  # fail here, with a clear error, not in the first batch

    @property
    def base(self) -> PreTrainedModel:
        """The transformers model under any PEFT wrapper; adapters stay active in it."""
        return unwrap(self.model)

    @property
    def has_adapters(self) -> bool:
        return has_adapters(self.model)

    @property
    def text_model(self) -> nn.Module:
        return find_text_model(self.base)

    @property
    def text_config(self) -> Any:
        return self.base.config.get_text_config(decoder=True)

    @property
    def hidden_size(self) -> int:
        return int(self.text_config.hidden_size)

    @property
    def device(self) -> torch.device:
        return next(self.base.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return self.base.dtype

    @property
    def compute_dtype(self) -> torch.dtype:
        """What the matrix products run in: the weights' dtype, or that of mixed precision where it is on."""
        kind = self.device.type
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.dtype

    @property
    def head(self) -> LanguageHead:
        """The language-model head, with whatever the model does between head and logits."""
        return LanguageHead(
            projection=self.base.get_output_embeddings(),
            softcap=_softcap(self.base),
            forbidden_ids=self.forbidden_ids,
        )

    @property
    def attention_kinds(self) -> tuple[str, ...]:
        """The distinct kinds of attention layers, in order of first use."""
        kinds = getattr(self.text_config, "layer_types", None)
        if kinds is not None:
            return tuple(dict.fromkeys(kinds))
        return ("sliding_attention",) if self.sliding_window else ("full_attention",)

    @property
    def sliding_window(self) -> int | None:
        if getattr(self.text_config, "use_sliding_window", True) is False:
            return None
        return getattr(self.text_config, "sliding_window", None)

    def why_not_packed(self) -> str | None:
        """The reason for which this model cannot share its prompt in one forward, or None where it can."""
        unknown = set(self.attention_kinds) - ATTENTION_KINDS
        if unknown:
            return f"layers of kind {sorted(unknown)} carry state that branches cannot share"
        if self.attn_implementation not in MASKED_ATTENTION:
            return f"attn_implementation={self.attn_implementation!r} takes no 4-D mask; use 'sdpa'"
        configs = cast(Any, self.model).peft_config.values() if self.has_adapters else ()
        if any(config.is_prompt_learning for config in configs):
            return "prompt-learning adapters add virtual tokens inside the model"
        return None

    @property
    def attn_implementation(self) -> str:
        """How the text model attends; a wrapper's config may name another for its vision tower."""
        return str(cast(Any, self.text_model).config._attn_implementation)

    @property
    def caches_encodings(self) -> bool:
        """True where nothing before the seam trains, so that a prompt's encoding never changes."""
        return not trains_before_seam(self.base)

    def encode(self, inputs: PromptInputs) -> PromptEncoding:
        """Runs everything before the seam for one prompt; with gradients where that part trains."""
        inputs = inputs.to(self.device, self.dtype)
        frozen = self.caches_encodings
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            arguments = capture_text_inputs(self.base, self.text_model, inputs.tensors)
        encoding = encoding_from_call(arguments, self.attention_kinds)
        # `enable_input_require_grads` marks even what was computed without a graph; kept for epochs, such a
        # leaf would collect gradients that nobody reads.
        return encoding.detach() if frozen else encoding

    def embed(self, inputs: PromptInputs, modalities: Sequence[str]) -> Modalities:
        """Modality embeddings of several right-padded prompts in one forward; see `models.embedding`."""
        return embed(self, inputs, modalities)

    def embed_tokens(self, ids: Tensor) -> Tensor:
        embeds: Tensor = self.base.get_input_embeddings()(ids)
        return embeds

    def run_text(
        self,
        embeds: Tensor,
        positions: Tensor,
        visible: Visibility,
        *,
        cache: Cache | None = None,
        visual_mask: Tensor | None = None,
        deepstack: Sequence[Tensor] = (),
    ) -> Tensor:
        """One forward of the text model.

        Args:
            embeds: (B, Q, D) inputs.
            positions: (A, B, Q) position ids.
            visible: per attention kind, (B, Q, K) True where a query may look at a key.
            cache: earlier keys and values; this call's are appended.
            visual_mask: (B, Q) True at image tokens, where `deepstack` adds to them.
            deepstack: per layer the (image tokens, D) features to add.

        Returns:
            (B, Q, D) last hidden states, after the final norm.
        """
        masks = {kind: self._attention_mask(mask) for kind, mask in visible.items()}
        extras = {}
        if visual_mask is not None and deepstack:
            extras = {"visual_pos_masks": visual_mask, "deepstack_visual_embeds": list(deepstack)}
        output = self.text_model(
            inputs_embeds=embeds,
            attention_mask=masks if len(masks) > 1 else next(iter(masks.values())),
            position_ids=positions[0] if positions.shape[0] == 1 else positions,
            past_key_values=cache,
            use_cache=cache is not None,
            **extras,
        )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def _attention_mask(self, visible: Tensor) -> Tensor:
        visible = visible[:, None]
        if self.attn_implementation == "sdpa":
            return visible
        blocked = torch.finfo(self.dtype).min
        return torch.zeros_like(visible, dtype=self.dtype).masked_fill(~visible, blocked)

    @contextlib.contextmanager
    def without_adapters(self) -> Iterator[None]:
        """The pretrained model: adapters off, whatever else trains unchanged."""
        if not self.has_adapters:
            raise UnsupportedModelError("the model has no adapters to switch off; keep a frozen copy instead")
        with cast(Any, self.model).disable_adapter():
            yield


@functools.cache
def _forward_mentions(model_class: Any, name: str) -> bool:
    return name in inspect.getsource(model_class.forward)


def _softcap(model: PreTrainedModel) -> float | None:
    """The soft cap that this model class applies.

    Gemma-family configs all carry one, but not every class applies it (Gemma 3's ignores it): only its own
    forward tells. Verification compares with that forward on the first batch."""
    name = "final_logit_softcapping"
    cap = getattr(model.config.get_text_config(decoder=True), name, None)
    model_class: Any = type(model)  # mypy holds that modules have no hash
    return cap if _forward_mentions(model_class, name) else None


def load_backbone(
    name_or_path: str,
    *,
    peft_config: PeftConfig | None = None,
    trainable: Sequence[str] | None = None,
    dtype: torch.dtype | str = "auto",
    attn_implementation: str | None = None,
    processor: ProcessorMixin | None = None,
    **kwargs: Any,
) -> Backbone:
    """Loads any `AutoModelForImageTextToText` with a causal text model, and its processor.

    Args:
        name_or_path: hub id, folder, or the name of a packaged model (`mmft/tiny-captioner`).
        peft_config: adapters to add; their weights train.
        trainable: pretrained weights that train: parts (`vision`, `projector`, `language` with its head,
            `head` alone) or patterns over names. Default: none with `peft_config`, else `("language",)`.
        dtype: of the weights; `"auto"` keeps the checkpoint's.
        attn_implementation: `sdpa` or `eager` share the prompt; others take the plain path.
        processor: replaces the checkpoint's own processor.
        **kwargs: for the model's `from_pretrained` (`revision`, `quantization_config`, `device_map`, ...).

    Raises:
        UnsupportedModelError: encoder-decoder models and unknown seams.

    Example:
        >>> from mmft import load_backbone
        >>> backbone = load_backbone("mmft/tiny-captioner", trainable=["projector"])
        >>> weights = [name for name, weight in backbone.base.named_parameters() if weight.requires_grad]
        >>> sorted({name.split(".")[1] for name in weights})
        ['multi_modal_projector']
        >>> backbone.why_not_packed() is None  # completions of a picture share its prompt
        True
    """
    shared = {name: kwargs[name] for name in ("revision", "trust_remote_code") if name in kwargs}
    path = model_path(name_or_path)
    if processor is None:
        processor = _load_processor(path, **shared)
    if attn_implementation is not None:
        kwargs["attn_implementation"] = attn_implementation
    try:
        model = AutoModelForImageTextToText.from_pretrained(path, dtype=dtype, **kwargs)
    except ValueError as error:
        if "Unrecognized configuration class" not in str(error):
            raise
        raise UnsupportedModelError(
            f"`model_name_or_path={name_or_path}` is not an image-text-to-text model of transformers. "
            "Choose a vision-language model with a causal text model."
        ) from error
    # A name alone does not say which revision it was.
    source = name_or_path if kwargs.get("revision") in (None, "main") else None
    return make_backbone(model, processor, peft_config=peft_config, trainable=trainable, source=source)


def _load_processor(name_or_path: str, **kwargs: Any) -> ProcessorMixin:
    try:
        return AutoProcessor.from_pretrained(name_or_path, **kwargs)
    except ImportError as error:
        # Without torchvision, transformers 5 builds no processor that also takes videos.
        missing = " ".join(str(error).split())
        raise UnsupportedModelError(
            f"the processor of `{name_or_path}` needs a package that is missing ({missing}). Install it "
            "(most often `pip install torchvision`), or pass `processor=`."
        ) from error


def make_backbone(
    model: nn.Module,
    processor: ProcessorMixin,
    *,
    peft_config: PeftConfig | None = None,
    trainable: Sequence[str] | None = None,
    source: str | None = None,
) -> Backbone:
    """A backbone from a model in memory; arguments as in `load_backbone`.

    `source` names a place to load exactly these weights from again, adapters aside."""
    if trainable is None:
        trainable = () if peft_config is not None or has_adapters(model) else ("language",)
    find_text_model(unwrap(model))  # an unsupported model is named before adapters are put into it
    if peft_config is not None:
        from peft import get_peft_model

        # PEFT writes into the config what it found in this model ("all-linear" becomes a list of names).
        model = get_peft_model(unwrap(model), copy.deepcopy(peft_config))
    apply_freeze_rules(model, trainable)
    return Backbone(model, processor, source)


def as_backbone(
    model: str | nn.Module,
    processor: ProcessorMixin | None,
    peft_config: PeftConfig | None,
    *,
    trainable: Sequence[str] | None = None,
) -> Backbone:
    """What trainers take for a model: a name or folder, one in memory, or a backbone, which stays as it is.

    Raises:
        ConfigError: a model in memory comes without its processor.
    """
    if isinstance(model, Backbone):
        return model
    if isinstance(model, str):
        return load_backbone(model, processor=processor, peft_config=peft_config, trainable=trainable)
    if processor is None:
        raise ConfigError("`processing_class` is missing: a model in memory needs its processor.")
    return make_backbone(model, processor, peft_config=peft_config, trainable=trainable)
