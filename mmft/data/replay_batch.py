"""What a replay buffer gives: windows of steps, and the targets that are made of them.

Shapes: N windows, n steps at most, A actions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmft._checks import check_shapes
from mmft._masking import at_least_float32
from mmft.estimators.returns import n_step_returns


@dataclass(frozen=True, slots=True)
class Batch:
    """N windows of up to n steps; beyond the end of its window a row holds 0 and False."""

    states: dict[str, Tensor]
    """(N, ...) where the windows begin."""
    legal: Tensor
    """(N, A) actions that could be taken there."""
    actions: Tensor
    """(N,) the one that was."""
    rewards: Tensor
    """(N, n) of the steps."""
    window_terminated: Tensor
    """(N, n) steps after which nothing follows."""
    window_last: Tensor
    """(N, n) one step a row: where its episode, the window or what is known of the stream ends."""
    bootstrap_index: Tensor
    """(N,) the column of that step."""
    next_states: dict[str, Tensor]
    """(N, ...) where that step led; if it terminated, the state it was taken in, whose value is not used."""
    next_legal: Tensor
    """(N, A) actions that could be taken there."""

    def targets(self, next_values: Tensor, discount: float) -> Tensor:
        """The return of each window (`n_step_returns`), given the values of `next_states`.

            G = r_0 + discount r_1 + ... + discount^{k-1} r_{k-1} + discount^k V(s_k)

        with k = bootstrap_index + 1, and without the last term where step k - 1 terminated.
        Shapes: (N,) -> (N,).
        """
        check_shapes(bootstrap_index=(self.bootstrap_index, "N"), next_values=(next_values, "N"))
        next_values = at_least_float32(next_values)
        # Discounts take the dtype of the rewards, which must not be narrower than that of the values.
        rewards = self.rewards.to(next_values.dtype)
        placed = torch.zeros_like(rewards).scatter(1, self.bootstrap_index[:, None], next_values[:, None])
        returns = n_step_returns(
            rewards,
            placed,
            terminated=self.window_terminated,
            last=self.window_last,
            discount=discount,
            num_steps=rewards.shape[1],
        )
        return returns[:, 0]
