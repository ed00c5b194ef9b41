"""Reward models of every family: values and gradients of the shared prompt, dropout samples, checkpoints."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmft.engine.packing import Completions
from mmft.engine.reward_inputs import RewardInputs
from mmft.engine.reward_model import HEAD_FILE, VLMRewardModel, load_reward_model
from mmft.engine.scoring import last_states_plain, score_plain
from mmft.errors import ConfigError
from mmft.models.backbone import load_backbone
from mmft.models.packaged import CAPTIONER_NAME
from mmft.models.reward_model import SPEC_FILE
from tests import zoo
from tests.engine.reward_support import (
    TRAININGS,
    make_reward_model,
    perturb,
    picture_batch,
    real_reward_model,
)
from tests.engine.support import EVERY_FAMILY, Case, ragged_case
from tests.zoo.vocabulary import FIRST_TEXT_ID


@functools.cache
def frozen_reward_model(family: str) -> VLMRewardModel:
    """One per family, for tests that change nothing in it."""
    return make_reward_model(family)


def slow_features(model: VLMRewardModel, case: Case) -> Tensor:
    """(N, D) what the language head would read at the last token, one whole forward per completion."""
    base, rows = model.backbone.base, []
    for ids, mask, index in zip(
        case.completions.ids, case.completions.mask, case.completions.prompt_index, strict=True
    ):
        seen: list[Tensor] = []
        handle = base.get_output_embeddings().register_forward_pre_hook(
            lambda _, args, seen=seen: seen.append(args[0])
        )
        zoo.plain_logits(base, case.rows[int(index)], ids[mask])
        handle.remove()
        rows.append(seen[0][0, -1])
    return torch.stack(rows)


@pytest.mark.parametrize("family", EVERY_FAMILY)
@torch.no_grad()
def test_packed_and_plain_rewards_are_those_of_one_forward_per_completion(family: str) -> None:
    model, case = frozen_reward_model(family), ragged_case(family)
    expected = slow_features(model, case)
    packed = model(case.encodings(model.backbone), case.completions)
    torch.testing.assert_close(packed.features, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        last_states_plain(model.backbone, case.prompts, case.completions), expected, atol=1e-5, rtol=0
    )
    mean, log_variance = model.reward_head(expected)
    torch.testing.assert_close(packed.mean, mean, atol=1e-5, rtol=0)
    torch.testing.assert_close(packed.log_variance, log_variance, atol=1e-5, rtol=0)
    assert mean.std() > 0.1


@pytest.mark.parametrize("family", EVERY_FAMILY)
@torch.no_grad()
def test_a_padded_batch_gives_the_rewards_of_its_prompts_one_by_one(family: str) -> None:
    model, case = frozen_reward_model(family), ragged_case(family)
    together = model(case.encodings(model.backbone), case.completions).mean
    for prompt in range(len(case.rows)):
        alone = case.only(prompt)
        actual = model(alone.encodings(model.backbone), alone.completions).mean
        expected = together[case.completions.prompt_index == prompt]
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", EVERY_FAMILY)
@torch.no_grad()
def test_other_pixels_change_the_rewards_of_their_prompt_only(family: str) -> None:
    model, case = frozen_reward_model(family), ragged_case(family)
    before = model(case.encodings(model.backbone), case.completions).mean
    prompts = case.prompts
    prompts[0] = replace(prompts[0], tensors=zoo.perturb_pixels(case.rows[0], seed=1))
    change = (model(prompts, case.completions).mean - before).abs()
    own = case.completions.prompt_index == 0
    assert (change[own] > 1e-4).all()
    assert change[~own].max() < 1e-5


@pytest.mark.parametrize("family", EVERY_FAMILY)
@torch.no_grad()
def test_the_last_token_counts_and_siblings_do_not_hear_each_other(family: str) -> None:
    model, case = frozen_reward_model(family), ragged_case(family)
    encodings = case.encodings(model.backbone)
    before = model(encodings, case.completions).mean
    changed = Completions(case.completions.ids.clone(), case.completions.mask, case.completions.prompt_index)
    last = int(case.completions.lengths[0]) - 1  # of the first of three siblings
    changed.ids[0, last] = FIRST_TEXT_ID + 3
    change = (model(encodings, changed).mean - before).abs()
    assert change[0] > 1e-3
    assert change[1:].max() < 1e-6


@torch.no_grad()
def test_an_empty_completion_is_judged_by_its_prompt_and_disturbs_nobody() -> None:
    model, case = frozen_reward_model("llava"), ragged_case("llava")
    encodings, mask = case.encodings(model.backbone), case.completions.mask.clone()
    whole = model(encodings, case.completions).mean
    mask[1] = False
    actual = model(encodings, replace(case.completions, mask=mask)).mean
    rest = torch.arange(len(mask)) != 1
    torch.testing.assert_close(actual[rest], whole[rest], atol=1e-5, rtol=0)
    assert actual[1].isfinite()


def gradients(model: VLMRewardModel, case: Case) -> dict[str, Tensor]:
    """By name, of a random weight on every reward and log-variance."""
    model.zero_grad(set_to_none=True)
    scores = model(case.prompts, case.completions)
    weights = torch.randn(2, len(scores.mean), generator=torch.Generator().manual_seed(3))
    ((weights[0] * scores.mean).sum() + (weights[1] * scores.log_variance).sum()).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("training", ["lora", "language", "vision"])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3", "paligemma2"])
def test_packed_gradients_equal_plain_ones(family: str, training: str) -> None:
    model, case = make_reward_model(family, training), ragged_case(family)
    packed = gradients(model, case)
    model.packed = False
    plain = gradients(model, case)
    assert packed.keys() == plain.keys()
    assert any(name.startswith("backbone.") for name in packed)
    largest = max(gradient.norm() for gradient in plain.values())
    for name, gradient in plain.items():
        difference = (packed[name] - gradient).norm()
        assert difference <= 1e-4 * gradient.norm() + 1e-7 * largest, name


def test_a_frozen_backbone_gets_no_graph_and_stays_in_evaluation_mode() -> None:
    model, case = make_reward_model("llava"), ragged_case("llava")
    model.train()
    assert not model.backbone.training
    assert model.reward_head.training
    scores = model(case.prompts, case.completions)
    assert not scores.features.requires_grad
    assert scores.mean.requires_grad
    model = make_reward_model("llava", "lora").train()
    assert model.backbone.training
    assert model(case.prompts, case.completions).features.requires_grad


@torch.no_grad()
def test_epistemic_variance_is_that_of_the_samples_and_aleatoric_that_of_the_head() -> None:
    model, case = frozen_reward_model("llava"), ragged_case("llava")
    features = model.features(case.prompts, case.completions)
    estimate = model.estimate(features, 7, seed=3)
    means, log_variances = model.mc_samples(features, 7, torch.Generator().manual_seed(3))
    average = sum(means) / 7
    torch.testing.assert_close(estimate.mean, average)
    torch.testing.assert_close(estimate.epistemic, sum((each - average) ** 2 for each in means) / 7)
    torch.testing.assert_close(estimate.aleatoric, sum(each.exp() for each in log_variances) / 7)
    torch.testing.assert_close(estimate.total, estimate.epistemic + estimate.aleatoric)
    assert estimate.epistemic.min() > 1e-4


@torch.no_grad()
def test_without_samples_the_prediction_is_the_one_without_dropout() -> None:
    model, case = frozen_reward_model("llava"), ragged_case("llava")
    features = model.features(case.prompts, case.completions)
    mean, log_variance = model.reward_head(features)
    estimate = model.estimate(features)
    torch.testing.assert_close(estimate.mean, mean)
    torch.testing.assert_close(estimate.aleatoric, log_variance.exp())
    assert (estimate.epistemic == 0).all()
    certain = make_reward_model("llava", loss_type="mse").estimate(features, 3)
    assert (certain.aleatoric == 0).all()


# Checkpoints


def moved_and_saved(model: VLMRewardModel, folder: Path) -> dict[str, Tensor]:
    """Every weight that trains becomes another one; what was saved."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.reward_head.set_unit([1.0, 4.0])
    model.save_pretrained(folder)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def base_folder(folder: Path, family: str = "llava") -> str:
    """A pretrained model on disk."""
    zoo.build_model(family).save_pretrained(folder)
    zoo.build_processor(family).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("training", TRAININGS)
