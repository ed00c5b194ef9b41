"""Choosing tokens: hand-computed sets and frequencies, and noise that belongs to a sample."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mmft.engine.sampling import SamplingParams, choose, keep_top, sample_noise
from mmft.errors import ConfigError

PROBS = (0.5, 0.2, 0.2, 0.1)


def logits_of(*probs: float) -> Tensor:
    return torch.tensor([probs]).log()


def kept(**settings: Any) -> list[int]:
    top = keep_top(logits_of(*PROBS), **{"top_k": 0, "top_p": 1.0} | settings)
    return top.isfinite()[0].nonzero().squeeze(-1).tolist()


def test_top_k_keeps_the_k_likeliest_and_ties_with_the_last() -> None:
    assert kept(top_k=1) == [0]
    assert kept(top_k=2) == [0, 1, 2]
    assert kept(top_k=3) == [0, 1, 2]
    assert kept(top_k=4) == kept(top_k=9) == kept(top_k=0) == [0, 1, 2, 3]


def test_top_p_keeps_the_smallest_set_with_that_mass() -> None:
    assert kept(top_p=0.01) == kept(top_p=0.5) == [0]
    assert len(kept(top_p=0.6)) == 2
    assert kept(top_p=0.85) == [0, 1, 2]
    assert kept(top_p=0.95) == kept(top_p=1.0) == [0, 1, 2, 3]


def test_top_p_counts_mass_after_top_k() -> None:
    # Of the top 3 (5/9, 2/9, 2/9) the first has 0.56 > 0.55: it is enough. Of all four it has 0.5: it is not.
    assert kept(top_k=3, top_p=0.55) == [0]
    assert len(kept(top_p=0.55)) == 2


def test_kept_tokens_keep_their_logits() -> None:
    logits = torch.randn(5, 20)
    top = keep_top(logits, top_k=7, top_p=0.9)
    assert torch.equal(top[top.isfinite()], logits[top.isfinite()])
    assert top.isfinite().sum(1).max() <= 7


def test_the_chosen_token_is_the_first_whose_cumulative_probability_exceeds_the_uniform() -> None:
    noise = torch.tensor([0.0, 0.49, 0.5001, 0.69, 0.71, 0.89, 0.91, 1 - 1e-9], dtype=torch.float64)
    chosen = choose(logits_of(*PROBS).expand(len(noise), -1), noise)
    assert chosen.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def frequencies(logits: Tensor, count: int = 20_000, **settings: Any) -> Tensor:
    noise = torch.rand(count, dtype=torch.float64)
    chosen = choose(logits.expand(count, -1), noise, **settings)
    return torch.bincount(chosen, minlength=logits.shape[-1]) / count


def chi_square(observed: Tensor, expected: Tensor, count: int = 20_000) -> float:
    support = expected > 0
    return float((count * (observed - expected)[support].square() / expected[support]).sum())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_the_probabilities(temperature: float) -> None:
    logits = torch.randn(1, 12)
    expected = (logits / temperature).softmax(-1)[0]
    # 31.3 is passed once in a thousand seeds with 11 degrees of freedom.
    assert chi_square(frequencies(logits / temperature), expected) < 31.3


def test_frequencies_within_the_nucleus_are_renormalised() -> None:
    observed = frequencies(logits_of(0.1, 0.5, 0.1, 0.3), top_p=0.75)
    assert observed[[0, 2]].tolist() == [0, 0]
    assert chi_square(observed, torch.tensor([0, 0.625, 0, 0.375])) < 10.8


def test_impossible_tokens_are_never_chosen_not_even_at_the_ends() -> None:
    logits = torch.full((1, 7), -math.inf)
    logits[0, [2, 4]] = 0.0
    noise = torch.tensor([0.0, 1e-300, 0.5 - 1e-16, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert choose(logits.expand(5, -1), noise).tolist() == [2, 2, 2, 4, 4]


def test_the_largest_uniform_meets_the_last_possible_token_of_a_large_vocabulary() -> None:
    logits = torch.randn(64, 50_000) * 4
    logits[:, -1000:] = -math.inf
    chosen = choose(logits, torch.full((64,), 1 - 2**-53, dtype=torch.float64))
    assert (chosen < 49_000).all()


def test_without_noise_the_likeliest_token_is_chosen() -> None:
    logits = torch.randn(6, 9)
    assert torch.equal(choose(logits, None), logits.argmax(-1))


def test_a_choice_does_not_depend_on_its_neighbours() -> None:
    logits, noise = torch.randn(8, 30), torch.rand(8, dtype=torch.float64)
    together = choose(logits, noise, top_k=11, top_p=0.9)
    alone = [
        int(choose(row[None], u[None], top_k=11, top_p=0.9)) for row, u in zip(logits, noise, strict=True)
    ]
    assert together.tolist() == alone


def test_noise_is_a_function_of_seed_rollout_and_sample() -> None:
    whole = sample_noise(1, 2, range(6), 9)
    assert whole.shape == (6, 9)
    assert whole.dtype == torch.float64
    assert torch.equal(sample_noise(1, 2, [4, 1], 9), whole[[4, 1]])
    assert not torch.equal(sample_noise(0, 2, [4], 9), whole[[4]])
    assert not torch.equal(sample_noise(1, 3, [4], 9), whole[[4]])
    assert len(whole.unique()) == whole.numel()


def test_noise_is_uniform_and_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    noise = sample_noise(7, 0, range(2000), 10)
    assert torch.equal(torch.get_rng_state(), state)
    assert 0 <= noise.min() < noise.max() < 1
    counts = torch.histc(noise, 20, 0, 1)
    # 19 degrees of freedom: passed once in a thousand seeds.
    assert float(((counts - 1000).square() / 1000).sum()) < 43.8
    assert abs(float(torch.corrcoef(noise[:, :2].T)[0, 1])) < 0.08


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_generations": 0}, "`num_generations` must be >= 1; got 0"),
        ({"max_completion_length": 0}, "`max_completion_length` must be >= 1; got 0"),
        ({"temperature": -0.1}, "`temperature` must be >= 0; got -0.1. 0 decodes greedily"),
        ({"top_p": 0.0}, r"`top_p` must be in \(0, 1\]; got 0.0. 1 keeps every token"),
        ({"top_p": 1.1}, r"`top_p` must be in \(0, 1\]; got 1.1"),
        ({"top_k": -1}, "`top_k` must be >= 0; got -1. 0 keeps every token"),
    ],
)
def test_settings_outside_their_range_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SamplingParams(**settings)


def test_greedy_decoding_is_scored_at_temperature_one() -> None:
    assert SamplingParams(temperature=0.0).policy_temperature == 1.0
    assert SamplingParams(temperature=0.3).policy_temperature == 0.3
