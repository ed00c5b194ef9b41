"""Copies of agents that follow: what they share, when they move and by how much, and their checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmft.engine.agent import VLMAgent
from mmft.models.agent_spec import KINDS
from tests.engine.agent_support import (
    BY_ATTENTION,
    gradients,
    make_agent,
    move,
    observations,
    said,
    trained,
    warm_up,
)
from tests.engine.reward_support import TRAININGS

# numpy 2 warns about the processors' own `np.array(tensor)`.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
every_training = pytest.mark.parametrize("training", TRAININGS)
# With these the backbone moves, and nothing that it once made of an observation may be used again.
moving = pytest.mark.parametrize("training", [name for name in TRAININGS if name != "frozen"])


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def storages(module: nn.Module) -> dict[int, int]:
    """The bytes behind each tensor of a module, by where they are."""
    tensors = [*module.parameters(), *module.buffers()]
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}


@torch.no_grad()
def say(agent: VLMAgent) -> Tensor:
    return said(agent(observations()))


@pytest.mark.parametrize("kind", KINDS)
@every_training
def test_a_copy_says_what_its_original_says_and_does_not_train(training: str, kind: str) -> None:
    agent = make_agent(training=training, kind=kind, dropout=0.3, hidden_sizes=(8,)).train()
    copy = agent.frozen_copy()
    assert copy.spec == agent.spec
    assert agent.training
    assert not any(module.training for module in copy.modules())
    assert not any(parameter.requires_grad for parameter in copy.parameters())
    assert not said(copy(observations())).requires_grad
    assert trained(agent)
    agent.eval()
    assert torch.equal(say(copy), say(agent))


@every_training
def test_only_what_trains_is_there_twice(training: str) -> None:
    agent = make_agent(training=training, hidden_sizes=(8,))
    copy = agent.frozen_copy()
    trains = {name for name, parameter in agent.named_parameters() if parameter.requires_grad}
    copies = dict(copy.named_parameters())
    for name, parameter in agent.named_parameters():
        assert (copies[name].data_ptr() == parameter.data_ptr()) == (name not in trains), name
    both = storages(agent) | storages(copy)
    again = sum(parameter.nbytes for parameter in trained(agent))
    assert sum(both.values()) == sum(storages(agent).values()) + again
    assert copy.backbone.processor is agent.backbone.processor
    if training == "lora":
        assert all("lora_" in name for name in trains if name.startswith("backbone."))
    if training == "frozen":
        assert not any(name.startswith("backbone.") for name in trains)


@every_training
def test_copying_changes_nothing_of_the_original(training: str) -> None:
    agent = make_agent(training=training)
    before, flags = weights(agent), {n: p.requires_grad for n, p in agent.named_parameters()}
    agent.encoder.encode(observations())
    kept = len(agent.encoder.cache)
    agent.frozen_copy()
    assert weights(agent).keys() == before.keys()
    assert {n: p.requires_grad for n, p in agent.named_parameters()} == flags
    assert len(agent.encoder.cache) == kept
    assert kept == (13 if training == "frozen" else 0)  # nine states of the warm-up and four others


@every_training
def test_a_copy_does_not_follow_by_itself(training: str) -> None:
    agent = make_agent(training=training)
    copy = agent.frozen_copy()
    before, weights_before = say(copy), weights(copy)
    gradients(agent, observations())
    torch.optim.SGD(trained(agent), lr=0.1).step()
    assert torch.equal(say(copy), before)
    assert all(torch.equal(p, weights_before[name]) for name, p in copy.named_parameters())
    assert (say(agent) - before).abs().max() > 1e-3
    move(trained(agent))
    assert torch.equal(say(copy), before)


@pytest.mark.parametrize("kind", KINDS)
@every_training
def test_a_copy_that_follows_wholly_is_its_original_again(training: str, kind: str) -> None:
    agent = make_agent(training=training, kind=kind)
    copy = agent.frozen_copy()
    before = say(copy)
    move(trained(agent))
    theirs = weights(agent)
    copy.follow(agent)
    assert all(torch.equal(p, theirs[name]) for name, p in copy.named_parameters())
    # what it was asked before included
    assert torch.equal(say(copy), say(agent))
    assert (say(copy) - before).abs().max() > 1e-3
    assert all(torch.equal(p, theirs[name]) for name, p in agent.named_parameters())


@every_training
def test_a_copy_goes_the_named_part_of_the_way(training: str) -> None:
    agent = make_agent(training=training)
    copy = agent.frozen_copy()
    old = weights(copy)
    move(trained(agent))
    new = weights(agent)
    copy.follow(agent, 0.1)
    for name, parameter in copy.named_parameters():
        torch.testing.assert_close(parameter, 0.9 * old[name] + 0.1 * new[name], atol=1e-6, rtol=1e-5)
    copy.follow(agent, 0.5)
    for name, parameter in copy.named_parameters():
        # half of the remaining 0.9 of the way
        torch.testing.assert_close(parameter, 0.45 * old[name] + 0.55 * new[name], atol=1e-6, rtol=1e-5)
    assert all(torch.equal(p, new[name]) for name, p in agent.named_parameters())
    moved = [n for n, p in copy.named_parameters() if not torch.equal(p, old[n])]
    assert set(moved) == {name for name, p in agent.named_parameters() if p.requires_grad}


@moving
def test_what_a_copy_makes_of_an_observation_follows_too(training: str) -> None:
    agent = make_agent(training=training, **BY_ATTENTION)
    copy, seen = agent.frozen_copy(), observations()
    assert copy.encoder is not agent.encoder
    assert copy.encoder.backbone is copy.backbone
    with torch.no_grad():
        before = copy.fused(seen)
        move(trained(agent.backbone))
        copy.follow(agent)
        assert (copy.fused(seen) - before).abs().max() > 1e-3
        assert len(copy.encoder.cache) == 0


class Uncopied:
    """An embedding that would take memory again."""

    num_bytes = 1

    def __deepcopy__(self, memo: object) -> Uncopied:
        raise AssertionError("an embedding was copied")


@pytest.mark.parametrize("training", ["frozen", "lora"])
def test_no_embedding_is_copied(training: str) -> None:
    agent, kept = make_agent(training=training), Uncopied()
    agent.encoder.cache.put("kept", kept)
    agent.frozen_copy()
    assert agent.encoder.cache.get("kept") is kept


def test_frozen_embeddings_are_made_once_for_both() -> None:
    agent = make_agent()
    copy, seen = agent.frozen_copy(), observations()
    encoded = agent.encoder.num_encoded
    agent(seen)
    assert agent.encoder.num_encoded == encoded + len(seen)
    copy(seen)
    assert agent.encoder.num_encoded == copy.encoder.num_encoded == encoded + len(seen)
    assert len(agent.encoder.cache) > 0


@pytest.mark.parametrize("training", ["frozen", "lora"])
def test_a_copy_has_the_statistics_of_its_original_whenever_they_are_taken(training: str) -> None:
    agent = make_agent(training=training)
    fresh = VLMAgent(agent.backbone, agent.spec)
    copy = fresh.frozen_copy()
    assert not copy.transforms.is_fitted
    with torch.no_grad():
        fresh.transforms.fit([fresh.encoder.encode(warm_up())])
    assert copy.transforms.is_fitted
    assert torch.equal(say(copy), say(fresh))


def test_copies_of_one_agent_go_their_own_ways() -> None:
    agent = make_agent(training="lora")
    one, other = agent.frozen_copy(), agent.frozen_copy()
    before = say(other)
    move(trained(agent))
    one.follow(agent)
    assert torch.equal(say(other), before)
    assert not torch.equal(say(one), before)


@every_training
def test_where_a_copy_was_is_restored(training: str, tmp_path: Path) -> None:
    agent = make_agent(training=training)
    copy = agent.frozen_copy()
    move(trained(agent))
    copy.follow(agent, 0.3)
    expected = say(copy)
    save_file(copy.following_state(), tmp_path / "target.safetensors")
    other = make_agent(training=training)
    again = other.frozen_copy()
    assert (say(again) - expected).abs().max() > 1e-3
    again.load_following_state(load_file(tmp_path / "target.safetensors"))
    assert all(torch.equal(p, weights(copy)[name]) for name, p in again.named_parameters())
    assert torch.equal(say(again), expected)
    assert torch.equal(say(other), say(make_agent(training=training)))


@every_training
def test_a_copys_state_holds_what_moves_and_nothing_else(training: str) -> None:
    agent = make_agent(training=training)
    copy = agent.frozen_copy()
    state = copy.following_state()
    assert set(state) == {name for name, p in agent.named_parameters() if p.requires_grad}
    before = {name: tensor.clone() for name, tensor in state.items()}
    move(trained(agent))
    copy.follow(agent)
    assert all(torch.equal(state[name], before[name]) for name in state)
