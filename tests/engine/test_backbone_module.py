"""Modules around a backbone: which mode each part is in, what the Trainer asks of them, what is saved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mmft.engine.agent import VLMAgent
from mmft.engine.backbone_module import BackboneModule, load_saved_backbone
from mmft.models.backbone import make_backbone
from tests import zoo
from tests.engine.agent_support import agent_on, backbone_of, gradients, make_agent, observations, said
from tests.engine.reward_support import TRAININGS
from tests.engine.support import lora

# numpy 2 warns about the processors' own `np.array(tensor)`.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
moving = pytest.mark.parametrize("training", [name for name in TRAININGS if name != "frozen"])


class Reader(BackboneModule):
    """A head on a backbone, with a part that has a mode."""

    def __init__(self, training: str, source: str | None = None) -> None:
        super().__init__(backbone_of(training=training, source=source))
        self.head = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))


def modes(module: nn.Module) -> set[bool]:
    return {each.training for each in module.modules()}


# Training and evaluation


def test_a_frozen_backbone_stays_in_evaluation_mode() -> None:
    reader = Reader("frozen")
    assert reader.train() is reader
    assert reader.training
    assert modes(reader.head) == {True}
    assert modes(reader.backbone) == {False}
    assert reader.eval() is reader
    assert modes(reader) == {False}
    reader.train()
    reader.train(False)
    assert modes(reader) == {False}


@moving
def test_a_backbone_that_trains_goes_along(training: str) -> None:
    reader = Reader(training)
    assert reader.trains_backbone
    assert modes(reader.train()) == {True}
    assert modes(reader.eval()) == {False}


def test_a_backbone_that_was_left_in_training_mode_is_taken_out_of_it() -> None:
    reader = Reader("frozen")
    reader.backbone.train()
    reader.train()
    assert modes(reader.backbone) == {False}
    reader.backbone.train()
    reader.eval()
    assert modes(reader.backbone) == {False}


def test_what_trains_is_decided_when_the_module_is_made() -> None:
    reader = Reader("lora")
    reader.requires_grad_(False)
    assert reader.trains_backbone
    assert modes(reader.train()) == {True}


def dropping() -> VLMAgent:
    """Adapters of which half is dropped in training."""
    torch.manual_seed(0)
    backbone = make_backbone(
        zoo.build_model("llava"), zoo.build_processor("llava"), peft_config=lora(lora_dropout=0.5)
    )
    return agent_on(backbone)


@torch.no_grad()
def test_dropout_of_adapters_acts_in_training_only() -> None:
    agent, seen = dropping(), observations()
    evaluated = said(agent(seen))
    assert torch.equal(said(agent(seen)), evaluated)
    agent.train()
    first, second = said(agent(seen)), said(agent(seen))
    assert (first - second).abs().max() > 1e-3
    agent.eval()
    assert torch.equal(said(agent(seen)), evaluated)


@torch.no_grad()
def test_features_of_a_frozen_backbone_are_the_same_in_training() -> None:
    agent, seen = dropping(), observations()
    frozen = agent_on(agent.backbone.requires_grad_(False), cache_bytes=0, dropout=0.5)
    assert not frozen.trains_backbone
    before = frozen.fused(seen)
    answers = said(frozen(seen))
    frozen.train()
    torch.testing.assert_close(frozen.fused(seen), before, atol=0, rtol=0)
    assert (said(frozen(seen)) - answers).abs().max() > 1e-3  # its head drops units


# What the Trainer asks


def test_it_answers_for_its_model() -> None:
    reader = Reader("frozen")
    assert reader.config is reader.backbone.base.config
    assert "LlamaDecoderLayer" in reader._no_split_modules
    assert reader.within_forward(lambda: 5) == 5


def test_what_knows_how_to_save_adds_no_weights() -> None:
    reader = Reader("lora")
    names = [name for name, _ in reader.named_parameters()]
    assert len(names) == len(set(names))
    assert {name.split(".")[0] for name in names} == {"backbone", "head"}
    assert [name for name, _ in reader.named_children()] == ["backbone", "head"]


@pytest.mark.parametrize("asked", ["activation_checkpointing_enable", "gradient_checkpointing_enable"])
@pytest.mark.parametrize("training", ["lora", "language"])
def test_layers_that_are_computed_again_give_the_same_gradients(training: str, asked: str) -> None:
    agent = make_agent(training=training).train()
    expected = gradients(agent, observations())
    calls = count_calls(agent)
    assert gradients(agent, observations()).keys() == expected.keys()
    once = len(calls)
    getattr(agent, asked)({"use_reentrant": False})
    calls.clear()
    for name, gradient in gradients(agent, observations()).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-4)
    assert len(calls) == 2 * once


def count_calls(agent: VLMAgent) -> list[int]:
    """Grows with every pass through the attention of the first text layer."""
    calls: list[int] = []
    layer = agent.backbone.text_model.get_submodule("layers.0.self_attn")
    layer.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


# What is saved


@pytest.mark.parametrize(
    ("training", "source", "saved"),
    [
        ("frozen", "here", "frozen"),
        ("frozen", None, "full"),
        ("lora", "here", "adapter"),
        ("lora", None, "adapter"),
        ("lora_and_projector", "here", "adapter"),
        ("language", "here", "full"),
        ("vision", None, "full"),
    ],
)
def test_what_exists_elsewhere_is_not_saved(
    training: str, source: str | None, saved: str, tmp_path: Path
) -> None:
    reader = Reader(training, source)
    assert reader.saved_part == saved
    reader.save_backbone(tmp_path / "new" / "folder")
    files = {path.name for path in (tmp_path / "new" / "folder").iterdir()}
    assert ("model.safetensors" in files) == (saved == "full")
    assert ("adapter_model.safetensors" in files) == (saved == "adapter")
    assert "processor_config.json" in files


@pytest.mark.parametrize("training", TRAININGS)
def test_a_backbone_is_restored_bit_by_bit(training: str, tmp_path: Path) -> None:
    reader = Reader(training)
    expected = drift(reader.backbone)
    reader.save_backbone(tmp_path)
    other = Reader(training)
    other.load_backbone(tmp_path)
    for name, parameter in other.backbone.named_parameters():
        assert torch.equal(parameter, expected[name]), name


@torch.no_grad()
def drift(module: nn.Module) -> dict[str, Tensor]:
    """Every weight that trains moves; in one that is saved whole all of them do."""
    weights = dict(module.named_parameters())
    for parameter in weights.values():
        if parameter.requires_grad:
            parameter.add_(torch.randn_like(parameter))
    return {name: parameter.detach().clone() for name, parameter in weights.items()}


def test_a_frozen_backbone_is_loaded_by_its_name_with_the_saved_processor(tmp_path: Path) -> None:
    zoo.build_model("llava").save_pretrained(tmp_path / "base")
    zoo.build_processor("llava").save_pretrained(tmp_path / "base")
    reader = Reader("frozen", str(tmp_path / "base"))
    reader.backbone.processor.tokenizer.model_max_length = 77
    reader.save_backbone(tmp_path / "run")
    loaded = load_saved_backbone(tmp_path / "run", "frozen", str(tmp_path / "base"), "float32", what="reader")
    assert loaded.source == str(tmp_path / "base")
    assert loaded.processor.tokenizer.model_max_length == 77
    half = load_saved_backbone(tmp_path / "run", "frozen", str(tmp_path / "base"), "bfloat16", what="reader")
    assert half.dtype == torch.bfloat16
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_adapters_of_a_loaded_module_rest_on_their_base(tmp_path: Path) -> None:
    zoo.build_model("llava").save_pretrained(tmp_path / "base")
    zoo.build_processor("llava").save_pretrained(tmp_path / "base")
    reader = Reader("lora", str(tmp_path / "base"))
    expected = drift(reader.backbone)
    reader.save_backbone(tmp_path / "run")
    loaded = load_saved_backbone(
        tmp_path / "run", "adapter", str(tmp_path / "base"), "float32", what="reader"
    )
    assert loaded.has_adapters
    assert {name for name, _ in loaded.named_parameters()} == set(expected)
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, expected[name]), name
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
