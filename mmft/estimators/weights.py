"""From rewards to the weights of reward-weighted likelihood: one number per sample.

A NaN reward means that the sample is unjudged: its weight is 0 and it counts in no statistic. Statistics are
those of the rewards handed in; several processes gather theirs first. Shapes: N samples.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from mmft._checks import check_shapes
from mmft._masking import at_least_float32, zero_outside
from mmft.errors import ConfigError, RewardError
from mmft.estimators.groups import group_centered

Weighting = Literal["reward", "baseline", "exponential", "top_fraction"]
WEIGHTINGS: tuple[Weighting, ...] = ("reward", "baseline", "exponential", "top_fraction")
Baseline = Literal["none", "batch", "group"]
BASELINES: tuple[Baseline, ...] = ("none", "batch", "group")


def reward_weights(
    rewards: Tensor,
    groups: Tensor,
    *,
    weighting: Weighting = "reward",
    baseline: Baseline = "none",
    tau: float = 1.0,
    top_fraction: float = 0.25,
    allow_negative: bool = False,
) -> Tensor:
    """The weight of each sample.

        reward          w_i = R_i
        baseline        w_i = R_i - b_i
        exponential     w_i = exp((R_i - b_i) / tau) / mean_j exp((R_j - b_j) / tau)
        top_fraction    w_i = [R_i - b_i is among the ceil(top_fraction * n) largest]

    over the n judged samples. Reward-weighted regression takes rewards >= 0 (Peters & Schaal 2007); the
    exponential is that of advantage-weighted regression (Peng et al. 2019, arXiv:1910.00177, alg. 1), here
    with mean 1, so that tau is no second learning rate. Of equal rewards the first count as the larger.
    Weights of `baseline` sum to 0 over what the baseline is the mean of, and are all 0 where rewards do not
    differ: such a batch teaches nothing. Negative weights push likelihood down, which has no lower bound.

    Args:
        rewards: (N,) one total reward per sample.
        groups: (N,) which prompt each sample answers; whole numbers, any and in any order.
        weighting: which line of the table.
        baseline: b, the mean reward of all samples (`batch`) or of those of the same prompt (`group`), or
            `none`. `reward` has none by its definition.
        tau: the temperature of `exponential`, > 0; small ones keep the best sample only.
        top_fraction: the share that `top_fraction` keeps, in (0, 1].
        allow_negative: whether `reward` takes rewards below 0.

    Returns:
        (N,) weights without gradient, in float32 at least.

    Raises:
        ConfigError: a setting is out of range, or `reward` meets a negative reward.
        RewardError: a reward is infinite.
    """
    check_shapes(rewards=(rewards, "N"), groups=(groups, "N"))
    check_weighting(weighting, baseline=baseline, tau=tau, top_fraction=top_fraction)
    rewards = at_least_float32(rewards).detach()
    judged = ~rewards.isnan()
    _check_rewards(rewards, may_be_negative=allow_negative or weighting != "reward")
    if weighting == "reward":
        return zero_outside(rewards, judged)
    advantages = _above_baseline(rewards, groups, judged, baseline)
    if weighting == "baseline":
        return advantages
    if weighting == "exponential":
        return _exponential(advantages, judged, tau)
    return _best(advantages, judged, top_fraction)


def check_weighting(weighting: str, *, baseline: str, tau: float, top_fraction: float) -> None:
    """Refuses settings of `reward_weights` that mean nothing.

    Raises:
        ConfigError: names the setting, its value and what is allowed.
    """
    if weighting not in WEIGHTINGS:
        raise ConfigError(f"`weighting` must be one of {', '.join(WEIGHTINGS)}; got {weighting!r}.")
    if baseline not in BASELINES:
        raise ConfigError(f"`baseline` must be one of {', '.join(BASELINES)}; got {baseline!r}.")
    if weighting == "baseline" and baseline == "none":
        raise ConfigError(
            "`weighting: baseline` subtracts a baseline, but `baseline` is 'none'. Set it to 'batch' or "
            "'group', or choose `weighting: reward`."
        )
    if not (tau > 0 and math.isfinite(tau)):
        raise ConfigError(f"`tau` must be a number > 0; got {tau}.")
    if not 0 < top_fraction <= 1:
        raise ConfigError(f"`top_fraction` must be above 0 and at most 1; got {top_fraction}.")


def check_weights(weights: Tensor, *, weighting: Weighting = "reward") -> None:
    """Refuses weights that are all 0, by which nothing would be learned.

    A whole data set without weight is a mistake; one rollout without is not (all its answers may be wrong),
    so an online trainer counts and skips it instead. Weights of `baseline` may sum to 0 and still teach.

    Raises:
        RewardError: every weight is 0; the message says what to change.
    """
    check_shapes(weights=(weights, "N"))
    if weights.any():
        return
    reason = {
        "reward": "every reward is 0 or missing. Check what gives them, or choose `weighting: exponential`, "
        "for which only differences count.",
        "baseline": "every reward equals its baseline or is missing. Check that rewards differ; under "
        "`baseline: group`, that samples of one prompt do.",
    }.get(weighting, "every reward is missing. Check what gives them.")
    raise RewardError(f"The weights sum to 0: `weighting` is {weighting!r} and {reason}")


def _check_rewards(rewards: Tensor, *, may_be_negative: bool) -> None:
    infinite = rewards.isinf().nonzero()
    if len(infinite):
        i = int(infinite[0])
        raise RewardError(
            f"`rewards[{i}]` is {float(rewards[i])}. Rewards must be finite; NaN stands for a sample "
            "that could not be judged."
        )
    negative = (rewards < 0).nonzero()
    if len(negative) and not may_be_negative:
        i = int(negative[0])
        raise ConfigError(
            f"`rewards[{i}]` is {float(rewards[i]):g}, but `weighting: reward` takes rewards >= 0: a "
            "negative weight pushes likelihood down without bound. Choose `weighting: exponential`, or set "
            "`allow_negative: true`."
        )


def _above_baseline(rewards: Tensor, groups: Tensor, judged: Tensor, baseline: Baseline) -> Tensor:
    """R - b, 0 for the unjudged."""
    if baseline == "none":
        return zero_outside(rewards, judged)
    return group_centered(rewards, groups if baseline == "group" else torch.zeros_like(groups), judged)


def _exponential(advantages: Tensor, judged: Tensor, tau: float) -> Tensor:
    """exp(A / tau), scaled to mean 1 over the judged."""
    if not judged.any():
        return torch.zeros_like(advantages)
    # Largest exponent 0: nothing overflows, and a tau that rounds to 0 in float32 would divide 0 by 0.
    below_best = advantages - advantages[judged].max()
    powers = zero_outside((below_best / max(tau, torch.finfo(advantages.dtype).tiny)).exp(), judged)
    return powers * (judged.sum() / powers.sum())


def _best(advantages: Tensor, judged: Tensor, fraction: float) -> Tensor:
    """1 for the largest, 0 for the rest."""
    # 0.1 * 30 is 3.0000000000000004, and 3 of 30 is a tenth.
    num_judged = int(judged.sum())
    count = min(max(math.ceil(fraction * num_judged - 1e-9), 1), num_judged)
    order = torch.where(judged, advantages, -torch.inf).sort(descending=True, stable=True).indices
    return torch.zeros_like(advantages).index_fill(0, order[:count], 1)
