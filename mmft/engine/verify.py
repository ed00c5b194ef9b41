"""Verify, then trust: packed log-probs against the model's own forward, on the first batch of a run."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mmft.engine.packing import Completions
from mmft.engine.scoring import run_whole, score_packed, score_plain
from mmft.errors import UnsupportedModelError
from mmft.models.backbone import Backbone
from mmft.models.prompts import PromptEncoding, PromptInputs

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4, torch.float16: 3e-2, torch.bfloat16: 3e-2}
"""Mean absolute log-prob difference that rounding alone explains, per dtype of the arithmetic."""


@dataclass(frozen=True, slots=True)
class Verification:
    """What the first batch showed."""

    packed: bool
    """True if the shared-prompt path is used."""
    reason: str
    """Why, in words for the log and the summary."""
    difference: float | None = None
    """Largest packed-to-plain log-prob difference; None if packed was never tried."""
    sampler_difference: float | None = None
    """Largest sampler-to-plain log-prob difference; None where completions were given, not sampled."""


def first_completions(completions: Completions, count: int) -> Completions:
    """Up to `count` completions of the first prompt."""
    take = (completions.prompt_index == completions.prompt_index[0]).nonzero().squeeze(-1)[:count]
    return Completions(completions.ids[take], completions.mask[take], torch.zeros_like(take))


def with_sibling(completions: Completions) -> Completions:
    """At least two branches: packing of one alone would not show whether branches see each other.

    A lone completion gets itself read backwards as sibling; what it says is of no account."""
    if completions.ids.shape[0] > 1:
        return completions
    length = int(completions.lengths[0])
    backwards = completions.ids.clone()
    backwards[0, :length] = completions.ids[0, :length].flip(0)
    return Completions(
        torch.cat([completions.ids, backwards]),
        completions.mask.repeat(2, 1),
        completions.prompt_index.repeat(2),
    )


@torch.no_grad()
def check_head(backbone: Backbone, inputs: PromptInputs) -> None:
    """Our language head must be the model's own: scoring uses ours, packed or plain.

    Raises:
        UnsupportedModelError: the model does something to its logits that `LanguageHead` does not do.
    """
    hidden, logits = run_whole(backbone, inputs.to(backbone.device, backbone.dtype).tensors)
    head = backbone.head
    ours, theirs = head(hidden[:, -1]).log_softmax(-1), head.forbid_(logits.float()).log_softmax(-1)
    statistic, tolerance = _compare(ours, theirs, backbone.compute_dtype)
    if not statistic <= tolerance:
        raise UnsupportedModelError(
            f"{type(backbone.base).__name__} changes its logits in a way unknown to mmft: the log-probs of "
            f"its forward differ from those of its language head by {statistic:.1e}, allowed {tolerance:.0e}."
        )


def _compare(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> tuple[float, float]:
    """The difference by which `dtype` is judged (fp32 the largest, bf16 the mean), and the one allowed."""
    gap = (actual - expected).abs()
    statistic = gap.max() if dtype in (torch.float32, torch.float64) else gap.mean()
    return float(statistic), TOLERANCE.get(dtype, 3e-2)


@torch.no_grad()
def verify_packed(
    backbone: Backbone,
    inputs: PromptInputs,
    encoding: PromptEncoding,
    completions: Completions,
    sampled_logps: torch.Tensor | None,
    temperature: float,
) -> Verification:
    """Compares two completions of the first prompt with the model's own forward.

    Args:
        backbone: the policy.
        inputs: the first prompt.
        encoding: the same, behind the seam.
        completions: those of the first prompt stand first.
        sampled_logps: (N, R) what their sampler said, if they were sampled.
        temperature: of the policy.

    Raises:
        UnsupportedModelError: not even the plain path would train the policy that the model is.
    """
    check_head(backbone, inputs)
    first = first_completions(completions, 2)
    completions = with_sibling(first)
    plain = score_plain(backbone, None, [inputs], completions, temperature=temperature, entropies=False).logps
    packed = score_packed(
        backbone, None, [encoding], completions, temperature=temperature, entropies=False
    ).logps
    gap = (packed - plain).abs()[completions.mask]
    sampler_gap = None
    if sampled_logps is not None:
        count = len(first.ids)
        sampler_gap = float((sampled_logps[:count] - plain[:count]).abs()[first.mask].max())
    statistic, tolerance = _compare(packed[completions.mask], plain[completions.mask], backbone.compute_dtype)
    agrees = statistic <= tolerance  # False for NaN as well
    reason = (
        f"packed log-probs agree with the plain forward (difference {statistic:.1e}, allowed {tolerance:.0e})"
        if agrees
        else f"packed log-probs differ from the plain forward by {statistic:.1e}, allowed {tolerance:.0e}"
    )
    return Verification(agrees, reason, float(gap.max()), sampler_gap)
