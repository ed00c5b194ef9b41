"""What is found to be held: LoRA in every layout, other adapters, modules trained as a whole; refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, IA3Config, LNTuningConfig, LoraConfig, PromptTuningConfig, VeraConfig
from torch import Tensor, nn

from mmft.engine.actor_critic import VLMActorCritic
from mmft.errors import ConfigError
from mmft.models.backbone import make_backbone
from mmft.models.bottleneck import BottleneckConfig
from mmft.objectives.regularization import squared_norm
from mmft.trainers.regularization import RegularizationConfig, Regularizer, find_terms
from tests import zoo
from tests.engine.support import TEXT_ATTENTION, lora, stub_processor

ATTENTION = r".*language_model.*\.(q|v)_proj"


def make_module(peft_config: Any, family: str = "llava", **settings: Any) -> VLMActorCritic:
    torch.manual_seed(0)
    backbone = make_backbone(zoo.build_model(family), stub_processor(), peft_config=peft_config, **settings)
    return VLMActorCritic(backbone, reference=False)


def make_args(tmp_path: Any, **coefficients: Any) -> RegularizationConfig:
    return RegularizationConfig(output_dir=str(tmp_path), use_cpu=True, **coefficients)


def regularize(module: VLMActorCritic, args: RegularizationConfig) -> dict[str, float]:
    return Regularizer(find_terms(module, args), args).add_gradients()


def trained(module: VLMActorCritic) -> dict[str, nn.Parameter]:
    return {name: w for name, w in module.backbone.model.named_parameters() if w.requires_grad}


def formed_changes(module: VLMActorCritic) -> list[Tensor]:
    """PEFT's own change of every weight, as it would be merged."""
    return [
        layer.get_delta_weight("default")
        for layer in module.modules()
        if hasattr(layer, "get_delta_weight") and "default" in getattr(layer, "scaling", {})
    ]


