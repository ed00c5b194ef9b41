"""Which weights train: four parts that cover every model, adapters as PEFT decided, and errors that help."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import FourierFTConfig, HRAConfig, IA3Config, LNTuningConfig, LoraConfig, VeraConfig
from torch import nn

from mmft.errors import ConfigError
from mmft.models.backbone import make_backbone
from mmft.models.freezing import (
    PARTS,
    apply_freeze_rules,
    is_adapter,
    parameter_parts,
    trained_pretrained_weights,
    trains_before_seam,
)
from tests import zoo
from tests.engine.support import EVERY_FAMILY, TEXT_ATTENTION, lora, stub_processor

PROJECTORS: dict[str, set[str]] = {
    "llava": {"multi_modal_projector"},
    "llava_onevision": {"multi_modal_projector", "image_newline"},
    "smolvlm": {"connector"},
    "idefics3": {"connector"},
    "qwen2_vl": {"visual.merger"},
    "qwen2_5_vl": {"visual.merger"},
    "qwen3_vl": {"visual.merger", "visual.deepstack_merger_list"},
    "gemma3": {"multi_modal_projector"},
    "paligemma": {"multi_modal_projector"},
    "paligemma2": {"multi_modal_projector"},
    "internvl": {"multi_modal_projector"},
}
"""By family, where the weights between encoder and text model sit."""


def names_of(model: nn.Module, part: str) -> set[str]:
    return {name for found, name, _ in parameter_parts(model) if found == part}


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_every_weight_belongs_to_one_part(family: str) -> None:
    model = zoo.build_model(family)
    parts = [(part, name) for part, name, _ in parameter_parts(model)]
    assert sorted(name for _, name in parts) == sorted(name for name, _ in model.named_parameters())
    assert {part for part, _ in parts} == set(PARTS)
    head = {id(model.get_output_embeddings().weight)}
    text = {id(p) for p in model.get_decoder().parameters()} - head
    assert all((part == "language") == (id(p) in text) for part, _, p in parameter_parts(model))
    assert all((part == "head") == (id(p) in head) for part, _, p in parameter_parts(model))
    projector = names_of(model, "projector")
    assert {place for place in PROJECTORS[family] if any(place in name for name in projector)} == PROJECTORS[
        family
    ]
    assert all(any(place in name for place in PROJECTORS[family]) for name in projector)


@pytest.mark.parametrize(
    "trainable",
    [(), ("vision",), ("projector",), ("language",), ("vision", "language"), ("vision", "head"), PARTS],
)
@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_the_named_parts_train_and_nothing_else(family: str, trainable: tuple[str, ...]) -> None:
    model = zoo.build_model(family)
    apply_freeze_rules(model, trainable)
    chosen = {*trainable, "head"} if "language" in trainable else set(trainable)
    assert all(p.requires_grad == (part in chosen) for part, _, p in parameter_parts(model))
    # A trained input embedding changes a prompt's encoding as much as a trained vision tower does.
    assert trains_before_seam(model) == bool(trainable)
    assert len(trained_pretrained_weights(model)) == sum(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_the_head_alone_can_train_and_is_the_input_embedding_where_the_model_ties_them(family: str) -> None:
    model = zoo.build_model(family)
    apply_freeze_rules(model, ("head",))
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    assert [p for p in model.parameters() if p.requires_grad] == [head]
    assert trains_before_seam(model) == (head is embedding)


def test_families_with_a_tied_head_and_without_one_were_tried() -> None:
    models = [zoo.build_model(family) for family in EVERY_FAMILY]
    tied = {model.get_output_embeddings().weight is model.get_input_embeddings().weight for model in models}
    assert tied == {True, False}


@pytest.mark.parametrize(
    ("trainable", "expected"),
    [
        (("*language_model.layers.1.*",), lambda name: "language_model.layers.1." in name),
        (("model.language_model.norm.weight",), lambda name: name == "model.language_model.norm.weight"),
        (("*layers.1.*", "projector"), lambda name: "layers.1." in name or "projector" in name),
    ],
)
def test_patterns_choose_weights_by_name(trainable: tuple[str, ...], expected: Any) -> None:
    model = zoo.build_model("llava")
    apply_freeze_rules(model, trainable)
    chosen = {name for name, p in model.named_parameters() if p.requires_grad}
    assert chosen == {name for name, _ in model.named_parameters() if expected(name)}
    assert chosen


def test_patterns_mean_the_names_of_the_model_without_adapters() -> None:
    names = trainable_names(lora(), trainable=("*language_model.layers.1.self_attn.q_proj.weight",))
    (beside,) = (name for name in names if not is_adapter(name))
    assert beside.endswith("layers.1.self_attn.q_proj.base_layer.weight")


def test_frozen_embeddings_under_trained_layers_leave_encodings_alone() -> None:
    model = zoo.build_model("llava")
    apply_freeze_rules(model, ("language",))
    model.get_input_embeddings().requires_grad_(False)
    assert not trains_before_seam(model)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("visoin", "names 'visoin', which is not one of vision, projector, language, head .*mean 'vision'"),
        ("languages", "Did you mean 'language'?"),
        ("all", r"`trainable` names 'all', which is not one of .* \(such as '\*layers.3.\*'\)\.$"),
        ("*layers.9.*", r"pattern '\*layers.9.\*', which matches no parameter .* like 'model\.vision"),
        ("lora_A.weight", "pattern 'lora_A.weight', which matches no parameter"),
    ],
)
def test_an_entry_that_matches_nothing_is_named_with_what_could_be_meant(part: str, message: str) -> None:
    model = zoo.build_model("llava")
    with pytest.raises(ConfigError, match=message):
        apply_freeze_rules(model, ("vision", part))
    assert all(p.requires_grad for p in model.parameters()), "nothing may have been touched"


def trainable_names(peft_config: Any, **settings: Any) -> set[str]:
    backbone = make_backbone(zoo.build_model("llava"), stub_processor(), peft_config=peft_config, **settings)
    return {name for name, p in backbone.base.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    "peft_config",
    [
        lora(),
        lora(use_dora=True),
        lora(modules_to_save=["lm_head"]),
        lora(trainable_token_indices=[60, 61]),
        IA3Config(target_modules=TEXT_ATTENTION, feedforward_modules=[]),
        VeraConfig(target_modules=r".*language_model\..*(q|o)_proj", r=4),
        LNTuningConfig(target_modules=r".*language_model\..*layernorm"),
        FourierFTConfig(target_modules=TEXT_ATTENTION, n_frequency=4),
        HRAConfig(target_modules=TEXT_ATTENTION, r=4),
    ],
    ids=["lora", "dora", "saved head", "tokens", "ia3", "vera", "ln tuning", "fourierft", "hra"],
)
@pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning")
def test_adapters_of_any_kind_train_and_the_pretrained_weights_do_not(peft_config: Any) -> None:
    names = trainable_names(peft_config)
    assert names
    assert all(is_adapter(name) for name in names)
    pretrained = {name for name, _ in zoo.build_model("llava").named_parameters()}
    assert not any(is_adapter(name) for name in pretrained)
    assert not names & pretrained


def test_pretrained_parts_can_train_beside_adapters() -> None:
    names = trainable_names(lora(), trainable=("projector",))
    beside = {name for name in names if not is_adapter(name)}
    assert beside == names_of(zoo.build_model("llava"), "projector")
    assert any("lora_" in name for name in names)


def test_adapters_behind_the_seam_keep_encodings_and_those_before_it_do_not() -> None:
    for target, expected in (
        (TEXT_ATTENTION, False),
        (r".*vision_tower.*q_proj", True),
        ("all-linear", True),
    ):
        config = LoraConfig(target_modules=target)
        backbone = make_backbone(zoo.build_model("llava"), stub_processor(), peft_config=config)
        assert trains_before_seam(backbone.base) == expected, target
        assert backbone.caches_encodings != expected


def test_the_users_adapter_config_serves_for_another_model() -> None:
    config = LoraConfig(target_modules="all-linear")
    for family in ("qwen2_5_vl", "llava"):
        make_backbone(zoo.build_model(family), stub_processor(), peft_config=config)
    assert config.target_modules == "all-linear"


def test_the_default_is_the_text_model_with_its_head_or_adapters_alone() -> None:
    model = make_backbone(zoo.build_model("llava"), stub_processor()).base
    assert {part for part, _, p in parameter_parts(model) if p.requires_grad} == {"language", "head"}
    assert all(is_adapter(name) for name in trainable_names(lora()))


def test_a_part_without_weights_cannot_train() -> None:
    model = zoo.build_model("llava")
    model.model.multi_modal_projector = nn.Identity()
    with pytest.raises(
        ConfigError, match=r"names 'projector', and this model has no such .* vision, language"
    ):
        apply_freeze_rules(model, ("projector",))


@pytest.mark.parametrize("trainable", [("language",), ("*layers.0.mlp*",)])
def test_quantised_weights_cannot_be_chosen_to_train(trainable: tuple[str, ...]) -> None:
    model = zoo.build_model("llava")
    quantised = nn.Parameter(torch.zeros(3, dtype=torch.uint8), requires_grad=False)
    model.get_decoder().layers[0].mlp.quantised = quantised
    with pytest.raises(ConfigError, match=r"layers.0.mlp.quantised, which is quantised \(torch.uint8\)"):
        apply_freeze_rules(model, trainable)
    assert all(p.requires_grad or p is quantised for p in model.parameters()), "nothing may be changed"
    apply_freeze_rules(model, ("vision",))
    assert not quantised.requires_grad


def test_weights_without_quantisation_train_beside_quantised_ones() -> None:
    model = zoo.build_model("llava")
    quantised = nn.Parameter(torch.zeros(3, dtype=torch.uint8), requires_grad=False)
    model.get_decoder().layers[0].mlp.quantised = quantised
    apply_freeze_rules(model, ("*layers.1.*", "head"))
    assert model.get_output_embeddings().weight.requires_grad
