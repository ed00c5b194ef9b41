"""Sampling: what the sampler says it did is what scoring finds, on every family and through both paths."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mmft.engine import rollout
from mmft.engine.actor_critic import VLMActorCritic
from mmft.engine.packing import Completions
from mmft.engine.rollout import Samples, sample_packed, sample_plain
from mmft.engine.sampling import SamplingParams, sample_noise
from mmft.engine.scoring import Scores
from mmft.models.prompts import PromptInputs
from tests import zoo
from tests.engine.support import (
    EVERY_FAMILY,
    Case,
    assert_same_scores,
    frozen_actor_critic,
    lora,
    make_actor_critic,
    ragged_case,
    slow_scores,
    slow_states,
)
from tests.zoo.vocabulary import EOS_ID, PAD_ID

GROUP, LENGTH = 3, 7
PARAMS = SamplingParams(num_generations=GROUP, max_completion_length=LENGTH)


def draw(actor_critic: VLMActorCritic, case: Case, params: SamplingParams = PARAMS, seed: int = 0) -> Samples:
    noise = sample_noise(
        seed, 0, range(len(case.rows) * params.num_generations), params.max_completion_length
    )
    return actor_critic.sample(case.encodings(actor_critic.backbone), params, noise)


def assert_samples_hold_their_scores(
    actor_critic: VLMActorCritic, case: Case, samples: Samples, temperature: float = 1.0
) -> None:
    """Log-probs and values that the sampler kept are those of one forward per completion."""
    truth = slow_scores(actor_critic, replace(case, completions=samples.completions), temperature)
    assert samples.values is not None
    assert_same_scores(Scores(samples.logps, truth.entropies, samples.values), truth)


@pytest.mark.parametrize("family", EVERY_FAMILY)
@torch.no_grad()
def test_sampler_log_probs_and_values_are_those_of_scoring(family: str) -> None:
    actor_critic, case = frozen_actor_critic(family), ragged_case(family)
    params = replace(PARAMS, temperature=0.8)
    samples = draw(actor_critic, case, params)
    assert_samples_hold_their_scores(actor_critic, case, samples, 0.8)
    scores = actor_critic(case.encodings(actor_critic.backbone), samples.completions, temperature=0.8)
    torch.testing.assert_close(samples.logps, scores.logps, atol=1e-5, rtol=0)
    torch.testing.assert_close(samples.values, scores.values, atol=1e-5, rtol=0)
    assert samples.completions.prompt_index.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("family", EVERY_FAMILY)
@torch.no_grad()
def test_the_models_own_generation_draws_the_same_tokens_from_the_same_noise(family: str) -> None:
    actor_critic, case = frozen_actor_critic(family), ragged_case(family)
    params = replace(PARAMS, temperature=0.9, top_p=0.95, top_k=100)
    packed = draw(actor_critic, case, params, seed=1)
    noise = sample_noise(1, 0, range(9), LENGTH)
    plain = sample_plain(actor_critic.backbone, case.prompts, params, noise)
    assert torch.equal(plain.completions.ids, packed.completions.ids)
    assert torch.equal(plain.completions.mask, packed.completions.mask)
    assert torch.equal(plain.completions.prompt_index, packed.completions.prompt_index)
    assert torch.equal(plain.ended, packed.ended)
    torch.testing.assert_close(plain.logps, packed.logps, atol=1e-5, rtol=0)
    assert plain.values is None


@pytest.mark.parametrize("family", EVERY_FAMILY)
@torch.no_grad()
def test_a_left_padded_batch_samples_like_its_prompts_one_by_one(family: str) -> None:
    actor_critic, case = frozen_actor_critic(family), ragged_case(family)
    together = draw(actor_critic, case)
    noise = sample_noise(0, 0, range(9), LENGTH)
    for prompt, row in enumerate(case.rows):
        take = slice(prompt * GROUP, (prompt + 1) * GROUP)
        encoding = actor_critic.backbone.encode(PromptInputs(row))
        alone = actor_critic.sample([encoding], PARAMS, noise[take])
        width = alone.completions.ids.shape[1]
        assert torch.equal(alone.completions.ids, together.completions.ids[take, :width])
        torch.testing.assert_close(alone.logps, together.logps[take, :width], atol=1e-5, rtol=0)
        torch.testing.assert_close(alone.values, together.values[take, :width], atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "gemma3", "paligemma2"])
@torch.no_grad()
def test_greedy_decoding_is_that_of_generate(family: str) -> None:
    actor_critic, case = frozen_actor_critic(family), ragged_case(family)
    params = replace(PARAMS, num_generations=1, temperature=0.0)
    samples = actor_critic.sample(case.encodings(actor_critic.backbone), params, None)
    for row, ids, mask in zip(case.rows, samples.completions.ids, samples.completions.mask, strict=True):
        expected = actor_critic.backbone.base.generate(
            **row,
            max_new_tokens=LENGTH,
            do_sample=False,
            suppress_tokens=sorted(actor_critic.backbone.forbidden_ids),
        )[0, row["input_ids"].shape[1] :]
        assert torch.equal(ids[mask], expected)
    assert_samples_hold_their_scores(actor_critic, case, samples)


@torch.no_grad()
def prefer(actor_critic: VLMActorCritic, row: zoo.Row, token: int) -> None:
    """Turns the head so that `token` is almost certain after this prompt."""
    _, hidden = slow_states(actor_critic.backbone.base, row, torch.tensor([EOS_ID]))
    head = actor_critic.backbone.base.get_output_embeddings()
    head.weight[token] = 40 * hidden[0] / hidden[0].square().sum()


@pytest.mark.parametrize("family", EVERY_FAMILY)
@torch.no_grad()
def test_placeholders_are_never_said_however_much_the_model_wants_to(family: str) -> None:
    actor_critic, case = make_actor_critic(family), ragged_case(family).only(0)
    assert zoo.placeholder_ids(family) <= actor_critic.backbone.forbidden_ids
    placeholder = min(zoo.placeholder_ids(family))
    prefer(actor_critic, case.rows[0], placeholder)
    logits, _ = slow_states(actor_critic.backbone.base, case.rows[0], torch.tensor([EOS_ID]))
    assert logits.argmax(-1) == placeholder
    # Soft-capped logits cannot be as sure.
    assert logits.softmax(-1)[0, placeholder] > 0.9 or family == "paligemma2"

    params = replace(PARAMS, num_generations=16)
    samples = draw(actor_critic, case, params)
    forbidden = torch.tensor(sorted(actor_critic.backbone.forbidden_ids))
    assert not torch.isin(samples.completions.ids, forbidden).any()
    greedy = actor_critic.sample(case.encodings(actor_critic.backbone), params, None)
    assert not torch.isin(greedy.completions.ids, forbidden).any()
    plain = sample_plain(actor_critic.backbone, case.prompts, params, sample_noise(0, 0, range(16), LENGTH))
    assert torch.equal(plain.completions.ids, samples.completions.ids)
    # The first token is drawn from what is left when the placeholder is out, and scored so.
    assert_samples_hold_their_scores(actor_critic, case, samples)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces the choice of tokens: the noise itself is the token to say."""
    monkeypatch.setattr(rollout, "choose", lambda logits, noise, **_: noise.long())