def test_a_saved_reward_model_is_loaded_by_its_path(training: str, tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base")
    torch.manual_seed(0)
    backbone = load_backbone(base, **{"trainable": ()} | TRAININGS[training])
    model = VLMRewardModel(backbone, loss_type="heteroscedastic", head_width=8, max_completion_length=9)
    saved = moved_and_saved(model, tmp_path / "run")
    before = torch.get_rng_state()
    loaded = load_reward_model(tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), before)
    assert (loaded.loss_type, loaded.max_completion_length) == ("heteroscedastic", 9)
    assert loaded.state_dict().keys() == saved.keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, saved[name]), name
    assert not any(p.requires_grad for p in loaded.parameters())
    assert not loaded.training
    batch = picture_batch(loaded)
    torch.testing.assert_close(
        RewardInputs(loaded, 0).estimate(batch, 3).mean, RewardInputs(model, 0).estimate(batch, 3).mean
    )
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert {HEAD_FILE, SPEC_FILE} <= files
    assert ("model.safetensors" in files) == (training in ("language", "vision"))
    assert ("adapter_model.safetensors" in files) == training.startswith(("lora", "bottleneck"))
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in files)


@pytest.mark.parametrize("training", TRAININGS)
def test_a_checkpoint_is_restored_in_place(training: str, tmp_path: Path) -> None:
    model = real_reward_model(training)
    saved = moved_and_saved(model, tmp_path)
    other = real_reward_model(training)
    other.load_checkpoint(tmp_path)
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, saved[name]), name
    assert any(p.requires_grad for p in other.parameters())


