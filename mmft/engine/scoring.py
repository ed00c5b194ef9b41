"""Log-probs, entropies and values of completions: packed (the prompt computed once) or plain (one by one).

Shapes: N completions, R completion tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmft.engine.log_probs import token_log_probs
from mmft.engine.packing import Completions, pack, packed_positions, packed_visibility
from mmft.models.backbone import Backbone
from mmft.models.prompts import PromptEncoding, PromptInputs, collate_prompts

PER_TOKEN_FILL = {"attention_mask": 1, "mm_token_type_ids": 0, "token_type_ids": 0}
"""What a completion token carries in the processor's per-token inputs: it is seen, and it is text."""
SUFFIX_TOKEN_TYPE = {"paligemma": 1}
"""Families whose token types tell prefix (0) from suffix (1) instead of text (0) from image (1)."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Per-token scores of N completions; padding holds 0."""

    logps: Tensor
    """(N, R) log-probs of the completion tokens under the policy."""
    entropies: Tensor | None
    """(N, R) entropies of the distributions they were drawn from, detached unless asked for with gradients;
    None if not wanted."""
    values: Tensor | None
    """(N, R) critic's values of the state before each token; None without a critic."""


def score_packed(
    backbone: Backbone,
    value_head: nn.Module | None,
    prompts: Sequence[PromptEncoding],
    completions: Completions,
    *,
    temperature: float = 1.0,
    entropies: bool = True,
    entropy_gradients: bool = False,
) -> Scores:
    """One forward over `[prompt | completion 1 | ... | completion G]` per prompt; see `engine.packing`."""
    predictors = _packed_states(backbone, prompts, completions)
    wanted = (entropies, entropy_gradients)
    return _score_hidden(backbone, value_head, predictors, completions, temperature, *wanted)


def _packed_states(backbone: Backbone, prompts: Sequence[PromptEncoding], completions: Completions) -> Tensor:
    """(N, R, D) hidden states that predict each completion token."""
    batch = collate_prompts(prompts)
    width = batch.valid.shape[1]
    layout = pack(completions, len(prompts), width, backbone.pad_id)
    embeds = torch.cat([batch.embeds, backbone.embed_tokens(layout.ids).to(batch.embeds.dtype)], 1)
    visual_mask = batch.visual_mask
    if visual_mask is not None:
        visual_mask = torch.nn.functional.pad(visual_mask, (0, layout.ids.shape[1]))
    hidden = backbone.run_text(
        embeds,
        packed_positions(batch, layout),
        packed_visibility(batch, layout, backbone.attention_kinds, backbone.sliding_window),
        visual_mask=visual_mask,
        deepstack=batch.deepstack,
    )
    return hidden[completions.prompt_index[:, None], layout.predictor]


def score_plain(
    backbone: Backbone,
    value_head: nn.Module | None,
    prompts: Sequence[PromptInputs],
    completions: Completions,
    *,
    temperature: float = 1.0,
    entropies: bool = True,
    entropy_gradients: bool = False,
) -> Scores:
    """Each completion in a whole forward of its own through the unchanged model: slow, and the truth."""
    width = completions.ids.shape[1]
    rows = []
    for n, index in enumerate(completions.prompt_index.tolist()):
        length = int(completions.lengths[n])
        hidden = _plain_hidden(backbone, prompts[index], completions.ids[n, :length])
        rows.append(torch.nn.functional.pad(hidden, (0, 0, 0, width - length)))
    wanted = (entropies, entropy_gradients)
    return _score_hidden(backbone, value_head, torch.stack(rows), completions, temperature, *wanted)


def last_states_packed(
    backbone: Backbone,
    prompts: Sequence[PromptEncoding],
    completions: Completions,
    *,
    likelihood: bool = False,
) -> Tensor:
    """(N, D) hidden states at the last token of each completion; of an empty one, at the prompt's last.

    With `likelihood` (N, D + 2): behind them the mean and the least log-prob of the completion's tokens."""
    longer, lengths = _with_one_more(completions, backbone.pad_id), completions.lengths
    states = _packed_states(backbone, prompts, longer)
    last = states[torch.arange(len(lengths), device=lengths.device), lengths]
    return _with_likelihood(backbone, last, states[:, :-1], completions) if likelihood else last


