"""Policy, reference and critic as one module: what moves, what stays, and what a checkpoint brings back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from torch import Tensor

from mmft.engine.actor_critic import HEADS_FILE, VLMActorCritic
from mmft.engine.sampling import SamplingParams, sample_noise
from mmft.errors import UnsupportedModelError
from mmft.models.adapters import PRETRAINED_FILE
from mmft.models.backbone import make_backbone
from tests import zoo
from tests.engine.support import (
    EVERY_FAMILY,
    lora,
    make_actor_critic,
    perturb_critic,
    ragged_case,
)

TRAININGS: dict[str, dict[str, Any]] = {
    "lora": {"peft_config": lora()},
    "language": {"trainable": ("language",)},
    "everything": {"trainable": ("vision", "projector", "language")},
    "lora_everywhere": {"peft_config": lora(target_modules="all-linear")},
    "lora_and_projector": {"peft_config": lora(), "trainable": ("projector",)},
    "lora_and_saved_head": {"peft_config": lora(modules_to_save=["lm_head"])},
}


@torch.no_grad()
def move_policy(actor_critic: VLMActorCritic) -> None:
    """A training step stands behind it: every trainable weight is another one."""
    generator = torch.Generator().manual_seed(9)
    for parameter in actor_critic.parameters():
        if parameter.requires_grad:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def state_of(actor_critic: VLMActorCritic) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in actor_critic.state_dict().items()}


@pytest.mark.parametrize("family", EVERY_FAMILY)
@torch.no_grad()
def test_the_reference_is_the_model_before_adapters(family: str) -> None:
    case = ragged_case(family)
    before = make_actor_critic(family)
    expected = before(case.encodings(before.backbone), case.completions, temperature=0.7).logps
    adapted = make_actor_critic(family, peft_config=lora())
    encodings = case.encodings(adapted.backbone)
    actual = adapted.reference_logps(encodings, case.completions, temperature=0.7)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)
    moved = adapted(encodings, case.completions, temperature=0.7).logps
    assert (moved - expected)[case.completions.mask].abs().max() > 1e-2
    # Asking the reference switched the adapters on again.
    again = adapted(encodings, case.completions, temperature=0.7).logps
    assert torch.equal(moved, again)
    assert any(p.requires_grad for n, p in adapted.named_parameters() if "lora_" in n)


@pytest.mark.parametrize("training", TRAININGS)
@torch.no_grad()
def test_the_reference_stays_when_the_policy_moves(training: str) -> None:
    case = ragged_case("qwen2_5_vl")
    base = make_actor_critic("qwen2_5_vl")
    expected = base(case.prompts, case.completions).logps
    actor_critic = make_actor_critic("qwen2_5_vl", reference=True, **TRAININGS[training])
    move_policy(actor_critic)
    actor_critic.train()
    actual = actor_critic.reference_logps(case.prompts, case.completions)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)
    assert (actor_critic(case.prompts, case.completions).logps - expected).abs().max() > 1e-2
    assert actor_critic.training
    assert actor_critic.backbone.text_model.training


def test_the_frozen_copy_shares_frozen_weights_and_copies_only_trained_ones() -> None:
    actor_critic = make_actor_critic("llava", trainable=("projector",), reference=True)
    (reference,) = actor_critic._frozen_copy
    own, copied = dict(actor_critic.backbone.named_parameters()), dict(reference.named_parameters())
    assert own.keys() == copied.keys()
    for name, parameter in own.items():
        shares = parameter.data_ptr() == copied[name].data_ptr()
        assert shares == (not parameter.requires_grad), name
        assert not copied[name].requires_grad
    assert sum(p.requires_grad for p in own.values()) == 4
    names = [name for name, _ in actor_critic.named_parameters()]
    assert len(names) == len(own) + 2
    assert not any("frozen_copy" in name for name in actor_critic.state_dict())


def test_tied_weights_stay_tied_in_the_frozen_copy() -> None:
    actor_critic = make_actor_critic("gemma3", trainable=("language",), reference=True)
    (reference,) = actor_critic._frozen_copy
    head = reference.base.get_output_embeddings().weight
    assert head is reference.base.get_input_embeddings().weight
    assert head is not actor_critic.backbone.base.get_output_embeddings().weight


@pytest.mark.parametrize("training", ["language", "lora_and_projector"])
def test_the_frozen_copy_follows_the_module_to_another_dtype(training: str) -> None:
    actor_critic = make_actor_critic("llava", reference=True, **TRAININGS[training]).double()
    (reference,) = actor_critic._frozen_copy
    assert {p.dtype for p in reference.parameters()} == {torch.float64}
    case = ragged_case("llava")
    assert actor_critic.reference_logps(case.prompts, case.completions).isfinite().all()


def test_adapters_alone_need_no_frozen_copy() -> None:
    assert make_actor_critic("llava", peft_config=lora(), reference=True)._frozen_copy == []
    assert make_actor_critic("llava", trainable=("language",), reference=False)._frozen_copy == []


def test_without_a_reference_asking_for_one_is_an_error() -> None:
    actor_critic, case = make_actor_critic("llava", trainable=("language",)), ragged_case("llava")
    with pytest.raises(UnsupportedModelError, match="built with `reference=False` and has no adapters"):
        actor_critic.reference_logps(case.prompts, case.completions)


def test_the_critic_starts_at_zero_in_float32_and_may_be_left_out() -> None:
    backbone = make_backbone(zoo.build_model("llava").to(torch.bfloat16), zoo.build_processor("llava"))
    head = VLMActorCritic(backbone, reference=False).value_head
    assert head.weight.dtype == torch.float32
    assert not head.weight.any()
    assert not head.bias.any()
    assert VLMActorCritic(backbone, critic=False, reference=False).value_head is None


def build_saved(training: str, seed: int) -> VLMActorCritic:
    """With a real processor, since a checkpoint holds one."""
    torch.manual_seed(seed)
    model, processor = zoo.build_model("llava", seed=0), zoo.build_processor("llava")
    backbone = make_backbone(model, processor, **TRAININGS[training])
    actor_critic = VLMActorCritic(backbone).eval()
    perturb_critic(actor_critic, seed)
    return actor_critic


@pytest.mark.parametrize("gathered", [False, True])
@pytest.mark.parametrize("training", TRAININGS)
def test_a_checkpoint_brings_back_every_bit_into_another_model(
    training: str, gathered: bool, tmp_path: Path
) -> None:
    saved = build_saved(training, seed=0)
    move_policy(saved)
    saved.save_pretrained(tmp_path, state_dict=state_of(saved) if gathered else None)
    expected = state_of(saved)

    fresh = build_saved(training, seed=1)
    trainable = [name for name, p in fresh.named_parameters() if p.requires_grad]
    assert trainable
    assert not any(torch.equal(fresh.state_dict()[name], expected[name]) for name in trainable)
    fresh.load_checkpoint(tmp_path)
    actual = fresh.state_dict()
    assert actual.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(actual[name], expected[name])] == []
    assert [name for name, p in fresh.named_parameters() if p.requires_grad] == trainable
    assert (tmp_path / HEADS_FILE).exists()
    assert (tmp_path / PRETRAINED_FILE).exists() == (training == "lora_and_projector")
    assert (tmp_path / "processor_config.json").exists()


@torch.no_grad()
def test_a_saved_adapter_is_loadable_by_plain_peft(tmp_path: Path) -> None:
    saved, case = build_saved("lora", seed=0), ragged_case("llava")
    move_policy(saved)
    saved.save_pretrained(tmp_path)
    plain = PeftModel.from_pretrained(zoo.build_model("llava"), tmp_path).eval()
    ids = case.completions.ids[0]
    actual = zoo.plain_logits(plain.get_base_model(), case.rows[0], ids)
    expected = zoo.plain_logits(saved.backbone.base, case.rows[0], ids)
    assert torch.equal(actual, expected)
    assert (zoo.plain_logits(zoo.build_model("llava"), case.rows[0], ids) - actual).abs().max() > 1e-2


@torch.no_grad()
def test_a_saved_model_is_loadable_by_plain_transformers(tmp_path: Path) -> None:
    saved, case = build_saved("everything", seed=0), ragged_case("llava")
    move_policy(saved)
    saved.save_pretrained(tmp_path)
    plain = type(saved.backbone.base).from_pretrained(tmp_path)
    ids = case.completions.ids[0]
    expected = zoo.plain_logits(saved.backbone.base, case.rows[0], ids)
    assert torch.equal(zoo.plain_logits(plain, case.rows[0], ids), expected)


def test_a_folder_without_weights_is_an_error(tmp_path: Path) -> None:
    for training in ("lora", "language"):
        with pytest.raises((OSError, ValueError)):
            build_saved(training, seed=0).load_checkpoint(tmp_path)


@torch.no_grad()
def test_on_the_plain_path_sampling_and_scoring_agree() -> None:
    actor_critic, case = make_actor_critic("smolvlm"), ragged_case("smolvlm")
    params, noise = (
        SamplingParams(num_generations=2, max_completion_length=5),
        sample_noise(0, 0, range(6), 5),
    )
    packed = actor_critic.sample(case.prompts, params, noise)
    expected = actor_critic(case.prompts, packed.completions)
    actor_critic.packed = False
    plain = actor_critic.sample(case.prompts, params, noise)
    assert torch.equal(plain.completions.ids, packed.completions.ids)
    actual = actor_critic(case.prompts, plain.completions)
    torch.testing.assert_close(actual.logps, plain.logps, atol=1e-5, rtol=0)
    torch.testing.assert_close(actual.values, expected.values, atol=1e-5, rtol=0)
    with pytest.raises(TypeError, match="the plain path needs `PromptInputs`"):
        actor_critic(case.encodings(actor_critic.backbone), plain.completions)
    with pytest.raises(TypeError, match="the plain path needs `PromptInputs`"):
        actor_critic.sample(case.encodings(actor_critic.backbone), params, noise)


@pytest.mark.parametrize("name", ["gradient_checkpointing_enable", "activation_checkpointing_enable"])
@pytest.mark.parametrize("peft_config", [None, LoraConfig(target_modules=["q_proj"])])
def test_a_trainer_switches_checkpointing_on_under_either_name(
    name: str, peft_config: LoraConfig | None
) -> None:
    actor_critic = make_actor_critic("llava", peft_config=peft_config, trainable=("language",))
    getattr(actor_critic, name)({"use_reentrant": False}, every_n_layers=2, offload=False)
    layers = actor_critic.backbone.text_model.layers
    assert [layer.gradient_checkpointing for layer in layers] == [False, True]
