"""Fusions of one vector per modality, and all fusions by name.

Those in which tokens attend to tokens are in `fusion_attention`.

Shapes: B rows, M modalities, D_m width of modality m, D size of the state.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmft._checks import check_shapes
from mmft._masking import zero_outside
from mmft.errors import ConfigError
from mmft.models.adapter_settings import check_names
from mmft.models.fusion_attention import AllModalityAttention, CrossModalAttention, SharedAttention
from mmft.models.fusion_base import Fusion, float32_linear, presence, projection, vectors
from mmft.models.modalities import Modalities


class LinearFusion(Fusion):
    """H = sum_m (W_m E_m + b_m); a missing modality takes its b_m along."""

    def __init__(self, widths: Mapping[str, int], size: int, *, normalize: bool = False) -> None:
        super().__init__(widths, size, normalize=normalize)
        self.maps = nn.ModuleDict(
            {name: float32_linear(width, size, bias=True) for name, width in widths.items()}
        )

    def fuse(self, states: Modalities) -> Tensor:
        """See the class."""
        terms = [
            zero_outside(self.maps[name](x), states.present(name).unsqueeze(1))
            for name, x in vectors(states).items()
        ]
        return torch.stack(terms).sum(dim=0)


class WeightedSum(Fusion):
    """Modalities by how much they count everywhere.

        H = sum_m w_m P_m E_m,   w = softmax(logits) over the modalities present, so that sum_m w_m = 1

    P_m is the identity where E_m is as wide as the state, else a linear map. All count alike at the start.

    Attributes:
        logits: (M,) learned, in the order of `names`.
    """

    def __init__(self, widths: Mapping[str, int], size: int, *, normalize: bool = False) -> None:
        super().__init__(widths, size, normalize=normalize)
        self.projections = nn.ModuleDict({name: projection(width, size) for name, width in widths.items()})
        self.logits = nn.Parameter(torch.zeros(len(widths), dtype=torch.float32))

    @property
    def weights(self) -> dict[str, float]:
        """w of a row that has every modality."""
        return dict(zip(self.names, self.logits.detach().softmax(dim=0).tolist(), strict=True))

    def modality_weights(self, states: Modalities) -> Tensor:
        """w of each row, (B, M) in the order of `names`: 0 at missing modalities."""
        return self._weights(self.prepare(states))

    def fuse(self, states: Modalities) -> Tensor:
        """See the class."""
        return _weighted(self._weights(states), self.projections, states)

    def _weights(self, states: Modalities) -> Tensor:
        present = presence(states)
        return softmax_over_present(self.logits.expand(present.shape), present)


class AttentionPooling(Fusion):
    """Modalities by how much they count in this state.

        H = sum_m alpha_m P_m E_m,   alpha = softmax_m(W_a [E_1; ...; E_M])

    W_a is M x sum_m D_m, 0 at the start, so that all count alike. A missing modality is left out of the
    product as well as of the softmax. P_m is the identity where E_m is as wide as the state, else a linear
    map.
    """

    def __init__(self, widths: Mapping[str, int], size: int, *, normalize: bool = False) -> None:
        super().__init__(widths, size, normalize=normalize)
        self.projections = nn.ModuleDict({name: projection(width, size) for name, width in widths.items()})
        self.scores = float32_linear(sum(widths.values()), len(widths))
        nn.init.zeros_(self.scores.weight)

    def modality_weights(self, states: Modalities) -> Tensor:
        """alpha of each row, (B, M) in the order of `names`: 0 at missing modalities."""
        with torch.autocast(states.device.type, enabled=False):
            return self._weights(self.prepare(states))

    def fuse(self, states: Modalities) -> Tensor:
        """See the class."""
        return _weighted(self._weights(states), self.projections, states)

    def _weights(self, states: Modalities) -> Tensor:
        # The vector of a missing modality is 0 here, which leaves its columns of W_a out of the product.
        logits = self.scores(torch.cat(list(vectors(states).values()), dim=1))
        return softmax_over_present(logits, presence(states))


class CoupledEncoders(Fusion):
    """An encoder per modality, trained together through what joins them.

        H = sum_m W_f^m H_m + b_f,   H_m = GELU(W_m E_m + b_m)

    The sum is W_f [H_1; ...; H_M] without the columns of missing modalities. Every H_m is D wide.
    """

    def __init__(self, widths: Mapping[str, int], size: int, *, normalize: bool = False) -> None:
        super().__init__(widths, size, normalize=normalize)
        self.encoders = nn.ModuleDict(
            {name: float32_linear(width, size, bias=True) for name, width in widths.items()}
        )
        self.joint = float32_linear(len(widths) * size, size, bias=True)

    def fuse(self, states: Modalities) -> Tensor:
        """See the class."""
        encoded = [
            # An encoder's answer to nothing, GELU(b_m), is not nothing.
            zero_outside(nn.functional.gelu(self.encoders[name](x)), states.present(name).unsqueeze(1))
            for name, x in vectors(states).items()
        ]
        anything = presence(states).any(dim=1, keepdim=True)
        return zero_outside(self.joint(torch.cat(encoded, dim=1)), anything)


class LastHiddenState(Fusion):
    """What the vision-language model has fused itself, moved by the numbers where there are any.

        H = E_fused + W_n E_numbers

    W_n is 0 at the start, so that training begins at the pretrained state.

    Attributes:
        from_numbers: W_n, or None if built without `numbers`.
    """

    def __init__(self, widths: Mapping[str, int], size: int, *, normalize: bool = False) -> None:
        if "fused" not in widths:
            raise ConfigError(
                f"the fusion 'vlm' reads the modality 'fused', and `widths` has {', '.join(widths)}; add the "
                "model's hidden state, or take another fusion."
            )
        if size != widths["fused"]:
            raise ConfigError(
                f"`size` is {size}, but the fusion 'vlm' keeps the model's own state, of width "
                f"{widths['fused']}; set it to that."
            )
        read = {name: widths[name] for name in ("fused", "numbers") if name in widths}
        super().__init__(read, size, normalize=normalize)
        self.from_numbers: nn.Linear | None = None
        if "numbers" in read:
            self.from_numbers = float32_linear(read["numbers"], size)
            nn.init.zeros_(self.from_numbers.weight)

    def fuse(self, states: Modalities) -> Tensor:
        """See the class."""
        means = vectors(states)
        if self.from_numbers is None:
            return means["fused"]
        moved: Tensor = means["fused"] + self.from_numbers(means["numbers"])
        return moved


def softmax_over_present(logits: Tensor, present: Tensor) -> Tensor:
    """exp(l_m) / sum over the m' present of exp(l_m'); 0 at the others, and where nothing is present.

    Shapes: (B, M), (B, M) -> (B, M).
    """
    check_shapes(logits=(logits, "BM"), present=(present, "BM"))
    # The softmax over nothing is 0/0: such a row takes all, and the outcome is not taken.
    usable = present | ~present.any(dim=1, keepdim=True)
    return zero_outside(logits.masked_fill(~usable, -torch.inf).softmax(dim=1), present)


def _weighted(weights: Tensor, projections: nn.ModuleDict, states: Modalities) -> Tensor:
    """sum_m weights_m P_m E_m. Shapes: (B, M) -> (B, D)."""
    projected = torch.stack([projections[name](x) for name, x in vectors(states).items()], dim=1)
    return (weights.unsqueeze(2) * projected).sum(dim=1)


FUSIONS: dict[str, type[Fusion]] = {
    "linear": LinearFusion,
    "weighted_sum": WeightedSum,
    "attention_pooling": AttentionPooling,
    "cross_modal": CrossModalAttention,
    "all_modality": AllModalityAttention,
    "shared": SharedAttention,
    "coupled": CoupledEncoders,
    "vlm": LastHiddenState,
}


def make_fusion(name: str, widths: Mapping[str, int], size: int, **options: Any) -> Fusion:
    """A fusion by its name.

    Args:
        name: one of `FUSIONS`.
        widths: D_m by modality.
        size: D.
        **options: of that fusion's class.

    Raises:
        ConfigError: an unknown name or option, or modalities and sizes that the fusion cannot do with.
    """
    check_names([name], list(FUSIONS), "fusion")
    known = list(inspect.signature(FUSIONS[name]).parameters)[2:]
    for option in options:
        if option not in known:
            raise ConfigError(f"the fusion {name!r} has no option `{option}`; it has {', '.join(known)}.")
    return FUSIONS[name](widths, size, **options)
