"""What was seen of each state, one embedding sequence per modality: the input of every fusion.

Nothing is encoded here, and nothing is filled in: a row that lacks a modality says so in its mask.

Shapes: B rows, T tokens of one modality (another number for each), D its width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmft._checks import check_shapes
from mmft._masking import at_least_float32, zero_outside

MODALITIES = ("text", "image", "video", "audio", "numbers", "fused")
"""The names that mmft itself gives; `fused` is the vision-language model's own last hidden state. Others may
be added under names of their own."""

MASK_SUFFIX = "_mask"


@dataclass(frozen=True, slots=True)
class Modalities:
    """The embeddings of B states.

    Padding may hold anything, NaN included: whatever reads it goes by the mask.
    """

    embeddings: dict[str, Tensor]
    """(B, T, D) per modality, in floating point."""
    masks: dict[str, Tensor]
    """(B, T) per modality, True at real tokens; nowhere in a row that lacks the modality."""

    def __post_init__(self) -> None:
        if not self.embeddings and not self.masks:
            raise ValueError("`embeddings` is empty; give at least one modality.")
        for name in sorted(self.embeddings.keys() ^ self.masks.keys()):
            lacks = "mask" if name in self.embeddings else "embedding"
            raise ValueError(f"modality {name!r} has no {lacks}; give its embedding and its mask.")
        for name in self.embeddings:
            self._check(name)

    def _check(self, name: str) -> None:
        embedding, mask = self.embeddings[name], self.masks[name]
        if name.endswith(MASK_SUFFIX):
            raise ValueError(f"modality {name!r} reads like the mask of another; rename it.")
        if embedding.ndim != 3 or not embedding.is_floating_point():
            raise ValueError(
                f"the embedding of {name!r} must be B x T x D in floating point; got {_describe(embedding)}."
            )
        if mask.dtype != torch.bool or mask.shape != embedding.shape[:2]:
            raise ValueError(
                f"the mask of {name!r} must be {tuple(embedding.shape[:2])}, one torch.bool per token; got "
                f"{_describe(mask)}."
            )
        if len(embedding) != len(self):
            raise ValueError(
                f"modality {name!r} has {len(embedding)} rows, but {self.names[0]!r} has {len(self)}; a row "
                "that lacks a modality keeps its place, with a mask that is False."
            )

    def __len__(self) -> int:
        """B."""
        return len(next(iter(self.embeddings.values())))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.embeddings)

    @property
    def widths(self) -> dict[str, int]:
        """D of each modality."""
        return {name: embedding.shape[2] for name, embedding in self.embeddings.items()}

    @property
    def device(self) -> torch.device:
        return next(iter(self.embeddings.values())).device

    @property
    def num_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors().values())

    def present(self, name: str) -> Tensor:
        """(B,) True for rows that have a token of the modality; a modality not held is in no row."""
        if name not in self.masks:
            return torch.zeros(len(self), dtype=torch.bool, device=self.device)
        return self.masks[name].any(dim=1)

    def pooled(self) -> Modalities:
        """One token per modality, the mean over the real ones; a missing modality stays missing, at 0."""
        means = {
            name: mean_over_tokens(x, self.masks[name]).unsqueeze(1) for name, x in self.embeddings.items()
        }
        return Modalities(means, {name: self.present(name).unsqueeze(1) for name in self.names})

    def only(self, names: Sequence[str]) -> Modalities:
        """These modalities alone, in this order.

        Raises:
            ValueError: one of them is not held.
        """
        for name in names:
            if name not in self.embeddings:
                raise ValueError(f"`names` has {name!r}, which is not one of {', '.join(self.names)}.")
        return Modalities({n: self.embeddings[n] for n in names}, {n: self.masks[n] for n in names})

    def take(self, rows: Tensor | slice) -> Modalities:
        """Some rows: a slice, (N,) indices or a (B,) boolean choice."""
        return Modalities(
            {name: embedding[rows] for name, embedding in self.embeddings.items()},
            {name: mask[rows] for name, mask in self.masks.items()},
        )

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Modalities:
        """Moves to `device`; the embeddings also to `dtype`. None leaves as it is."""
        return Modalities(
            {name: x.to(device=device, dtype=dtype) for name, x in self.embeddings.items()},
            {name: mask.to(device=device) for name, mask in self.masks.items()},
        )

    def detach(self) -> Modalities:
        """The same embeddings, outside any graph."""
        return Modalities({name: x.detach() for name, x in self.embeddings.items()}, self.masks)

    def joined(self, *others: Modalities) -> Modalities:
        """These rows, then those of the others: `Modalities.cat`."""
        return Modalities.cat([self, *others])

    @classmethod
    def cat(cls, parts: Sequence[Modalities]) -> Modalities:
        """All rows of all parts, in order.

        Sequences are padded at the end to the longest of their modality; rows of a part that does not hold a
        modality lack it.

        Raises:
            ValueError: there are no parts, or a modality has two widths.
        """
        if not parts:
            raise ValueError("`parts` is empty; give at least one.")
        embeddings, masks = {}, {}
        for name in dict.fromkeys(name for part in parts for name in part.names):
            held = [part.embeddings[name] for part in parts if name in part.embeddings]
            for embedding in held:
                if embedding.shape[2] != held[0].shape[2]:
                    raise ValueError(
                        f"modality {name!r} is {held[0].shape[2]} wide in one part and {embedding.shape[2]} "
                        "in another; only embeddings of one encoder go together."
                    )
            num_tokens = max(embedding.shape[1] for embedding in held)
            pieces = [part._padded(name, num_tokens, held[0]) for part in parts]
            embeddings[name] = torch.cat([embedding for embedding, _ in pieces])
            masks[name] = torch.cat([mask for _, mask in pieces])
        return cls(embeddings, masks)

    def _padded(self, name: str, num_tokens: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Embedding and mask of a modality with `num_tokens` tokens; all missing where it is not held."""
        if name not in self.embeddings:
            return (
                like.new_zeros(len(self), num_tokens, like.shape[2]),
                like.new_zeros(len(self), num_tokens, dtype=torch.bool),
            )
        short = num_tokens - self.embeddings[name].shape[1]
        pad = torch.nn.functional.pad
        return pad(self.embeddings[name], (0, 0, 0, short)), pad(self.masks[name], (0, short))

    def tensors(self) -> dict[str, Tensor]:
        """Everything in one flat dict, `image` beside `image_mask`, for buffers and safetensors files."""
        return self.embeddings | {name + MASK_SUFFIX: mask for name, mask in self.masks.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Modalities:
        """The inverse of `tensors`."""
        embeddings, masks = {}, {}
        for name, tensor in tensors.items():
            if name.endswith(MASK_SUFFIX):
                masks[name.removesuffix(MASK_SUFFIX)] = tensor
            else:
                embeddings[name] = tensor
        return cls(embeddings, masks)


def mean_over_tokens(x: Tensor, mask: Tensor) -> Tensor:
    """The mean of the real tokens of each row, 0 where there is none.

        mean_b = sum_t mask_bt x_bt / max(1, sum_t mask_bt)

    Summed in float32 at least, returned in the dtype of `x`. Shapes: (B, T, D), (B, T) -> (B, D).
    """
    check_shapes(x=(x, "BTD"), mask=(mask, "BT"))
    total = zero_outside(at_least_float32(x), mask.unsqueeze(2)).sum(dim=1)
    return (total / mask.sum(dim=1, keepdim=True).clamp(min=1)).to(x.dtype)


def _describe(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} of {tensor.dtype}"
