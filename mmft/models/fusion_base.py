"""What every fusion is: one state H from the modalities that a row has.

A fusion leaves a missing modality out of its equation instead of reading zeros in its place, so that a row
without pictures gets what a fusion of the other modalities alone would give it.

Shapes: B rows, T tokens of one modality, D size of the state.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mmft._masking import at_least_float32, zero_outside
from mmft.errors import ConfigError
from mmft.models.modalities import Modalities


class Fusion(nn.Module, abc.ABC):
    """H(s) from the embeddings E_m of the modalities m.

    Where an equation wants vectors, E_m is the mean over the row's real tokens. Neither padding nor other
    rows change a row. A row in which nothing is present gets H = 0: refusing it would wait for the GPU.
    Modalities that the fusion was not built for are not read; one that it was built for and is not given is
    missing in every row. Computed in the precision of the weights, float32, also under mixed precision.

    Attributes:
        widths: D_m of the modalities that are read, by name, in the order of the equation's sum.
        size: D, width of the state.
        norms: with `normalize` a LayerNorm (Ba et al. 2016, arXiv:1607.06450) per modality, which each token
            passes before anything else; without, empty: the equation holds for the embeddings as they are.
    """

    def __init__(self, widths: Mapping[str, int], size: int, *, normalize: bool = False) -> None:
        super().__init__()
        if not widths:
            raise ConfigError("`widths` is empty; a fusion needs at least one modality.")
        for name, number in [("size", size), *((f"widths[{name}]", width) for name, width in widths.items())]:
            if number < 1:
                raise ConfigError(f"`{name}` must be >= 1; got {number}.")
        self.widths = dict(widths)
        self.size = size
        normalized = self.widths if normalize else {}
        self.norms = nn.ModuleDict(
            {name: nn.LayerNorm(width, dtype=torch.float32) for name, width in normalized.items()}
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities that are read."""
        return tuple(self.widths)

    def forward(self, states: Modalities) -> Tensor:
        """The states' H, (B, D).

        Raises:
            ValueError: an embedding has another width than the fusion was built for.
        """
        with torch.autocast(states.device.type, enabled=False):
            return self.fuse(self.prepare(states))

    @abc.abstractmethod
    def fuse(self, states: Modalities) -> Tensor:
        """The equation, on what `prepare` returns."""

    def prepare(self, states: Modalities) -> Modalities:
        """Exactly the modalities of `names`, in the weights' dtype, padding finite, normalised if wanted."""
        weight = next(self.parameters(), None)
        embeddings, masks = {}, {}
        for name, width in self.widths.items():
            x, mask = self._held(states, name, width)
            x = at_least_float32(x) if weight is None else x.to(weight.dtype)
            # Selected before any product: 0 * nan is nan, in the gradients of weights too.
            x = zero_outside(x, mask.unsqueeze(2))
            if name in self.norms:
                x = self.norms[name](x)
            embeddings[name], masks[name] = x, mask
        return Modalities(embeddings, masks)

    @staticmethod
    def _held(states: Modalities, name: str, width: int) -> tuple[Tensor, Tensor]:
        """Embedding and mask of a modality; one masked token where it is not held."""
        x = states.embeddings.get(name)
        if x is not None and x.shape[2] != width:
            raise ValueError(
                f"`states` has {name!r} of width {x.shape[2]}, but the fusion was built for {width}; build "
                "it with the `widths` of the states."
            )
        if x is None:
            like = next(iter(states.embeddings.values()))
            return like.new_zeros(len(states), 1, width), like.new_zeros(len(states), 1, dtype=torch.bool)
        return x, states.masks[name]


def float32_linear(width: int, size: int, *, bias: bool = False) -> nn.Linear:
    """A linear map whose weights are float32 also where the default dtype is half precision."""
    return nn.Linear(width, size, bias=bias, dtype=torch.float32)


def projection(width: int, size: int) -> nn.Module:
    """P_m: a linear map without bias, or the identity where the width is already that of the state."""
    return nn.Identity() if width == size else float32_linear(width, size)


def vectors(states: Modalities) -> dict[str, Tensor]:
    """(B, D_m) per modality, the mean of its real tokens; 0 where it is missing."""
    return {name: x.squeeze(1) for name, x in states.pooled().embeddings.items()}


def presence(states: Modalities) -> Tensor:
    """(B, M) which modalities a row has."""
    return torch.stack([states.present(name) for name in states.names], dim=1)
