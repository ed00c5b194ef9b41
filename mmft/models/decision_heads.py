"""Heads on a fused state where the actions are a fixed set: policy, V and Q, and draws of each by dropout.

What says tokens is in `heads`; exploration and losses are left to those who call. Everything is float32, also
under mixed precision.

Shapes: B rows, D size of the state, A actions, S dropout samples.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from mmft._checks import check_shapes
from mmft._masking import at_least_float32, zero_outside
from mmft.errors import ConfigError
from mmft.models.heads import FORBIDDEN


class Trunk(nn.Module):
    """A perceptron: per hidden size a linear layer, ReLU and dropout.

    Without hidden sizes it is the identity, with dropout on the state itself. Masks drawn by `masks` take the
    place of the layers' own dropout, so that one network can be drawn and kept: for an episode of Thompson
    sampling (Gal & Ghahramani 2016, arXiv:1506.02142, sec. 5.4) or for Monte Carlo samples.

    Attributes:
        size: width of what comes out.
        dropout: probability that a unit is dropped.
        dropout_widths: units of each layer that drops some; empty if `dropout` is 0.
    """

    def __init__(self, size: int, hidden_sizes: Sequence[int] = (), dropout: float = 0.0) -> None:
        super().__init__()
        for width in (size, *hidden_sizes):
            if width < 1:
                raise ConfigError(
                    f"`size` and `hidden_sizes` must be >= 1; got {size} and {tuple(hidden_sizes)}."
                )
        if not 0 <= dropout < 1:
            raise ConfigError(f"`dropout` must be at least 0 and below 1; got {dropout}.")
        widths = (size, *hidden_sizes)
        self.layers = nn.ModuleList(nn.Linear(a, b, dtype=torch.float32) for a, b in pairwise(widths))
        self.size = widths[-1]
        self.dropout = dropout
        self.dropout_widths = (widths[1:] or widths) if dropout else ()

    def masks(self, num_rows: int, generator: torch.Generator | None = None) -> list[Tensor]:
        """One (num_rows, width) mask per layer that drops units: 0 with probability p, else 1 / (1 - p).

        Of one row, it is one network for any number of states. Drawn where the generator lives (the CPU), so
        that every device draws the same.
        """
        device = None if generator is None else generator.device
        drawn = [
            torch.rand(num_rows, width, generator=generator, device=device, dtype=torch.float32)
            for width in self.dropout_widths
        ]
        return [(numbers >= self.dropout).float() / (1 - self.dropout) for numbers in drawn]

    def forward(self, hidden: Tensor, masks: Sequence[Tensor] | None = None) -> Tensor:
        """(B, D) to (B, `size`).

        Args:
            hidden: the states.
            masks: replace the layers' own dropout, in training and in evaluation.

        Raises:
            ValueError: the masks are not those of this trunk.
        """
        check_shapes(hidden=(hidden, "BD"))
        if masks is not None:
            self._check_masks(masks, len(hidden))
        with torch.autocast(hidden.device.type, enabled=False):
            if not self.layers:
                return self._drop(at_least_float32(hidden), 0, masks)
            hidden = hidden.to(next(self.parameters()).dtype)
            for index, layer in enumerate(self.layers):
                hidden = self._drop(nn.functional.relu(layer(hidden)), index, masks)
            return hidden

    def _drop(self, units: Tensor, index: int, masks: Sequence[Tensor] | None) -> Tensor:
        if masks is None:
            return nn.functional.dropout(units, self.dropout, self.training)
        return units * masks[index].to(units.device, units.dtype) if self.dropout_widths else units

    def _check_masks(self, masks: Sequence[Tensor], num_rows: int) -> None:
        shapes = [tuple(mask.shape) for mask in masks]
        fitting = [[(rows, width) for rows in (1, num_rows)] for width in self.dropout_widths]
        if len(shapes) != len(fitting) or any(s not in f for s, f in zip(shapes, fitting, strict=True)):
            raise ValueError(
                f"`masks` must have 1 or {num_rows} rows and the widths {list(self.dropout_widths)}; got "
                f"shapes {shapes}. Draw them with `masks` of this head."
            )


class DecisionHead(nn.Module, abc.ABC):
    """Something about a state, from which networks can be drawn by dropout.

    Attributes:
        dropout: probability that a unit is dropped.
    """

    dropout: float

    @abc.abstractmethod
    def masks(self, num_rows: int, generator: torch.Generator | None = None) -> list[Tensor]:
        """Dropout masks for one forward; of one row, for any number of states."""

    @abc.abstractmethod
    def forward(self, hidden: Tensor, *, masks: Sequence[Tensor] | None = None) -> Tensor:
        """(B, D) states to what the head says, fp32; `masks` replace its own dropout."""


class PolicyHead(DecisionHead):
    """pi(a | s) = softmax(W_o f(H) + b_o), f a `Trunk`; W_o = b_o = 0, uniform, at the start."""

    def __init__(
        self, size: int, num_actions: int, *, hidden_sizes: Sequence[int] = (), dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.logits = _Stream(size, num_actions, hidden_sizes, dropout)
        self.logits.zero_()

    def masks(self, num_rows: int, generator: torch.Generator | None = None) -> list[Tensor]:
        """See `Trunk.masks`."""
        return self.logits.trunk.masks(num_rows, generator)

    def forward(
        self, hidden: Tensor, legal: Tensor | None = None, *, masks: Sequence[Tensor] | None = None
    ) -> Tensor:
        """(B, A) fp32 logits, `FORBIDDEN` where `legal` (B, A) is given and not set."""
        logits: Tensor = self.logits(hidden, masks)
        if legal is None:
            return logits
        check_shapes(logits=(logits, "BA"), legal=(legal, "BA"))
        return logits.masked_fill(~legal.bool(), FORBIDDEN)


class StateValueHead(DecisionHead):
    """V(s) = w . f(H) + b, f a `Trunk`; w = b = 0 at the start, as for the critic of tokens."""

    def __init__(self, size: int, *, hidden_sizes: Sequence[int] = (), dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = dropout
        self.value = _Stream(size, 1, hidden_sizes, dropout)
        self.value.zero_()

    def masks(self, num_rows: int, generator: torch.Generator | None = None) -> list[Tensor]:
        """See `Trunk.masks`."""
        return self.value.trunk.masks(num_rows, generator)

    def forward(self, hidden: Tensor, *, masks: Sequence[Tensor] | None = None) -> Tensor:
        """(B,) fp32 values."""
        values: Tensor = self.value(hidden, masks)
        return values.squeeze(1)


class QHead(DecisionHead):
    """Q(s, a) for every action, f a `Trunk`.

        Q = W f(H) + b,   or if `dueling`   Q = V(H) + A(H) - mean_a A(H)   (see `dueling_values`)

    V and A then have a trunk and a linear layer each. Not zero at the start: all networks that dropout draws
    would say the same, and Thompson sampling would not explore.
    """

    def __init__(
        self,
        size: int,
        num_actions: int,
        *,
        hidden_sizes: Sequence[int] = (),
        dropout: float = 0.0,
        dueling: bool = False,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.actions = _Stream(size, num_actions, hidden_sizes, dropout)
        self.value = _Stream(size, 1, hidden_sizes, dropout) if dueling else None

    def masks(self, num_rows: int, generator: torch.Generator | None = None) -> list[Tensor]:
        """See `Trunk.masks`; those of A before those of V."""
        streams = [self.actions] if self.value is None else [self.actions, self.value]
        return [mask for stream in streams for mask in stream.trunk.masks(num_rows, generator)]

    def forward(self, hidden: Tensor, *, masks: Sequence[Tensor] | None = None) -> Tensor:
        """(B, A) fp32 action values."""
        if self.value is None:
            values: Tensor = self.actions(hidden, masks)
            return values
        num_own = len(self.actions.trunk.dropout_widths)
        own, others = (None, None) if masks is None else (masks[:num_own], masks[num_own:])
        return dueling_values(self.value(hidden, others).squeeze(1), self.actions(hidden, own))


class _Stream(nn.Module):
    """A trunk and a linear layer on it."""

    def __init__(self, size: int, num_outputs: int, hidden_sizes: Sequence[int], dropout: float) -> None:
        super().__init__()
        if num_outputs < 1:
            raise ConfigError(f"`num_actions` must be >= 1; got {num_outputs}.")
        self.trunk = Trunk(size, hidden_sizes, dropout)
        self.output = nn.Linear(self.trunk.size, num_outputs, dtype=torch.float32)

    def zero_(self) -> None:
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, hidden: Tensor, masks: Sequence[Tensor] | None) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):  # mixed precision must not round decisions
            outputs: Tensor = self.output(self.trunk(hidden.to(self.output.weight.dtype), masks))
            return outputs


def dueling_values(values: Tensor, advantages: Tensor) -> Tensor:
    """Action values of two streams (Wang et al. 2016, arXiv:1511.06581, eq. 9): V is their mean over actions.

        Q(s, a) = V(s) + A(s, a) - (1/A) sum_a' A(s, a')

    Shapes: (B,), (B, A) -> (B, A).
    """
    check_shapes(values=(values, "B"), advantages=(advantages, "BA"))
    values, advantages = at_least_float32(values), at_least_float32(advantages)
    return values.unsqueeze(1) + advantages - advantages.mean(dim=1, keepdim=True)


def action_log_probs(logits: Tensor, actions: Tensor) -> Tensor:
    """log pi(a_b | s_b) of the actions taken, with gradient. Shapes: (B, A), (B,) -> (B,)."""
    check_shapes(logits=(logits, "BA"), actions=(actions, "B"))
    return at_least_float32(logits).log_softmax(dim=1).gather(1, actions.unsqueeze(1)).squeeze(1)


def action_entropies(logits: Tensor) -> Tensor:
    """H(pi(. | s)) in nats, over the actions that are legal (not `FORBIDDEN`), with gradient.

        H_b = -sum_a pi(a | s_b) log pi(a | s_b)

    0 where no action is. Shapes: (B, A) -> (B,).
    """
    check_shapes(logits=(logits, "BA"))
    logps = zero_outside(at_least_float32(logits).log_softmax(dim=1), logits > FORBIDDEN / 2)
    # Selected before the product too: 0 * log 0 is NaN where half precision turned FORBIDDEN into -infinity.
    return -(logps.exp() * logps).sum(dim=1)


def mc_samples(
    head: DecisionHead, hidden: Tensor, num_samples: int, generator: torch.Generator | None = None
) -> Tensor:
    """What S networks drawn by dropout say (Gal & Ghahramani 2016, arXiv:1506.02142, sec. 4).

    One network per sample, the same for all rows: what a row gets depends on the generator alone, not on its
    neighbours. `mmft.evaluation.uncertainty.mc_variance` reads the result. Shapes: (B, D) -> (S, B, ...).

    Raises:
        ValueError: the head has no dropout, or no sample is wanted.
    """
    if num_samples < 1:
        raise ValueError(f"`num_samples` must be >= 1; got {num_samples}.")
    if not head.dropout:
        raise ValueError(
            "`head` has no dropout, so that every sample would be the same; build it with `dropout` > 0."
        )
    return torch.stack([head(hidden, masks=head.masks(1, generator)) for _ in range(num_samples)])
