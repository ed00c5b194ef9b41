"""The cache of prompt encodings: bounded in bytes, least recently used first out, honest about its hits."""

from __future__ import annotations

import torch

from mmft.engine.feature_cache import FeatureCache
from mmft.models.prompts import PromptEncoding


def encoding(tokens: int = 1) -> PromptEncoding:
    """48 bytes for each token: 10 floats and one position."""
    return PromptEncoding(torch.zeros(tokens, 10), torch.zeros(1, tokens, dtype=torch.long), None)


def test_bytes_count_every_tensor() -> None:
    assert encoding(3).num_bytes == 3 * 48
    mask = torch.ones(3, 3, dtype=torch.bool)
    rich = PromptEncoding(
        torch.zeros(3, 10, dtype=torch.bfloat16), torch.zeros(3, 3, dtype=torch.long),
        {"full_attention": mask, "sliding_attention": mask}, torch.ones(3, dtype=torch.bool),
        (torch.zeros(2, 10), torch.zeros(2, 10)),
    )  # fmt: skip
    assert rich.num_bytes == 60 + 72 + 2 * 9 + 3 + 2 * 80


def test_the_least_recently_used_entry_goes_first() -> None:
    cache = FeatureCache(max_bytes=3 * 48)
    first, second, third = encoding(), encoding(), encoding()
    for key, entry in (("a", first), ("b", second), ("c", third)):
        cache.put(key, entry)
    assert cache.get("a") is first
    cache.put("d", encoding())
    assert cache.get("b") is None
    assert cache.get("a") is first
    assert cache.get("c") is third
    assert len(cache) == 3
    assert cache.num_bytes == 3 * 48


def test_a_large_entry_evicts_as_many_as_it_needs_and_never_breaks_the_bound() -> None:
    cache = FeatureCache(max_bytes=4 * 48)
    for key in range(4):
        cache.put(key, encoding())
    cache.put("large", encoding(3))
    assert cache.num_bytes == 4 * 48
    assert [cache.get(key) is not None for key in (0, 1, 2, 3, "large")] == [False, False, False, True, True]
    cache.put("too large", encoding(5))
    assert cache.get("too large") is None
    assert cache.get("large") is not None


def test_putting_a_key_again_replaces_its_entry_and_its_bytes() -> None:
    cache = FeatureCache(max_bytes=4 * 48)
    cache.put("a", encoding(1))
    cache.put("a", encoding(3))
    assert cache.num_bytes == 3 * 48
    assert len(cache) == 1


def test_the_hit_rate_is_the_share_of_look_ups_that_found() -> None:
    cache = FeatureCache(max_bytes=1000)
    assert cache.hit_rate == 0.0
    cache.get("a")
    cache.put("a", encoding())
    for _ in range(3):
        cache.get("a")
    assert (cache.hits, cache.misses) == (3, 1)
    assert cache.hit_rate == 0.75


def test_a_cache_of_no_bytes_keeps_nothing() -> None:
    cache = FeatureCache(max_bytes=0)
    cache.put("a", encoding())
    assert cache.get("a") is None
    assert len(cache) == cache.num_bytes == 0