def scripted(*lengths: int) -> Tensor:
    """Tokens to say: completion n says the end token as its token `lengths[n]`; 99 is never."""
    tokens = 60 + torch.arange(len(lengths) * LENGTH).view(len(lengths), LENGTH) % 200
    for row, length in zip(tokens, lengths, strict=True):
        row[length - 1 : length] = EOS_ID
    return tokens


@pytest.fixture
def text_batches(request: pytest.FixtureRequest) -> Iterator[list[int]]:
    """Batch size of every text-model forward of the shared LLaVA."""
    sizes: list[int] = []
    handle = frozen_actor_critic("llava").backbone.text_model.register_forward_pre_hook(
        lambda _, __, kwargs: sizes.append(kwargs["inputs_embeds"].shape[0]), with_kwargs=True
    )
    yield sizes
    handle.remove()


@pytest.mark.usefixtures("script")
@torch.no_grad()
def test_ended_completions_keep_their_end_token_and_nothing_after_it(text_batches: list[int]) -> None:
    actor_critic, case = frozen_actor_critic("llava"), ragged_case("llava")
    tokens = scripted(1, 99, 3, 2, LENGTH, 4, 1, 1, 2)
    samples = actor_critic.sample(case.encodings(actor_critic.backbone), PARAMS, tokens)
    lengths = [1, LENGTH, 3, 2, LENGTH, 4, 1, 1, 2]
    assert samples.completions.lengths.tolist() == lengths
    assert samples.ended.tolist() == [True, False, True, True, True, True, True, True, True]
    for number, length in enumerate(lengths):
        assert torch.equal(samples.completions.ids[number, :length], tokens[number, :length])
        assert (samples.completions.ids[number, length:] == PAD_ID).all()
        assert (samples.logps[number, length:] == 0).all()
    # Nine streams until half of them are done (3 end at once, then 2), then four, then the last two.
    assert text_batches[-6:] == [9, 4, 4, 2, 2, 2]
    assert_samples_hold_their_scores(actor_critic, case, samples)


