"""Adapters by name: which modules of which part get one, by each method, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from peft.tuners.ia3 import IA3Layer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel, Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

from mmft.errors import ConfigError
from mmft.models.adapter_settings import ADAPTABLE, METHODS, AdapterSettings, check_adapters
from mmft.models.adapters import adapter_config, can_merge, load_adapter, method_of
from mmft.models.backbone import make_backbone
from mmft.models.bottleneck import BottleneckConfig
from mmft.models.seam import find_text_model
from mmft.models.targets import hidden_state_modules, hidden_width, inner_activation_layers, name_pattern
from mmft.trl_bridge import ModelConfig
from tests import zoo
from tests.engine.adapter_support import SIZES, adapted, perturb_adapters
from tests.engine.support import EVERY_FAMILY, stub_processor
from tests.models.test_freezing import PROJECTORS

TEXT = ("model.language_model.", "model.text_model.")
INNER = re.compile(r".*(down_proj|fc2|linear_2|merger\.mlp\.2|projector\.linear|modality_projection\.proj)")
"""How the layers are called that lead out of an MLP, in every family of the zoo."""
BEHIND_LAYER_MLP = re.compile(r".*\.(layers?|blocks)\.\d+\.mlp")
SEAMS = {
    "llava": ["model.multi_modal_projector"],
    "qwen3_vl": [
        "model.visual.merger",
        *(f"model.visual.deepstack_merger_list.{number}" for number in range(2)),
    ],
}


def part_of(family: str, name: str) -> str:
    """By the names of each family's modules alone."""
    if name.startswith(TEXT):
        return "language"
    if name == "lm_head":
        return "head"
    return "projector" if any(place in name for place in PROJECTORS[family]) else "vision"


def modules_of(family: str, part: str) -> dict[str, nn.Module]:
    model = zoo.build_model(family)
    return {name: each for name, each in model.named_modules() if name and part_of(family, name) == part}


def linear_of(family: str, part: str) -> set[str]:
    return {name for name, each in modules_of(family, part).items() if isinstance(each, nn.Linear)}


def carriers(model: PreTrainedModel, config: Any) -> set[str]:
    """Names of the modules that PEFT puts adapters on, by its own rules."""
    base = get_peft_model(model, config).get_base_model()
    return {name for name, module in base.named_modules() if isinstance(module, BaseTunerLayer)}


@pytest.mark.parametrize("part", ADAPTABLE)
@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_lora_goes_on_exactly_the_linear_layers_of_a_part(family: str, part: str):
    expected, model = linear_of(family, part), zoo.build_model(family)
    if not expected:
        assert (family, part) == ("gemma3", "projector"), "a bare matrix, and the only one"
        with pytest.raises(ConfigError, match=r"`projector` of Gemma3For.* has no linear layers"):
            adapter_config(model, parts=[part])
        return
    assert carriers(model, adapter_config(model, parts=[part])) == expected


def test_parts_add_up():
    model = zoo.build_model("qwen2_5_vl")
    expected = linear_of("qwen2_5_vl", "projector") | linear_of("qwen2_5_vl", "language")
    assert carriers(model, adapter_config(model, parts=["language", "projector"])) == expected


def test_a_head_that_is_tied_to_the_embedding_gets_no_adapter():
    model = zoo.build_model("llava")
    model.lm_head.weight = model.get_input_embeddings().weight
    assert "lm_head" not in carriers(model, adapter_config(model))


def test_the_default_pattern_is_short():
    pattern = adapter_config(zoo.build_model("llava")).target_modules
    assert pattern.startswith(r"model\.language_model\.layers\.\d+\.(mlp\.down_proj|")
    assert len(pattern) < 200


@pytest.mark.parametrize("part", ADAPTABLE)
@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_ia3_rescales_keys_values_and_what_leaves_an_mlp(family: str, part: str):
    model, linear = zoo.build_model(family), linear_of(family, part)
    if not linear:
        return
    inner = {name for name in linear if INNER.fullmatch(name)}
    keys_and_values = {name for name in linear if name.rpartition(".")[2] in ("k_proj", "v_proj", "qkv")}
    base = get_peft_model(model, adapter_config(model, method="ia3", parts=[part])).get_base_model()
    layers = {name: module for name, module in base.named_modules() if isinstance(module, IA3Layer)}
    assert set(layers) == inner | keys_and_values
    assert {name for name, layer in layers.items() if layer.is_feedforward} == inner
    assert inner
    assert part == "projector" or keys_and_values


