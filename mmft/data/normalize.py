"""Streaming scalers: the features of a frozen model brought to one scale before the heads see them.

Any split of the rows into batches, over time or over processes, gives the same statistics up to rounding. Not
here: running averages that forget, which would move the features under a head that trains on them.
"""

from __future__ import annotations

import abc
import difflib
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from mmft.errors import ConfigError, DataError


class FeatureTransform(nn.Module, abc.ABC):
    """A map of feature vectors that learns from the data and has no parameters to train."""

    size: int
    """D, the width of the features."""
    output_size: int
    """The width of what comes out."""

    @abc.abstractmethod
    def update(self, features: Tensor, mask: Tensor | None = None) -> None:
        """Takes note of more rows. Shapes: (..., D), (...) with True at the rows that count (None: all)."""

    @abc.abstractmethod
    def merge_(self, other: Self) -> None:
        """Takes note of the rows that `other` saw, as another process did; `other` stays as it is."""

    @abc.abstractmethod
    def forward(self, features: Tensor) -> Tensor:
        """The features transformed, in their own dtype. Shapes: (..., D) -> (..., output_size)."""

    @abc.abstractmethod
    def inverse(self, outputs: Tensor) -> Tensor:
        """Features that `forward` would turn into `outputs`. Shapes: (..., output_size) -> (..., D)."""


class Unscaled(FeatureTransform):
    """Features as they are: nothing to learn, nothing to save."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = self.output_size = size

    def update(self, features: Tensor, mask: Tensor | None = None) -> None:
        """Changes nothing."""

    def merge_(self, other: Self) -> None:
        """Changes nothing."""

    def forward(self, features: Tensor) -> Tensor:
        return features

    def inverse(self, outputs: Tensor) -> Tensor:
        return outputs


class StreamingTransform(FeatureTransform):
    """What all transforms with statistics share: which rows count, when they may be applied, their precision.

    The statistics are float64 buffers. They are saved with the model and move with it, but stay float64 where
    the model is cast. Processes put theirs together by exchanging `state_dict()`s and merging, in the same
    order on each. Merge only what was collected apart: a past that both share would count twice.
    """

    num_seen: Tensor
    """() int64, the rows that counted so far."""

    def __init__(self, size: int) -> None:
        super().__init__()
        if size < 1:
            raise ConfigError(f"`size` must be >= 1; got {size}. It is the width of the features.")
        self.size = self.output_size = size
        # Looking at `num_seen` waits for the GPU, so `forward` does it only after it may have changed.
        self._ready = False
        self.register_buffer("num_seen", torch.zeros((), dtype=torch.int64))
        self.register_load_state_dict_post_hook(_prepare_anew)

    @torch.no_grad()
    def update(self, features: Tensor, mask: Tensor | None = None) -> None:
        """Takes note of more rows. Shapes: (..., D), (...) with True at the rows that count (None: all).

        Raises:
            DataError: a row that counts holds NaN or infinity; nothing was updated.
        """
        rows = self._valid_rows(features, mask)
        if len(rows) > 0:
            self._merge_statistics(len(rows), self._summarise(rows, torch.finfo(features.dtype).eps))

    @torch.no_grad()
    def merge_(self, other: Self) -> None:
        """Takes note of the rows that `other` saw, as another process did; `other` stays as it is."""
        if type(other) is not type(self) or other.size != self.size:
            raise ValueError(
                f"`other` is {type(other).__name__} of {getattr(other, 'size', '?')} features; only another "
                f"{type(self).__name__} of {self.size} can be merged in."
            )
        if int(other.num_seen) > 0:
            summary = {name: buffer.to(self.num_seen.device) for name, buffer in other.named_buffers()}
            self._merge_statistics(int(other.num_seen), summary)

    def forward(self, features: Tensor) -> Tensor:
        """The features transformed, in their own dtype. Shapes: (..., D) -> (..., output_size)."""
        _check_width("features", features, self.size)
        self._prepare()
        return self._transform(features).to(features.dtype)

    def inverse(self, outputs: Tensor) -> Tensor:
        """Features that `forward` would turn into `outputs`. Shapes: (..., output_size) -> (..., D)."""
        _check_width("outputs", outputs, self.output_size)
        self._prepare()
        return self._invert(outputs).to(outputs.dtype)

    @abc.abstractmethod
    def _summarise(self, rows: Tensor, rounding: float) -> dict[str, Tensor]:
        """The statistics of (N, D) float64 rows alone, by the names of the buffers.

        `rounding` is the distance from 1 to the next number in the dtype they came in.
        """

    @abc.abstractmethod
    def _merge(self, share: float, num_rows: int, more: dict[str, Tensor]) -> None:
        """Puts other rows' statistics into the buffers; `share` is their part of all `num_rows` rows."""

    @abc.abstractmethod
    def _transform(self, features: Tensor) -> Tensor: ...

    @abc.abstractmethod
    def _invert(self, outputs: Tensor) -> Tensor: ...

    def _fit(self) -> None:
        """What has to be done once between an update and the next use."""
        if int(self.num_seen) == 0:
            name = type(self).__name__
            raise ValueError(f"{name} has seen no features. Call `update` first, or load a saved state.")

    def _prepare(self) -> None:
        if not self._ready:
            self._fit()
            self._ready = True

    def _merge_statistics(self, num_more: int, more: dict[str, Tensor]) -> None:
        total = int(self.num_seen) + num_more
        self._merge(num_more / total, total, more)
        self.num_seen.fill_(total)
        self._ready = False

    def _valid_rows(self, features: Tensor, mask: Tensor | None) -> Tensor:
        """(N, D) the rows that count, float64, on the device of the statistics."""
        _check_width("features", features, self.size)
        leading = features.shape[:-1]
        if mask is not None and mask.shape != leading:
            raise ValueError(
                f"`mask` must have one entry per row, shape {tuple(leading)}; got {tuple(mask.shape)}."
            )
        rows = features.reshape(-1, self.size)
        valid = torch.ones(leading, dtype=torch.bool, device=rows.device) if mask is None else mask.bool()
        valid = valid.reshape(-1).to(rows.device)
        broken = valid & ~rows.isfinite().all(dim=1)
        if bool(broken.any()):
            raise DataError(
                f"`features` has a NaN or infinity in row {int(broken.int().argmax())}; nothing was updated. "
                "Leave such rows out with `mask`, or find out where they come from."
            )
        return rows[valid].to(self.num_seen.device, torch.float64)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        # `model.to(torch.bfloat16)` casts buffers too; statistics of 8 bits would be no use.
        for name, buffer in before.items():
            after = getattr(self, name)
            if after.dtype != buffer.dtype:
                setattr(self, name, buffer.to(after.device))
        return self


