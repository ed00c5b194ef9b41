"""The numbers of TRL's last PPO trainer, from its recorded rollouts and updates (tests/golden/README.md)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mmft._masking import last_valid, masked_whiten
from mmft.estimators.advantages import gae
from mmft.estimators.returns import shift_values
from mmft.estimators.rewards import per_token_rewards
from mmft.objectives.kl import kl_penalty
from mmft.objectives.policy import clipped_policy_loss
from mmft.objectives.value import clipped_value_loss
from tests.golden.load import TRL_RUNS, golden, tensors

TOLERANCE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(params=TRL_RUNS)
def run(request: pytest.FixtureRequest) -> dict[str, Any]:
    return golden(request.param)


def token_mask(rollout: dict[str, Tensor]) -> Tensor:
    """1 up to the last token: what the policy terms count."""
    return 1 - rollout["padding_mask"]


def value_mask(rollout: dict[str, Tensor]) -> Tensor:
    """1 up to one position behind the last token, where TRL puts the score: what the value terms count."""
    return 1 - rollout["padding_mask_p1"]


def advantages_of(run: dict[str, Any], rollout: dict[str, Tensor]) -> Tensor:
    mask = value_mask(rollout)
    ends = last_valid(mask)
    return gae(
        rollout["rewards"],
        rollout["values"],
        shift_values(rollout["values"], mask),
        terminated=ends,
        last=ends,
        mask=mask,
        discount=run["args"]["gamma"],
        lam=run["args"]["lam"],
    )


def test_kl_equals_the_recorded_one(run: dict[str, Any]):
    rollout = tensors(run["rollout"])
    kl = kl_penalty(rollout["logprobs"], rollout["ref_logprobs"], run["args"]["kl_estimator"])
    torch.testing.assert_close(kl, rollout["kl"], **TOLERANCE)


def test_rewards_per_token_equal_the_recorded_ones(run: dict[str, Any]):
    rollout, args = tensors(run["rollout"]), run["args"]
    mask = value_mask(rollout)
    rewards = per_token_rewards(rollout["scores"], rollout["kl"], mask, kl_coef=args["kl_coef"])
    if args["whiten_rewards"]:
        rewards = masked_whiten(rewards, mask, shift_mean=False)
    torch.testing.assert_close(rewards, rollout["rewards"], **TOLERANCE)


def test_whitened_advantages_equal_the_recorded_ones(run: dict[str, Any]):
    rollout = tensors(run["rollout"])
    whitened = masked_whiten(advantages_of(run, rollout), token_mask(rollout))
    torch.testing.assert_close(whitened, rollout["advantages"], **TOLERANCE)


def test_returns_equal_the_recorded_ones(run: dict[str, Any]):
    rollout = tensors(run["rollout"])
    returns = (advantages_of(run, rollout) + rollout["values"]) * value_mask(rollout)
    torch.testing.assert_close(returns, rollout["returns"], **TOLERANCE)


@pytest.mark.parametrize("epoch", range(4))
def test_losses_of_every_update_equal_the_recorded_ones(run: dict[str, Any], epoch: int):
    rollout, args, update = tensors(run["rollout"]), run["args"], run["updates"][epoch]
    batch = tensors(update)
    rows = batch["micro_batch_inds"]
    tokens, states = token_mask(rollout)[rows], value_mask(rollout)[rows]
    policy = clipped_policy_loss(
        batch["new_logprobs"],
        batch["mb_logprobs"],
        batch["mb_advantage"],
        tokens,
        clip=args["cliprange"],
        num_tokens=tokens.sum(),
    )
    value = clipped_value_loss(
        batch["vpred"],
        batch["mb_values"],
        batch["mb_return"],
        states,
        clip=args["cliprange_value"],
        num_tokens=states.sum(),
    )
    total = policy + args["vf_coef"] * value
    for ours, theirs in ((policy, "pg_loss"), (value, "vf_loss"), (total, "loss")):
        torch.testing.assert_close(ours.item(), update[theirs], **TOLERANCE)