def test_bottlenecks_go_behind_each_layers_mlp():
    for family in EVERY_FAMILY:
        model = zoo.build_model(family)
        config = adapter_config(model, method="bottleneck", parts=["language", "vision"])
        expected = {name for name, _ in model.named_modules() if BEHIND_LAYER_MLP.fullmatch(name)}
        assert carriers(model, config) == expected, family


@pytest.mark.parametrize("family", SEAMS)
def test_a_bottleneck_on_the_projector_adapts_what_it_returns(family: str):
    model = zoo.build_model(family)
    config = adapter_config(model, method="bottleneck", parts=["projector"])
    assert carriers(model, config) == set(SEAMS[family])


def test_a_bottleneck_fits_a_projector_that_is_a_bare_matrix():
    model, row = zoo.build_model("gemma3"), zoo.build_row("gemma3")
    config = adapter_config(model, method="bottleneck", parts=["projector"], bottleneck_size=2)
    adapted = get_peft_model(model, config)
    before = adapted(**row).logits
    perturb_adapters(adapted)
    assert (adapted(**row).logits - before).abs().max() > 1e-3


def test_the_last_hidden_state_goes_by_the_name_norm():
    for given in ("norm", ["norm"]):
        model = zoo.build_model("qwen3_vl")  # its mergers have a `norm` of their own
        config = adapter_config(model, method="bottleneck", target_modules=given)
        assert carriers(model, config) == {"model.language_model.norm"}


def test_each_method_is_the_one_that_was_asked_for():
    model = zoo.build_model("llava")
    settings = {"r": 3, "alpha": 5, "dropout": 0.25, "bottleneck_size": 7, "task_type": "CAUSAL_LM"}
    found = {method: adapter_config(model, method=method, **settings) for method in METHODS}
    for method, flags in {
        "lora": (False, False),
        "dora": (True, False),
        "rslora": (False, True),
    }.items():
        config = found[method]
        assert isinstance(config, LoraConfig)
        assert (config.use_dora, config.use_rslora) == flags
        assert (config.r, config.lora_alpha, config.lora_dropout) == (3, 5, 0.25)
    assert isinstance(found["ia3"], IA3Config)
    assert isinstance(found["bottleneck"], BottleneckConfig)
    assert (found["bottleneck"].bottleneck_size, found["bottleneck"].bottleneck_dropout) == (7, 0.25)
    assert {config.task_type for config in found.values()} == {"CAUSAL_LM"}
    both = adapter_config(model, method="dora", use_rslora=True)
    assert (both.use_dora, both.use_rslora) == (True, True)


def test_named_modules_replace_the_parts():
    model = zoo.build_model("llava")
    config = adapter_config(model, method="ia3", target_modules=["q_proj", "down_proj"])
    base = get_peft_model(model, config).get_base_model()
    layers = {name: module for name, module in base.named_modules() if isinstance(module, IA3Layer)}
    assert {name.rpartition(".")[2] for name in layers} == {"q_proj", "down_proj"}
    assert all(layer.is_feedforward == name.endswith("down_proj") for name, layer in layers.items())
    assert adapter_config(model, target_modules="all-linear").target_modules == "all-linear"


def test_parameters_may_be_named_alone():
    config = adapter_config(zoo.build_model("llava"), target_parameters=["q_proj.weight"])
    assert config.target_modules is None
    assert config.target_parameters == ["q_proj.weight"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_parameters": ["weight", "j_proj.weight"]}, "`target_parameters` names 'j_proj.weight'"),
        ({"method": "lorra"}, "`method` names 'lorra', which is not one of lora, .*Did you mean 'lora'?"),
        ({"parts": ["visoin"]}, "`parts` names 'visoin', .* Did you mean 'vision'?"),
        (
            {"target_modules": ["q_prj"]},
            r"`target_modules` \['q_prj'\] .* matches no module of Llava",
        ),
        ({"method": "bottleneck", "target_modules": r".*\.qkv"}, r"matches no module .* names like 'model\."),
    ],
)
def test_names_that_fit_nothing_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        adapter_config(zoo.build_model("llava"), **settings)


