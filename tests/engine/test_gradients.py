"""Gradients of packed scoring against those of one forward per completion, for every family and training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mmft.engine.actor_critic import VLMActorCritic
from mmft.engine.scoring import Scores
from tests import zoo
from tests.engine.support import (
    EVERY_FAMILY,
    Case,
    lora,
    make_actor_critic,
    ragged_case,
    slow_scores,
)

TRAININGS: dict[str, dict[str, Any]] = {
    "lora": {"peft_config": lora()},
    "language": {"trainable": ("language",)},
    "vision": {"trainable": ("vision", "projector")},
    "lora_everywhere": {"peft_config": lora(target_modules="all-linear")},
}
"""Adapters behind the seam; all text weights, embeddings and head too; all before the seam; both sides."""


def build(family: str, training: str) -> VLMActorCritic:
    return make_actor_critic(family, **TRAININGS[training])


def mixed_loss(scores: Scores, case: Case) -> Tensor:
    """A random weight on every log-prob and on every value."""
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(2, *case.completions.mask.shape, generator=generator) * case.completions.mask
    return (weights[0] * scores.logps).sum() + (weights[1] * scores.values).sum()


def gradients(actor_critic: VLMActorCritic, loss: Tensor) -> dict[str, Tensor]:
    """By name, of every trainable parameter that the loss reaches."""
    actor_critic.zero_grad(set_to_none=True)
    loss.backward()
    trainable = {name: p for name, p in actor_critic.named_parameters() if p.requires_grad}
    assert trainable
    return {name: p.grad.clone() for name, p in trainable.items() if p.grad is not None}


def engine_gradients(actor_critic: VLMActorCritic, case: Case) -> dict[str, Tensor]:
    """Prompts are encoded in the graph where that matters, as a trainer does."""
    cached = actor_critic.backbone.caches_encodings
    prompts = case.encodings(actor_critic.backbone) if cached else case.prompts
    return gradients(actor_critic, mixed_loss(actor_critic(prompts, case.completions), case))


def assert_same_gradients(
    actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-4
) -> None:
    """Each within `tolerance` of its own norm."""
    assert actual.keys() == expected.keys()
    largest = max(gradient.norm() for gradient in expected.values())
    for name, gradient in expected.items():
        # Softmax does not feel a key's bias where no rotary position acts: both gradients are rounding.
        if name.endswith("k_proj.bias") and max(gradient.norm(), actual[name].norm()) < 1e-6 * largest:
            continue
        error = (actual[name] - gradient).norm() / gradient.norm()
        assert error <= tolerance, f"{name}: relative error {error:.1e}"


@pytest.mark.parametrize("training", TRAININGS)
@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_packed_gradients_equal_those_of_one_forward_per_completion(family: str, training: str) -> None:
    actor_critic, case = build(family, training), ragged_case(family)
    expected = gradients(actor_critic, mixed_loss(slow_scores(actor_critic, case), case))
    assert_same_gradients(engine_gradients(actor_critic, case), expected)


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_other_pixels_give_other_gradients(family: str) -> None:
    actor_critic, case = build(family, "lora"), ragged_case(family).only(0)
    before = engine_gradients(actor_critic, case)
    other = Case([zoo.perturb_pixels(case.rows[0], seed=1)], case.completions)
    after = engine_gradients(actor_critic, other)
    unmoved = [name for name in before if (after[name] - before[name]).norm() <= 1e-3 * before[name].norm()]
    # The critic's bias adds the weights of the loss, whatever the picture.
    assert unmoved == ["value_head.bias"]


def count_calls(module: torch.nn.Module, ending: str) -> list[str]:
    """A list that grows by a name whenever a submodule whose name ends so runs."""
    calls: list[str] = []
    for name, child in module.named_modules():
        if name.endswith(ending):
            child.register_forward_pre_hook(lambda *_, name=name: calls.append(name))
    return calls


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_gradient_checkpointing_recomputes_layers_and_changes_nothing(family: str) -> None:
    actor_critic, case = build(family, "lora"), ragged_case(family)
    encodings = case.encodings(actor_critic.backbone)
    plain = actor_critic(encodings, case.completions)
    expected = gradients(actor_critic, mixed_loss(plain, case))

    actor_critic.train()
    actor_critic.activation_checkpointing_enable()
    calls = count_calls(actor_critic.backbone.text_model, ".self_attn")
    scores = actor_critic(encodings, case.completions)
    forward = len(calls)
    actual = gradients(actor_critic, mixed_loss(scores, case))
    assert len(calls) == 2 * forward > 0
    torch.testing.assert_close(scores.logps, plain.logps, atol=1e-6, rtol=0)
    torch.testing.assert_close(scores.values, plain.values, atol=1e-6, rtol=0)
    assert_same_gradients(actual, expected, 1e-5)


@pytest.mark.parametrize("training", ["language", "vision"])
def test_gradient_checkpointing_of_pretrained_weights_changes_nothing(training: str) -> None:
    actor_critic, case = build("qwen2_5_vl", training), ragged_case("qwen2_5_vl")
    expected = engine_gradients(actor_critic, case)
    actor_critic.train()
    actor_critic.activation_checkpointing_enable()
    assert_same_gradients(engine_gradients(actor_critic, case), expected, 1e-5)


def test_gradient_checkpointing_leaves_cached_encodings_alone() -> None:
    actor_critic, case = build("llava", "lora"), ragged_case("llava").only(0)
    case = Case([zoo.build_row("llava", num_images=0)], case.completions)
    actor_critic.train()
    actor_critic.activation_checkpointing_enable()
    encodings = case.encodings(actor_critic.backbone)
    gradients(actor_critic, mixed_loss(actor_critic(encodings, case.completions), case))
    assert not encodings[0].embeds.requires_grad
    assert encodings[0].embeds.grad is None


@pytest.mark.parametrize("training", TRAININGS)
def test_every_trainable_weight_but_dead_ones_gets_a_gradient(training: str) -> None:
    actor_critic, case = build("qwen3_vl", training), ragged_case("qwen3_vl")
    reached = engine_gradients(actor_critic, case).keys()
    trainable = {name for name, p in actor_critic.named_parameters() if p.requires_grad}
    assert reached == trainable
    frozen = [p for p in actor_critic.parameters() if not p.requires_grad]
    assert all(p.grad is None for p in frozen)
