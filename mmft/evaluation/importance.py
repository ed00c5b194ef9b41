"""Gradient importance: how much each token, patch and modality moves a number that a model gives.

Pure functions of gradients that somebody else took (`engine.attribution`). Left out: scaling for display,
which belongs to whoever draws, and integrated gradients, which cost many passes for one map.

Shapes: B rows, T tokens, D width, R x C cells of a map over a picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmft._checks import check_shapes
from mmft._masking import at_least_float32, zero_outside

Box = tuple[float, float, float, float]
"""Top, left, bottom and right as shares of a picture's height and width; what is below 0 or above 1 lies
beyond its edge, where a processor pads."""
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


def gradient_importance(gradients: Tensor, mask: Tensor) -> Tensor:
    """How far a small step of each embedding can move the number L (Simonyan et al. 2014, arXiv:1312.6034,
    sec. 3, there of pixels).

        I_i = ||dL/dE_i||_2

    0 where `mask` is not set, whatever the gradients hold there. Shapes: (B, T, D), (B, T) -> (B, T).
    """
    check_shapes(gradients=(gradients, "BTD"), mask=(mask, "BT"))
    return torch.linalg.vector_norm(_chosen(gradients, mask), dim=2)


def relative_importance(gradients: Tensor, embeddings: Tensor, mask: Tensor) -> Tensor:
    """How far a step by a small share of each embedding can move L.

        I_i = ||dL/dE_i||_2 ||E_i||_2

    Unlike the plain gradient it stays what it is where embeddings are ten times as large and what reads them
    a tenth, so that modalities of different scale compare; exactly 0 for an embedding that is 0.
    Shapes: (B, T, D), (B, T, D), (B, T) -> (B, T).
    """
    check_shapes(gradients=(gradients, "BTD"), embeddings=(embeddings, "BTD"), mask=(mask, "BT"))
    sizes = torch.linalg.vector_norm(_chosen(embeddings, mask), dim=2)
    return gradient_importance(gradients, mask) * sizes


def gradient_times_input(gradients: Tensor, embeddings: Tensor, mask: Tensor) -> Tensor:
    """What taking each embedding away would change, to first order (Shrikumar et al. 2016, arXiv:1605.01713,
    sec. 2, there with its sign).

        I_i = |<dL/dE_i, E_i>|

    At most the relative importance, and exactly 0 for an embedding that is 0.
    Shapes: (B, T, D), (B, T, D), (B, T) -> (B, T).
    """
    check_shapes(gradients=(gradients, "BTD"), embeddings=(embeddings, "BTD"), mask=(mask, "BT"))
    return (_chosen(gradients, mask) * _chosen(embeddings, mask)).sum(dim=2).abs()


def modality_importance(importance: Tensor, modalities: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """I_m = sum_(i in m) I_i, of plain gradients the (2, 1)-norm of dL/dE_m.

    A sum rather than the Frobenius norm, so that a whole counts what its parts count: prompt and answer
    together what the text does, and the cells of a map what their picture does.

    Args:
        importance: (B, T) of every token.
        modalities: (B, T) per modality, True at its tokens.

    Returns:
        (B,) per modality.
    """
    check_shapes(importance=(importance, "BT"), **{name: (mask, "BT") for name, mask in modalities.items()})
    return {
        name: zero_outside(at_least_float32(importance), mask).sum(1) for name, mask in modalities.items()
    }


def modality_shares(importance: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """s_m = I_m / sum_n I_n, which add up to 1; all 0 in a row where nothing has any importance.

    What is not finite makes all shares of its row NaN. Shapes: (B,) each -> (B,) each.
    """
    if not importance:
        return {}
    check_shapes(**{name: (each, "B") for name, each in importance.items()})
    stacked = torch.stack([at_least_float32(each) for each in importance.values()])
    total = stacked.sum(0)
    shares = stacked / torch.where(total == 0, 1, total)
    return dict(zip(importance, torch.where(total.isfinite(), shares, torch.nan), strict=True))


@dataclass(frozen=True, slots=True)
class PatchView:
    """Tokens that lie in rows and columns over a part of a picture: all of it, a tile, a crop."""

    first: int
    """The view's first token, counted within the picture."""
    rows: int
    columns: int
    stride: int
    """Tokens from one row to the next; more than `columns` where a token ends each row."""
    box: Box = WHOLE
    """Where in the picture it lies."""

    def places(self, device: torch.device | None = None) -> Tensor:
        """(rows, columns) which token of the picture lies where."""
        rows = torch.arange(self.rows, device=device)[:, None]
        return self.first + self.stride * rows + torch.arange(self.columns, device=device)


@dataclass(frozen=True, slots=True)
class PatchGrid:
    """A map over one picture, and where the picture's tokens look; those that end rows look nowhere."""

    rows: int
    columns: int
    views: tuple[PatchView, ...]

    @classmethod
    def over(cls, views: Sequence[PatchView]) -> PatchGrid:
        """The map over the whole picture with cells as small as those of its finest view."""
        rows = max(view.rows / (view.box[2] - view.box[0]) for view in views)
        columns = max(view.columns / (view.box[3] - view.box[1]) for view in views)
        return cls(max(round(rows), 1), max(round(columns), 1), tuple(views))


def patch_map(importance: Tensor, grid: PatchGrid) -> Tensor:
    """A picture's importance over the whole picture, (R, C), the top row first.

        M_rc = sum_i I_i |box_i and cell_rc| / |box_i|

    A token's importance is spread evenly over the part of the picture that it looks at, so that tiles and a
    view of the whole share one map, whose cells add up to the importance of all tokens that look at the
    picture. 0 where no token looks: at what the processor cut off. Shapes: (T,) -> (R, C).
    """
    check_shapes(importance=(importance, "T"))
    values = at_least_float32(importance)
    total = values.new_zeros(grid.rows, grid.columns)
    for view in grid.views:
        places = view.places(values.device)
        if int(places[-1, -1]) >= len(values):
            raise ValueError(
                f"`importance` has {len(values)} tokens, but `grid` reads {int(places[-1, -1]) + 1}."
            )
        top, left, bottom, right = view.box
        rows = _overlaps(view.rows, top, bottom, grid.rows).to(values)
        columns = _overlaps(view.columns, left, right, grid.columns).to(values)
        total += rows @ values[places] @ columns.T
    return total


def _overlaps(num_parts: int, start: float, end: float, num_cells: int) -> Tensor:
    """(num_cells, num_parts): of each equal part of [start, end] the share within each equal cell of [0, 1].

    A part's length is what of it lies in [0, 1]: padding beyond the edge takes nothing from the picture."""
    edges = torch.linspace(start, end, num_parts + 1, dtype=torch.float64).clamp(0, 1)
    cells = torch.linspace(0, 1, num_cells + 1, dtype=torch.float64)[:, None]
    common = torch.minimum(edges[1:], cells[1:]) - torch.maximum(edges[:-1], cells[:-1])
    lengths = edges[1:] - edges[:-1]
    return common.clamp(min=0) / torch.where(lengths > 0, lengths, 1)


def _chosen(tensor: Tensor, mask: Tensor) -> Tensor:
    return zero_outside(at_least_float32(tensor), mask.unsqueeze(2))
