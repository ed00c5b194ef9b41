"""Keys and values of many streams that grew out of few prompts."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer


class RoomyLayer(DynamicLayer):
    """A cache layer with room for what is still to come: new tokens are written, old ones stay in place.

    `DynamicLayer` copies all it holds for every token: over a completion of R tokens behind a prompt of P
    that moves R * (P + R / 2) keys and values instead of R."""

    keys: Tensor
    values: Tensor

    def __init__(self, prompt: DynamicLayer, repeats: int, room: int) -> None:
        """Fans out a prefilled layer.

        Args:
            prompt: keys and values of B prompts, (B, heads, P, width).
            repeats: G, streams per prompt.
            room: tokens that each stream may still get.
        """
        super().__init__()
        self.dtype, self.device, self.is_initialized = prompt.dtype, prompt.device, True
        held = cast(tuple[Tensor, Tensor], (prompt.keys, prompt.values))
        self._stores = [_fan_out(states, repeats, room) for states in held]
        self._show(held[0].shape[-2])

    def _show(self, length: int) -> None:
        self.keys, self.values = (store[..., :length, :] for store in self._stores)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Writes new tokens behind the old ones and returns all of them."""
        start = self.keys.shape[-2]
        end = start + key_states.shape[-2]
        for store, states in zip(self._stores, (key_states, value_states), strict=True):
            store[..., start:end, :] = states
        self._show(end)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps the named streams."""
        length = self.keys.shape[-2]
        self._stores = [store[indices] for store in self._stores]
        self._show(length)


def fan_out(cache: DynamicCache, repeats: int, room: int) -> None:
    """Turns the cache of B prefilled prompts into one of B * `repeats` streams, in place, prompt-major."""
    cache.layers = [
        RoomyLayer(layer, repeats, room)
        if isinstance(layer, DynamicLayer) and layer.get_seq_length()
        else layer
        for layer in cache.layers
    ]


def _fan_out(states: Tensor, repeats: int, room: int) -> Tensor:
    prompts, heads, length, width = states.shape
    store = states.new_empty(prompts, repeats, heads, length + room, width)
    store[..., :length, :] = states[:, None]
    store[..., length:, :] = torch.zeros((), dtype=states.dtype, device=states.device)
    return store.flatten(0, 1)