LAYOUTS: dict[str, dict[str, Any]] = {
    "linear": {"target_modules": ATTENTION},
    "rslora": {"target_modules": ATTENTION, "use_rslora": True, "r": 8},
    "ranks of their own": {"target_modules": ATTENTION, "rank_pattern": {"q_proj": 7}},
    "embedding": {"target_modules": ["embed_tokens"]},
    "head": {"target_modules": ["lm_head"]},
    "convolution": {"target_modules": ["patch_embedding"]},
    "vision": {"target_modules": r".*vision_tower.*\.(q|v)_proj"},
    "everything": {"target_modules": "all-linear"},
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.filterwarnings("ignore:.*tie:UserWarning")
def test_lora_in_every_layout_is_held_as_its_formed_change_of_the_weights(name: str, tmp_path: Any):
    module = make_module(lora(**LAYOUTS[name]))
    changes = formed_changes(module)
    term = 0.3 * squared_norm(changes)
    term.backward()
    expected = {name: weight.grad.clone() for name, weight in trained(module).items()}
    module.zero_grad()
    values = regularize(module, make_args(tmp_path, l2_pretrained_coef=0.3))
    assert values["regularization/l2_pretrained"] == pytest.approx(
        0.3 * squared_norm(changes).item(), rel=1e-5
    )
    for weight_name, weight in trained(module).items():
        right = expected[weight_name]
        torch.testing.assert_close(weight.grad, right, rtol=0, atol=1e-6 * right.abs().max().item())


@pytest.mark.parametrize(
    ("target", "part"),
    [
        (ATTENTION, "language"),
        (["lm_head"], "head"),
        (["patch_embedding"], "vision"),
        (["linear_1"], "projector"),
    ],
)
def test_a_lora_layer_belongs_to_the_part_it_sits_in(target: Any, part: str, tmp_path: Any):
    module = make_module(lora(target_modules=target))
    coefficients = {"l2_pretrained_coef": {part: 0.1}, "l2_adapter_coef": {part: 0.1}}
    terms = find_terms(module, make_args(tmp_path, **coefficients))
    assert {each.part for each in terms.lora} == {each.part for each in terms.adapters} == {part}
    other = "vision" if part != "vision" else "language"
    with pytest.raises(ConfigError, match=f"for {other}, where no pretrained weight and no LoRA layer"):
        find_terms(module, make_args(tmp_path, l2_pretrained_coef={other: 0.1}))


def test_the_coefficient_of_the_language_model_may_be_for_its_head_alone(tmp_path: Any):
    module = make_module(None, trainable=("head",))
    (held,) = find_terms(module, make_args(tmp_path, l2_pretrained_coef={"language": 0.1})).pretrained
    assert held.weight is module.backbone.base.get_output_embeddings().weight


def test_only_what_trains_of_a_lora_layer_gets_a_gradient(tmp_path: Any):
    module = make_module(lora())
    frozen = [weight for name, weight in trained(module).items() if "lora_A" in name]
    for weight in frozen:
        weight.requires_grad_(False)
    regularize(module, make_args(tmp_path, l2_pretrained_coef=0.3))
    assert all(weight.grad is None for weight in frozen)
    assert all(weight.grad.abs().sum() > 0 for weight in trained(module).values())


ADAPTERS: dict[str, Any] = {
    "dora": lora(use_dora=True),
    "alora": lora(alora_invocation_tokens=[3], task_type="CAUSAL_LM"),
    "biased lora": lora(lora_bias=True, target_modules=r".*vision_tower.*\.q_proj"),
    "adalora": AdaLoraConfig(target_modules=TEXT_ATTENTION, total_step=10),
    "ia3": IA3Config(target_modules=TEXT_ATTENTION, feedforward_modules=[]),
    "vera": VeraConfig(target_modules=r".*language_model\..*(q|o)_proj", r=4),
    "bottleneck": BottleneckConfig(target_modules=r".*language_model\.layers\.\d+\.mlp", bottleneck_size=4),
    "tokens": lora(trainable_token_indices=[60, 61]),
    "prompt": PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"),
}


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_adapters_without_a_closed_form_are_refused_by_lambda_and_taken_by_beta(name: str, tmp_path: Any):
    module = make_module(ADAPTERS[name])
    with pytest.raises(ConfigError, match=r"has no closed form, .* Use `l2_adapter_coef`, or LoRA"):
        find_terms(module, make_args(tmp_path, l2_pretrained_coef=0.1))
    args = make_args(tmp_path, l2_adapter_coef=0.5)
    held = find_terms(module, args).adapters
    assert {id(each.weight) for each in held} == {id(weight) for weight in trained(module).values()}
    regularize(module, args)
    for weight_name, weight in trained(module).items():
        start = 1.0 if "ia3_" in weight_name else 0.0
        if "magnitude" in weight_name or "trainable_tokens" in weight_name:
            start = weight.detach()
        torch.testing.assert_close(weight.grad, weight.detach() - start, msg=weight_name)


def test_a_part_with_other_adapters_may_be_left_out_of_lambda(tmp_path: Any):
    module = make_module(ADAPTERS["ia3"], trainable=("projector",))
    values = regularize(module, make_args(tmp_path, l2_pretrained_coef={"projector": 0.1}))
    assert values == {"regularization/l2_pretrained": 0, "regularization/distance": 0}


@pytest.mark.parametrize(("value", "expected"), [(1.0, 0.0), (1.5, 0.25)])
def test_ia3_is_counted_from_one_where_it_changes_nothing(value: float, expected: float, tmp_path: Any):
    module = make_module(ADAPTERS["ia3"])
    with torch.no_grad():
        for weight in trained(module).values():
            weight.fill_(value)
    values = regularize(module, make_args(tmp_path, l2_adapter_coef=2.0))
    count = sum(weight.numel() for weight in trained(module).values())
    assert values == {"regularization/l2_adapter": pytest.approx(2 * expected * count)}


@pytest.mark.parametrize(
    "peft_config", [lora(use_dora=True), LNTuningConfig(target_modules=r".*language_model\..*layernorm")]
)
@pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning")
def test_adapters_of_pretrained_values_are_counted_from_where_they_start(peft_config: Any, tmp_path: Any):
    module = make_module(peft_config)
    args = make_args(tmp_path, l2_adapter_coef=1.0)
    regularizer = Regularizer(find_terms(module, args), args)
    at_start = regularizer.add_gradients()["regularization/l2_adapter"]
    copied = {name: w for name, w in trained(module).items() if "magnitude" in name or "ln_tuning" in name}
    with torch.no_grad():
        for weight in copied.values():
            weight.add_(2.0)
    count = sum(weight.numel() for weight in copied.values())
    assert count
    grown = regularizer.add_gradients()["regularization/l2_adapter"] - at_start
    assert grown == pytest.approx(4 * count, rel=1e-4)


def test_modules_trained_as_a_whole_are_pretrained_weights(tmp_path: Any):
    module = make_module(lora(modules_to_save=["lm_head"]))
    (name,) = (name for name in trained(module) if "modules_to_save" in name)
    weight = trained(module)[name]
    with torch.no_grad():
        weight.add_(1.0)
    args = make_args(tmp_path, l2_pretrained_coef={"head": 0.5}, l2_adapter_coef=0.1)
    terms = find_terms(module, args)
    assert id(weight) not in {id(each.weight) for each in terms.adapters}
    regularizer = Regularizer(terms, args)
    assert regularizer.num_copied == 0, "PEFT keeps the pretrained module"
    values = regularizer.add_gradients()
    assert values["regularization/l2_pretrained"] == pytest.approx(0.5 * weight.numel(), rel=1e-5)
    torch.testing.assert_close(weight.grad, torch.ones_like(weight))


def test_a_weight_that_trains_under_its_lora_is_refused(tmp_path: Any):
    module = make_module(lora(), trainable=("language",))
    with pytest.raises(ConfigError, match="trains both itself and through LoRA, or through two adapters"):
        find_terms(module, make_args(tmp_path, l2_pretrained_coef=0.1))
    assert find_terms(module, make_args(tmp_path, l2_adapter_coef=0.1)).adapters


def test_two_adapters_that_train_on_one_weight_are_refused(tmp_path: Any):
    module = make_module(lora())
    module.backbone.model.add_adapter("second", lora())
    for name, weight in module.backbone.model.named_parameters():
        weight.requires_grad_("lora_" in name)
    with pytest.raises(ConfigError, match="through two adapters; the distance of their sum"):
        find_terms(module, make_args(tmp_path, l2_pretrained_coef=0.1))


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_an_initialisation_that_moves_the_pretrained_weights_is_refused(init: str, tmp_path: Any):
    module = make_module(LoraConfig(r=2, target_modules=ATTENTION, init_lora_weights=init))
    with pytest.raises(ConfigError, match=f"`init_lora_weights='{init}'` moves them"):
        find_terms(module, make_args(tmp_path, l2_pretrained_coef=0.1))
