"""Shape checks at the door of every equation: broadcasting a (B,) against a (B, 1) is an error, not a (B, B).

Only shapes are looked at: values stay on their device, so a check never waits for the GPU.
"""

from __future__ import annotations

from torch import Tensor


def check_shapes(**tensors: tuple[Tensor, str]) -> None:
    """Raises ValueError unless each tensor has the named dims and equal letters have equal sizes.

    `check_shapes(logps=(logps, "BT"), mask=(mask, "BT"), scores=(scores, "B"))` reads: `logps` and `mask` are
    B x T, `scores` has the same B. The message names the culprit.
    """
    sizes: dict[str, int] = {}
    for name, (tensor, dims) in tensors.items():
        shape = tuple(tensor.shape)
        if len(shape) != len(dims):
            raise ValueError(f"`{name}` must have dims {'x'.join(dims)}; got shape {shape}.")
        for letter, size in zip(dims, shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                raise ValueError(
                    f"`{name}` has {letter}={size}, but earlier arguments have {letter}={sizes[letter]}."
                )