def test_frozen_weights_without_a_name_are_saved_whole(tmp_path: Path) -> None:
    model = real_reward_model()
    model.save_pretrained(tmp_path)
    assert model.spec.backbone == "full"
    batch = picture_batch(model)
    loaded = load_reward_model(tmp_path)
    torch.testing.assert_close(
        RewardInputs(loaded, 0).estimate(batch).mean, RewardInputs(model, 0).estimate(batch).mean
    )


def test_the_packaged_model_goes_by_its_name(tmp_path: Path) -> None:
    model = VLMRewardModel(load_backbone(CAPTIONER_NAME, trainable=()), head_width=8)
    saved = moved_and_saved(model, tmp_path)
    assert (model.spec.backbone, model.spec.base) == ("frozen", CAPTIONER_NAME)
    assert not (tmp_path / "model.safetensors").exists()
    loaded = load_reward_model(tmp_path)
    assert torch.equal(loaded.state_dict()["reward_head.hidden.weight"], saved["reward_head.hidden.weight"])


def test_an_adapter_on_a_model_without_a_name_asks_for_it(tmp_path: Path) -> None:
    model = real_reward_model("lora")
    saved = moved_and_saved(model, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"an adapter on a model without a name\. Name the model"):
        load_reward_model(tmp_path / "run")
    loaded = load_reward_model(tmp_path / "run", base=base_folder(tmp_path / "base"))
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, saved[name]), name


def test_another_kind_of_reward_model_is_not_restored(tmp_path: Path) -> None:
    real_reward_model("lora").save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"holds a reward model with adapter backbone.*this one has full"):
        real_reward_model("language").load_checkpoint(tmp_path)


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_the_likelihood_a_head_reads_is_that_of_the_policy(family: str) -> None:
    model, case = make_reward_model(family, "language", reads_likelihood=True), ragged_case(family)
    backbone, mask = model.backbone, case.completions.mask
    packed = model(case.encodings(backbone), case.completions)
    model.packed = False
    plain = model(case.prompts, case.completions)
    torch.testing.assert_close(packed.features, plain.features, atol=1e-5, rtol=0)
    logps = score_plain(backbone, None, case.prompts, case.completions, entropies=False).logps
    for features, row, real in zip(packed.features, logps, mask, strict=True):
        expected = torch.stack([row[real].mean(), row[real].min()])
        torch.testing.assert_close(features[-2:], expected, atol=1e-5, rtol=0)
    (head,) = {weight for weight in backbone.base.get_output_embeddings().parameters()}
    gradients = [torch.autograd.grad(each.mean.sum(), head)[0] for each in (packed, plain)]
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=0)
    assert gradients[0].abs().max() > 1e-3, "the language head takes part"


def test_a_model_that_reads_likelihood_is_saved_as_such(tmp_path: Path) -> None:
    backbone = load_backbone(CAPTIONER_NAME, trainable=())
    model = VLMRewardModel(backbone, head_width=8, reads_likelihood=True)
    perturb(model.reward_head)
    model.save_pretrained(tmp_path)
    loaded = load_reward_model(tmp_path)
    assert loaded.spec == model.spec
    assert loaded.reward_head.hidden.in_features == backbone.hidden_size + 2
    for name, weight in model.reward_head.state_dict().items():
        assert torch.equal(loaded.reward_head.state_dict()[name], weight), name
