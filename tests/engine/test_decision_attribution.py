"""What decisions hang on: through fusion and heads, of frozen and of training backbones."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmft.engine.agent import VLMAgent
from mmft.engine.attribution import Attribution, explain_decisions
from mmft.engine.observations import Observation
from mmft.errors import ConfigError, NonFiniteError
from mmft.models.agent_spec import ACTOR_CRITIC
from tests.engine.agent_support import BY_ATTENTION, READINGS, make_agent, observations
from tests.engine.reward_support import TRAININGS
from tests.engine.support import EVERY_FAMILY

# numpy 2 warns about the processors' own `np.array(tensor)`.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
STEP = 1e-2


def numbers(found: Attribution) -> Tensor:
    patches = [each for shown in found.pictures for each in (shown.importance, *shown.patches)]
    tokens = [token.importance for token in found.tokens]
    return torch.tensor([found.value, *found.importance.values(), *found.shares.values(), *tokens, *patches])


def assert_same(one: Sequence[Attribution], other: Sequence[Attribution]) -> None:
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(numbers(a), numbers(b), rtol=1e-3, atol=1e-5)
        assert [token.text for token in a.tokens] == [token.text for token in b.tokens]
        assert a.action == b.action


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_a_padded_batch_is_its_states_one_by_one(family: str, reading: str) -> None:
    agent, states = make_agent(family, **READINGS[reading]), observations()
    together = explain_decisions(agent, states)
    assert_same(explain_decisions(agent, states, batch_size=1), together)
    for found in together:
        assert sum(found.shares.values()) == pytest.approx(1)
        assert set(found.shares) == {"image", "prompt", "numbers"}
        assert min(found.shares["image"], found.shares["prompt"]) > 0
        # Of the two fusions only the model's own reads them.
        assert (found.shares["numbers"] > 0) == (reading == "vlm")
        (shown,) = found.pictures
        assert shown.importance == pytest.approx(found.importance["image"], rel=1e-4)
        assert 0 < sum(shown.patches) <= shown.importance * (1 + 1e-5)
        words = sum(token.importance for token in found.tokens)
        assert words == pytest.approx(found.importance["prompt"], rel=1e-4)


@pytest.mark.parametrize("pooled", [True, False])
def test_what_is_encoded_past_the_cache_is_what_the_agent_reads(pooled: bool) -> None:
    agent = make_agent(fusion="all_modality", modalities=("text", "image"), pooled=pooled)
    with torch.no_grad():
        anew, inputs = agent.encoder.encode_anew(observations())
    kept = agent.encoder.encode(observations())
    assert len(inputs) == len(agent.encoder.passes) == 2
    for name in kept.names:
        mask = kept.masks[name]
        assert torch.equal(anew.masks[name], mask)
        torch.testing.assert_close(anew.embeddings[name][mask], kept.embeddings[name][mask])


@pytest.mark.parametrize("family", ["qwen2_vl", "llava_onevision"])
def test_pictures_of_several_sizes_have_maps_of_their_own(family: str) -> None:
    states = observations()[:3]
    for number, size in enumerate([(48, 24), (24, 48)]):
        picture = states[number].images[0].resize(size)
        states[number] = dataclasses.replace(states[number], images=(picture,), image_key=bytes([number]))
    agent = make_agent(family)
    together = explain_decisions(agent, states)
    shapes = [each.pictures[0].grid for each in together]
    assert shapes == ([(2, 4), (4, 2), (3, 3)] if family == "qwen2_vl" else [(2, 4), (4, 2), (4, 4)])
    assert_same(explain_decisions(agent, states, batch_size=1), together)


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "gemma3"])
def test_importance_is_what_finite_differences_say(family: str, reading: str) -> None:
    agent, state = make_agent(family, **READINGS[reading]), observations()[0]
    (found,) = explain_decisions(agent, [state], method="gradient_x_input")
    assert found.action is not None

    def stretched(chosen: int, place: int, h: float) -> float:
        """Q of the action where one row of the call number `chosen` is larger by a share of h."""
        seen: list[int] = []

        def hook(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            seen.append(1)
            seam = kwargs["inputs_embeds"].clone()
            if len(seen) - 1 == chosen:
                seam[0, place] *= 1 + h
            return args, kwargs | {"inputs_embeds": seam}

        handle = agent.backbone.text_model.register_forward_pre_hook(hook, with_kwargs=True)
        with torch.no_grad():
            q = agent(agent.encoder.encode_anew([state])[0]).q[0, found.action]
        handle.remove()
        return float(q)

    # Words count where they are read: beside the picture, or without it in a call of their own.
    call = 1 if reading == "cross_modal" else 0
    for number in (0, 3):
        product = abs(stretched(call, number, STEP) - stretched(call, number, -STEP)) / (2 * STEP)
        assert found.tokens[number].importance == pytest.approx(product, rel=0.03, abs=2e-4)


@pytest.mark.parametrize("method", ["gradient", "gradient_x_input"])
def test_numbers_count_as_their_own_gradient_says(method: str) -> None:
    agent, state = make_agent(), observations()[0]
    (found,) = explain_decisions(agent, [state], method=method)

    def q(place: Tensor) -> float:
        with torch.no_grad():
            return float(agent([dataclasses.replace(state, numbers=place)]).q[0, found.action])

    assert state.numbers is not None
    slopes = [
        (q(state.numbers + STEP * axis) - q(state.numbers - STEP * axis)) / (2 * STEP)
        for axis in torch.eye(2)
    ]
    inner = abs(sum(slope * float(each) for slope, each in zip(slopes, state.numbers, strict=True)))
    norm = (slopes[0] ** 2 + slopes[1] ** 2) ** 0.5
    expected = norm if method == "gradient" else inner
    assert found.importance["numbers"] == pytest.approx(expected, rel=1e-2)


def test_the_number_is_what_the_agent_says_of_the_best_legal_action() -> None:
    agent, states = make_agent(), observations()
    with torch.no_grad():
        q = agent(states).q
    assert q is not None
    found = explain_decisions(agent, states)
    assert [each.action for each in found] == q.argmax(1).tolist()
    assert [each.value for each in found] == pytest.approx(q.amax(1).tolist(), rel=1e-4)
    given = explain_decisions(agent, states, action=[3, 0, 1, 2])
    assert [each.value for each in given] == pytest.approx(
        [float(q[n, a]) for n, a in enumerate((3, 0, 1, 2))]
    )
    legal = torch.zeros(4, dtype=torch.bool)
    legal[q[0].argmin()] = True
    (only,) = explain_decisions(agent, [dataclasses.replace(states[0], legal=legal)])
    assert only.value == pytest.approx(float(q[0].min()), rel=1e-4)
    assert {each.of for each in found} == {"q"}


def test_policies_and_their_values_are_explained() -> None:
    agent, states = make_agent(kind=ACTOR_CRITIC), observations()
    legal = torch.tensor([False, True, True, True])
    states[0] = dataclasses.replace(states[0], legal=legal)
    with torch.no_grad():
        said = agent(states, torch.stack([legal, *[torch.ones(4, dtype=torch.bool)] * 3]))
    assert said.logits is not None
    assert said.values is not None
    log_probs = said.logits.log_softmax(1)
    policy = explain_decisions(agent, states, target="policy")
    assert [each.value for each in policy] == pytest.approx(log_probs.amax(1).tolist(), rel=1e-4)
    value = explain_decisions(agent, states, target="value")
    assert [each.value for each in value] == pytest.approx(said.values.tolist(), rel=1e-4)
    assert [(each.of, other.of) for each, other in zip(policy, value, strict=True)] == [
        ("policy", "value")
    ] * 4


def test_words_that_nobody_reads_beside_the_picture_are_not_listed_twice() -> None:
    agent = make_agent(**BY_ATTENTION)
    (found,) = explain_decisions(agent, observations()[:1])
    text = "".join(token.text for token in found.tokens)
    assert text.count("go to the red circle") == 1
    (both,) = explain_decisions(make_agent(fusion="linear", modalities=("fused", "text")), observations()[:1])
    assert "".join(token.text for token in both.tokens).count("go to the red circle") == 2
    every_word = sum(token.importance for token in both.tokens)
    assert both.importance["prompt"] == pytest.approx(every_word, rel=1e-4)
    (picture,) = explain_decisions(make_agent(fusion="linear", modalities=("image",)), observations()[:1])
    assert picture.tokens == []
    assert picture.shares["prompt"] == 0
    (words,) = explain_decisions(make_agent(fusion="linear", modalities=("text",)), observations()[:1])
    assert set(words.shares) == {"prompt", "numbers"}
    assert words.pictures == []


@pytest.mark.parametrize("training", TRAININGS)
def test_the_agent_stays_as_it_was(training: str) -> None:
    agent, states = make_agent(training=training, hidden_sizes=(8,), dropout=0.5), observations()
    expected = explain_decisions(agent, states)
    agent.train()
    for parameter in agent.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    modes = [module.training for module in agent.modules()]
    flags = [p.requires_grad for p in agent.parameters()]
    before = {name: x.clone() for name, x in agent.state_dict().items()}
    encoder = agent.encoder
    cached = agent.encoder.encode(states[:2])
    kept = (len(encoder.cache), encoder.cache.hits, encoder.num_asked, encoder.num_encoded)
    state = torch.get_rng_state()
    with torch.no_grad():
        assert_same(explain_decisions(agent, states), expected)
    assert torch.equal(torch.get_rng_state(), state)
    assert (len(encoder.cache), encoder.cache.hits, encoder.num_asked, encoder.num_encoded) == kept
    assert [module.training for module in agent.modules()] == modes
    assert [p.requires_grad for p in agent.parameters()] == flags
    assert all((p.grad == 1).all() for p in agent.parameters() if p.grad is not None)
    for name, weight in agent.state_dict().items():
        assert torch.equal(weight, before[name]), name
    torch.testing.assert_close(agent.encoder.encode(states[:2]).embeddings, cached.embeddings)


@torch.no_grad()
@pytest.mark.parametrize("reading", READINGS)
def test_a_projector_of_zeros_leaves_no_image_share(reading: str) -> None:
    agent = make_agent(**READINGS[reading])
    for parameter in agent.backbone.base.model.multi_modal_projector.parameters():
        parameter.zero_()
    (found,) = explain_decisions(agent, observations()[:1], method="relative")
    assert found.importance["image"] == 0
    assert found.importance["prompt"] > 0


def without_pictures(state: Observation) -> Observation:
    return dataclasses.replace(state, images=(), numbers=None)


def test_a_state_without_picture_and_numbers_is_all_words() -> None:
    states = [observations()[0], without_pictures(observations()[1])]
    agent = make_agent()
    together = explain_decisions(agent, states)
    assert "image" not in together[1].shares
    assert together[1].importance["numbers"] == 0
    assert together[1].shares["prompt"] == pytest.approx(1)
    assert_same(explain_decisions(agent, states, batch_size=1), together)


def test_what_cannot_be_explained_is_refused() -> None:
    agent, states = make_agent(), observations()[:2]
    with pytest.raises(ConfigError, match="`target` must be one of q; got 'policy'"):
        explain_decisions(agent, states, target="policy")
    with pytest.raises(ConfigError, match="`method` must be one of gradient"):
        explain_decisions(agent, states, method="x")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="`action` has 3 entries for 2 states"):
        explain_decisions(agent, states, action=[0, 1, 2])
    for action in (4, -1):
        with pytest.raises(
            ConfigError, match=rf"`action` is {action}, which is not legal here; \[0, 1, 2, 3\]"
        ):
            explain_decisions(agent, states, action=action)
    with pytest.raises(ConfigError, match="`target` must be one of policy, value; got 'q'"):
        explain_decisions(make_agent(kind=ACTOR_CRITIC), states)
    only = dataclasses.replace(states[0], legal=torch.tensor([True, False, True, False]))
    with pytest.raises(ConfigError, match=r"`action` is 1, which is not legal here; \[0, 2\]"):
        explain_decisions(agent, [only], action=1)
    assert explain_decisions(agent, []) == []


def broken(agent: VLMAgent) -> VLMAgent:
    assert agent.q_head is not None
    with torch.no_grad():
        next(iter(agent.q_head.parameters())).fill_(torch.nan)
    return agent


def test_what_is_not_finite_is_named() -> None:
    with pytest.raises(NonFiniteError, match="row 'go to the red circle': the q is nan"):
        explain_decisions(broken(make_agent()), observations()[:1])
