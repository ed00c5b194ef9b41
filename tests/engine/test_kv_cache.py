"""The roomy cache holds what the growing one holds."""

from __future__ import annotations

import torch
from transformers.cache_utils import DynamicCache

from mmft.engine.kv_cache import fan_out


def states(streams: int, tokens: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, streams, 2, tokens, 3, generator=generator)
    return keys, values


def test_a_fanned_out_cache_grows_and_shrinks_like_the_concatenating_one() -> None:
    roomy, grown = DynamicCache(), DynamicCache()
    for cache in (roomy, grown):
        cache.update(*states(2, 5, seed=0), 0)
    fan_out(roomy, 3, room=4)
    grown.batch_repeat_interleave(3)
    for step in range(4):
        if step == 2:
            for cache in (roomy, grown):
                cache.batch_select_indices(torch.tensor([0, 4, 5]))
        new = states(6 if step < 2 else 3, 1, seed=step + 1)
        for ours, theirs in zip(roomy.update(*new, 0), grown.update(*new, 0), strict=True):
            assert torch.equal(ours, theirs)
        assert roomy.get_seq_length() == grown.get_seq_length() == 6 + step


def test_new_tokens_are_written_in_place() -> None:
    cache = DynamicCache()
    cache.update(*states(1, 5, seed=0), 0)
    fan_out(cache, 2, room=2)
    before = cache.layers[0].keys.data_ptr()
    keys, _ = cache.update(*states(2, 1, seed=1), 0)
    assert keys.data_ptr() == before


def test_layers_without_keys_of_their_own_stay_as_they_are() -> None:
    cache = DynamicCache()
    cache.update(*states(1, 2, seed=0), 1)  # layer 0 shares another layer's keys and holds none
    fan_out(cache, 2, room=1)
    assert [layer.get_seq_length() for layer in cache.layers] == [0, 2]
