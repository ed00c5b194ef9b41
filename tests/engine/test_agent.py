"""Agents of several families: what they see and read decides, and every part of them trains."""

from __future__ import annotations

import dataclasses
import functools
import math

import pytest
import torch
from torch import Tensor

from mmft.engine.agent import Decisions, VLMAgent
from mmft.engine.observations import Observation
from mmft.engine.prompt_encoder import process_row
from mmft.errors import ConfigError
from mmft.models.agent_spec import ACTOR_CRITIC, KINDS, Q
from mmft.models.backbone import Backbone
from mmft.models.fusion import FUSIONS
from mmft.models.fusion_attention import CrossModalAttention
from mmft.models.modalities import Modalities
from mmft.types import PromptRow
from tests.engine.agent_support import (
    BY_ATTENTION,
    BY_THE_MODEL,
    MISSIONS,
    NUM_ACTIONS,
    READINGS,
    agent_on,
    backbone_of,
    gradients,
    loss_of,
    make_agent,
    observations,
    observe,
    said,
    trained,
)
from tests.engine.support import EVERY_FAMILY

# numpy 2 warns about the processors' own `np.array(tensor)`.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
LEGAL = torch.tensor([[1, 0, 1, 1], [1, 1, 1, 1], [0, 0, 1, 0], [0, 1, 0, 1]]).bool()

several_families = pytest.mark.parametrize(
    "family", ["llava", "smolvlm", "qwen2_5_vl", "gemma3", "paligemma"]
)
every_reading = pytest.mark.parametrize("reading", READINGS)
every_kind = pytest.mark.parametrize("kind", KINDS)


frozen_backbone = functools.cache(backbone_of)


@functools.cache
def frozen_agent(family: str, reading: str, kind: str = Q) -> VLMAgent:
    """One per process, for tests that change nothing in it; no embedding is kept."""
    return agent_on(frozen_backbone(family), kind, cache_bytes=0, **READINGS[reading])


def answers(decisions: Decisions) -> list[Tensor]:
    """Each (B, ...) of what an agent says."""
    return [each for each in (decisions.q, decisions.logits, decisions.values) if each is not None]


def assert_all_differ(one: Observation, other: Observation, agent: VLMAgent) -> None:
    """The two states differ in every kind of answer, and teach every weight something else."""
    with torch.no_grad():
        for answer in answers(agent(agent.encoder.encode([one, other]))):
            assert (answer[0] - answer[1]).abs().max() > 1e-3
    first, second = (gradients(agent, agent.encoder.encode([each])) for each in (one, other))
    assert first.keys() == second.keys() == {n for n, p in agent.named_parameters() if p.requires_grad}
    names = [name for name in first if name.endswith("output.weight")]
    assert names
    for name in names:
        assert (first[name] - second[name]).norm() > 1e-3 * first[name].norm(), name


# What decides


@every_kind
@every_reading
@several_families
def test_other_pixels_change_every_answer_and_what_is_learned(family: str, reading: str, kind: str) -> None:
    assert_all_differ(observe(0), observe(1), frozen_agent(family, reading, kind))


@every_kind
@every_reading
@several_families
def test_other_words_change_every_answer_and_what_is_learned(family: str, reading: str, kind: str) -> None:
    one, other = observe(0, MISSIONS[0]), observe(0, MISSIONS[0].replace("red", "raw"))
    assert_all_differ(one, other, frozen_agent(family, reading, kind))


@every_reading
@several_families
def test_other_pixels_and_words_change_the_gradients_of_the_model(family: str, reading: str) -> None:
    agent = make_agent(family, "lora", **READINGS[reading])
    seen = [observe(0, MISSIONS[0]), observe(1, MISSIONS[0]), observe(0, MISSIONS[1])]
    # With cross_modal no picture passes the text model; its adapters learn of them through the attention.
    base, *others = (gradients(agent, [each]) for each in seen)
    names = [name for name in base if name.startswith("backbone.")]
    assert names
    for other in others:
        for name in names:
            assert (base[name] - other[name]).norm() > 1e-3 * base[name].norm(), name


@pytest.mark.parametrize("family", EVERY_FAMILY)
@torch.no_grad()
def test_the_state_is_what_the_language_head_would_read_at_the_last_token(family: str) -> None:
    agent = agent_on(frozen_backbone(family), num_numbers=0, feature_scaling="none", cache_bytes=0)
    assert agent.q_head is not None
    backbone, seen = agent.backbone, observations()
    output = agent.q_head.actions.output
    for observation, fused, q in zip(seen, agent.fused(seen), agent(seen).q, strict=True):
        hidden = read_by_language_head(backbone, observation)
        torch.testing.assert_close(fused, hidden, atol=1e-5, rtol=0)
        expected = output.weight @ hidden + output.bias
        torch.testing.assert_close(q, expected, atol=1e-4, rtol=0)