class Scaler(StreamingTransform):
    """A transform of each feature by itself, which knows the features that say nothing.

    A feature is constant if all that was seen of it lies within one rounding step of the dtype it came in:
    scaled up, it would be noise.
    """

    minimum: Tensor
    """(D,) the least value seen."""
    maximum: Tensor
    """(D,) the greatest value seen."""
    rounding: Tensor
    """() distance from 1 to the next number, of the coarsest dtype seen."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.register_buffer("minimum", torch.full((size,), torch.inf, dtype=torch.float64))
        self.register_buffer("maximum", torch.full((size,), -torch.inf, dtype=torch.float64))
        self.register_buffer("rounding", torch.zeros((), dtype=torch.float64))

    @property
    def constant(self) -> Tensor:
        """(D,) boolean: True at the features that did not vary.

        Judged by the range, not by the variance: a rare event has little variance, and says something.
        """
        self._prepare()
        magnitude = torch.maximum(self.minimum.abs(), self.maximum.abs())
        return self.maximum - self.minimum <= self.rounding * magnitude

    def _summarise(self, rows: Tensor, rounding: float) -> dict[str, Tensor]:
        return {
            "minimum": rows.amin(dim=0),
            "maximum": rows.amax(dim=0),
            "rounding": torch.full_like(self.rounding, rounding),
        }

    def _merge(self, share: float, num_rows: int, more: dict[str, Tensor]) -> None:
        self.minimum.copy_(torch.minimum(self.minimum, more["minimum"]))
        self.maximum.copy_(torch.maximum(self.maximum, more["maximum"]))
        self.rounding.copy_(torch.maximum(self.rounding, more["rounding"]))


class StandardScaler(Scaler):
    """Each feature with mean 0 and variance 1 over the rows seen.

        z = (x - mean) / std,   std = sqrt(sum (x - mean)^2 / n)

    Constant features become 0, also where they take another value later. Statistics of two sets of rows are
    put together as in Chan, Golub & LeVeque 1979 (STAN-CS-79-773), which does not cancel far from 0:

        mean = mean_a + (n_b / n) d,   squares = squares_a + squares_b + (n_a n_b / n) d^2
        d = mean_b - mean_a,   n = n_a + n_b
    """

    mean: Tensor
    """(D,) mean of the rows seen."""
    squares: Tensor
    """(D,) sum of the squared deviations from it."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("squares", torch.zeros(size, dtype=torch.float64))

    @property
    def std(self) -> Tensor:
        """(D,) standard deviation of the rows seen, with n in the denominator; 0 at constant features."""
        self._prepare()
        return torch.where(self.constant, 0.0, (self.squares / self.num_seen).sqrt())

    def _summarise(self, rows: Tensor, rounding: float) -> dict[str, Tensor]:
        mean = rows.mean(dim=0)
        squares = (rows - mean).square().sum(dim=0)
        return {"mean": mean, "squares": squares, **super()._summarise(rows, rounding)}

    def _merge(self, share: float, num_rows: int, more: dict[str, Tensor]) -> None:
        super()._merge(share, num_rows, more)
        delta = more["mean"] - self.mean
        self.mean += share * delta
        self.squares += more["squares"] + num_rows * share * (1 - share) * delta.square()

    def _transform(self, features: Tensor) -> Tensor:
        std = self.std
        varies = std > 0
        # A divisor of 0 would make the gradient NaN, also where its quotient is not selected.
        return torch.where(varies, (features.double() - self.mean) / torch.where(varies, std, 1.0), 0.0)

    def _invert(self, outputs: Tensor) -> Tensor:
        return self.mean + self.std * outputs.double()


