"""Correlation of what a policy does with what it sees: rho(A, S_combined).

Pure arrays here; `mmft.engine.prompt_states` takes the states out of a model.
Shape legend: N rows, D numbers per state, K components.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mmft.evaluation.bootstrap import Array, Estimate, Numbers, Resampling, as_numbers
from mmft.evaluation.correlation import pearson_estimate, why_undefined

MAX_COMPONENTS = 5
ROWS_PER_COMPONENT = 5
"""With fewer rows per component, a straight line through noise fits well by chance."""
CONSTANT = 1e-6
"""A coordinate whose spread is below that share of its size is the same in every row up to rounding."""


@dataclass(frozen=True, slots=True)
class Components:
    """States projected on the directions in which they differ most, Z = XW."""

    projected: Array
    """(N, K), uncorrelated columns."""
    explained: list[float]
    """Per component its share of the variance of the scaled states."""


@dataclass(frozen=True, slots=True)
class StateCorrelation:
    """How a number per row, an action, goes with the state of the row."""

    components: list[Estimate]
    """Pearson's rho of the action with every component, with intervals."""
    explained: list[float]
    """Per component its share of the variance of the states."""
    multiple: float
    """R of the least-squares fit of the action by all components; in [0, 1], and above 0 by chance alone."""
    adjusted: float
    """R without what chance explains: sqrt(max(0, 1 - (1 - R^2) (N - 1) / (N - K - 1)))."""
    p_value: float
    """How often as large an R comes up when actions are dealt to the rows at random."""
    count: int
    left_out: int = 0
    reason: str | None = None


def principal_components(states: Array, max_components: int = MAX_COMPONENTS) -> Components:
    """The leading principal components of z-scored states.

    Every coordinate is scaled to mean 0 and variance 1, so that no modality outweighs another by the size of
    its numbers. Coordinates that are the same in all rows (a prompt that never changes) say nothing and go;
    NaN, as where a row lacks a modality, counts as the mean of the others.

    Args:
        states: (N, D).
        max_components: K is that, or less: one per `ROWS_PER_COMPONENT` rows, and no empty ones.
    """
    scaled = _z_scored(np.asarray(states, dtype=np.float64))
    num_rows = len(scaled)
    if num_rows < 2 or scaled.shape[1] == 0:
        return Components(np.zeros((num_rows, 0)), [])
    _, sizes, directions = np.linalg.svd(scaled, full_matrices=False)
    useful = int((sizes > 1e-8 * sizes[0]).sum())
    count = min(max_components, useful, max(1, num_rows // ROWS_PER_COMPONENT))
    directions = directions[:count]
    # The sign of a direction is free; let its largest coordinate be positive, so that a rerun agrees.
    signs = np.sign(directions[np.arange(count), np.abs(directions).argmax(axis=1)])
    shares = sizes**2 / (sizes**2).sum()
    return Components(scaled @ (directions * signs[:, None]).T, shares[:count].tolist())


def correlate_with_state(
    actions: Numbers, states: Array, resampling: Resampling, *, max_components: int = MAX_COMPONENTS
) -> StateCorrelation:
    """rho(A, Z_k) for each component of the states, and the multiple correlation R with all of them.

        rho = Cov(A, S) / sqrt(Var(A) Var(S)),   R^2 = 1 - min_b |A - b_0 - Z b|^2 / |A - mean(A)|^2

    Args:
        actions: one number per row: a decision's index, a length, a log-prob. NaN rows are left out.
        states: (N, D), a row's combined multimodal state.
        resampling: for the intervals, and for the shuffles behind the p-value.
        max_components: at most so many components.
    """
    numbers = as_numbers(actions)
    if len(numbers) != len(states):
        raise ValueError(f"`states` must have a row per action ({len(numbers)}); got {len(states)}.")
    known = np.isfinite(numbers)
    numbers, left_out = numbers[known], int((~known).sum())
    found = principal_components(np.asarray(states)[known], max_components)
    z = found.projected
    reason = why_undefined(numbers, numbers)
    if reason is not None:
        reason = reason.replace("the first column", "the action").replace("have both numbers", "have one")
    elif z.shape[1] == 0:
        reason = "the state is the same in every row"
    if reason is not None:
        return StateCorrelation(
            [], found.explained, math.nan, math.nan, math.nan, len(numbers), left_out, reason
        )
    fit, p_value = _fit(numbers, z, resampling)
    count, width = z.shape
    adjusted = 1 - (1 - fit) * (count - 1) / (count - width - 1) if count > width + 1 else 0.0
    return StateCorrelation(
        components=[pearson_estimate(numbers, column, resampling) for column in z.T],
        explained=found.explained,
        multiple=math.sqrt(fit),
        adjusted=math.sqrt(max(0.0, adjusted)),
        p_value=p_value,
        count=count,
        left_out=left_out,
    )


def _z_scored(states: Array) -> Array:
    known = np.isfinite(states)
    counts = np.maximum(known.sum(axis=0), 1)
    filled = np.where(known, states, 0.0)
    means = filled.sum(axis=0) / counts
    centred = np.where(known, states - means, 0.0)
    deviations = np.sqrt((centred**2).sum(axis=0) / counts)
    varies = deviations > CONSTANT * np.maximum(np.abs(filled).max(axis=0, initial=0.0), 1e-30)
    return np.asarray(centred[:, varies] / deviations[varies])


def _fit(actions: Array, z: Array, resampling: Resampling) -> tuple[float, float]:
    """R^2, and how often shuffled actions fit as well.

    The components have mean 0 and are uncorrelated, so that R^2 is the squared length of the projection of
    the scaled actions on their directions."""
    directions = z / np.linalg.norm(z, axis=0)
    centred = actions - actions.mean()
    centred /= np.linalg.norm(centred)
    fit = min(1.0, float(((centred @ directions) ** 2).sum()))
    generator = resampling.generator()
    as_large = 0
    for _ in range(resampling.num_resamples):
        shuffled = generator.permutation(centred) @ directions
        as_large += float((shuffled**2).sum()) >= fit - 1e-12
    return fit, (as_large + 1) / (resampling.num_resamples + 1)
