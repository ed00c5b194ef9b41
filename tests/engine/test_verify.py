"""The check of a run's first batch: it passes where packed scoring is right and fails where it is broken."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from mmft.engine import scoring, verify
from mmft.engine.packing import Completions
from mmft.engine.rollout import Samples
from mmft.engine.sampling import SamplingParams, sample_noise
from mmft.engine.scoring import Scores
from mmft.engine.verify import Verification, check_head, first_completions, verify_packed, with_sibling
from mmft.errors import UnsupportedModelError
from mmft.models.backbone import make_backbone
from mmft.models.prompts import PromptInputs
from tests import zoo
from tests.engine.support import (
    EVERY_FAMILY,
    frozen_actor_critic,
    make_actor_critic,
    ragged_case,
    stub_processor,
)

PARAMS = SamplingParams(num_generations=3, max_completion_length=6, temperature=0.9)


def draw(family: str) -> Samples:
    actor_critic, case = frozen_actor_critic(family), ragged_case(family)
    encodings = case.encodings(actor_critic.backbone)
    return actor_critic.sample(encodings, PARAMS, sample_noise(0, 0, range(9), 6))


def verify_first(family: str, samples: Samples) -> Verification:
    backbone, inputs = frozen_actor_critic(family).backbone, ragged_case(family).prompts[0]
    return verify_packed(
        backbone, inputs, backbone.encode(inputs), samples.completions, samples.logps, PARAMS.temperature
    )


@pytest.mark.parametrize("family", EVERY_FAMILY)
@torch.no_grad()
def test_every_family_passes(family: str) -> None:
    result = verify_first(family, draw(family))
    assert result.packed
    assert result.difference < 1e-5
    assert result.sampler_difference < 1e-5
    assert "agree with the plain forward" in result.reason
    assert "allowed 1e-04" in result.reason


def shift(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Branches that start one position too late."""

    def shifted(batch: Any, layout: Any) -> torch.Tensor:
        return function(batch, dataclasses.replace(layout, step=layout.step + 1))

    return shifted


def blind(function: Callable[..., dict[str, torch.Tensor]]) -> Callable[..., dict[str, torch.Tensor]]:
    """Branches that do not see the first token of their prompt."""

    def blinded(*args: Any) -> dict[str, torch.Tensor]:
        masks = function(*args)
        for mask in masks.values():
            mask[:, 1:, 0] = False
        return masks

    return blinded


@pytest.mark.parametrize(("name", "damage"), [("packed_positions", shift), ("packed_visibility", blind)])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "paligemma"])
@torch.no_grad()
def test_a_broken_packed_path_is_found(
    family: str, name: str, damage: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = draw(family)
    monkeypatch.setattr(scoring, name, damage(getattr(scoring, name)))
    result = verify_first(family, samples)
    assert not result.packed
    assert result.difference > 1e-3
    assert result.sampler_difference < 1e-5
    assert "differ from the plain forward" in result.reason
    assert "allowed 1e-04" in result.reason


@torch.no_grad()
def test_nan_is_no_agreement(monkeypatch: pytest.MonkeyPatch) -> None:
    samples, right = draw("llava"), verify.score_packed

    def score(*args: Any, **kwargs: Any) -> Scores:
        scores = right(*args, **kwargs)
        return dataclasses.replace(scores, logps=scores.logps * torch.nan)

    monkeypatch.setattr(verify, "score_packed", score)
    assert not verify_first("llava", samples).packed


@torch.no_grad()
def test_a_sampler_that_differs_is_reported() -> None:
    samples = draw("llava")
    result = verify_first("llava", dataclasses.replace(samples, logps=samples.logps + 0.25))
    assert result.sampler_difference == pytest.approx(0.25, abs=1e-4)
    assert result.packed


@torch.no_grad()
def test_bfloat16_is_allowed_its_rounding() -> None:
    backbone = make_backbone(zoo.build_model("llava").to(torch.bfloat16), stub_processor(), trainable=())
    inputs = ragged_case("llava").prompts[0]
    samples = draw("llava")
    result = verify_packed(backbone, inputs, backbone.encode(inputs), samples.completions, samples.logps, 0.9)
    assert result.packed
    assert "allowed 3e-02" in result.reason


@torch.no_grad()
def test_only_completions_of_the_first_prompt_are_compared() -> None:
    samples = draw("llava")
    completions = first_completions(samples.completions, 2)
    assert torch.equal(completions.ids, samples.completions.ids[:2])
    assert completions.prompt_index.tolist() == [0, 0]
    assert first_completions(samples.completions, 9).ids.shape[0] == 3


@torch.no_grad()
def test_completions_that_nobody_sampled_are_verified_as_well() -> None:
    backbone, inputs = frozen_actor_critic("llava").backbone, ragged_case("llava").prompts[0]
    result = verify_packed(backbone, inputs, backbone.encode(inputs), draw("llava").completions, None, 0.9)
    assert result.packed
    assert result.difference < 1e-5
    assert result.sampler_difference is None


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_the_language_head_is_the_models_own(family: str) -> None:
    actor_critic = frozen_actor_critic(family)
    for row in ragged_case(family).rows:
        check_head(actor_critic.backbone, PromptInputs(row))


def test_a_soft_cap_that_the_model_class_ignores_is_ignored() -> None:
    config = zoo.build_model("gemma3").config
    config.text_config.final_logit_softcapping = 3.0
    actor_critic = make_actor_critic(type(zoo.build_model("gemma3"))(config).eval())
    check_head(actor_critic.backbone, ragged_case("gemma3").prompts[0])


def test_a_head_that_does_more_than_ours_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    actor_critic, case = make_actor_critic("llava"), ragged_case("llava")
    model = actor_critic.backbone.base
    forward = model.forward

    def scaled(**inputs: Any) -> Any:
        output = forward(**inputs)
        output.logits = output.logits * 0.5
        return output

    monkeypatch.setattr(model, "forward", scaled)
    with pytest.raises(
        UnsupportedModelError, match="LlavaForConditionalGeneration changes its logits in a way"
    ):
        check_head(actor_critic.backbone, case.prompts[0])
    with pytest.raises(UnsupportedModelError, match="changes its logits"):
        verify_packed(
            actor_critic.backbone,
            case.prompts[0],
            case.encodings(actor_critic.backbone)[0],
            draw("llava").completions,
            None,
            0.9,
        )


def test_a_lone_completion_is_verified_beside_a_sibling() -> None:
    ids, mask = torch.tensor([[5, 6, 7, 0]]), torch.tensor([[True, True, True, False]])
    both = with_sibling(Completions(ids, mask, torch.tensor([0])))
    assert both.ids.tolist() == [[5, 6, 7, 0], [7, 6, 5, 0]]
    assert both.mask.tolist() == [[True, True, True, False]] * 2
    assert both.prompt_index.tolist() == [0, 0]
    assert with_sibling(both) is both