@pytest.mark.usefixtures("script")
@torch.no_grad()
def test_any_end_token_of_the_model_ends_a_completion() -> None:
    model, case = zoo.build_model("llava"), ragged_case("llava").only(0)
    model.generation_config.eos_token_id = [EOS_ID, 277, 278]
    actor_critic = make_actor_critic(model)
    tokens = scripted(3, 99, 5)
    tokens[0, 2], tokens[1, 1] = 277, 278
    samples = actor_critic.sample(case.encodings(actor_critic.backbone), PARAMS, tokens)
    assert samples.completions.lengths.tolist() == [3, 2, 5]
    assert samples.ended.all()
    assert_samples_hold_their_scores(actor_critic, case, samples)


@pytest.mark.usefixtures("script")
@pytest.mark.parametrize(("lengths", "forwards"), [((1, 1, 1), 1), ((3, 2, 1), 3), ((99, 1, 1), LENGTH)])
@torch.no_grad()
def test_sampling_stops_with_the_last_open_completion(
    lengths: tuple[int, ...], forwards: int, text_batches: list[int]
) -> None:
    actor_critic, case = frozen_actor_critic("llava"), ragged_case("llava").only(0)
    encodings = case.encodings(actor_critic.backbone)
    text_batches.clear()
    samples = actor_critic.sample(encodings, PARAMS, scripted(*lengths))
    # One prefill says the first token; the last token is never fed.
    assert len(text_batches) == forwards
    assert samples.completions.ids.shape[1] == min(max(lengths), LENGTH)


@pytest.mark.usefixtures("script")
@pytest.mark.parametrize("family", EVERY_FAMILY)
@torch.no_grad()
def test_dropping_ended_streams_changes_nothing(family: str) -> None:
    actor_critic, case = frozen_actor_critic(family), ragged_case(family)
    tokens = scripted(1, 2, LENGTH, 1, 5, 2, 1, 99, 1)
    samples = actor_critic.sample(case.encodings(actor_critic.backbone), PARAMS, tokens)
    assert samples.completions.lengths.tolist() == [1, 2, LENGTH, 1, 5, 2, 1, LENGTH, 1]
    assert_samples_hold_their_scores(actor_critic, case, samples)


@pytest.mark.usefixtures("script")
@torch.no_grad()
def test_a_process_keeps_step_with_others_that_still_have_open_streams(text_batches: list[int]) -> None:
    actor_critic, case = frozen_actor_critic("llava"), ragged_case("llava").only(0)
    encodings = case.encodings(actor_critic.backbone)
    tokens = scripted(2, 1, 1)
    alone = actor_critic.sample(encodings, PARAMS, tokens)
    text_batches.clear()
    asked: list[bool] = []
    together = actor_critic.sample(
        encodings, PARAMS, tokens, anyone_open=lambda is_open: not asked.append(is_open)
    )
    assert len(text_batches) == LENGTH
    assert asked == [True, *[False] * (LENGTH - 2)]
    for name in ("logps", "values", "ended"):
        assert torch.equal(getattr(together, name), getattr(alone, name)), name
    assert torch.equal(together.completions.ids, alone.completions.ids)


