"""Statistics of groups: samples that answer the same prompt.

Shapes: N samples. `groups` names the group of each by a whole number, any and in any order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmft._checks import check_shapes
from mmft._masking import at_least_float32, zero_outside


def group_centered(x: Tensor, groups: Tensor, valid: Tensor) -> Tensor:
    """Each valid element less the mean of its group; the others are 0.

        c_i = x_i - (1/n) sum_j [j valid, g_j = g_i] x_j

    Exactly 0 where all elements of a group are equal. Shapes: all (N,).
    """
    check_shapes(x=(x, "N"), groups=(groups, "N"), valid=(valid, "N"))
    x = at_least_float32(x)
    # As distances from the least element, which leave no rounding where all are equal and none of an offset.
    distances = zero_outside(x - _group_least(x, groups, valid), valid)
    means = _group_sum(distances, groups) / _group_count(x, groups, valid)
    return zero_outside(distances - means, valid)


def group_std(x: Tensor, groups: Tensor, valid: Tensor) -> Tensor:
    """Standard deviation, unbiased, of each element's own group; 0 where fewer than two are valid.

        s_i = sqrt(1/(n - 1) sum_j [j valid, g_j = g_i] (x_j - m_j)^2)

    Shapes: all (N,).
    """
    squares = group_centered(x, groups, valid).square()
    count = _group_count(squares, groups, valid)
    return (_group_sum(squares, groups) / (count - 1).clamp(min=1)).sqrt()


def _group_sum(x: Tensor, groups: Tensor) -> Tensor:
    """The sum of each element's group, beside each element."""
    _, index = groups.unique(return_inverse=True)
    return torch.zeros_like(x).index_add(0, index, x)[index]


def _group_count(x: Tensor, groups: Tensor, valid: Tensor) -> Tensor:
    return _group_sum(valid.to(x.dtype), groups)


def _group_least(x: Tensor, groups: Tensor, valid: Tensor) -> Tensor:
    """The least valid element of each element's group, infinity where there is none."""
    _, index = groups.unique(return_inverse=True)
    candidates = torch.where(valid.bool(), x, torch.inf)
    return torch.full_like(x, torch.inf).scatter_reduce(0, index, candidates, "amin")[index]
