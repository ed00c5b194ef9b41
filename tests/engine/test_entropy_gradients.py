"""Gradients of the entropy bonus: packed scoring against one forward per completion."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mmft.engine.actor_critic import VLMActorCritic
from mmft.engine.scoring import Scores
from mmft.objectives.policy import mean_entropy
from tests.engine.support import Case, assert_same_scores, lora, make_actor_critic, ragged_case, slow_scores

TRAININGS: dict[str, dict[str, Any]] = {
    "lora": {"peft_config": lora()},
    "language": {"trainable": ("language",)},
    "vision": {"trainable": ("vision", "projector")},
}
"""Under a frozen head, with a head that trains, and before the seam."""


def prompts_of(actor_critic: VLMActorCritic, case: Case) -> list[Any]:
    """Encoded in the graph where that matters, as a trainer does."""
    return case.encodings(actor_critic.backbone) if actor_critic.backbone.caches_encodings else case.prompts


def gradients(
    actor_critic: VLMActorCritic, scores: Scores, case: Case, bonus: float = 1.0
) -> dict[str, Tensor]:
    """Of `bonus` times the mean entropy, and of the log-probs that no bonus reaches."""
    mask = case.completions.mask
    loss = scores.logps.sum() - bonus * mean_entropy(scores.entropies, mask, num_tokens=1)
    actor_critic.zero_grad(set_to_none=True)
    loss.backward()
    return {n: p.grad.clone() for n, p in actor_critic.named_parameters() if p.grad is not None}


def largest_difference(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Of all gradients together, relative to their norm."""
    assert actual.keys() == expected.keys()
    flat = [torch.cat([each[name].flatten() for name in expected]) for each in (actual, expected)]
    return float((flat[0] - flat[1]).norm() / flat[1].norm())


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("training", TRAININGS)
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "paligemma2"])
def test_packed_entropy_gradients_equal_those_of_one_forward_per_completion(
    family: str, training: str, temperature: float
) -> None:
    actor_critic, case = make_actor_critic(family, **TRAININGS[training]), ragged_case(family)
    truth = slow_scores(actor_critic, case, temperature, entropy_gradients=True)
    expected = gradients(actor_critic, truth, case)
    options: dict[str, Any] = {"temperature": temperature, "entropy_gradients": True}
    scores = actor_critic(prompts_of(actor_critic, case), case.completions, **options)
    assert_same_scores(scores, truth)
    actual = gradients(actor_critic, scores, case)
    assert largest_difference(actual, expected) < 1e-4
    # Without the bonus it is another gradient, so that the agreement above means something.
    again = actor_critic(prompts_of(actor_critic, case), case.completions, **options)
    assert largest_difference(gradients(actor_critic, again, case, bonus=0.0), expected) > 0.05


def test_the_plain_path_has_the_same_entropy_gradients() -> None:
    actor_critic, case = make_actor_critic("llava", peft_config=lora()), ragged_case("llava")
    expected = gradients(actor_critic, slow_scores(actor_critic, case, entropy_gradients=True), case)
    actor_critic.packed = False
    scores = actor_critic(case.prompts, case.completions, entropy_gradients=True)
    assert largest_difference(gradients(actor_critic, scores, case), expected) < 1e-4


@pytest.mark.parametrize("packed", [True, False])
def test_entropies_hold_no_graph_unless_asked_for(packed: bool) -> None:
    actor_critic, case = make_actor_critic("llava", peft_config=lora()), ragged_case("llava")
    actor_critic.packed = packed
    scores = actor_critic(case.prompts, case.completions)
    assert scores.logps.requires_grad
    assert not scores.entropies.requires_grad


def test_padding_gets_no_entropy_and_passes_no_gradient() -> None:
    actor_critic, case = make_actor_critic("llava", peft_config=lora()), ragged_case("llava")
    scores = actor_critic(case.prompts, case.completions, entropy_gradients=True)
    padding = ~case.completions.mask
    assert scores.entropies[padding].eq(0).all()
    scores.entropies[padding].sum().backward()
    assert all(p.grad is None or p.grad.eq(0).all() for p in actor_critic.parameters())
