"""Choosing tokens: temperature, top-k, top-p, and noise that belongs to a sample instead of a process.

Shapes: N streams, R completion tokens, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmft.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """How completions are drawn."""

    num_generations: int = 8
    """G, completions per prompt."""
    max_completion_length: int = 64
    """Tokens after which a completion is cut."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the most likely token."""
    top_p: float = 1.0
    """Keeps the smallest set of tokens with at least this probability."""
    top_k: int = 0
    """Keeps this many tokens; 0 keeps all."""

    def __post_init__(self) -> None:
        if self.num_generations < 1:
            raise ConfigError(f"`num_generations` must be >= 1; got {self.num_generations}.")
        if self.max_completion_length < 1:
            raise ConfigError(f"`max_completion_length` must be >= 1; got {self.max_completion_length}.")
        if self.temperature < 0:
            raise ConfigError(f"`temperature` must be >= 0; got {self.temperature}. 0 decodes greedily.")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"`top_p` must be in (0, 1]; got {self.top_p}. 1 keeps every token.")
        if self.top_k < 0:
            raise ConfigError(f"`top_k` must be >= 0; got {self.top_k}. 0 keeps every token.")

    @property
    def policy_temperature(self) -> float:
        """The temperature of the policy that is scored; greedy decoding scores the plain policy."""
        return self.temperature or 1.0


def sample_noise(seed: int, rollout: int, samples: Sequence[int], length: int) -> Tensor:
    """(N, length) uniforms in [0, 1), float64, a pure function of (seed, rollout, sample index).

    A counter, not a generator's state: a sample is the same on any number of processes and after a resume."""
    rows = []
    for sample in samples:
        digest = hashlib.blake2b(f"{seed}/{rollout}/{sample}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
        rows.append(torch.rand(length, generator=generator, dtype=torch.float64))
    return torch.stack(rows)


def keep_top(logits: Tensor, *, top_k: int, top_p: float) -> Tensor:
    """(N, V) with everything outside the top k and outside the nucleus (Holtzman et al. 2020) set to -inf."""
    if 0 < top_k < logits.shape[-1]:
        threshold = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < threshold, float("-inf"))
    if top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        probs = ordered.softmax(-1)
        # A token stays if the mass before it is still below top_p, so the most likely one always does.
        outside = probs.cumsum(-1) - probs >= top_p
        logits = logits.masked_fill(outside.scatter(-1, order, outside), float("-inf"))
    return logits


def choose(logits: Tensor, noise: Tensor | None, *, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """(N, V) logits at the sampling temperature and (N,) uniforms to (N,) ids; without noise the likeliest.

    Inverse transform: the first token whose cumulative probability exceeds the uniform. A token of zero
    probability is never chosen. In fp64, since in fp32 the tail of a large vocabulary is lost to rounding."""
    if noise is None:
        return logits.argmax(-1)
    probs = keep_top(logits, top_k=top_k, top_p=top_p).softmax(-1)
    cumulative = probs.cumsum(-1, dtype=torch.float64)
    targets = noise.to(cumulative)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, targets, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)
