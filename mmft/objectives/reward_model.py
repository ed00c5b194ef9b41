"""Losses of learned reward models: preferences, ratings, and ratings with a stated noise.

Every loss is a sum over its samples by one denominator that the caller passes in, so that micro-batches and
processes add up.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from mmft._checks import check_shapes
from mmft._masking import at_least_float32


def bradley_terry_loss(
    chosen: Tensor, rejected: Tensor, margin: Tensor | None = None, *, num_pairs: float | Tensor
) -> Tensor:
    """Negative log-likelihood of preferences (Bradley & Terry 1952; Ouyang et al. 2022, arXiv:2203.02155,
    eq. 1): minimise it.

        loss = -(1/N) sum_i log sigmoid(r_chosen,i - r_rejected,i - m_i)

    The margin m asks for a distance (Touvron et al. 2023, arXiv:2307.09288, eq. 2). N = `num_pairs`.
    Shapes: all (B,) -> ().
    """
    check_shapes(chosen=(chosen, "B"), rejected=(rejected, "B"))
    distance = at_least_float32(chosen) - at_least_float32(rejected)
    if margin is not None:
        check_shapes(chosen=(chosen, "B"), margin=(margin, "B"))
        distance = distance - margin.detach()
    return -logsigmoid(distance).sum() / num_pairs


def centering_loss(chosen: Tensor, rejected: Tensor, *, num_pairs: float | Tensor) -> Tensor:
    """Pulls rewards towards mean zero, which preferences leave open (Eisenstein et al. 2023,
    arXiv:2312.09244, eq. 2).

        loss = (1/N) sum_i (r_chosen,i + r_rejected,i)^2

    N = `num_pairs`. Shapes: (B,), (B,) -> ().
    """
    check_shapes(chosen=(chosen, "B"), rejected=(rejected, "B"))
    return (at_least_float32(chosen) + at_least_float32(rejected)).square().sum() / num_pairs


def rating_loss(predictions: Tensor, ratings: Tensor, *, num_samples: float | Tensor) -> Tensor:
    """Mean squared error of predicted rewards.

        L_MSE = (1/N) sum_i (R_i - R_hat_i)^2

    N = `num_samples`. Only `predictions` gets a gradient. Shapes: (B,), (B,) -> ().
    """
    check_shapes(predictions=(predictions, "B"), ratings=(ratings, "B"))
    error = at_least_float32(ratings.detach()) - at_least_float32(predictions)
    return error.square().sum() / num_samples


def heteroscedastic_loss(
    means: Tensor, log_variances: Tensor, ratings: Tensor, *, num_samples: float | Tensor
) -> Tensor:
    """Gaussian negative log-likelihood with a noise per input (Kendall & Gal 2017, arXiv:1703.04977, eq. 8).

        loss = (1/N) sum_i (y_i - y_hat_i)^2 / (2 sigma_i^2) + 1/2 log sigma_i^2,   s_i = log sigma_i^2

    Computed as 1/2 (exp(-s) (y - y_hat)^2 + s): no division, no logarithm of something that may be 0. The
    constant 1/2 log 2 pi is left out. N = `num_samples`. `ratings` get no gradient. Shapes: all (B,) -> ().
    """
    check_shapes(means=(means, "B"), log_variances=(log_variances, "B"), ratings=(ratings, "B"))
    log_variances = at_least_float32(log_variances)
    error = at_least_float32(ratings.detach()) - at_least_float32(means)
    likelihoods = torch.exp(-log_variances) * error.square() + log_variances
    return 0.5 * likelihoods.sum() / num_samples
