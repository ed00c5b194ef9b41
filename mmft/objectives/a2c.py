"""The loss of advantage actor-critic: the policy's and the critic's in one."""

from __future__ import annotations

from torch import Tensor

from mmft.objectives.policy import policy_gradient_loss
from mmft.objectives.value import td_loss


def a2c_loss(
    logps: Tensor,
    advantages: Tensor,
    values: Tensor | None,
    targets: Tensor | None,
    mask: Tensor,
    *,
    alpha: float,
    num_tokens: float | Tensor,
) -> Tensor:
    """Advantage actor-critic (Mnih et al. 2016, arXiv:1602.01783, alg. S3): minimise it.

        loss = L_actor + alpha L_TD
             = (1/N) sum_bt mask * (-A_bt log pi(a_bt | s_bt) + alpha (target_bt - V(s_bt))^2)

    N = `num_tokens`. alpha = 0 is the policy gradient, advantages of 0 leave the critic's loss. Without a
    critic `values` and `targets` are None. Only `logps` and `values` get a gradient.
    Shapes: all (B, T) -> ().

    Raises:
        ValueError: `alpha` is not 0, but there are no values or no targets.
    """
    actor = policy_gradient_loss(logps, advantages, mask, num_tokens=num_tokens)
    if values is not None and targets is not None:
        return actor + alpha * td_loss(values, targets, mask, num_tokens=num_tokens)
    if alpha:
        missing = "values" if values is None else "targets"
        raise ValueError(f"`{missing}` is None, but `alpha` is {alpha}. Without a critic it must be 0.")
    return actor