def read_by_language_head(backbone: Backbone, observation: Observation) -> Tensor:
    """(D,) in the model's own whole forward on this observation alone."""
    content = [{"type": "image"}, {"type": "text", "text": observation.text}]
    row = PromptRow("row", "", [{"role": "user", "content": content}], [*observation.images])
    found: list[Tensor] = []
    head = backbone.base.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _, args: found.append(args[0][0, -1]))
    backbone.base(**process_row(backbone.processor, row).tensors, use_cache=False)
    handle.remove()
    return found[0]


@pytest.mark.parametrize("fusion", [name for name in FUSIONS if name != "cross_modal"])
@torch.no_grad()
def test_other_numbers_change_the_state_and_nothing_is_encoded_for_them(fusion: str) -> None:
    reading = BY_THE_MODEL if fusion == "vlm" else {"modalities": ("text", "image")}
    agent = make_agent(**(reading | {"fusion": fusion}))
    before = agent.fused([observe(0, "go", (0.5, 0.5))])
    encoded = agent.encoder.num_encoded
    assert (agent.fused([observe(0, "go", (0.5, 0.6))]) - before).abs().max() > 1e-3
    assert agent.encoder.num_encoded == encoded


# What does not


@every_kind
@every_reading
@several_families
@torch.no_grad()
def test_a_batch_is_its_states_one_by_one(family: str, reading: str, kind: str) -> None:
    agent, seen = frozen_agent(family, reading, kind), observations()
    together = said(agent(seen))
    alone = torch.cat([said(agent([each])) for each in seen])
    torch.testing.assert_close(together, alone, atol=2e-5, rtol=1e-5)
    assert (together[1:] - together[:-1]).abs().amax(1).min() > 1e-3


@every_kind
@several_families
def test_padding_changes_neither_answers_nor_gradients(family: str, kind: str) -> None:
    agent = frozen_agent(family, "cross_modal", kind)
    states = agent.encoder.encode(observations())
    padded = with_padding(states)
    torch.testing.assert_close(said(agent(padded)), said(agent(states)), atol=1e-5, rtol=1e-5)
    expected = gradients(agent, states)
    for name, gradient in gradients(agent, padded).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-4, rtol=1e-4)


def with_padding(states: Modalities) -> Modalities:
    """Three more tokens everywhere, which are no numbers and count for nothing."""
    pad = torch.nn.functional.pad
    return Modalities(
        {name: pad(x, (0, 0, 0, 3), value=math.nan) for name, x in states.embeddings.items()},
        {name: pad(mask, (0, 3)) for name, mask in states.masks.items()},
    )


@every_reading
def test_padding_changes_nothing_of_scaled_and_projected_sequences(reading: str) -> None:
    settings = READINGS[reading] | {"pooled": False, "pca_components": 5, "fusion_size": 6}
    agent = make_agent(**settings)
    states = agent.encoder.encode(observations())
    with torch.no_grad():
        torch.testing.assert_close(said(agent(with_padding(states))), said(agent(states)))


@every_kind
@every_reading
def test_observations_and_their_embeddings_say_the_same(reading: str, kind: str) -> None:
    agent, seen = frozen_agent("qwen2_5_vl", reading, kind), observations()
    assert torch.equal(said(agent(seen)), said(agent(agent.encoder.encode(seen))))


# Actions


@every_reading
@several_families
def test_illegal_actions_have_probability_0_and_the_others_their_share(family: str, reading: str) -> None:
    agent = frozen_agent(family, reading, ACTOR_CRITIC)
    states = agent.encoder.encode(observations())
    free = agent(states).logits.softmax(1)
    logits = agent(states, LEGAL).logits
    probs = logits.softmax(1)
    assert (probs[~LEGAL] == 0).all()
    # By Bayes: pi(a) / sum over the legal a' of pi(a')
    shares = torch.where(LEGAL, free, 0.0) / torch.where(LEGAL, free, 0.0).sum(1, keepdim=True)
    torch.testing.assert_close(probs, shares)
    assert (probs[2] == torch.tensor([0.0, 0.0, 1.0, 0.0])).all()
    assert torch.equal(agent(states, LEGAL).values, agent(states).values)


def test_an_illegal_action_teaches_nothing() -> None:
    agent = make_agent(kind=ACTOR_CRITIC)
    states = agent.encoder.encode(observations())
    agent(states, LEGAL & torch.tensor([True, False, True, True])).logits.softmax(1)[:, 0].sum().backward()
    assert agent.policy_head is not None
    gradient = agent.policy_head.logits.output.weight.grad
    assert gradient is not None
    assert (gradient[1] == 0).all()
    assert (gradient[[0, 2, 3]].abs().amax(1) > 0).all()


def test_each_kind_says_what_it_is_for() -> None:
    seen = observations()
    by_value, by_policy = make_agent(kind=Q)(seen), make_agent(kind=ACTOR_CRITIC)(seen)
    assert by_value.q is not None
    assert by_value.q.shape == (4, NUM_ACTIONS)
    assert by_value.logits is by_value.values is None
    assert by_policy.q is None
    assert by_policy.logits is not None
    assert by_policy.values is not None
    assert (by_policy.logits.shape, by_policy.values.shape) == ((4, NUM_ACTIONS), (4,))


