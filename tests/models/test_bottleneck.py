"""The bottleneck adapter: its equation, and that PEFT handles it as one of its own methods."""

from __future__ import annotations

import copy
import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftConfig, PeftModel, PeftType, get_peft_model
from torch import Tensor, nn

from mmft.errors import ConfigError
from mmft.models.bottleneck import BOTTLENECK_TYPE, BottleneckConfig, BottleneckLayer, _add_peft_type
from mmft.models.freezing import is_adapter
from mmft.models.seam import find_text_model
from tests import zoo
from tests.engine.adapter_support import perturb_adapters

LAST_LAYER = r"model\.language_model\.layers\.1\.mlp"


class Echo(nn.Module):
    """Returns what it was given, and has attributes that a model may read."""

    attention_type = "full_attention"

    def __init__(self, *more: Any) -> None:
        super().__init__()
        self.more = more
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, hidden: Tensor, scale: float = 1.0) -> Any:
        return (scale * hidden, *self.more) if self.more else scale * hidden


def make_layer(width: int, base: nn.Module | None = None, **settings: Any) -> BottleneckLayer:
    torch.manual_seed(0)
    layer = BottleneckLayer(base or Echo(), width)
    layer._active_adapter = "default"
    layer.update_layer("default", BottleneckConfig(**({"init_weights": False} | settings)))
    return layer


def make_model(family: str = "llava", perturbed: bool = True, **settings: Any) -> PeftModel:
    torch.manual_seed(0)
    model = get_peft_model(zoo.build_model(family), BottleneckConfig(**({"bottleneck_size": 4} | settings)))
    if perturbed:
        perturb_adapters(model)
    return model.eval()


def logits(model: Any, family: str = "llava") -> Tensor:
    with torch.no_grad():
        return model(**zoo.build_row(family)).logits


def wrapped(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, BottleneckLayer)]


# The equation


def test_the_adapter_by_hand():
    layer = make_layer(2, bottleneck_size=2, activation="relu")
    with torch.no_grad():
        layer.bottleneck_down["default"].weight.copy_(torch.tensor([[1.0, 2.0], [-1.0, 1.0]]))
        layer.bottleneck_down["default"].bias.copy_(torch.tensor([0.5, -2.0]))
        layer.bottleneck_up["default"].weight.copy_(torch.tensor([[2.0, 7.0], [-1.0, 7.0]]))
        layer.bottleneck_up["default"].bias.copy_(torch.tensor([0.25, 0.0]))
    # H = (1, 1): W_down H + b_down = (3.5, -2), relu -> (3.5, 0), W_up . + b_up = (7.25, -3.5), + H.
    torch.testing.assert_close(layer(torch.ones(1, 2)), torch.tensor([[8.25, -2.5]]))


def test_the_adapter_equals_loops_over_tokens_and_features():
    layer = make_layer(3, bottleneck_size=2)
    down, up = layer.bottleneck_down["default"], layer.bottleneck_up["default"]
    weights = (down.weight.tolist(), down.bias.tolist(), up.weight.tolist(), up.bias.tolist())
    hidden = torch.randn(2, 4, 3)
    expected = [[slow_adapter(token, *weights) for token in row] for row in hidden.tolist()]
    torch.testing.assert_close(layer(hidden), torch.tensor(expected), atol=1e-6, rtol=0)


def slow_adapter(
    token: list[float], down: list[list[float]], b_down: list[float], up: list[list[float]], b_up: list[float]
) -> list[float]:
    inner = []
    for row, bias in zip(down, b_down, strict=True):
        x = sum(w * h for w, h in zip(row, token, strict=True)) + bias
        inner.append(0.5 * x * (1 + math.erf(x / math.sqrt(2))))  # GELU
    return [
        h + sum(w * unit for w, unit in zip(row, inner, strict=True)) + bias
        for h, row, bias in zip(token, up, b_up, strict=True)
    ]


def test_what_a_token_gets_depends_on_itself_alone():
    layer, hidden, order = make_layer(3), torch.randn(5, 3), torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(layer(hidden[order]), layer(hidden)[order])


