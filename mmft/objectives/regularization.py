"""What holds weights near their pretrained values, and adapters near nothing: squared distances.

Each term comes with its gradient in closed form. Differentiated by autograd, a distance would keep the
difference of every weight until the backward: one more copy of the model.

Shapes: r rank, D outputs, E inputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from mmft._checks import check_shapes
from mmft._masking import at_least_float32

CHUNK, CHUNK_ACCELERATOR = 2**17, 2**24
"""Elements that are subtracted at a time: on a CPU they stay in its cache, and their sums keep six digits."""


def squared_distance(weights: Sequence[Tensor], pretrained: Sequence[Tensor]) -> Tensor:
    """How far weights are from where they started (L2-SP: Li, Grandvalet & Davoine 2018, arXiv:1802.01483,
    eq. 2, without its factor alpha/2).

        Omega = sum_i ||theta_i - theta_pre,i||^2

    In float32 at least; `pretrained` gets no gradient. Shapes: any, equal in pairs -> ().
    """
    pairs = list(zip(weights, pretrained, strict=True))
    for weight, start in pairs:
        _check_pair(start, weight)
    differences = [at_least_float32(w) - at_least_float32(start.detach()) for w, start in pairs]
    return torch.stack([difference.square().sum() for difference in differences]).sum()


def squared_norm(weights: Sequence[Tensor]) -> Tensor:
    """sum_i ||phi_i||^2, in float32 at least. Shapes: any -> ()."""
    return torch.stack([at_least_float32(weight).square().sum() for weight in weights]).sum()


@torch.no_grad()
def add_distance_gradient_(
    gradients: Sequence[Tensor],
    weights: Sequence[Tensor],
    starts: Sequence[Tensor | float],
    coefficient: float,
) -> Tensor:
    """Adds 2 c (theta - theta_0) to the gradients in place and returns ||theta - theta_0||^2.

    Differences are taken chunk by chunk and thrown away, so nothing grows with the model. They are taken
    before they are added: to add theta and take theta_0 away would round the gradient as coarsely as the
    weights, and weights that never moved would get noise instead of nothing.

    Args:
        gradients: changed in place.
        weights: theta, shaped like their gradients.
        starts: theta_0, tensors of the same shapes (on any device) or numbers.
        coefficient: c.
    """
    for gradient, weight, start in zip(gradients, weights, starts, strict=True):
        _check_pair(gradient, weight)
        if isinstance(start, Tensor):
            _check_pair(start, weight)
    norms: list[Tensor] = []
    for bucket in _buckets(zip(gradients, weights, starts, strict=True)):
        differences = [at_least_float32(weight) - _beside(start, weight) for _, weight, start in bucket]
        torch._foreach_add_([gradient for gradient, _, _ in bucket], differences, alpha=2 * coefficient)
        norms += torch._foreach_norm(differences)
    if not norms:
        return torch.zeros(())
    return torch.stack([norm.to(norms[0]) for norm in norms]).square().sum()


def lora_squared_norm(down: Tensor, up: Tensor, scaling: float) -> Tensor:
    """||s B A||_F^2 of a LoRA layer (Hu et al. 2021, arXiv:2106.09685) without its (D, E) product.

        ||s B A||_F^2 = s^2 tr(A^T B^T B A) = s^2 <B^T B, A A^T>

    s is the layer's scaling, alpha/r (alpha/sqrt(r) for rsLoRA). Shapes: A (r, E), B (D, r) -> ().
    """
    down_gram, up_gram = _grams(down, up)
    return scaling**2 * (up_gram * down_gram).sum()


@torch.no_grad()
def lora_gradients(down: Tensor, up: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """Gradients of `lora_squared_norm`.

        dA = 2 s^2 (B^T B) A,   dB = 2 s^2 B (A A^T)

    Shapes: A (r, E), B (D, r) -> (r, E), (D, r).
    """
    down_gram, up_gram = _grams(down, up)
    factor = 2 * scaling**2
    return factor * (up_gram @ at_least_float32(down)), factor * (at_least_float32(up) @ down_gram)


def _grams(down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """(r, r) A A^T and B^T B."""
    check_shapes(down=(down, "RE"), up=(up, "DR"))
    down, up = at_least_float32(down), at_least_float32(up)
    return down @ down.T, up.T @ up


def _check_pair(tensor: Tensor, weight: Tensor) -> None:
    if tensor.shape != weight.shape:
        raise ValueError(
            f"a weight of shape {tuple(weight.shape)} is paired with a tensor of shape {tuple(tensor.shape)}"
        )


def _beside(start: Tensor | float, weight: Tensor) -> Tensor | float:
    if not isinstance(start, Tensor):
        return start
    return at_least_float32(start.to(weight.device, non_blocking=True))


Piece = tuple[Tensor, Tensor, "Tensor | float"]


def _buckets(triples: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Gradients, weights and starts in pieces, as many at a time as make up a chunk."""
    bucket: list[Piece] = []
    size = 0
    for triple in triples:
        for piece in _pieces(triple):
            bucket.append(piece)
            size += piece[0].numel()
            if size >= _chunk(piece[0]):
                yield bucket
                bucket, size = [], 0
    if bucket:
        yield bucket


def _pieces(triple: Piece) -> Iterator[Piece]:
    """Views of up to a chunk, cut along the first axis."""
    gradient, weight, start = triple
    if gradient.dim() == 0:
        yield triple
        return
    rows = max(1, _chunk(gradient) * len(gradient) // max(1, gradient.numel()))
    for first in range(0, len(gradient), rows):
        cut = slice(first, first + rows)
        yield gradient[cut], weight[cut], start[cut] if isinstance(start, Tensor) else start


def _chunk(tensor: Tensor) -> int:
    return CHUNK if tensor.device.type == "cpu" else CHUNK_ACCELERATOR