def last_states_plain(
    backbone: Backbone,
    prompts: Sequence[PromptInputs],
    completions: Completions,
    *,
    likelihood: bool = False,
) -> Tensor:
    """The same, each completion in a whole forward of its own through the unchanged model."""
    width = completions.ids.shape[1]
    last, predictors = [], []
    for n, index in enumerate(completions.prompt_index.tolist()):
        length = int(completions.lengths[n])
        ids = completions.ids[n, :length]
        hidden, _ = run_whole(backbone, extend_inputs(backbone, prompts[index], ids))
        last.append(hidden[0, -1])
        before = hidden[0, hidden.shape[1] - length - 1 : -1]
        predictors.append(torch.nn.functional.pad(before, (0, 0, 0, width - length)))
    states = torch.stack(last)
    return _with_likelihood(backbone, states, torch.stack(predictors), completions) if likelihood else states


def _with_likelihood(
    backbone: Backbone, states: Tensor, predictors: Tensor, completions: Completions
) -> Tensor:
    """(N, D + 2) fp32 from (N, D) last states and the (N, R, D) states that predict each token."""
    mask = completions.mask
    chosen, ids = predictors[mask], completions.ids[mask]
    logps, _ = token_log_probs(chosen, ids, backbone.head, temperature=1.0, entropies=False)
    by_token = _scatter(logps, mask)
    mean = by_token.sum(1) / completions.lengths.clamp(min=1)
    # Padding holds 0, the largest log-prob there is.
    return torch.cat([states.float(), mean[:, None], by_token.amin(1)[:, None]], 1)


def _with_one_more(completions: Completions, pad_id: int) -> Completions:
    """Completions one token longer: the last token is only ever predicted, so that now all others are fed."""
    ids = torch.nn.functional.pad(completions.ids, (0, 1), value=pad_id)
    mask = torch.nn.functional.pad(completions.mask, (1, 0), value=True)
    return Completions(ids, mask, completions.prompt_index)


def extend_inputs(backbone: Backbone, prompt: PromptInputs, ids: Tensor) -> dict[str, Tensor]:
    """The processor's inputs for prompt + completion, batch size 1; `ids` is (R,)."""
    inputs = dict(prompt.to(backbone.device, backbone.dtype).tensors)
    fill = dict(PER_TOKEN_FILL)
    fill["token_type_ids"] = SUFFIX_TOKEN_TYPE.get(backbone.base.config.model_type, 0)
    for name, value in fill.items():
        if name in inputs:
            tail = inputs[name].new_full((1, ids.shape[0]), value)
            inputs[name] = torch.cat([inputs[name], tail], 1)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], ids[None].to(inputs["input_ids"])], 1)
    return inputs


def _plain_hidden(backbone: Backbone, prompt: PromptInputs, ids: Tensor) -> Tensor:
    """(R, D) hidden states that predict each id."""
    hidden, _ = run_whole(backbone, extend_inputs(backbone, prompt, ids))
    return hidden[0, -ids.shape[0] - 1 : -1]


def run_whole(backbone: Backbone, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The unchanged model: (B, L, D) last hidden states of its text model, (B, V) its own last logits."""
    outputs: list[Tensor] = []
    handle = backbone.text_model.register_forward_hook(
        lambda module, args, output: outputs.append(output.last_hidden_state)
    )
    try:
        # logits_to_keep=1: the head runs on one position; ours runs on the completion.
        logits = backbone.model(**inputs, use_cache=False, logits_to_keep=1).logits
    finally:
        handle.remove()
    return outputs[0], logits[:, -1]


def _score_hidden(
    backbone: Backbone,
    value_head: nn.Module | None,
    hidden: Tensor,
    completions: Completions,
    temperature: float,
    entropies: bool,
    entropy_gradients: bool,
) -> Scores:
    """Scores from (N, R, D) predicting hidden states; only real tokens pass the heads."""
    mask = completions.mask
    chosen = hidden[mask]
    logps, found = token_log_probs(
        chosen,
        completions.ids[mask],
        backbone.head,
        temperature=temperature,
        entropies=entropies,
        entropy_gradients=entropy_gradients,
    )
    return Scores(
        logps=_scatter(logps, mask),
        entropies=None if found is None else _scatter(found, mask),
        values=None if value_head is None else _scatter(value_head(chosen), mask),
    )


def _scatter(flat: Tensor, mask: Tensor) -> Tensor:
    return torch.zeros(mask.shape, dtype=flat.dtype, device=flat.device).masked_scatter(mask, flat)
