"""The policy, its reference and its critic as one module, whose `forward` is the shared-prompt scoring.

It lives in the engine, above `models`, because its forward is the engine; DDP, FSDP and DeepSpeed wrap it as any module.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmft.engine.packing import Completions
from mmft.engine.rollout import Samples, sample_packed, sample_plain
from mmft.engine.sampling import SamplingParams
from mmft.engine.scoring import Scores, score_packed, score_plain
from mmft.models.backbone import Backbone
from mmft.models.heads import ValueHead
from mmft.models.prompts import PromptEncoding, PromptInputs

HEADS_FILE = "heads.safetensors"
Prompts = Sequence[PromptInputs] | Sequence[PromptEncoding]
"""Encoded prompts, or raw ones that are encoded in the graph (vision or projector trains) or scored plainly."""


class VLMActorCritic(nn.Module):
    """Owns the backbone, the value head and the reference policy.

    Attributes:
        backbone: the policy.
        value_head: the critic, or None for critic-free algorithms.
        packed: True shares prompts; False takes the plain path (see `engine.verify`).
    """

    def __init__(self, backbone: Backbone, *, critic: bool = True, reference: bool = True) -> None:
        super().__init__()
        self.backbone = backbone
        self.value_head = ValueHead(backbone.hidden_size).to(backbone.device) if critic else None
        self.packed = backbone.why_not_packed() is None
        # In a list so that it is no submodule: it neither trains, nor is wrapped, nor is saved.
        self._frozen_copy = [] if backbone.has_adapters or not reference else [_frozen_copy(backbone)]

    @property
    def config(self) -> Any:
        return self.backbone.base.config

    @property
    def _no_split_modules(self) -> Any:  # read by Accelerate's FSDP auto-wrap policy
        return self.backbone.base._no_split_modules

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None
    ) -> None:
        """Called by the Trainer for `gradient_checkpointing`."""
        self.backbone.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs)
        if self.backbone.has_adapters:  # frozen inputs would otherwise cut the graph at the first checkpoint
            self.backbone.base.enable_input_require_grads()

    def forward(self, prompts: Prompts, completions: Completions, *, temperature: float = 1.0) -> Scores:
        """Log-probs, entropies and values of `completions`; gradients as the caller's grad mode says."""
        return self._score(self.backbone, self.value_head, prompts, completions, temperature)

    def _score(
        self,
        backbone: Backbone,
        value_head: nn.Module | None,
        prompts: Prompts,
        completions: Completions,
        temperature: float,
    ) -> Scores:
        if not self.packed:
            return score_plain(backbone, value_head, prompts, completions, temperature=temperature)
        encoded = [backbone.encode(p) if isinstance(p, PromptInputs) else p for p in prompts]
        return score_packed(backbone, value_head, encoded, completions, temperature=temperature)

    @torch.no_grad()
    def reference_logps(
        self, prompts: Prompts, completions: Completions, *, temperature: float = 1.0
    ) -> Tensor:
        """(N, R) log-probs under the pretrained policy: adapters switched off, or the frozen copy."""
        with self._reference() as backbone:
            return self._score(backbone, None, prompts, completions, temperature).logps

    @contextlib.contextmanager
    def _reference(self) -> Iterator[Backbone]:
        if self._frozen_copy:
            yield self._frozen_copy[0]
        else:
            with self.backbone.without_adapters():
                yield self.backbone

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
        if not self.packed:
            return sample_plain(self.backbone, prompts, params, noise)
        encoded = [self.backbone.encode(p) if isinstance(p, PromptInputs) else p for p in prompts]
        return sample_packed(self.backbone, self.value_head, encoded, params, noise, anyone_open=anyone_open)

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
        self.backbone.model.save_pretrained(folder, state_dict=model_state)
        self.backbone.processor.save_pretrained(folder)
        if self.value_head is not None:
            state = state_dict if state_dict is not None else self.state_dict()
            heads = {
                n: t.detach().cpu().contiguous() for n, t in state.items() if n.startswith("value_head.")
            }
            save_file(heads, folder / HEADS_FILE)

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
        else:
            loaded = type(self.backbone.base).from_pretrained(folder, dtype=self.backbone.dtype)
            self.backbone.base.load_state_dict(loaded.state_dict())
        self.load_heads(folder)


def _frozen_copy(backbone: Backbone) -> Backbone:
    """The pretrained policy as it is now. Frozen weights are shared with the policy; only trainable ones are copied."""
    shared = {id(p): p for p in backbone.model.parameters() if not p.requires_grad}
    shared |= {id(b): b for b in backbone.model.buffers()}
    model = copy.deepcopy(backbone.model, memo=dict(shared)).eval()
    for parameter in model.parameters():
        if id(parameter) not in shared:
            parameter.requires_grad_(False)
    return Backbone(model, backbone.processor)
