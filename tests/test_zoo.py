"""The zoo is the ground truth of other tests, so it is checked against each model's own incremental generation."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests import zoo

NUM_NEW_TOKENS = 6


@functools.cache
def model_of(family: str) -> PreTrainedModel:
    return zoo.build_model(family)


def generate(family: str, row: zoo.Row) -> tuple[Tensor, Tensor]:
    """Greedy completion (R,) and the raw logits (R, V) of the model's own cached decoding."""
    output = model_of(family).generate(
        **row,
        max_new_tokens=NUM_NEW_TOKENS,
        min_new_tokens=NUM_NEW_TOKENS,
        do_sample=False,
        suppress_tokens=sorted(zoo.placeholder_ids(family)),
        return_dict_in_generate=True,
        output_logits=True,
    )
    completion = output.sequences[0, row["input_ids"].shape[1] :]
    return completion, torch.cat(output.logits)


@pytest.mark.parametrize("num_images", [0, 1, 2])
@pytest.mark.parametrize("family", zoo.FAMILIES)
@torch.no_grad()
def test_plain_logits_equal_the_logits_of_incremental_generation(family: str, num_images: int) -> None:
    row = zoo.build_row(family, num_images=num_images, text_length=9 + num_images)
    completion, expected = generate(family, row)
    actual = zoo.plain_logits(model_of(family), row, completion)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", zoo.FAMILIES)
@torch.no_grad()
def test_other_pixels_give_other_logits(family: str) -> None:
    row = zoo.build_row(family, num_images=2)
    completion = torch.tensor([60, 70, 80])
    before = zoo.plain_logits(model_of(family), row, completion)
    after = zoo.plain_logits(model_of(family), zoo.perturb_pixels(row, seed=1), completion)
    assert ((after - before).abs().amax(dim=-1) > 0.05).all()
