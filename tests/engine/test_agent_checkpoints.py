"""Saved agents: every weight of their own bit by bit, the backbone as far as it trained, and refusals."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmft.engine.actor_critic import HEADS_FILE
from mmft.engine.agent import VLMAgent, load_agent
from mmft.errors import ConfigError
from mmft.models.agent_spec import ACTOR_CRITIC, KINDS, SPEC_FILE
from mmft.models.backbone import load_backbone
from mmft.models.packaged import CAPTIONER_NAME
from tests import zoo
from tests.engine.agent_support import (
    BY_ATTENTION,
    agent_on,
    backbone_of,
    make_agent,
    move,
    observations,
    said,
    trained,
)
from tests.engine.reward_support import TRAININGS

# numpy 2 warns about the processors' own `np.array(tensor)`.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
every_training = pytest.mark.parametrize("training", TRAININGS)


def base_folder(folder: Path, family: str = "llava") -> str:
    """A pretrained model on disk."""
    zoo.build_model(family).save_pretrained(folder)
    zoo.build_processor(family).save_pretrained(folder)
    return str(folder)


def loaded_backbone(base: str, training: str) -> Any:
    torch.manual_seed(0)
    return load_backbone(base, **{"trainable": ()} | TRAININGS[training])


def moved_and_saved(agent: VLMAgent, folder: Path) -> dict[str, Tensor]:
    """Every weight that trains becomes another one; what was saved."""
    move(trained(agent))
    agent.save_pretrained(folder)
    return {name: tensor.clone() for name, tensor in whole_state(agent).items()}


def whole_state(agent: VLMAgent) -> dict[str, Tensor]:
    """The agent's and, though frozen it is no part of that, the backbone's."""
    return agent.state_dict() | {f"backbone.{n}": t for n, t in agent.backbone.state_dict().items()}


def assert_same_state(agent: VLMAgent, saved: dict[str, Tensor]) -> None:
    state = whole_state(agent)
    assert state.keys() == saved.keys()
    for name, tensor in state.items():
        assert tensor.dtype == saved[name].dtype, name
        assert torch.equal(tensor, saved[name]), name


@torch.no_grad()
def say(agent: VLMAgent) -> Tensor:
    return said(agent(observations()))


@pytest.mark.parametrize("kind", KINDS)
@every_training
def test_a_saved_agent_is_loaded_by_its_path(training: str, kind: str, tmp_path: Path) -> None:
    backbone = loaded_backbone(base_folder(tmp_path / "base"), training)
    agent = agent_on(backbone, kind, pca_components=5, hidden_sizes=(8,), **BY_ATTENTION)
    saved = moved_and_saved(agent, tmp_path / "run")
    before = torch.get_rng_state()
    loaded = load_agent(tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), before)
    assert_same_state(loaded, saved)
    assert torch.equal(say(loaded), say(agent))
    assert not trained(loaded)
    assert not any(module.training for module in loaded.modules())
    places = {"backbone": None, "base": None}
    assert dataclasses.replace(loaded.spec, **places) == dataclasses.replace(agent.spec, **places)
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert {HEADS_FILE, SPEC_FILE} <= files
    assert ("model.safetensors" in files) == (training in ("language", "vision"))
    assert ("adapter_model.safetensors" in files) == training.startswith(("lora", "bottleneck"))
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in files)


@every_training
def test_a_checkpoint_is_restored_in_place(training: str, tmp_path: Path) -> None:
    agent = make_agent(training=training, dueling=True)
    saved = moved_and_saved(agent, tmp_path)
    other = make_agent(training=training, dueling=True, seed=5)
    places = {name: p.data_ptr() for name, p in other.named_parameters()}
    other.load_checkpoint(tmp_path)
    assert_same_state(other, saved)
    assert torch.equal(say(other), say(agent))
    assert {name: p.data_ptr() for name, p in other.named_parameters()} == places
    assert len(trained(other)) == len(trained(agent)) > 0


@pytest.mark.parametrize("scaling", ["standard", "min_max"])
def test_the_statistics_of_features_are_saved_with_the_agent(scaling: str, tmp_path: Path) -> None:
    agent = make_agent(feature_scaling=scaling, pca_components=5, source="somewhere")
    agent.save_pretrained(tmp_path)
    other = VLMAgent(backbone_of(source="elsewhere"), agent.spec)
    assert not other.transforms.is_fitted
    other.load_checkpoint(tmp_path)
    assert other.transforms.is_fitted
    states = agent.encoder.encode(observations())
    for name, expected in agent.transforms(states).embeddings.items():
        assert torch.equal(other.transforms(states).embeddings[name], expected)
        assert expected.std() > 0.1


def test_what_the_heads_file_holds_is_no_weight_of_the_backbone(tmp_path: Path) -> None:
    for training in TRAININGS:
        agent = make_agent(training=training, kind=ACTOR_CRITIC, **BY_ATTENTION)
        agent.save_pretrained(tmp_path / training)
        state = load_file(tmp_path / training / HEADS_FILE)
        parts = {name: getattr(agent, name) for name in ("transforms", "fusion", "policy_head", "value_head")}
        expected = {f"{part}.{name}" for part, module in parts.items() for name in module.state_dict()}
        assert set(state) == expected


def test_a_gathered_state_is_saved_in_place_of_the_agents_own(tmp_path: Path) -> None:
    for training in ("frozen", "lora", "language"):
        agent = make_agent(training=training, kind=ACTOR_CRITIC, source="somewhere")
        gathered = {name: tensor.clone() for name, tensor in whole_state(agent).items()}
        move(trained(agent))
        agent.save_pretrained(tmp_path / training, gathered)
        agent.load_checkpoint(tmp_path / training)
        assert_same_state(agent, gathered)


def test_the_packaged_model_goes_by_its_name(tmp_path: Path) -> None:
    agent = agent_on(load_backbone(CAPTIONER_NAME, trainable=()))
    saved = moved_and_saved(agent, tmp_path)
    assert (agent.spec.backbone, agent.spec.base) == ("frozen", CAPTIONER_NAME)
    assert not (tmp_path / "model.safetensors").exists()
    loaded = load_agent(tmp_path)
    assert loaded.spec == agent.spec
    assert_same_state(loaded, saved)


def test_frozen_weights_without_a_name_are_saved_whole(tmp_path: Path) -> None:
    agent = make_agent()
    agent.save_pretrained(tmp_path)
    assert (agent.spec.backbone, agent.spec.base) == ("full", None)
    assert torch.equal(say(load_agent(tmp_path)), say(agent))


def test_a_loaded_agent_can_be_saved_and_loaded_again(tmp_path: Path) -> None:
    for training in ("lora", "language"):
        folder = tmp_path / training
        backbone = loaded_backbone(base_folder(folder / "base"), training)
        saved = moved_and_saved(agent_on(backbone), folder / "run")
        load_agent(folder / "run").save_pretrained(folder / "again")
        assert_same_state(load_agent(folder / "again"), saved)


def test_an_adapter_on_a_model_without_a_name_asks_for_it(tmp_path: Path) -> None:
    agent = make_agent(training="lora")
    saved = moved_and_saved(agent, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"an adapter on a model without a name\. Name the model"):
        load_agent(tmp_path / "run")
    base = base_folder(tmp_path / "base")
    loaded = load_agent(tmp_path / "run", base=base)
    assert_same_state(loaded, saved)
    assert loaded.spec.base == base


def test_a_base_that_was_moved_is_named_anew(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base")
    agent = agent_on(loaded_backbone(base, "frozen"))
    saved = moved_and_saved(agent, tmp_path / "run")
    (tmp_path / "base").rename(tmp_path / "moved")
    assert_same_state(load_agent(tmp_path / "run", base=str(tmp_path / "moved")), saved)


# Refusals


def test_another_kind_of_agent_is_not_restored(tmp_path: Path) -> None:
    make_agent(training="lora").save_pretrained(tmp_path)
    changed = {"kind": ACTOR_CRITIC, "num_actions": 3, "pca_components": 5, "fusion": "linear"}
    other = make_agent(training="language", **changed)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(ConfigError) as raised:
        other.load_checkpoint(tmp_path)
    assert str(raised.value) == (
        f"{tmp_path} holds an agent with kind='q' (now 'actor_critic'), num_actions=4 (now 3), fusion='vlm' "
        "(now 'linear'), pca_components=None (now 5), backbone='adapter' (now 'full'). Use the environment "
        "and the settings that it was trained with."
    )
    assert_same_state(other, before)


def test_where_the_base_lies_and_its_precision_are_no_difference(tmp_path: Path) -> None:
    make_agent(training="frozen", source="here").save_pretrained(tmp_path)
    make_agent(training="frozen", source="there").load_checkpoint(tmp_path)


def test_a_folder_without_an_agent_is_named(tmp_path: Path) -> None:
    message = rf"{tmp_path} holds no agent\.json; give the folder of a run of `mmft dqn`"
    with pytest.raises(ConfigError, match=message):
        load_agent(tmp_path)
    with pytest.raises(ConfigError, match=message):
        make_agent().load_checkpoint(tmp_path)


def test_an_agent_of_another_version_is_named(tmp_path: Path) -> None:
    make_agent().save_pretrained(tmp_path)
    path = tmp_path / SPEC_FILE
    values = json.loads(path.read_text())
    del values["dueling"]
    path.write_text(json.dumps(values | {"novelty": 1}))
    with pytest.raises(ConfigError, match=r"the fields \['dueling', 'novelty'\] too many or too few; it was"):
        load_agent(tmp_path)


@pytest.mark.parametrize("changed", ["missing", "added"])
def test_weights_that_do_not_belong_to_the_agent_are_named(changed: str, tmp_path: Path) -> None:
    agent = make_agent(source="somewhere")
    agent.save_pretrained(tmp_path)
    state = load_file(tmp_path / HEADS_FILE)
    if changed == "missing":
        del state["q_head.actions.output.bias"]
    else:
        state["value_head.value.output.bias"] = torch.zeros(1)
    save_file(state, tmp_path / HEADS_FILE)
    name = {"missing": "q_head.actions", "added": "value_head.value"}[changed]
    with pytest.raises(ConfigError, match=rf"differ in the weights \['{name}.output.bias'\]"):
        agent.load_checkpoint(tmp_path)
