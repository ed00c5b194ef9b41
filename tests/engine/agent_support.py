"""What the tests of agents share: small ones that have an opinion, and scenes for them to look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from mmft.engine.agent import Decisions, States, VLMAgent
from mmft.engine.observations import Observation, ObservationReader
from mmft.models.agent_spec import AgentSpec, Q
from mmft.models.backbone import Backbone, make_backbone
from mmft.models.decision_heads import action_log_probs
from mmft.objectives.q_learning import q_learning_loss
from tests import zoo
from tests.engine.reward_support import TRAININGS, perturb

NUM_ACTIONS = 4
MISSIONS = ("go to the red circle", "go", "is there a blue square left of the circle?")
SPACE = spaces.Dict({
    "image": spaces.Box(0, 255, (32, 32, 3), np.uint8),
    "mission": spaces.Text(80),
    "place": spaces.Box(-1, 1, (2,)),
})  # fmt: skip
BY_THE_MODEL: dict[str, Any] = {"fusion": "vlm", "modalities": ("fused",)}
BY_ATTENTION: dict[str, Any] = {"fusion": "cross_modal", "modalities": ("text", "image"), "pooled": False}
READINGS = {"vlm": BY_THE_MODEL, "cross_modal": BY_ATTENTION}
"""The model's own state, and sequences that attend to each other."""


def observe(seed: int, mission: str = "go", place: Sequence[float] = (0.0, 0.0)) -> Observation:
    """A picture of noise, a mission and two numbers."""
    reader = ObservationReader(SPACE, spaces.Discrete(NUM_ACTIONS), environment="Toy-v0")
    image = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    return reader.read({"image": image, "mission": mission, "place": np.array(place)}, {})


def observations() -> list[Observation]:
    """Four states, of three pictures and three missions of different lengths."""
    return [
        observe(0, MISSIONS[0], (0.5, -0.5)),
        observe(1, MISSIONS[1], (0.1, 0.9)),
        observe(0, MISSIONS[2], (-0.7, 0.0)),
        observe(2, MISSIONS[0], (1.0, 0.2)),
    ]


def warm_up() -> list[Observation]:
    """States from which features take their statistics."""
    return [observe(100 + n, MISSIONS[n % 3], (n / 9, (-1) ** n * n / 10)) for n in range(9)]


def make_agent(
    family: str = "llava", training: str = "frozen", *, source: str | None = None, **settings: Any
) -> VLMAgent:
    """A model of the zoo behind its real processor, with heads that have an opinion."""
    return agent_on(backbone_of(family, training, source), **settings)


def backbone_of(family: str = "llava", training: str = "frozen", source: str | None = None) -> Backbone:
    torch.manual_seed(0)  # PEFT draws from the global generator
    return make_backbone(
        zoo.build_model(family),
        zoo.build_processor(family),
        source=source,
        **{"trainable": ()} | TRAININGS[training],
    )


def agent_on(
    backbone: Backbone, kind: str = Q, *, seed: int = 0, cache_bytes: int = 2**24, **settings: Any
) -> VLMAgent:
    """An agent whose transforms are fitted and whose fusion and heads are not as they start."""
    chosen = {"kind": kind, "num_actions": NUM_ACTIONS, "num_numbers": 2} | BY_THE_MODEL | settings
    agent = VLMAgent(backbone, AgentSpec(**chosen), cache_bytes=cache_bytes)
    for number, part in enumerate((agent.fusion, agent.q_head, agent.policy_head, agent.value_head)):
        if part is not None:
            perturb(part, seed + 10 * number)
    with torch.no_grad():
        agent.transforms.fit([agent.encoder.encode(warm_up())])
    return agent.eval()


def said(decisions: Decisions) -> Tensor:
    """All that an agent says of B states, side by side."""
    columns = [decisions.q, decisions.logits, decisions.values]
    return torch.cat([each.reshape(len(each), -1) for each in columns if each is not None], dim=1)


def loss_of(agent: VLMAgent, states: States) -> Tensor:
    """A loss of what the agent says, in which everything that it says counts."""
    decisions = agent(states)
    if decisions.q is not None:
        rows = torch.arange(len(decisions.q))
        return q_learning_loss(decisions.q, rows % NUM_ACTIONS, rows + 2.0, num_samples=float(len(rows)))
    assert decisions.logits is not None
    assert decisions.values is not None
    actions = torch.arange(len(decisions.logits)) % NUM_ACTIONS
    policy_loss = -action_log_probs(decisions.logits, actions).mean()
    return policy_loss + (decisions.values - 2).square().mean()


def gradients(agent: VLMAgent, states: States) -> dict[str, Tensor]:
    """Of `loss_of`, by the names of the weights that train."""
    agent.zero_grad(set_to_none=True)
    loss_of(agent, states).backward()
    return {name: p.grad.clone() for name, p in agent.named_parameters() if p.grad is not None}


@torch.no_grad()
def move(parameters: Sequence[nn.Parameter], seed: int = 9) -> None:
    """As an optimizer would: every weight becomes another one."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def trained(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]
