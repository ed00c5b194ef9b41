"""Principal components of features, learned exactly from a stream of batches.

Not here: randomised or low-rank updates. They need less memory than D x D and give other components for
another order of the rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmft.data.normalize import StreamingTransform
from mmft.errors import ConfigError

MAX_SIZE = 16384
"""The widest features that are taken: their scatter matrix alone has 2 GiB."""

_TIE = 1e-8  # loadings this close, relative to the largest, count as equally large


class PCA(StreamingTransform):
    """Features on the axes along which they vary most (Pearson 1901; Hotelling 1933).

        Z = (X - mean) W^T,   W = the K eigenvectors of Cov(X) with the largest eigenvalues, orthonormal rows

    With `whiten` each component is divided by its standard deviation, one that does not vary becomes 0. The
    largest loading of every component, by absolute value, is positive; of several as large, the first.

    The statistics are count, mean and D x D scatter matrix, put together as in Chan, Golub & LeVeque 1979
    (STAN-CS-79-773), so that memory and saved state grow with D^2 and not with the number of rows. The
    eigenvectors are computed on the first use after an update and saved with the rest. An update turns the
    axes: end them before training on what comes out.
    """

    mean: Tensor
    """(D,) mean of the rows seen."""
    scatter: Tensor
    """(D, D) sum of (x - mean)(x - mean)^T over the rows seen."""
    fitted_components: Tensor
    """(K, D) the components when `num_fitted` rows had been seen; read `components`."""
    fitted_variance: Tensor
    """(K,) their variance; read `explained_variance`."""
    num_fitted: Tensor
    """() int64, the rows that the fitted components know of."""

    def __init__(self, size: int, num_components: int, *, whiten: bool = False) -> None:
        super().__init__(size)
        if size > MAX_SIZE:
            raise ConfigError(
                f"`size` must be at most {MAX_SIZE} for PCA, which keeps a size x size matrix; got {size}. "
                "Take narrower features, or do without PCA."
            )
        if not 1 <= num_components <= size:
            raise ConfigError(
                f"`num_components` must be between 1 and the width of the features, {size}; "
                f"got {num_components}."
            )
        self.output_size = self.num_components = num_components
        self.whiten = whiten
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("scatter", torch.zeros(size, size, dtype=torch.float64))
        self.register_buffer("fitted_components", torch.zeros(num_components, size, dtype=torch.float64))
        self.register_buffer("fitted_variance", torch.zeros(num_components, dtype=torch.float64))
        self.register_buffer("num_fitted", torch.zeros((), dtype=torch.int64))

    @property
    def components(self) -> Tensor:
        """(K, D) W, the orthonormal axes in order of falling variance."""
        self._prepare()
        return self.fitted_components

    @property
    def explained_variance(self) -> Tensor:
        """(K,) variance along each component, with n - 1 in the denominator."""
        self._prepare()
        return self.fitted_variance

    @property
    def explained_variance_ratio(self) -> Tensor:
        """(K,) part of the variance of all D features that each component has; 0 if there is no variance."""
        variance = self.explained_variance
        total = self.scatter.trace() / (self.num_seen - 1)
        return torch.where(variance > 0, variance / total, 0.0)

    @torch.no_grad()
    def fit_components(self) -> None:
        """Computes the components of the rows seen so far, which the first use would do otherwise.

        Raises:
            ValueError: there are too few rows; n of them span n - 1 directions, and any other would do for
                the remaining components.
        """
        super()._fit()
        num_seen = int(self.num_seen)
        if num_seen <= self.num_components:
            raise ValueError(
                f"PCA has seen {num_seen} rows, and `num_components` {self.num_components} needs at least "
                f"{self.num_components + 1}. Call `update` with more, or ask for fewer components."
            )
        eigenvalues, eigenvectors = torch.linalg.eigh(self.scatter / (num_seen - 1))
        variance = eigenvalues[-self.num_components :].flip(0)
        components = eigenvectors.T[-self.num_components :].flip(0)
        # What rounding alone leaves of a direction that does not vary, in the solver and around the mean.
        epsilon = torch.finfo(torch.float64).eps
        noise = self.size * (epsilon * variance[0].abs() + (4 * epsilon * self.mean.abs().max()).square())
        self.fitted_variance.copy_(torch.where(variance > noise, variance, 0.0))
        self.fitted_components.copy_(_with_fixed_signs(components))
        self.num_fitted.copy_(self.num_seen)

    def _fit(self) -> None:
        super()._fit()
        if int(self.num_fitted) != int(self.num_seen):
            self.fit_components()

    def _summarise(self, rows: Tensor, rounding: float) -> dict[str, Tensor]:
        mean = rows.mean(dim=0)
        centred = rows - mean
        return {"mean": mean, "scatter": centred.T @ centred}

    def _merge(self, share: float, num_rows: int, more: dict[str, Tensor]) -> None:
        delta = more["mean"] - self.mean
        self.mean += share * delta
        self.scatter += more["scatter"]
        self.scatter.addr_(delta, delta, alpha=num_rows * share * (1 - share))

    def _transform(self, features: Tensor) -> Tensor:
        dtype = torch.promote_types(features.dtype, torch.float32)
        # Centred in float64: far from 0 a rounded mean would shift every component.
        centred = (features.double() - self.mean).to(dtype)
        with torch.autocast(features.device.type, enabled=False):  # mixed precision must not round features
            scores = centred @ self.fitted_components.T.to(dtype)
        if not self.whiten:
            return scores
        std = self.fitted_variance.sqrt().to(dtype)
        return torch.where(std > 0, scores / torch.where(std > 0, std, 1.0), 0.0)

    def _invert(self, outputs: Tensor) -> Tensor:
        dtype = torch.promote_types(outputs.dtype, torch.float32)
        scores = outputs.to(dtype)
        if self.whiten:
            scores = scores * self.fitted_variance.sqrt().to(dtype)
        with torch.autocast(outputs.device.type, enabled=False):
            return self.mean + scores @ self.fitted_components.to(dtype)


def _with_fixed_signs(components: Tensor) -> Tensor:
    """Each row or its negative, so that its largest loading is positive, whichever the solver returned."""
    magnitude = components.abs()
    # Rounding must not decide between (1, -1) / sqrt 2 and its negative, so near ties go to the first.
    largest = magnitude >= magnitude.amax(dim=1, keepdim=True) * (1 - _TIE)
    signs = components.gather(1, largest.int().argmax(dim=1, keepdim=True)).sign()
    return components * signs
