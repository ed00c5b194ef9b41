"""Sampling completions: the prompt is prefilled once, its keys and values fan out to G streams.

Shapes: B prompts, G completions each, N = B * G streams, R completion tokens, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.cache_utils import DynamicCache

from mmft.engine.kv_cache import fan_out
from mmft.engine.log_probs import log_probs_from_logits
from mmft.engine.packing import Completions, decode_visibility, prompt_visibility
from mmft.engine.sampling import SamplingParams, choose
from mmft.models.backbone import Backbone
from mmft.models.prompts import PromptBatch, PromptEncoding, PromptInputs, collate_prompts, repeat_groups


@dataclass(frozen=True, slots=True)
class Samples:
    """Completions with what the sampler knew when it drew them; N = prompts * G, prompt-major."""

    completions: Completions
    logps: Tensor
    """(N, R) log-probs under the policy at its temperature, before top-k and top-p."""
    values: Tensor | None
    """(N, R) critic's values of the state before each token, or None where they were not computed."""
    ended: Tensor
    """(N,) True where the completion ends with an end token, False where it was cut."""


class _Recorder:
    """Collects ids, log-probs and values of N streams as they grow, and who is done."""

    def __init__(
        self, num_streams: int, length: int, end_ids: frozenset[int], pad_id: int, device: torch.device
    ):
        self.ids = torch.full((num_streams, length), pad_id, dtype=torch.long, device=device)
        self.mask = torch.zeros(num_streams, length, dtype=torch.bool, device=device)
        self.logps = torch.zeros(num_streams, length, device=device)
        self.values = torch.zeros(num_streams, length, device=device)
        self.ended = torch.zeros(num_streams, dtype=torch.bool, device=device)
        self.end_ids = torch.tensor(sorted(end_ids), dtype=torch.long, device=device)

    def add(self, step: int, streams: Tensor, ids: Tensor, logps: Tensor, values: Tensor | None) -> None:
        """Records one token of each named stream that has not ended."""
        open_ = ~self.ended[streams]
        streams, ids = streams[open_], ids[open_]
        self.ids[streams, step] = ids
        self.mask[streams, step] = True
        self.logps[streams, step] = logps[open_]
        if values is not None:
            self.values[streams, step] = values[open_]
        self.ended[streams] = torch.isin(ids, self.end_ids)

    def samples(self, num_generations: int, has_values: bool) -> Samples:
        width = max(int(self.mask.sum(1).max()), 1)
        groups = torch.arange(self.ids.shape[0], device=self.ids.device) // num_generations
        completions = Completions(self.ids[:, :width], self.mask[:, :width], groups)
        values = self.values[:, :width] if has_values else None
        return Samples(completions, self.logps[:, :width], values, self.ended)


@torch.no_grad()
def sample_packed(
    backbone: Backbone,
    value_head: nn.Module | None,
    prompts: Sequence[PromptEncoding],
    params: SamplingParams,
    noise: Tensor | None,
    *,
    anyone_open: Callable[[bool], bool] = lambda is_open: is_open,
) -> Samples:
    """Draws G completions per prompt from one prefill per prompt.

    Args:
        backbone: the policy.
        value_head: the critic; its values come for free, from the hidden states that predict the tokens.
        prompts: B encoded prompts.
        params: how to draw.
        noise: (N, max_completion_length) uniforms; None decodes greedily.
        anyone_open: with sharded weights every forward is collective: tells whether any process still has a
            stream to extend, given whether this one has.
    """
    batch = collate_prompts(prompts)
    cache = DynamicCache()  # without a config every layer keeps all keys; windows are in our masks
    kinds, window, head = backbone.attention_kinds, backbone.sliding_window, backbone.head
    hidden = backbone.run_text(
        batch.embeds,
        batch.positions,
        prompt_visibility(batch, kinds, window),
        cache=cache,
        visual_mask=batch.visual_mask,
        deepstack=batch.deepstack,
    )[:, -1]
    fan_out(cache, params.num_generations, room=params.max_completion_length)
    hidden = hidden.repeat_interleave(params.num_generations, 0)
    batch = repeat_groups(batch, params.num_generations)
    streams = torch.arange(hidden.shape[0], device=hidden.device)
    record = _Recorder(
        len(streams), params.max_completion_length, backbone.end_ids, backbone.pad_id, hidden.device
    )
    for step in range(params.max_completion_length):
        logits = head.for_decoding(hidden).div_(params.policy_temperature)
        ids = choose(
            logits,
            None if noise is None else noise[streams.cpu(), step],
            top_k=params.top_k,
            top_p=params.top_p,
        )
        logps, _ = log_probs_from_logits(logits, ids)
        record.add(step, streams, ids, logps, None if value_head is None else value_head(hidden))
        open_ = ~record.ended[streams]
        if step + 1 == params.max_completion_length or not anyone_open(bool(open_.any())):
            break
        if 0 < 2 * int(open_.sum()) <= len(streams):  # drop ended streams once they are half of the batch
            streams, ids, batch = streams[open_], ids[open_], _select(batch, open_)
            cache.batch_select_indices(open_.nonzero().squeeze(-1))
        hidden = backbone.run_text(
            backbone.embed_tokens(ids[:, None]).to(hidden.dtype),
            (batch.next_position + step).expand(batch.positions.shape[0], -1)[..., None],
            decode_visibility(batch, step + 1, kinds, window),
            cache=cache,
        )[:, -1]
    return record.samples(params.num_generations, value_head is not None)