class MinMaxScaler(Scaler):
    """Each feature moved and stretched so that what was seen of it fills `low` to `high`.

        z = low + (high - low) (x - min) / (max - min)

    Constant features become `low`, also where they take another value later. Values beyond what was seen go
    beyond `low` and `high`, unless `clip` is set; `inverse` cannot bring back what was clipped.
    """

    def __init__(self, size: int, low: float = 0.0, high: float = 1.0, *, clip: bool = False) -> None:
        super().__init__(size)
        if not low < high:
            raise ConfigError(f"`low` must be less than `high`; got {low} and {high}.")
        self.low, self.high, self.clip = low, high, clip

    def _transform(self, features: Tensor) -> Tensor:
        width = torch.where(self.constant, 1.0, self.maximum - self.minimum)
        position = torch.where(self.constant, 0.0, (features.double() - self.minimum) / width)
        scaled = self.low + (self.high - self.low) * position
        return scaled.clamp(self.low, self.high) if self.clip else scaled

    def _invert(self, outputs: Tensor) -> Tensor:
        width = self.maximum - self.minimum
        return self.minimum + width * (outputs.double() - self.low) / (self.high - self.low)


SCALERS: dict[str, Callable[[int], FeatureTransform]] = {
    "none": Unscaled,
    "standard": StandardScaler,
    "min_max": MinMaxScaler,
}
"""Scalers by the names that settings use."""


def make_scaler(name: str, size: int) -> FeatureTransform:
    """A scaler of `size` features by its name in `SCALERS`.

    Raises:
        ConfigError: with the nearest known name.
    """
    if name not in SCALERS:
        near = difflib.get_close_matches(name, SCALERS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"`scaler` is {name!r}, which is not one of {', '.join(SCALERS)}.{hint}")
    return SCALERS[name](size)


def _check_width(name: str, tensor: Tensor, width: int) -> None:
    if tensor.dim() == 0 or tensor.shape[-1] != width:
        raise ValueError(f"`{name}` must have {width} numbers per row; got shape {tuple(tensor.shape)}.")
    if not tensor.is_floating_point():
        raise ValueError(f"`{name}` must be floating point; got {tensor.dtype}. Convert it with `.float()`.")


def _prepare_anew(module: nn.Module, _incompatible_keys: Any) -> None:
    if isinstance(module, StreamingTransform):
        module._ready = False
