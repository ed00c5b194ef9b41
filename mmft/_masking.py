"""Sums, means and whitening over valid tokens only.

Invalid positions are selected away (`where`), never multiplied away: 0 * nan is nan. Statistics take an
optional `reduce` that sums a tensor over processes, so that every rank sees those of the global batch; every
rank must then make the same calls, also one whose own mask is empty.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmft._checks import check_shapes

Reduce = Callable[[Tensor], Tensor]
"""Sums a tensor, element by element, over all processes."""

_EPSILON = 1e-8  # under the square root of whitening; TRL's value, part of the recorded numbers


def identity(tensor: Tensor) -> Tensor:
    """The `Reduce` of a single process."""
    return tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half precision becomes float32, the rest stays: estimators and losses are never computed in bf16."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def zero_outside(x: Tensor, mask: Tensor) -> Tensor:
    """`x` where `mask` is set and 0 elsewhere, with exactly zero gradient there, whatever `x` holds."""
    return torch.where(mask.bool(), x, torch.zeros((), dtype=x.dtype, device=x.device))


def last_valid(mask: Tensor) -> Tensor:
    """Boolean (B, T): True at the last valid position of each row; a row without any has none."""
    check_shapes(mask=(mask, "BT"))
    valid = mask.bool()
    num_left = valid.flip(1).cumsum(1).flip(1)
    return valid & (num_left == 1)


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Sum of the valid elements, in float32 at least."""
    _check_same_shape(x, mask)
    return zero_outside(at_least_float32(x), mask).sum()


def masked_mean(x: Tensor, mask: Tensor, *, reduce: Reduce = identity) -> Tensor:
    """Mean of the valid elements of all processes; 0 if there is none."""
    return _mean_and_count(x, mask, reduce)[0]


def masked_var(x: Tensor, mask: Tensor, *, unbiased: bool = True, reduce: Reduce = identity) -> Tensor:
    """Variance of the valid elements of all processes, sum (x - mean)^2 / (n - 1), or / n if not `unbiased`.

    Two passes, mean first: the one-pass form E[x^2] - E[x]^2 cancels in float32. One element alone gives 0.
    """
    mean, count = _mean_and_count(x, mask, reduce)
    return _var_around(mean, count, x, mask, unbiased, reduce)


def masked_whiten(x: Tensor, mask: Tensor, *, shift_mean: bool = True, reduce: Reduce = identity) -> Tensor:
    """The valid elements scaled to variance 1 and, with `shift_mean`, moved to mean 0; the rest is 0.

        (x - mean) / sqrt(var + 1e-8)  [+ mean, unless shift_mean],   var unbiased

    Equal to `masked_whiten` of TRL 1.12 at valid positions. One element alone becomes 0 (or stays as it is).
    """
    mean, count = _mean_and_count(x, mask, reduce)
    var = _var_around(mean, count, x, mask, True, reduce)
    whitened = (at_least_float32(x) - mean) * torch.rsqrt(var + _EPSILON)
    return zero_outside(whitened if shift_mean else whitened + mean, mask)


def _mean_and_count(x: Tensor, mask: Tensor, reduce: Reduce) -> tuple[Tensor, Tensor]:
    total = masked_sum(x, mask)
    total, count = reduce(torch.stack([total, mask.bool().sum().to(total.dtype)]))
    return total / count.clamp(min=1), count


def _var_around(
    mean: Tensor, count: Tensor, x: Tensor, mask: Tensor, unbiased: bool, reduce: Reduce
) -> Tensor:
    squares = reduce(masked_sum((at_least_float32(x) - mean).square(), mask))
    return squares / (count - int(unbiased)).clamp(min=1)


def _check_same_shape(x: Tensor, mask: Tensor) -> None:
    if x.shape != mask.shape:
        raise ValueError(
            f"`mask` must have the shape of the tensor, {tuple(x.shape)}; got {tuple(mask.shape)}."
        )