def test_an_agent_begins_with_a_uniform_policy_that_expects_nothing() -> None:
    agent = make_agent(kind=ACTOR_CRITIC)
    fresh = VLMAgent(agent.backbone, dataclasses.replace(agent.spec, feature_scaling="none"))
    decisions = fresh(observations())
    assert (decisions.logits == 0).all()
    assert (decisions.values == 0).all()


def test_masks_draw_one_network_for_all_states() -> None:
    agent = make_agent(dropout=0.5, hidden_sizes=(16,))
    states = agent.encoder.encode(observations())
    assert agent.q_head is not None
    masks = agent.q_head.masks(1, torch.Generator().manual_seed(1))
    drawn = agent(states, masks=masks).q
    assert torch.equal(drawn, agent(states, masks=masks).q)
    assert torch.equal(drawn, agent.q_head(agent.fused(states), masks=masks))
    assert (drawn - agent(states).q).abs().max() > 1e-3
    alone = agent(agent.encoder.encode(observations()[2:3]), masks=masks).q
    torch.testing.assert_close(alone, drawn[2:3])


def test_an_agent_without_heads_says_so() -> None:
    agent = make_agent(kind=ACTOR_CRITIC)
    agent.policy_head = None
    with pytest.raises(TypeError, match="this agent has no heads"):
        agent(observations())


# Parts


@every_kind
@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_fusion_trains_with_all_its_weights(fusion: str, kind: str) -> None:
    reading = BY_THE_MODEL if fusion == "vlm" else BY_ATTENTION
    agent = make_agent(kind=kind, hidden_sizes=(16,), **(reading | {"fusion": fusion}))
    assert isinstance(agent.fusion, FUSIONS[fusion])
    states = agent.encoder.encode(observations())
    found = gradients(agent, states)
    own = {
        n for n, _ in agent.named_parameters() if n.startswith(("fusion.", "q_head.", "policy_", "value_"))
    }
    assert found.keys() == own
    assert any(name.startswith("fusion.") for name in own)
    for name, gradient in found.items():
        assert gradient.isfinite().all(), name
        assert gradient.abs().max() > 0, name
    before = loss_of(agent, states).item()
    optimizer = torch.optim.SGD(trained(agent), lr=1e-6)
    optimizer.step()
    assert loss_of(agent, states).item() < before


@pytest.mark.parametrize(("training", "reaches"), [("lora", "lora_"), ("language", "language_model")])
def test_a_backbone_that_trains_learns_from_the_heads(training: str, reaches: str) -> None:
    agent = make_agent(training=training)
    found = gradients(agent, observations())
    own = {n: gradient for n, gradient in found.items() if n.startswith("backbone.")}
    assert any(reaches in name and gradient.abs().max() > 0 for name, gradient in own.items())
    assert any(name.startswith("q_head.") for name in found)


@every_reading
def test_components_narrow_the_state(reading: str) -> None:
    agent = make_agent(pca_components=5, **READINGS[reading])
    states = agent.encoder.encode(observations())
    width = agent.backbone.hidden_size
    projected = {name: 5 for name in READINGS[reading]["modalities"]}
    assert agent.transforms.widths == projected | {"numbers": 2}
    assert agent.transforms(states).widths == projected | {"numbers": 2}
    assert states.widths == dict.fromkeys(projected, width) | {"numbers": 2}
    assert agent.fused(states).shape == (4, 5 if reading == "vlm" else width)


def test_the_state_is_as_wide_as_asked_for() -> None:
    agent = make_agent(fusion_size=7, **BY_ATTENTION)
    assert agent.fused(observations()).shape == (4, 7)


def test_options_are_those_of_the_fusion() -> None:
    agent = make_agent(fusion_options={"num_heads": 2, "query": "image", "key": "text"}, **BY_ATTENTION)
    assert isinstance(agent.fusion, CrossModalAttention)
    assert (agent.fusion.num_heads, agent.fusion.query, agent.fusion.key) == (2, "image", "text")
    with pytest.raises(ConfigError, match="the fusion 'vlm' has no option `num_heads`"):
        make_agent(fusion_options={"num_heads": 2})


def test_a_dueling_agent_has_a_stream_for_the_value() -> None:
    agent = make_agent(dueling=True)
    assert agent.q_head is not None
    assert agent.q_head.value is not None
    hidden = agent.fused(observations())
    # the advantages have mean 0, so what is left of Q is V
    torch.testing.assert_close(agent(observations()).q.mean(1), agent.q_head.value(hidden, None).squeeze(1))


def test_the_models_own_state_must_be_asked_for() -> None:
    with pytest.raises(
        ConfigError, match="the fusion 'vlm' reads the modality 'fused', and `widths` has text"
    ):
        make_agent(modalities=("text",))
