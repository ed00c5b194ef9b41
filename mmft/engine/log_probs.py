"""Log-probs of chosen tokens without ever holding the (tokens, vocabulary) logits.

Shapes: M token positions, D width, V vocabulary, C tokens of one chunk.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mmft.models.heads import LanguageHead

CHUNK_BYTES = 64 * 2**20
"""Upper bound of the fp32 logits that exist at one time."""


def token_log_probs(
    hidden: Tensor,
    ids: Tensor,
    head: LanguageHead,
    *,
    temperature: float = 1.0,
    entropies: bool = True,
    entropy_gradients: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Log-prob of each id, and the entropy of the distribution it was drawn from.

        z_i = head(h_i) / temperature
        logp_i = z_i[id_i] - logsumexp(z_i),   H_i = logsumexp(z_i) - sum_v p_iv z_iv

    Args:
        hidden: (M, D) hidden states that predict the ids.
        ids: (M,) chosen tokens.
        head: the language-model head.
        temperature: of the policy, > 0.
        entropies: whether they are wanted; they cost two more passes over the logits.
        entropy_gradients: whether the entropies have gradients too; they cost another product with the head.

    Returns:
        (M,) fp32 log-probs with gradients, (M,) fp32 entropies without unless asked for (None if not wanted).
    """
    if entropy_gradients and not entropies:
        raise ValueError("`entropy_gradients` is True, but `entropies` is False. Ask for both.")
    if hidden.shape[0] == 0:
        empty = hidden.new_zeros(0, dtype=torch.float32)
        return empty, empty if entropies else None
    weight = head.weight
    if weight is not None and torch.is_grad_enabled() and hidden.requires_grad:
        wanted = (entropies, entropy_gradients)
        logps, joined = _FrozenHeadLogProbs.apply(hidden, ids, head, weight, temperature, *wanted)
        return logps, joined if entropies else None
    size = _chunk_size(head)
    parts = []
    for chunk, chosen in zip(hidden.split(size), ids.split(size), strict=True):
        arguments = (chunk, chosen, head, temperature, entropies, entropy_gradients)
        if torch.is_grad_enabled() and hidden.shape[0] > size:
            # Recompute this chunk's logits in the backward instead of keeping them.
            parts.append(checkpoint(_log_probs, *arguments, use_reentrant=False))
        else:
            parts.append(_log_probs(*arguments))
    logps, found = zip(*parts, strict=True)
    return torch.cat(logps), torch.cat(found) if entropies else None


def _chunk_size(head: LanguageHead) -> int:
    """Token positions whose fp32 logits fit into CHUNK_BYTES."""
    vocab_size: int = cast(Any, head.projection).weight.shape[0]
    return max(1, CHUNK_BYTES // (4 * vocab_size))


def _log_probs(
    hidden: Tensor,
    ids: Tensor,
    head: LanguageHead,
    temperature: float,
    entropies: bool,
    entropy_gradients: bool,
) -> tuple[Tensor, Tensor | None]:
    logits = head(hidden)
    logits = logits if temperature == 1 else logits / temperature
    logps, normalizer = log_probs_from_logits(logits, ids)
    if not entropies:
        return logps, None
    with torch.set_grad_enabled(entropy_gradients):
        probs = (logits - normalizer[:, None]).exp_()
        return logps, normalizer - torch.linalg.vecdot(probs, logits)


def log_probs_from_logits(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """(M, V) fp32 logits and (M,) ids to (M,) log-probs and the (M,) logsumexp they were normalised by."""
    normalizer = logits.logsumexp(-1)
    return logits.gather(-1, ids[:, None]).squeeze(-1) - normalizer, normalizer


class _FrozenHeadLogProbs(torch.autograd.Function):
    """Log-probs under a frozen head W, with the gradient worked out in the forward.

        d logp_i / d h_i = (W[id_i] - p_i W) / temperature
        d H_i / d h_i = -(sum_v p_iv (log p_iv + H_i) W[v]) / temperature                  if asked for

    The forward has p at hand, so (M, D) gradients are kept instead of (M, V) logits and the backward is one
    multiplication: the same arithmetic as autograd, without the memory and without recomputing the head.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        ids: Tensor,
        head: LanguageHead,
        weight: Tensor,
        temperature: float,
        entropies: bool,
        entropy_gradients: bool,
    ) -> tuple[Tensor, Tensor]:
        size = _chunk_size(head)
        logps, found, gradients, slopes = [], [], [], []
        for chunk, chosen in zip(hidden.split(size), ids.split(size), strict=True):
            logits = head(chunk)
            logits = logits if temperature == 1 else logits.div_(temperature)
            chunk_logps, normalizer = log_probs_from_logits(logits, chosen)
            logps.append(chunk_logps)
            probs = (logits - normalizer[:, None]).exp_()
            found.append(normalizer - torch.linalg.vecdot(probs, logits) if entropies else normalizer)
            if entropy_gradients:
                # p (log p + H), in the memory of the logits: 0 * -1e30 = 0 where a token may not be said.
                surprise = logits.add_((found[-1] - normalizer)[:, None]).mul_(probs)
                slopes.append((surprise.to(weight.dtype) @ weight).div_(-temperature))
            # (W[id] - p W) / temperature, in one matrix product: p[id] - 1 first, sign and scale after.
            probs[torch.arange(len(chosen), device=chosen.device), chosen] -= 1
            gradients.append((probs.to(weight.dtype) @ weight).div_(-temperature))
        ctx.save_for_backward(*(torch.cat(each).to(hidden.dtype) for each in (gradients, slopes) if each))
        joined = torch.cat(found)
        if not entropy_gradients:
            ctx.mark_non_differentiable(joined)
        return torch.cat(logps), joined

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        # The entropies' share comes second, if at all; their upstream is one of zeros where nobody used them.
        shares = zip(upstream, ctx.saved_tensors, strict=False)
        total = sum(above[:, None].to(slope.dtype) * slope for above, slope in shares)
        return total, None, None, None, None, None, None
