"""The arithmetic that no implementation of one training step can avoid, and what this machine does with it.

Counted for a frozen language model under LoRA, with a critic and a KL to the reference policy: the prompt is
prefilled once, every completion is decoded once, the reference and the policy each score the prompt once and
every completion once, and the backward computes the gradients of activations (frozen weights need none).
Adapters, norms, softmaxes and everything elementwise are left out: the floor is a little below any real step.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from mmft.models.seam import find_text_model


@dataclass(frozen=True, kw_only=True, slots=True)
class StepShape:
    """B prompts of P tokens with G completions of R tokens each; one picture of I patches per prompt."""

    prompts: int
    prompt_tokens: int
    generations: int
    completion_tokens: int
    patches: int


def _linear_weights(module: nn.Module) -> int:
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))


def step_flops(model: PreTrainedModel, shape: StepShape) -> dict[str, float]:
    """Floating-point operations of one step, by part (a multiply-add is two)."""
    text = find_text_model(model)
    layers = _linear_weights(text)
    config = model.config.get_text_config()
    attention = 4 * config.hidden_size * config.num_hidden_layers  # per query-key pair: scores and mixing
    head = 2 * config.vocab_size * config.hidden_size
    whole = sum(_linear_weights(m) for m in (model,)) - layers - model.get_output_embeddings().weight.numel()

    prompt = shape.prompts * shape.prompt_tokens
    completion = shape.prompts * shape.generations * shape.completion_tokens
    fed = shape.prompts * shape.generations * (shape.completion_tokens - 1)
    prompt_pairs = prompt * shape.prompt_tokens / 2
    fed_pairs = fed * (shape.prompt_tokens + shape.completion_tokens / 2)
    once = 2 * layers * (prompt + fed) + attention * (prompt_pairs + fed_pairs)
    return {
        "vision": 2.0 * whole * shape.prompts * shape.patches,
        "sampling": once + head * completion,
        "reference": once + head * completion,
        "policy": once + head * completion,
        # one product per weight for the activations' gradient, two per attention product
        "backward": 2 * layers * (prompt + fed)
        + 2 * attention * (prompt_pairs + fed_pairs)
        + head * completion,
    }


def decode_bytes(model: PreTrainedModel, shape: StepShape) -> float:
    """Bytes of fp32 weights that decoding has to read: all of the language model once per token position."""
    weights = _linear_weights(find_text_model(model)) + model.get_output_embeddings().weight.numel()
    return 4.0 * weights * (shape.completion_tokens - 1)


def read_rate(megabytes: int = 256, repeats: int = 6) -> float:
    """Bytes per second of summing a tensor that no cache holds; the best of several."""
    values = torch.ones(megabytes * 2**18)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        values.sum()
        best = min(best, time.perf_counter() - start)
    return 4 * values.numel() / best


def matmul_rate(size: int = 1536, repeats: int = 6) -> float:
    """FLOP per second of a large fp32 matrix product with this process's threads; the best of several."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