def _select(batch: PromptBatch, keep: Tensor) -> PromptBatch:
    return PromptBatch(
        embeds=batch.embeds[keep],
        positions=batch.positions[:, keep],
        valid=batch.valid[keep],
        next_position=batch.next_position[keep],
        visible=None,
        visual_mask=None,
        deepstack=(),
    )


class _NoisyChoice(LogitsProcessor):
    """Makes `generate` take the token that our own sampler would take, and records its log-prob.

    Greedy search over scores that are -inf everywhere but at the chosen token."""

    def __init__(
        self, backbone: Backbone, params: SamplingParams, noise: Tensor | None, record: _Recorder
    ) -> None:
        self.head, self.params, self.noise, self.record = backbone.head, params, noise, record
        self.step = 0
        self.streams = torch.arange(record.ids.shape[0], device=record.ids.device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        logits = self.head.forbid_(scores.float().clone()) / self.params.policy_temperature
        noise = None if self.noise is None else self.noise[:, self.step]
        ids = choose(logits, noise, top_k=self.params.top_k, top_p=self.params.top_p)
        logps, _ = log_probs_from_logits(logits, ids)
        self.record.add(self.step, self.streams, ids, logps, None)
        self.step += 1
        return torch.full_like(scores, float("-inf")).scatter(-1, ids[:, None], 0.0)


@torch.no_grad()
def sample_plain(
    backbone: Backbone, prompts: Sequence[PromptInputs], params: SamplingParams, noise: Tensor | None
) -> Samples:
    """Draws through the model's own `generate`, one prompt at a time with its G samples repeated.

    For models that cannot share a prompt. Same noise, same tokens as `sample_packed`, but no values."""
    count = params.num_generations
    rows = []
    for number, prompt in enumerate(prompts):
        record = _Recorder(
            count, params.max_completion_length, backbone.end_ids, backbone.pad_id, backbone.device
        )
        part = None if noise is None else noise[number * count : (number + 1) * count]
        config = GenerationConfig(
            max_new_tokens=params.max_completion_length,
            do_sample=False,
            num_return_sequences=1,
            eos_token_id=sorted(backbone.end_ids) or None,
            pad_token_id=backbone.pad_id,
            use_cache=True,
        )
        inputs = prompt.to(backbone.device, backbone.dtype).tensors
        with _no_generation_defaults(backbone):
            cast(Any, backbone.model).generate(
                **_repeat_inputs(inputs, count),
                generation_config=config,
                logits_processor=LogitsProcessorList([_NoisyChoice(backbone, params, part, record)]),
            )
        rows.append(record)
    return _join(rows, params)


@contextlib.contextmanager
def _no_generation_defaults(backbone: Backbone) -> Iterator[None]:
    """Keeps a checkpoint's generation settings (a repetition penalty, a minimum length) out of `generate`.

    It fills in what our settings leave open, and the policy would not be the one that is scored."""
    owners: list[Any] = [m for m in (backbone.model, backbone.base) if hasattr(m, "generation_config")]
    kept = [owner.generation_config for owner in owners]
    try:
        for owner in owners:
            owner.generation_config = GenerationConfig()
        yield
    finally:
        for owner, config in zip(owners, kept, strict=True):
            owner.generation_config = config


def _repeat_inputs(inputs: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """The prompt `count` times over.

    Every input of a single prompt repeats along its first axis, also those that run over images or patches:
    `generate(num_return_sequences=...)` interleaves those, and mixes up several images."""
    return {name: torch.cat([value] * count) for name, value in inputs.items()}


def _join(rows: Sequence[_Recorder], params: SamplingParams) -> Samples:
    whole = _Recorder(0, params.max_completion_length, frozenset(), 0, rows[0].ids.device)
    for name in ("ids", "mask", "logps", "values", "ended"):
        setattr(whole, name, torch.cat([getattr(row, name) for row in rows]))
    return whole.samples(params.num_generations, has_values=False)
