"""Packed scoring against one forward per completion, for adapters of every method on every part."""

from __future__ import annotations

import pytest
import torch

from mmft.engine.actor_critic import VLMActorCritic
from mmft.models.adapter_settings import ADAPTABLE, METHODS
from mmft.models.freezing import is_adapter, parameter_parts
from tests.engine.adapter_support import adapted
from tests.engine.support import assert_same_scores, make_actor_critic, ragged_case, slow_scores
from tests.engine.test_gradients import assert_same_gradients, engine_gradients, gradients, mixed_loss

FAMILIES = ("llava", "qwen2_5_vl", "qwen3_vl")
"""A projector of its own; a merger in the vision module; mergers whose features enter deeper layers."""
ADAPTERS = {method: (method, ADAPTABLE) for method in METHODS} | {
    "lora on vision": ("lora", ("vision",)),
    "lora on the projector": ("lora", ("projector",)),
    "bottleneck on the projector": ("bottleneck", ("projector",)),
}


def assert_packed_equals_plain(actor_critic: VLMActorCritic, family: str) -> None:
    case = ragged_case(family)
    slow = slow_scores(actor_critic, case)
    assert_same_scores(actor_critic(case.prompts, case.completions), slow, atol=3e-5)
    expected = gradients(actor_critic, mixed_loss(slow, case))
    assert_same_gradients(engine_gradients(actor_critic, case), expected)


@pytest.mark.parametrize("adapters", ADAPTERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_scores_and_gradients_of_adapters_equal_one_forward_per_completion(
    family: str, adapters: str
) -> None:
    method, parts = ADAPTERS[adapters]
    actor_critic = adapted(family, method, parts)
    assert not actor_critic.backbone.caches_encodings, "part of what trains lies before the seam"
    assert_packed_equals_plain(actor_critic, family)
    base = actor_critic.backbone.base
    moved = {part for part, _, p in parameter_parts(base) if p.grad is not None and p.grad.norm() > 0}
    assert moved == set(parts)
    assert all(is_adapter(name) for name, p in base.named_parameters() if p.grad is not None)


@pytest.mark.parametrize("part", ["vision", "projector"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_gradients_of_one_whole_part_equal_one_forward_per_completion(family: str, part: str) -> None:
    actor_critic = make_actor_critic(family, trainable=(part,))
    assert_packed_equals_plain(actor_critic, family)
    reached = {part for part, _, p in parameter_parts(actor_critic.backbone.base) if p.grad is not None}
    assert reached == {part}


@pytest.mark.parametrize("method", METHODS)
def test_switched_off_adapters_leave_the_pretrained_policy_to_the_bit(method: str) -> None:
    pretrained, case = make_actor_critic("qwen2_5_vl"), ragged_case("qwen2_5_vl")
    expected = pretrained(case.prompts, case.completions).logps
    actor_critic = adapted("qwen2_5_vl", method)
    assert not actor_critic._frozen_copy, "with adapters the reference needs no copy"
    torch.testing.assert_close(
        actor_critic.reference_logps(case.prompts, case.completions), expected, atol=0, rtol=0
    )
    actual = actor_critic(case.prompts, case.completions).logps
    assert (actual - expected).abs().max() > 1e-2, "the adapters would not be seen"


@pytest.mark.parametrize("method", METHODS)
def test_new_adapters_leave_the_policy_as_it_was(method: str) -> None:
    pretrained, case = make_actor_critic("qwen2_5_vl"), ragged_case("qwen2_5_vl")
    actor_critic = adapted("qwen2_5_vl", method, perturbed=False)
    expected = pretrained(case.prompts, case.completions).logps
    actual = actor_critic(case.prompts, case.completions).logps
    # DoRA divides by a norm and multiplies by it, which rounds; the others add zero or multiply by one.
    torch.testing.assert_close(actual, expected, atol=1e-5 if method == "dora" else 0, rtol=0)


@pytest.mark.parametrize("method", ["bottleneck", "dora"])
def test_gradient_checkpointing_of_adapters_changes_nothing(method: str) -> None:
    actor_critic, case = adapted("qwen2_5_vl", method), ragged_case("qwen2_5_vl")
    expected = engine_gradients(actor_critic, case)
    actor_critic.train()
    actor_critic.activation_checkpointing_enable()
    assert_same_gradients(engine_gradients(actor_critic, case), expected, 1e-5)


@pytest.mark.parametrize("method", ["bottleneck", "ia3"])
def test_the_reference_forgets_adapters_and_the_weights_that_train_beside_them(method: str) -> None:
    pretrained, case = make_actor_critic("llava"), ragged_case("llava")
    expected = pretrained(case.prompts, case.completions).logps
    actor_critic = adapted("llava", method, ("language",), trainable=("projector",), reference=True)
    with torch.no_grad():
        for parameter in actor_critic.backbone.base.model.multi_modal_projector.parameters():
            parameter.add_(0.1)
    actual = actor_critic.reference_logps(case.prompts, case.completions)
    torch.testing.assert_close(actual, expected, atol=0, rtol=0)
