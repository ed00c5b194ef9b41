"""The policy, its reference and its critic as one module, whose `forward` is the shared-prompt scoring.

It lives in the engine, above `models`, because its forward is the engine; DDP, FSDP and DeepSpeed wrap it as
any module.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmft.engine.packing import Completions
from mmft.engine.rollout import Samples, sample_packed, sample_plain
from mmft.engine.sampling import SamplingParams
from mmft.engine.scoring import Scores, score_packed, score_plain
from mmft.errors import UnsupportedModelError
from mmft.models.adapters import PRETRAINED_FILE
from mmft.models.backbone import Backbone
from mmft.models.freezing import trained_pretrained_weights
from mmft.models.heads import ValueHead
from mmft.models.prompts import PromptEncoding, PromptInputs

HEADS_FILE = "heads.safetensors"
Result = TypeVar("Result")
Prompts = Sequence[PromptInputs] | Sequence[PromptEncoding]
"""Encoded prompts, or raw ones: encoded in the graph (vision or projector trains) or scored plainly."""


class VLMActorCritic(nn.Module):
    """Owns the backbone, the value head and the reference policy.

    Attributes:
        backbone: the policy.
        value_head: the critic, or None for critic-free algorithms.
        packed: True shares prompts; False takes the plain path (see `engine.verify`).

    Example:
        >>> from mmft import VLMActorCritic, load_backbone
        >>> model = VLMActorCritic(load_backbone("mmft/tiny-captioner", trainable=["projector"]))
        >>> model.packed, model.value_head is not None  # prompts are shared; there is a critic
        (True, True)
        >>> model.frozen_copy is not None  # the reference: the projector is going to move
        True
    """

    def __init__(self, backbone: Backbone, *, critic: bool = True, reference: bool = True) -> None:
        super().__init__()
        self.backbone = backbone
        self.value_head = ValueHead(backbone.hidden_size).to(backbone.device) if critic else None
        self.packed = backbone.why_not_packed() is None
        # With adapters the reference is free, as long as nothing else moves.
        needs_copy = reference and bool(trained_pretrained_weights(backbone.model))
        # In a list so that it is no submodule: it neither trains, nor is wrapped, nor is saved.
        self._frozen_copy = [_frozen_copy(backbone)] if needs_copy else []

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> VLMActorCritic:
        """Takes the frozen copy along when the module moves to another device or dtype."""
        super()._apply(fn, recurse)
        for backbone in self._frozen_copy:
            backbone._apply(fn, recurse)
        return self

    @property
    def frozen_copy(self) -> Backbone | None:
        """The policy as it was when this module was made, where it had to be kept as the reference."""
        return self._frozen_copy[0] if self._frozen_copy else None

    @property
    def config(self) -> Any:
        return self.backbone.base.config

    @property
    def _no_split_modules(self) -> list[str]:
        """Read by Accelerate's FSDP auto-wrap policy, which refuses layers that the model does not have."""
        present = {type(module).__name__ for module in self.backbone.model.modules()}
        return sorted(present & set(self.backbone.base._no_split_modules or ()))

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """What the Trainer of older transformers calls."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **options)

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """Called by the Trainer where layers are to be recomputed in the backward."""
        model: Any = self.backbone.model
        renamed = hasattr(model, "activation_checkpointing_enable")
        enable = model.activation_checkpointing_enable if renamed else model.gradient_checkpointing_enable
        enable(activation_checkpointing_kwargs, **options)
        if self.backbone.has_adapters:  # frozen inputs would otherwise cut the graph at the first checkpoint
            self.backbone.base.enable_input_require_grads()

    def within_forward(self, work: Callable[[], Result]) -> Result:
        """Runs `work` as if it were this module's forward.

        Sharded weights are only whole inside a forward of the module that owns them, and encoding and
        sampling are none. FSDP is told to treat this method as one (`register_fsdp_forward_method`)."""
        return work()

    def forward(
        self,
        prompts: Prompts,
        completions: Completions,
        *,
        temperature: float = 1.0,
        entropies: bool = True,
        entropy_gradients: bool = False,
    ) -> Scores:
        """Log-probs, entropies and values of `completions`; gradients as the caller's grad mode says,
        those of entropies only where asked for."""
        return self._score(
            self.backbone,
            self.value_head,
            prompts,
            completions,
            temperature=temperature,
            entropies=entropies,
            entropy_gradients=entropy_gradients,
        )

    def _score(
        self,
        backbone: Backbone,
        value_head: nn.Module | None,
        prompts: Prompts,
        completions: Completions,
        **options: Any,
    ) -> Scores:
        if not self.packed:
            raw = raw_prompts(prompts)
            return score_plain(backbone, value_head, raw, completions, **options)
        encoded = [backbone.encode(p) if isinstance(p, PromptInputs) else p for p in prompts]
        return score_packed(backbone, value_head, encoded, completions, **options)

    @torch.no_grad()
    def reference_logps(
        self, prompts: Prompts, completions: Completions, *, temperature: float = 1.0
    ) -> Tensor:
        """(N, R) log-probs under the pretrained policy: adapters switched off, or the frozen copy."""
        with self._reference() as backbone:
            options: dict[str, Any] = {"temperature": temperature, "entropies": False}
            return self._score(backbone, None, prompts, completions, **options).logps

    @contextlib.contextmanager
    def _reference(self) -> Iterator[Backbone]:
        backbone = self._frozen_copy[0] if self._frozen_copy else self.backbone
        adapters_off = backbone.without_adapters() if backbone.has_adapters else contextlib.nullcontext()
        if not self._frozen_copy and not backbone.has_adapters:
            raise UnsupportedModelError("the model was built with `reference=False` and has no adapters")
        with evaluating(backbone.model), adapters_off:
            yield backbone

    @torch.no_grad()
    def sample(
        self,
        prompts: Prompts,
        params: SamplingParams,
        noise: Tensor | None,
        *,
        anyone_open: Callable[[bool], bool] = lambda is_open: is_open,
    ) -> Samples:
        """Draws completions; greedy without noise."""
        backbone = self.backbone
        # In training mode dropout would act, and gradient checkpointing takes the cache away.
        with evaluating(backbone.model):
            if not self.packed:
                return sample_plain(backbone, raw_prompts(prompts), params, noise)
            encoded = [backbone.encode(p) if isinstance(p, PromptInputs) else p for p in prompts]
            return sample_packed(backbone, self.value_head, encoded, params, noise, anyone_open=anyone_open)

    def save_pretrained(
        self, folder: str | os.PathLike[str], state_dict: dict[str, Tensor] | None = None
    ) -> None:
        """Writes the adapter (or the full model) as PEFT and transformers would, the processor and the heads.

        `state_dict` is the gathered state of the whole module, where its own tensors are sharded."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        prefix = "backbone.model."
        model_state = None
        if state_dict is not None:
            model_state = {n.removeprefix(prefix): t for n, t in state_dict.items() if n.startswith(prefix)}
        cast(Any, self.backbone.model).save_pretrained(folder, state_dict=model_state)
        self.backbone.processor.save_pretrained(folder)
        state = state_dict if state_dict is not None else self.state_dict()
        self._save_tensors(state, [n for n in state if n.startswith("value_head.")], folder / HEADS_FILE)
        if self.backbone.has_adapters:
            self._save_tensors(state, list(self._pretrained_beside_adapters()), folder / PRETRAINED_FILE)

    @staticmethod
    def _save_tensors(state: dict[str, Tensor], names: Sequence[str], path: Path) -> None:
        if names:
            save_file({name: state[name].detach().cpu().contiguous() for name in names}, path)

    def _pretrained_beside_adapters(self) -> dict[str, nn.Parameter]:
        trained = {id(p) for p in trained_pretrained_weights(self.backbone.model).values()}
        return {name: p for name, p in self.named_parameters() if id(p) in trained}

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], **options: Any) -> VLMActorCritic:
        """The policy and critic of a run, by its folder or hub id; see `engine.saved_policy.load_policy`."""
        from mmft.engine.saved_policy import load_policy  # it builds on this class

        return load_policy(name, **options)

    def load_heads(self, folder: str | os.PathLike[str]) -> None:
        """Restores the critic written by `save_pretrained`."""
        if self.value_head is not None:
            state = load_file(Path(folder) / HEADS_FILE)
            self.value_head.load_state_dict({n.removeprefix("value_head."): t for n, t in state.items()})

    def load_checkpoint(self, folder: str | os.PathLike[str]) -> None:
        """Restores every trained weight, bit by bit, into this model in place.

        Raises:
            FileNotFoundError: the folder holds no adapter and no model weights.
        """
        folder = Path(folder)
        if self.backbone.has_adapters:
            from peft import load_peft_weights, set_peft_model_state_dict

            set_peft_model_state_dict(self.backbone.model, load_peft_weights(str(folder), device="cpu"))
            beside = self._pretrained_beside_adapters()
            state = load_file(folder / PRETRAINED_FILE) if beside else {}
            with torch.no_grad():
                for name, parameter in beside.items():
                    parameter.copy_(state[name])
        else:
            loaded = type(self.backbone.base).from_pretrained(folder, dtype=self.backbone.dtype)
            self.backbone.base.load_state_dict(loaded.state_dict())
        self.load_heads(folder)


def _frozen_copy(backbone: Backbone) -> Backbone:
    """The pretrained policy as it is now; frozen weights are shared, only trainable ones are copied."""
    shared: dict[int, Tensor] = {id(p): p for p in backbone.model.parameters() if not p.requires_grad}
    shared |= {id(b): b for b in backbone.model.buffers()}
    model = copy.deepcopy(backbone.model, memo=dict(shared)).eval()
    for parameter in model.parameters():
        if id(parameter) not in shared:
            parameter.requires_grad_(False)
    return Backbone(model, backbone.processor)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards each module's own mode again."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def raw_prompts(prompts: Prompts) -> list[PromptInputs]:
    """The plain path starts before the seam.

    Raises:
        TypeError: a prompt is already encoded.
    """
    raw = [prompt for prompt in prompts if isinstance(prompt, PromptInputs)]
    if len(raw) < len(prompts):
        raise TypeError("`prompts` holds encoded prompts, but the plain path needs `PromptInputs`")
    return raw
