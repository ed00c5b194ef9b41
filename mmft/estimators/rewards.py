"""From one score per completion to one reward per token, with the price of leaving the reference policy.

A NaN score means that no reward function could judge the completion: it may neither train nor count.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmft._checks import check_shapes
from mmft._masking import at_least_float32, last_valid, zero_outside


def judged_mask(scores: Tensor, mask: Tensor) -> Tensor:
    """`mask` as booleans, without the rows that have a NaN score. Shapes: (B,), (B, T) -> (B, T)."""
    check_shapes(scores=(scores, "B"), mask=(mask, "BT"))
    return mask.bool() & ~scores.isnan().unsqueeze(1)


def penalize_missing_eos(scores: Tensor, ended: Tensor, *, penalty: float) -> Tensor:
    """`scores`, less `penalty` where a completion stopped without an end-of-sequence token. Shapes: (B,)."""
    check_shapes(scores=(scores, "B"), ended=(ended, "B"))
    return torch.where(ended.bool(), scores, scores - penalty)


def per_token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, *, kl_coef: float) -> Tensor:
    """The score at the last token, less the KL to the reference policy at every token.

        r_bt = -kl_coef * kl_bt + [t is the last valid token of b] * score_b

    The reward of Ouyang et al. 2022 (arXiv:2203.02155, eq. 2) spread over the tokens; `kl` is per token
    (`objectives.kl.kl_penalty`). Rows with a NaN score and padded positions are 0.
    Shapes: (B,), (B, T), (B, T) -> (B, T).
    """
    check_shapes(scores=(scores, "B"), kl=(kl, "BT"), mask=(mask, "BT"))
    judged = judged_mask(scores, mask)
    penalties = zero_outside(-kl_coef * at_least_float32(kl), judged)
    score_at_end = zero_outside(at_least_float32(scores).unsqueeze(1).expand_as(kl), last_valid(judged))
    return penalties + score_at_end
