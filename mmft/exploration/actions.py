"""Which action to try: probabilities from action values, and draws from them that repeat.

`q` is (B, A), the values of A actions in B states, and `legal` says which of them a state allows (None: all).
Illegal actions have probability exactly 0, whatever `q` holds there. A legal value of NaN makes its row NaN,
which `draw` refuses. Random numbers are the caller's, a stream per environment. No gradient.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mmft._checks import check_shapes
from mmft._masking import at_least_float32

_TOLERANCE = 1e-2  # of the sum of probabilities; those rounded to half precision are still accepted


@torch.no_grad()
def greedy_probs(q: Tensor, legal: Tensor | None = None) -> Tensor:
    """All probability on the best legal action, in equal shares if several are best.

    Shapes: (B, A), (B, A) -> (B, A).
    """
    q, legal = _prepare(q, legal)
    allowed = torch.where(legal, q, -torch.inf)
    return _equal_shares(legal & (allowed == allowed.amax(dim=1, keepdim=True)), q.dtype)


@torch.no_grad()
def epsilon_greedy_probs(q: Tensor, epsilon: float, legal: Tensor | None = None) -> Tensor:
    """Any legal action with probability epsilon, else the best (Sutton & Barto 2018, sec. 5.4).

        P(a | s) = epsilon / |legal(s)| + (1 - epsilon) * greedy(a | s)

    Shapes: (B, A), (B, A) -> (B, A).
    """
    if not 0 <= epsilon <= 1:
        raise ValueError(f"`epsilon` must be in [0, 1]; got {epsilon}. It is the share of random actions.")
    q, legal = _prepare(q, legal)
    return epsilon * _equal_shares(legal, q.dtype) + (1 - epsilon) * greedy_probs(q, legal)


@torch.no_grad()
def boltzmann_probs(q: Tensor, temperature: float, legal: Tensor | None = None) -> Tensor:
    """Better actions more often, by how much better they are (Sutton & Barto 1998, sec. 2.3).

        P(a | s) = exp(Q(s, a) / tau) / sum_b exp(Q(s, b) / tau),   over legal actions, tau = temperature

    Finite for any finite Q: small tau becomes greedy, large tau uniform. Shapes: (B, A), (B, A) -> (B, A).
    """
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(
            f"`temperature` must be a number > 0; got {temperature}. Use `greedy_probs` for the limit at 0, "
            "`uniform_probs` for that at infinity."
        )
    q, legal = _prepare(q, legal)
    gaps = q - torch.where(legal, q, -torch.inf).amax(dim=1, keepdim=True)
    # A tau that float32 rounds to 0 would make the best action 0 / 0.
    scaled = torch.where(gaps == 0, gaps, gaps / temperature)
    return torch.where(legal, scaled, -torch.inf).softmax(dim=1)


@torch.no_grad()
def uniform_probs(legal: Tensor) -> Tensor:
    """1 / |legal(s)| for each legal action. Shapes: (B, A) -> (B, A)."""
    check_shapes(legal=(legal, "BA"))
    _check_legal(legal.bool())
    return _equal_shares(legal.bool(), torch.float32)


@torch.no_grad()
def draw(probs: Tensor, uniforms: Tensor) -> Tensor:
    """One action per row by inversion: the first whose cumulative probability exceeds the row's number.

        a_b = min {a: sum_{i <= a} P_bi > u_b},   u_b in [0, 1)

    A row's action follows from its own probabilities and its own number, so it is the same in any batch.
    Actions of probability 0 are never drawn. Shapes: (B, A), (B,) -> (B,) of int64.

    Raises:
        ValueError: a row is no distribution, or its number lies outside [0, 1); the message names the row.
    """
    check_shapes(probs=(probs, "BA"), uniforms=(uniforms, "B"))
    probs, uniforms = probs.double(), uniforms.double()
    _check_draw(probs, uniforms)
    # An impossible action ends no interval: a parallel sum may round differently from place to place. Scaled
    # by the largest end as it was rounded, a number below 1 stays below it: some action is always found.
    ends = torch.where(probs > 0, probs.cumsum(dim=1), 0.0)
    thresholds = uniforms.unsqueeze(1) * ends.amax(dim=1, keepdim=True)
    return (ends > thresholds).int().argmax(dim=1)


def _prepare(q: Tensor, legal: Tensor | None) -> tuple[Tensor, Tensor]:
    """`q` in float32 at least, and a mask in which every row allows something; both checked."""
    legal = torch.ones_like(q, dtype=torch.bool) if legal is None else legal.bool()
    check_shapes(q=(q, "BA"), legal=(legal, "BA"))
    _check_legal(legal)
    return at_least_float32(q), legal


def _equal_shares(chosen: Tensor, dtype: torch.dtype) -> Tensor:
    return chosen.to(dtype) / chosen.sum(dim=1, keepdim=True)


def _check_legal(legal: Tensor) -> None:
    empty = _first(~legal.any(dim=1))
    if empty:
        raise ValueError(
            f"`legal[{empty[0]}]` allows no action. A state without one ends its episode: reset it, or leave "
            "it out."
        )


def _check_draw(probs: Tensor, uniforms: Tensor) -> None:
    bad = _first(~(probs >= 0))
    if bad:
        raise ValueError(
            f"`probs[{bad[0]}, {bad[1]}]` is {float(probs[*bad]):g}. Probabilities must be >= 0; NaN comes "
            "from action values that are NaN or infinite."
        )
    sums = probs.sum(dim=1)
    bad = _first(~((sums - 1).abs() <= _TOLERANCE))
    if bad:
        raise ValueError(
            f"`probs[{bad[0]}]` sums to {float(sums[*bad]):g}, not 1. Divide weights by their sum, and leave "
            "out states without a legal action."
        )
    bad = _first(~((uniforms >= 0) & (uniforms < 1)))
    if bad:
        raise ValueError(
            f"`uniforms[{bad[0]}]` is {float(uniforms[*bad]):g}, outside [0, 1). Draw it with `torch.rand`."
        )


def _first(flags: Tensor) -> list[int]:
    """Where the first flag is set, one index per dim; empty if none is."""
    places: list[list[int]] = flags.nonzero()[:1].tolist()
    return places[0] if places else []
