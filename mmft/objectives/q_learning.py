"""Q-learning: what an action is worth by the best that can follow it, and the loss that teaches it.

Where `next_q` comes from (the network itself, a copy held still) is the trainer's choice. The targets are one
step of `estimators.returns`; those over several steps, and eligibility traces, are left out.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mmft._checks import check_shapes
from mmft._masking import at_least_float32, zero_outside
from mmft.estimators.returns import n_step_returns


@torch.no_grad()
def best_next_values(next_q: Tensor, *, legal: Tensor | None = None, chooser: Tensor | None = None) -> Tensor:
    """The value of acting greedily in the next state, over its legal actions.

        max_a' Q(s', a')                          (Watkins 1989)
        Q(s', argmax_a' Q_chooser(s', a'))        with `chooser`: double Q-learning (van Hasselt et al. 2016,
                                                  arXiv:1509.06461, eq. 4)

    Of equal choices the first counts. A state without a legal action is worth 0: nothing follows it. No
    gradient. Shapes: (B, A), (B, A), (B, A) -> (B,).
    """
    legal = torch.ones_like(next_q, dtype=torch.bool) if legal is None else legal.bool()
    chooser = next_q if chooser is None else chooser
    check_shapes(next_q=(next_q, "BA"), legal=(legal, "BA"), chooser=(chooser, "BA"))
    best = torch.where(legal, chooser, -torch.inf).argmax(dim=1, keepdim=True)
    return zero_outside(at_least_float32(next_q).gather(1, best).squeeze(1), legal.any(dim=1))


@torch.no_grad()
def q_learning_targets(
    rewards: Tensor,
    next_q: Tensor,
    *,
    terminated: Tensor,
    discount: float | Tensor,
    legal: Tensor | None = None,
    chooser: Tensor | None = None,
) -> Tensor:
    """What Q(s, a) should be after one step (Watkins 1989; Mnih et al. 2015, doi:10.1038/nature14236).

        R + discount * max_a' Q(s', a'),   R alone after a terminated step

    `legal` and `chooser` speak of s', as in `best_next_values`. `discount` may differ by sample. No gradient.
    Shapes: (B,), (B, A), (B,), (B,), (B, A), (B, A) -> (B,).
    """
    check_shapes(rewards=(rewards, "B"), next_q=(next_q, "BA"), terminated=(terminated, "B"))
    if isinstance(discount, Tensor):
        check_shapes(rewards=(rewards, "B"), discount=(discount, "B"))
        discount = discount.unsqueeze(1)
    next_values = best_next_values(next_q, legal=legal, chooser=chooser)
    # A discount takes the precision of the rewards, and whole-number rewards would leave it float32.
    rewards = rewards.to(torch.promote_types(rewards.dtype, next_values.dtype))
    return n_step_returns(
        rewards.unsqueeze(1),
        next_values.unsqueeze(1),
        terminated=terminated.unsqueeze(1),
        last=torch.ones_like(terminated).unsqueeze(1),
        discount=discount,
        num_steps=1,
    ).squeeze(1)


def q_learning_loss(
    q: Tensor,
    actions: Tensor,
    targets: Tensor,
    *,
    num_samples: float | Tensor,
    huber_delta: float | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Squared error of the chosen actions' values (Mnih et al. 2015, doi:10.1038/nature14236): minimise it.

        loss = (1/N) sum_b mask_b * delta_b^2,   delta_b = target_b - Q(s_b, a_b),   N = num_samples

    `huber_delta` = k bounds the gradient of a sample by 2k; the loss is twice Huber's, so that small errors
    count as without it:

        delta^2                       where |delta| <= k
        k * (2 |delta| - k)           elsewhere

    A target gets no gradient, also where it holds Q (the semi-gradient). One step of SGD on one sample, with
    learning rate alpha / 2 and Q a table, is Q-learning itself (Watkins 1989; Sutton & Barto 2018, eq. 6.8):

        Q(s, a) <- Q(s, a) + alpha * (R + discount * max_a' Q(s', a') - Q(s, a))

    `num_samples` counts the *whole optimizer step* (all ranks, all micro-batches). Masked samples may hold
    anything. Shapes: (B, A), (B,), (B,), mask (B,) -> ().
    """
    if huber_delta is not None and not huber_delta > 0:
        raise ValueError(f"`huber_delta` must be > 0; got {huber_delta}. None is the squared error.")
    mask = torch.ones_like(targets, dtype=torch.bool) if mask is None else mask
    check_shapes(q=(q, "BA"), actions=(actions, "B"), targets=(targets, "B"), mask=(mask, "B"))
    # An action that pads a batch may be out of range: selected away before it is looked up.
    chosen = q.gather(1, zero_outside(actions, mask).unsqueeze(1)).squeeze(1)
    chosen, targets = (zero_outside(at_least_float32(x), mask) for x in (chosen, targets.detach()))
    if huber_delta is None:
        return (targets - chosen).square().sum() / num_samples
    return 2 * functional.huber_loss(chosen, targets, delta=huber_delta, reduction="sum") / num_samples