@torch.no_grad()
def test_each_prompt_is_prefilled_once_for_all_its_completions() -> None:
    actor_critic, case = make_actor_critic("llava"), ragged_case("llava")
    encodings = case.encodings(actor_critic.backbone)
    shapes: list[tuple[int, ...]] = []
    actor_critic.backbone.text_model.register_forward_pre_hook(
        lambda _, __, kwargs: shapes.append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    actor_critic.sample(encodings, PARAMS, sample_noise(0, 0, range(9), LENGTH))
    longest = max(encoding.num_tokens for encoding in encodings)
    assert shapes[0] == (3, longest)
    assert shapes[1] == (9, 1)
    assert all(width == 1 for _, width in shapes[1:])


@pytest.mark.parametrize("count", [1, 4])
@torch.no_grad()
def test_a_sample_does_not_depend_on_how_many_siblings_it_has(count: int) -> None:
    actor_critic, case = frozen_actor_critic("smolvlm"), ragged_case("smolvlm").only(1)
    encodings = case.encodings(actor_critic.backbone)
    noise = sample_noise(5, 0, range(8), LENGTH)
    many = actor_critic.sample(encodings, replace(PARAMS, num_generations=8), noise)
    few = actor_critic.sample(encodings, replace(PARAMS, num_generations=count), noise[:count])
    width = few.completions.ids.shape[1]
    assert torch.equal(few.completions.ids, many.completions.ids[:count, :width])


@torch.no_grad()
def test_training_mode_with_dropout_and_checkpointing_samples_like_evaluation_mode() -> None:
    case = ragged_case("llava")
    actor_critic = make_actor_critic("llava", peft_config=lora(lora_dropout=0.5))
    expected = draw(actor_critic, case)
    actor_critic.train()
    actor_critic.backbone.base.model.vision_tower.eval()
    actor_critic.activation_checkpointing_enable()
    modes = [module.training for module in actor_critic.modules()]
    actual = draw(actor_critic, case)
    assert torch.equal(actual.completions.ids, expected.completions.ids)
    assert torch.equal(actual.logps, expected.logps)
    assert [module.training for module in actor_critic.modules()] == modes


@pytest.mark.parametrize("peft_config", [None, lora()])
@torch.no_grad()
def test_generation_defaults_of_a_checkpoint_do_not_bend_the_policy(peft_config: object) -> None:
    actor_critic, case = make_actor_critic("llava", peft_config=peft_config), ragged_case("llava").only(1)
    expected = draw(actor_critic, case)
    model = actor_critic.backbone.base
    model.generation_config.repetition_penalty = 3.0
    model.generation_config.min_new_tokens = 5
    model.generation_config.suppress_tokens = [int(expected.completions.ids[0, 0])]
    noise = sample_noise(0, 0, range(GROUP), LENGTH)
    actual = sample_plain(actor_critic.backbone, case.prompts, PARAMS, noise)
    assert torch.equal(actual.completions.ids, expected.completions.ids)
    torch.testing.assert_close(actual.logps, expected.logps, atol=1e-5, rtol=0)
    assert model.generation_config.repetition_penalty == 3.0


@torch.no_grad()
def test_eager_attention_samples_like_sdpa() -> None:
    model = zoo.build_model("gemma3")
    model.set_attn_implementation("eager")
    case = ragged_case("gemma3")
    actual, expected = draw(make_actor_critic(model), case), draw(frozen_actor_critic("gemma3"), case)
    assert torch.equal(actual.completions.ids, expected.completions.ids)
    torch.testing.assert_close(actual.logps, expected.logps, atol=1e-5, rtol=0)


@torch.no_grad()
def test_without_a_critic_the_sampler_has_no_values() -> None:
    backbone, case = frozen_actor_critic("llava").backbone, ragged_case("llava")
    assert sample_packed(backbone, None, case.encodings(backbone), PARAMS, None).values is None


@torch.no_grad()
def test_samples_are_completions_that_score() -> None:
    samples = draw(frozen_actor_critic("internvl"), ragged_case("internvl"))
    assert isinstance(samples.completions, Completions)
    ends = samples.completions.ids.gather(1, samples.completions.lengths[:, None] - 1)[:, 0]
    assert torch.equal(ends == EOS_ID, samples.ended)