def test_at_the_start_only_what_leaves_the_bottleneck_has_a_gradient():
    layer, hidden = make_layer(3, init_weights=True), torch.randn(2, 3)
    assert torch.equal(layer(hidden), hidden)
    layer(hidden).square().sum().backward()
    down, up = layer.bottleneck_down["default"], layer.bottleneck_up["default"]
    assert up.weight.grad.norm() > 0
    # d/d b_up of sum H^2 is 2 sum over tokens of H.
    torch.testing.assert_close(up.bias.grad, 2 * hidden.sum(0))
    assert down.weight.grad.norm() == down.bias.grad.norm() == 0, "behind it everything is multiplied by zero"
    assert layer.base_layer.weight.grad is None
    assert torch.equal(down.bias, torch.zeros_like(down.bias))


def test_dropout_acts_on_what_enters_the_bottleneck_in_training_alone():
    layer, hidden = make_layer(64, bottleneck_size=8, bottleneck_dropout=0.5).train(), torch.randn(2, 64)
    assert not torch.equal(layer(hidden), layer(hidden))
    layer.eval()
    assert torch.equal(layer(hidden), layer(hidden))


# Inside a model


@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "gemma3"])
def test_a_new_adapter_sits_behind_every_text_mlp_and_changes_nothing(family: str):
    pretrained = zoo.build_model(family)
    model = make_model(family, perturbed=False)
    text = find_text_model(model.get_base_model())
    assert [module for module in text.modules() if isinstance(module, BottleneckLayer)] == [
        layer.mlp for layer in text.layers
    ]
    assert len(wrapped(model)) == len(text.layers)
    assert torch.equal(logits(model, family), logits(pretrained, family))
    trained = {name for name, p in model.get_base_model().named_parameters() if p.requires_grad}
    assert len(trained) == 4 * len(text.layers)
    assert all(is_adapter(name) for name in trained)


def test_adapters_act_are_switched_off_and_are_taken_out():
    pretrained, model = logits(zoo.build_model("llava")), make_model()
    adapted = logits(model)
    assert (adapted - pretrained).abs().max() > 1e-2
    with model.disable_adapter():
        assert torch.equal(logits(model), pretrained)
    assert torch.equal(logits(model), adapted)
    base = model.base_model.unload()
    assert wrapped(base) == []
    assert torch.equal(logits(base), pretrained)


def test_the_last_hidden_state_can_be_adapted():
    model = make_model(target_modules=r"model\.language_model\.norm")
    (name,) = wrapped(model.get_base_model())
    assert name == "model.language_model.norm"
    layer = model.get_base_model().get_submodule(name)
    assert layer.weight is layer.base_layer.weight
    hidden = torch.randn(2, 5, 32)
    torch.testing.assert_close(layer(hidden), layer.adapt(layer.base_layer(hidden), "default"))


def test_a_whole_decoder_layer_can_be_adapted():
    model = make_model("qwen2_5_vl", target_modules=r"model\.language_model\.layers\.\d+")
    assert len(wrapped(model)) == 2
    assert (logits(model, "qwen2_5_vl") - logits(zoo.build_model("qwen2_5_vl"), "qwen2_5_vl")).abs().max() > 0


def test_the_model_reads_the_wrapped_module_through_the_adapter():
    layer = make_layer(3)
    assert layer.attention_type == "full_attention"
    assert torch.equal(layer.weight, torch.ones(3))
    with pytest.raises(AttributeError, match="no attribute 'missing'"):
        _ = layer.missing
    assert not hasattr(BottleneckLayer.__new__(BottleneckLayer), "missing"), "as copies are made"
    hidden = torch.randn(2, 3)
    torch.testing.assert_close(layer(hidden, scale=2.0), layer.adapt(2 * hidden, "default"))


def test_of_a_tuple_the_hidden_states_are_adapted_and_the_rest_is_handed_on():
    layer, hidden = make_layer(3, Echo("router", None)), torch.randn(2, 3)
    adapted, *rest = layer(hidden)
    assert rest == ["router", None]
    torch.testing.assert_close(adapted, layer.adapt(hidden, "default"))


