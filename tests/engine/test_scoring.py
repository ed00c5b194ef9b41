"""Packed scoring against the definitions, on every family."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mmft.engine.packing import Completions
from mmft.engine.scoring import score_packed, score_plain
from mmft.models.backbone import make_backbone
from mmft.models.heads import ValueHead
from tests import zoo
from tests.engine.support import (
    EVERY_FAMILY,
    assert_same_scores,
    frozen_actor_critic,
    make_actor_critic,
    ragged_case,
    random_completions,
    slow_scores,
    stub_processor,
)
from tests.zoo.vocabulary import FIRST_TEXT_ID


@pytest.mark.parametrize("family", EVERY_FAMILY)
@torch.no_grad()
def test_packed_scores_equal_one_forward_per_completion(family: str) -> None:
    actor_critic, case = frozen_actor_critic(family), ragged_case(family)
    assert actor_critic.packed
    truth = slow_scores(actor_critic, case)
    assert_same_scores(actor_critic(case.encodings(actor_critic.backbone), case.completions), truth)
    assert truth.logps[case.completions.mask].std() > 0.5
    assert truth.values[case.completions.mask].std() > 0.1


@pytest.mark.parametrize("family", EVERY_FAMILY)
@torch.no_grad()
def test_plain_scores_equal_the_definitions(family: str) -> None:
    actor_critic, case = frozen_actor_critic(family), ragged_case(family, seed=1)
    backbone, critic = actor_critic.backbone, actor_critic.value_head
    actual = score_plain(backbone, critic, case.prompts, case.completions, temperature=0.7)
    assert_same_scores(actual, slow_scores(actor_critic, case, temperature=0.7))


@pytest.mark.parametrize("temperature", [0.5, 2.0])
@pytest.mark.parametrize("family", ["llava", "paligemma2"])
@torch.no_grad()
def test_temperature_divides_the_logits_and_leaves_values(family: str, temperature: float) -> None:
    actor_critic, case = frozen_actor_critic(family), ragged_case(family)
    encodings = case.encodings(actor_critic.backbone)
    actual = actor_critic(encodings, case.completions, temperature=temperature)
    assert_same_scores(actual, slow_scores(actor_critic, case, temperature))
    torch.testing.assert_close(actual.values, actor_critic(encodings, case.completions).values)


@pytest.mark.parametrize("family", EVERY_FAMILY)
@torch.no_grad()
def test_a_left_padded_batch_scores_like_its_prompts_one_by_one(family: str) -> None:
    actor_critic, case = frozen_actor_critic(family), ragged_case(family)
    together = actor_critic(case.encodings(actor_critic.backbone), case.completions)
    for prompt in range(len(case.rows)):
        alone = case.only(prompt)
        rows = case.completions.prompt_index == prompt
        expected = replace(
            together,
            logps=together.logps[rows],
            entropies=together.entropies[rows],
            values=together.values[rows],
        )
        assert_same_scores(actor_critic(alone.encodings(actor_critic.backbone), alone.completions), expected)


@pytest.mark.parametrize("family", EVERY_FAMILY)
@torch.no_grad()
def test_other_pixels_change_log_probs_and_values_of_their_prompt_only(family: str) -> None:
    actor_critic, case = frozen_actor_critic(family), ragged_case(family)
    encode = actor_critic.backbone.encode
    before = actor_critic(case.encodings(actor_critic.backbone), case.completions)
    prompts = case.prompts
    prompts[0] = replace(prompts[0], tensors=zoo.perturb_pixels(case.rows[0], seed=1))
    after = actor_critic([encode(prompt) for prompt in prompts], case.completions)
    own = (case.completions.prompt_index == 0)[:, None] & case.completions.mask
    for name in ("logps", "values"):
        change = (getattr(after, name) - getattr(before, name)).abs()
        assert (change[own] > 1e-4).all(), name
        assert change[~own].max() < 1e-5, name


@pytest.mark.parametrize("family", EVERY_FAMILY)
@torch.no_grad()
def test_a_changed_token_changes_nothing_before_it_and_no_sibling(family: str) -> None:
    actor_critic, case = frozen_actor_critic(family), ragged_case(family)
    encodings = case.encodings(actor_critic.backbone)
    before = actor_critic(encodings, case.completions)
    # The third completion of the first prompt, at its third token of four.
    changed = Completions(case.completions.ids.clone(), case.completions.mask, case.completions.prompt_index)
    changed.ids[2, 2] = FIRST_TEXT_ID + (changed.ids[2, 2] - FIRST_TEXT_ID + 7) % 256
    after = actor_critic(encodings, changed)
    for name in ("logps", "values"):
        change = (getattr(after, name) - getattr(before, name)).abs()
        assert change[2, 3] > 1e-3, name
        change[2, 2:4] = 0
        assert change.max() < 1e-6, name
    # The token itself is another one; the state in which it is said is not.
    assert (after.logps - before.logps)[2, 2].abs() > 1e-3
    assert (after.values - before.values)[2, 2].abs() < 1e-6


@pytest.mark.parametrize("family", EVERY_FAMILY)
@torch.no_grad()
def test_the_order_of_siblings_does_not_matter(family: str) -> None:
    actor_critic, case = frozen_actor_critic(family), ragged_case(family).only(0)
    encodings = case.encodings(actor_critic.backbone)
    before = actor_critic(encodings, case.completions)
    turned = Completions(
        case.completions.ids.flip(0), case.completions.mask.flip(0), case.completions.prompt_index
    )
    after = actor_critic(encodings, turned)
    assert_same_scores(
        replace(
            after, logps=after.logps.flip(0), entropies=after.entropies.flip(0), values=after.values.flip(0)
        ),
        before,
    )


@pytest.mark.parametrize("family", ["qwen3_vl", "gemma3", "paligemma"])
@torch.no_grad()
def test_completions_of_one_token_need_no_suffix_at_all(family: str) -> None:
    actor_critic, case = frozen_actor_critic(family), ragged_case(family)
    case = replace(case, completions=random_completions(((1, 1), (1,), (1, 1, 1))))
    actual = actor_critic(case.encodings(actor_critic.backbone), case.completions)
    assert_same_scores(actual, slow_scores(actor_critic, case))


@torch.no_grad()
def test_empty_completions_score_zero_and_disturb_nobody() -> None:
    actor_critic, case = frozen_actor_critic("llava"), ragged_case("llava")
    encodings = case.encodings(actor_critic.backbone)
    whole = actor_critic(encodings, case.completions)
    mask = case.completions.mask.clone()
    mask[1] = mask[4] = False
    actual = actor_critic(encodings, replace(case.completions, mask=mask))
    for name in ("logps", "entropies", "values"):
        expected = torch.where(mask, getattr(whole, name), 0.0)
        torch.testing.assert_close(getattr(actual, name), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_prompt_without_completions_is_no_obstacle() -> None:
    actor_critic, case = frozen_actor_critic("qwen2_5_vl"), ragged_case("qwen2_5_vl")
    case = replace(case, completions=random_completions(((2, 3), (), (4,))))
    actual = actor_critic(case.encodings(actor_critic.backbone), case.completions)
    assert_same_scores(actual, slow_scores(actor_critic, case))


@pytest.mark.parametrize("family", EVERY_FAMILY)
@torch.no_grad()
def test_eager_attention_scores_like_sdpa(family: str) -> None:
    case, expected = ragged_case(family), frozen_actor_critic(family)
    model = zoo.build_model(family)
    model.set_attn_implementation("eager")
    eager = make_actor_critic(model)
    assert eager.packed
    assert eager.backbone.attn_implementation == "eager"
    actual = eager(case.encodings(eager.backbone), case.completions)
    assert_same_scores(actual, expected(case.encodings(expected.backbone), case.completions))


@torch.no_grad()
def test_without_a_critic_there_are_no_values() -> None:
    backbone, case = frozen_actor_critic("llava").backbone, ragged_case("llava")
    assert score_packed(backbone, None, case.encodings(backbone), case.completions).values is None
    assert score_plain(backbone, None, case.prompts, case.completions).values is None


@torch.no_grad()
def test_only_completion_positions_reach_the_heads() -> None:
    actor_critic, case = make_actor_critic("llava"), ragged_case("llava")
    seen: list[int] = []
    head = actor_critic.backbone.base.get_output_embeddings()
    head.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[:-1].numel()))
    actor_critic.value_head.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[:-1].numel()))
    actor_critic(case.encodings(actor_critic.backbone), case.completions)
    assert seen == [int(case.completions.mask.sum())] * 2


@torch.no_grad()
def test_packed_scoring_is_one_text_forward_of_all_prompts() -> None:
    actor_critic, case = make_actor_critic("llava"), ragged_case("llava")
    encodings = case.encodings(actor_critic.backbone)
    widths: list[torch.Size] = []
    actor_critic.backbone.text_model.register_forward_pre_hook(
        lambda _, __, kwargs: widths.append(kwargs["inputs_embeds"].shape[:2]), with_kwargs=True
    )
    actor_critic(encodings, case.completions)
    longest = max(encoding.num_tokens for encoding in encodings)
    # The last token of each completion is predicted, never fed: 4 + 1 + 5 + 2 of the last prompt's 16.
    assert widths == [(3, longest + 12)]


@torch.no_grad()
def test_bfloat16_agrees_within_its_own_rounding() -> None:
    model = zoo.build_model("llava").to(torch.bfloat16)
    backbone = make_backbone(model, stub_processor(), trainable=())
    head, case = ValueHead(backbone.hidden_size), ragged_case("llava")
    packed = score_packed(backbone, head, case.encodings(backbone), case.completions)
    plain = score_plain(backbone, head, case.prompts, case.completions)
    assert packed.logps.dtype == packed.entropies.dtype == packed.values.dtype == torch.float32
    assert (packed.logps - plain.logps).abs()[case.completions.mask].mean() < 3e-2
    fp32 = frozen_actor_critic("llava")
    exact = fp32(case.encodings(fp32.backbone), case.completions)
    assert 0 < (packed.logps - exact.logps).abs()[case.completions.mask].mean() < 0.1
