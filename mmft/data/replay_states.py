"""The states of a replay buffer: named tensors of any dtype, sequences padded to the longest.

What the positions mean, and which of them may be drawn, is `mmft.data.replay`'s business.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

import torch
from torch import Tensor

from mmft.errors import ConfigError

MASK = "_mask"
"""Ends the name of a tensor that tells which tokens are valid in the tensor named without it."""
REMEDY = "Resume with the settings the checkpoint was made with, or start anew."

Kinds = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""Shape of a row and dtype of each tensor of a state, by name."""


class StateStore:
    """Room for one state at each of P positions of E streams, made when the first state is seen."""

    def __init__(self, num_streams: int, num_positions: int, device: torch.device) -> None:
        self._size = num_streams, num_positions
        self._device = device
        self._kept: dict[str, Tensor] = {}

    @property
    def kinds(self) -> Kinds:
        """What is kept; empty before the first state."""
        return kinds_of(self._kept, 2)

    @property
    def bytes_per_state(self) -> int:
        """Padding included; 0 before the first state."""
        return sum(kept[0, 0].nbytes for kept in self._kept.values())

    @property
    def num_bytes(self) -> int:
        """What is allocated, filled or not."""
        return sum(kept.nbytes for kept in self._kept.values())

    def describe(self) -> str:
        """Such as "512 B a state (fused 128 float32)"."""
        if not self._kept:
            return "no state yet"
        tensors = ", ".join(f"{name} {_in_words(*kind)}" for name, kind in self.kinds.items())
        return f"{self.bytes_per_state:,} B a state ({tensors})"

    @torch.no_grad()
    def write(self, streams: Tensor, positions: Tensor, states: Mapping[str, Tensor]) -> None:
        """One row of each tensor to each place; zeros follow a sequence shorter than the longest."""
        for name, rows in states.items():
            kept = self._with_room(name, rows)
            rows = rows.to(kept.device)
            if rows.shape[1:] == kept.shape[2:]:
                kept[streams, positions] = rows
            else:
                kept[streams, positions] = 0
                kept[streams, positions, : rows.shape[1]] = rows

    def read(self, streams: Tensor, positions: Tensor) -> dict[str, Tensor]:
        """The states at these places."""
        return {name: kept[streams, positions] for name, kept in self._kept.items()}

    def _with_room(self, name: str, rows: Tensor) -> Tensor:
        shape = *self._size, *rows.shape[1:]
        kept = self._kept.get(name)
        if kept is None:
            self._kept[name] = torch.zeros(shape, dtype=rows.dtype, device=self._device)
        elif rows.shape[1:2] > kept.shape[2:3]:
            self._kept[name] = kept.new_zeros(shape)
            self._kept[name][:, :, : kept.shape[2]] = kept
        return self._kept[name]


def kinds_of(tensors: Mapping[str, Tensor], num_axes: int) -> Kinds:
    """The kinds of rows that stand behind so many axes."""
    return {name: (tuple(tensor.shape[num_axes:]), tensor.dtype) for name, tensor in tensors.items()}


def check_states(argument: str, states: Mapping[str, Tensor], kinds: Kinds, num_rows: int) -> None:
    """Raises ValueError unless each tensor has so many rows, all of the given kinds."""
    if set(states) != set(kinds):
        raise ValueError(
            f"`{argument}` must hold {', '.join(sorted(kinds))}, as every state before; got "
            f"{', '.join(sorted(states))}. Mask what is missing instead of leaving it out."
        )
    for name, rows in states.items():
        if rows.shape[:1] != (num_rows,):
            raise ValueError(
                f"`{argument}[{name!r}]` must have one row for each of {num_rows} streams; got shape "
                f"{tuple(rows.shape)}."
            )
        shape, dtype = kinds[name]
        if rows.dtype != dtype or not _alike(name, rows.shape[1:], shape, kinds):
            raise ValueError(
                f"`{argument}[{name!r}]` has rows of {_in_words(rows.shape[1:], rows.dtype)}, but the buffer "
                f"keeps {_in_words(shape, dtype)}. Only a sequence, with a `{name}{MASK}` beside it, may "
                "differ, and in its first axis."
            )


def check_row_shapes(saved: Kinds, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raises ConfigError unless a checkpoint's states have the shapes that this run's have."""
    for name in sorted({*saved, *expected}):
        before = saved[name][0] if name in saved else None
        now = tuple(expected[name]) if name in expected else None
        if before is None or now is None or not _alike(name, now, before, saved):
            raise ConfigError(
                f"states in the checkpoint's replay buffer have `{name}` of shape {before}, those of this "
                f"run of shape {now}. {REMEDY}"
            )


def _alike(name: str, shape: Sequence[int], other: Sequence[int], names: Container[str]) -> bool:
    """Whether two rows can stand in one buffer: equal shapes, in sequences but for the first axis."""
    num_free = 1 if name.endswith(MASK) or name + MASK in names else 0
    return len(shape) == len(other) and tuple(shape[num_free:]) == tuple(other[num_free:])


def _in_words(shape: Sequence[int], dtype: torch.dtype) -> str:
    """Such as "3x8 float32"."""
    return f"{'x'.join(map(str, shape))} {str(dtype).removeprefix('torch.')}".lstrip()