def test_adapters_of_half_precision_models_are_fp32_and_round_once():
    torch.manual_seed(0)
    model = get_peft_model(zoo.build_model("llava").bfloat16(), BottleneckConfig(init_weights=False))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    layer = model.get_base_model().get_decoder().layers[0].mlp
    hidden = torch.randn(2, 32, dtype=torch.bfloat16)
    returned = layer.base_layer(hidden)
    assert layer(hidden).dtype == torch.bfloat16
    assert torch.equal(layer(hidden), layer.adapt(returned.float(), "default").bfloat16())


def test_mixed_precision_keeps_the_adapters_in_fp32_and_trains_them():
    model = make_model()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(**zoo.build_row("llava")).logits
    expected = model(**zoo.build_row("llava")).logits
    assert 0 < (found - expected).norm() < 0.1 * expected.norm()
    found.float().square().mean().backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {p.grad.dtype for p in trained} == {torch.float32}


@pytest.mark.parametrize("where", [None, r"model\.language_model\.norm"], ids=["same place", "another"])
def test_a_second_adapter_waits_until_it_is_chosen(where: str | None):
    model = make_model()
    first = logits(model)
    other = BottleneckConfig(target_modules=where, bottleneck_size=2, init_weights=False)
    model.add_adapter("other", other)
    assert not any(p.requires_grad for name, p in model.named_parameters() if ".other." in name)
    assert torch.equal(logits(model), first)
    model.set_adapter("other")
    assert (logits(model) - first).abs().max() > 1e-2
    model.set_adapter("default")
    assert torch.equal(logits(model), first)


# PEFT


def test_a_saved_adapter_is_read_by_plain_peft(tmp_path: Path):
    model = make_model(target_modules=LAST_LAYER, activation="silu", bottleneck_size=3)
    model.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings["peft_type"] == "BOTTLENECK"
    read = PeftConfig.from_pretrained(str(tmp_path))
    assert isinstance(read, BottleneckConfig)
    assert (read.bottleneck_size, read.activation) == (3, "silu")
    torch.manual_seed(1)
    loaded = PeftModel.from_pretrained(zoo.build_model("llava"), str(tmp_path))
    assert torch.equal(logits(loaded), logits(model))


def test_peft_knows_the_method_as_one_of_its_own():
    assert PeftType("BOTTLENECK") is PeftType.BOTTLENECK is BOTTLENECK_TYPE
    assert BOTTLENECK_TYPE in list(PeftType)
    assert BOTTLENECK_TYPE.value == "BOTTLENECK"
    assert _add_peft_type("BOTTLENECK") is BOTTLENECK_TYPE, "a second time changes nothing"
    assert list(PeftType).count(BOTTLENECK_TYPE) == 1
    config = BottleneckConfig()
    assert copy.deepcopy(config).peft_type is BOTTLENECK_TYPE
    assert pickle.loads(pickle.dumps(config.peft_type)) is BOTTLENECK_TYPE


@pytest.mark.parametrize("merge", ["merge_and_unload", "merge_adapter"])
def test_merging_is_refused_and_changes_nothing(merge: str):
    model = make_model()
    before = logits(model)
    with pytest.raises(ConfigError, match=r"bottleneck adapters cannot be merged .* activation"):
        getattr(model, merge)()
    assert torch.equal(logits(model), before)
    with pytest.raises(ConfigError, match="cannot be merged"):
        make_layer(3).merge()


# Bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bottleneck_size": 0}, "`bottleneck_size` must be >= 1; got 0"),
        ({"activation": "gellu"}, "`activation` 'gellu' is none of transformers'"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        BottleneckConfig(**settings)


def test_an_adapter_inside_an_adapted_module_is_refused():
    with pytest.raises(ConfigError, match=r"names .*mlp\.gate_proj and .*mlp around it; name either"):
        make_model(target_modules=r"model\.language_model\.layers\.0\.mlp(\.gate_proj)?")


def test_hidden_states_of_another_width_are_refused():
    with pytest.raises(ConfigError, match="is 3 wide, but its module returns hidden states of width 4"):
        make_layer(3)(torch.randn(2, 4))


def test_layers_without_a_known_mlp_are_refused_and_ask_for_names():
    model = zoo.build_model("llava")
    for layer in model.get_decoder().layers:
        layer.surprise = layer.mlp
        del layer.mlp
    with pytest.raises(ConfigError, match="`target_modules` is unset, and the text model's layers have no"):
        get_peft_model(model, BottleneckConfig())