def test_a_text_model_without_a_norm_is_named():
    model = zoo.build_model("llava")
    del model.get_decoder().norm
    with pytest.raises(ConfigError, match=r"the text model of Llava.* has no module `norm`"):
        adapter_config(model, method="bottleneck", target_modules="norm")


# Names and widths


def test_a_pattern_names_numbers_one_by_one_where_a_general_one_would_catch_more():
    model = zoo.build_model("llava")
    names = [f"model.language_model.layers.{number}.mlp.up_proj" for number in (0, 1)]
    assert name_pattern(model, names) == r"model\.language_model\.layers\.\d+\.mlp\.up_proj"
    assert name_pattern(model, names[:1]) == r"model\.language_model\.layers\.0\.mlp\.up_proj"
    mixed = name_pattern(model, [names[1], "model.language_model.layers.0.mlp.gate_proj",
                                 "model.language_model.layers.1.mlp.gate_proj"])  # fmt: skip
    assert mixed == r"model\.language_model\.layers\.(1\.mlp\.up_proj|\d+\.mlp\.gate_proj)"
    with pytest.raises(ValueError, match="`names` is empty"):
        name_pattern(model, [])


class Experts(nn.Module):
    """A router, experts, and a gate of one column behind them, as linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(32, 4)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(32, 8), nn.Linear(8, 32)) for _ in range(4))
        self.shared_gate = nn.Linear(32, 1)


def test_experts_lead_out_of_an_mlp_and_routers_and_gates_do_not():
    model = zoo.build_model("llava")
    layer = "model.language_model.layers.1.mlp"
    model.set_submodule(layer, Experts())
    assert hidden_width(model, model.get_submodule(layer)) == 32
    assert hidden_width(model, nn.LayerNorm(48)) == 48, "a norm before the seam"
    assert inner_activation_layers(model, "language") == [
        "model.language_model.layers.0.mlp.down_proj",
        *(f"{layer}.experts.{number}.1" for number in range(4)),
    ]


def test_fused_experts_get_a_bottleneck_behind_them():
    torch.manual_seed(0)
    vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "patch_size": 4, "intermediate_size": 32}
    vision |= {"out_hidden_size": 16, "num_position_embeddings": 16, "deepstack_visual_indexes": []}
    text = {"hidden_size": 16, "intermediate_size": 24, "moe_intermediate_size": 8, "num_experts": 4}
    text |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    text |= {"vocab_size": 64, "decoder_sparse_step": 2, "mlp_only_layers": [], "num_experts_per_tok": 2}
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    config = Qwen3VLMoeConfig(vision_config=vision, text_config=text | {"rope_parameters": rope})
    model = Qwen3VLMoeForConditionalGeneration(config)
    first, second = find_text_model(model).layers
    assert isinstance(getattr(first.mlp, "down_proj", None), nn.Linear), "the first layer is dense"
    assert not isinstance(getattr(second.mlp, "down_proj", None), nn.Linear), "the second has experts"
    assert hidden_state_modules(model, "language") == [
        "model.language_model.layers.0.mlp",
        "model.language_model.layers.1.mlp",
    ]
    assert hidden_width(model, second.mlp) == 16
    assert inner_activation_layers(model, "language") == ["model.language_model.layers.0.mlp.down_proj"]
    peft = get_peft_model(model, adapter_config(model, method="bottleneck", bottleneck_size=2))
    ids = torch.arange(6)[None]
    before = peft(input_ids=ids).logits
    perturb_adapters(peft)
    assert (peft(input_ids=ids).logits - before).abs().max() > 1e-4


# What trains, and what is kept


@pytest.mark.parametrize("method", METHODS)
def test_encodings_are_kept_only_where_adapters_lie_behind_the_seam(method: str):
    for part in ADAPTABLE:
        backbone = adapted("qwen2_5_vl", method, [part], perturbed=False).backbone
        assert backbone.caches_encodings == (part == "language"), part


@pytest.mark.parametrize("method", METHODS)
def test_adapters_are_saved_and_read_to_the_bit(method: str, tmp_path: Path):
    actor_critic, row = adapted("llava", method), zoo.build_row("llava")
    model: Any = actor_critic.backbone.model
    actor_critic.save_pretrained(tmp_path)
    loaded = load_adapter(zoo.build_model("llava"), tmp_path)
    assert torch.equal(loaded(**row).logits, model(**row).logits)
    assert method_of(tmp_path) == ("lora" if method in ("dora", "rslora") else method)
    assert can_merge(model) == (method != "bottleneck")


def test_a_model_without_adapters_has_nothing_that_hinders_merging():
    assert can_merge(zoo.build_model("llava"))


# Settings


def check(adapters: dict[str, Any], **model: Any) -> None:
    check_adapters(AdapterSettings(**adapters), ModelConfig(**({"use_peft": True} | model)))


@pytest.mark.parametrize(
    ("adapters", "model", "message"),
    [
        ({"peft_method": "ia3"}, {"use_dora": True}, "`use_dora` is for LoRA, but `peft_method` is 'ia3'"),
        ({"peft_method": "bottleneck"}, {"use_rslora": True}, "`use_rslora` is for LoRA"),
        ({"peft_method": "ia3"}, {"lora_target_parameters": ["x"]}, "`lora_target_parameters` is for LoRA"),
        (
            {"adapt": "vision"},
            {"lora_target_modules": ["q_proj", "v_proj"]},
            "`adapt` .* both say where",
        ),
        ({"adapt": "vision"}, {"lora_target_parameters": ["x"]}, "`adapt` .* `lora_target_parameters` "),
        ({"peft_method": "dora"}, {"use_peft": False}, "`peft_method` is 'dora' without `use_peft: true`"),
        ({"adapt": ["vision"]}, {"use_peft": False}, r"`adapt` is \['vision'\] without `use_peft: true`"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    adapters: dict[str, Any], model: dict[str, Any], message: str
):
    with pytest.raises(ConfigError, match=message):
        check(adapters, **model)


@pytest.mark.parametrize(
    ("adapters", "message"),
    [
        ({"peft_method": "houlsby"}, "`peft_method` names 'houlsby', which is not one of lora, dora"),
        ({"peft_method": "bottlenek"}, "Did you mean 'bottleneck'?"),
        ({"adapt": ["projektor"]}, "`adapt` names 'projektor', .* Did you mean 'projector'?"),
        ({"adapt": []}, "`adapt` is empty"),
        ({"bottleneck_size": 0}, "`bottleneck_size` must be >= 1; got 0"),
    ],
)
def test_settings_that_name_nothing_are_refused(adapters: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        AdapterSettings(**adapters)


@pytest.mark.parametrize(
    ("adapters", "model"),
    [
        ({}, {"use_peft": False}),
        ({}, {"use_dora": True, "use_rslora": True}),
        ({"peft_method": "dora"}, {"use_rslora": True}),
        ({"peft_method": "ia3", "adapt": "vision"}, {}),
        ({"peft_method": "bottleneck"}, {"lora_target_modules": ["norm"]}),
    ],
)
def test_settings_that_agree_pass(adapters: dict[str, Any], model: dict[str, Any]):
    check(adapters, **model)


def test_pretrained_parts_can_train_beside_adapters_of_another_part():
    model = zoo.build_model("llava")
    config = adapter_config(model, parts=["vision"], **{"r": SIZES["r"]})
    backbone = make_backbone(model, stub_processor(), peft_config=config, trainable=("projector",))
    trained = {name for name, p in backbone.base.named_parameters() if p.requires_grad}
    assert {part_of("llava", name) for name in trained} == {"vision", "projector"}
    assert all("lora_" in name for name in trained if part_of("llava", name) == "vision")
