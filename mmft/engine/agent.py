"""A pretrained vision-language model that acts: embeddings, transforms, fusion and heads in one module.

It lives in the engine because its forward encodes observations where the backbone trains. How actions are
drawn and what is learned from them is in `trainers`.

Shapes: B states, A actions, D width of the fused state.
"""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmft.engine.actor_critic import HEADS_FILE
from mmft.engine.backbone_module import BackboneModule, load_saved_backbone
from mmft.engine.feature_cache import FeatureCache
from mmft.engine.observations import Observation
from mmft.engine.state_encoder import StateEncoder
from mmft.errors import ConfigError
from mmft.models.agent_spec import AgentSpec, Q
from mmft.models.backbone import Backbone
from mmft.models.decision_heads import PolicyHead, QHead, StateValueHead
from mmft.models.feature_transforms import FeatureTransforms
from mmft.models.fusion import make_fusion
from mmft.models.modalities import Modalities
from mmft.models.snapshots import local_folder

States = Modalities | Sequence[Observation]
"""Embeddings, or observations that are encoded in the graph (the backbone trains)."""
OWN_PARTS = ("transforms.", "fusion.", "q_head.", "policy_head.", "value_head.")


@dataclass(frozen=True, slots=True)
class Decisions:
    """What the heads say of B states; None where an agent has no such head."""

    q: Tensor | None = None
    """(B, A) action values; those of illegal actions mean nothing."""
    logits: Tensor | None = None
    """(B, A) of the policy, `FORBIDDEN` at illegal actions."""
    values: Tensor | None = None
    """(B,) of the states."""


class VLMAgent(BackboneModule):
    """Owns the backbone and everything between its embeddings and an action.

    Attributes:
        encoder: from observations to embeddings; keeps what frozen weights made of an observation.
        transforms: scaling and PCA of the embeddings.
        fusion: from embeddings to the state H.
        q_head: Q(s, a), or None.
        policy_head: pi(a | s), or None.
        value_head: V(s), or None.

    Example:
        >>> from mmft import VLMAgent, load_backbone, make_environment
        >>> from mmft.engine.observations import ObservationReader
        >>> from mmft.models.agent_spec import AgentSpec
        >>> env = make_environment("mmft/FindObject-v0", {"size": 3})
        >>> reader = ObservationReader(env.observation_space, env.action_space, environment="grid")
        >>> spec = AgentSpec(kind="q", num_actions=4, modalities=("fused",), feature_scaling="none")
        >>> agent = VLMAgent(load_backbone("mmft/tiny-captioner", trainable=()), spec)
        >>> seen = reader.read(*env.reset(seed=0))
        >>> seen.text, seen.images[0].size
        ('go to the purple square', (64, 64))
        >>> agent([seen]).q.shape  # the value of each action in this state
        torch.Size([1, 4])
    """

    def __init__(
        self,
        backbone: Backbone,
        spec: AgentSpec,
        *,
        cache_bytes: int = 2**31,
        encode_batch_size: int = 64,
    ) -> None:
        super().__init__(backbone)
        if not self.trains_backbone:
            self._hide_backbone()
        self._spec = spec
        self.encoder = StateEncoder(
            backbone,
            spec.modalities,
            pooled=spec.pooled,
            cache_bytes=cache_bytes,
            batch_size=encode_batch_size,
            num_numbers=spec.num_numbers,
        )
        self.transforms = FeatureTransforms(
            self.encoder.widths, scaling=spec.feature_scaling, pca_components=spec.pca_components
        ).to(backbone.device)
        widths = self.transforms.widths
        size = spec.fusion_size or backbone.hidden_size
        if spec.fusion == "vlm":
            size = widths.get("fused", size)
        self.fusion = make_fusion(spec.fusion, widths, size, **spec.fusion_options).to(backbone.device)
        shape: dict[str, Any] = {"hidden_sizes": spec.hidden_sizes, "dropout": spec.dropout}
        self._shared: frozenset[int] = frozenset()
        """Identities of what a copy shares with its original."""
        self.q_head = self.policy_head = self.value_head = None
        if spec.kind == Q:
            self.q_head = QHead(size, spec.num_actions, dueling=spec.dueling, **shape).to(backbone.device)
        else:
            self.policy_head = PolicyHead(size, spec.num_actions, **shape).to(backbone.device)
            self.value_head = StateValueHead(size, **shape).to(backbone.device)

    def _hide_backbone(self) -> None:
        """Makes a frozen backbone a plain attribute: it is part of no optimizer step and of no state, and to
        visit its hundreds of modules would take longer than the step of a small head."""
        backbone = self._modules.pop("backbone")
        self.__dict__["backbone"] = cast(Backbone, backbone).eval()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> VLMAgent:
        """Takes a frozen backbone along when the agent moves to another device or dtype."""
        super()._apply(fn, recurse)
        if not self.trains_backbone:
            self.backbone._apply(fn, recurse)
        return self

    @property
    def spec(self) -> AgentSpec:
        """The description that is saved beside the weights."""
        return dataclasses.replace(
            self._spec,
            backbone=self.saved_part,
            base=self.backbone.source,
            dtype=str(self.backbone.dtype).removeprefix("torch."),
        )

    def fused(self, states: States) -> Tensor:
        """(B, D) the state H that the heads read."""
        if not isinstance(states, Modalities):
            states = self.encoder.encode(states)
        state: Tensor = self.fusion(self.transforms(states))
        return state

    def forward(
        self, states: States, legal: Tensor | None = None, *, masks: Sequence[Tensor] | None = None
    ) -> Decisions:
        """What the heads say.

        Args:
            states: B states.
            legal: (B, A) actions that may be taken; None allows all.
            masks: dropout masks of the Q head, for a network drawn by dropout.
        """
        hidden = self.fused(states)
        if self.q_head is not None:
            return Decisions(q=self.q_head(hidden, masks=masks))
        if self.policy_head is None or self.value_head is None:
            raise TypeError("this agent has no heads")
        return Decisions(logits=self.policy_head(hidden, legal), values=self.value_head(hidden))

    # A network that follows

    def frozen_copy(self) -> VLMAgent:
        """The agent as it is now; what does not train is shared, and statistics of features are too."""
        shared: dict[int, Any] = {id(self.backbone.processor): self.backbone.processor}
        shared[id(self.transforms)] = self.transforms
        if self.trains_backbone:
            frozen = [p for p in self.backbone.parameters() if not p.requires_grad]
            shared |= {id(each): each for each in (*frozen, *self.backbone.buffers())}
        else:
            shared |= {id(self.backbone): self.backbone, id(self.encoder): self.encoder}
        with self.encoder.forgotten():
            clone = copy.deepcopy(self, memo=dict(shared))
        clone._shared = frozenset(shared)
        for parameter in clone.own_parameters():
            parameter.requires_grad_(False)
        if clone.trains_backbone:
            # Its weights change whenever it follows; what they made of an observation before is out of date.
            clone.encoder.cache_bytes, clone.encoder.cache = 0, FeatureCache(0)
        return clone.eval()

    def own_parameters(self) -> list[torch.nn.Parameter]:
        """The parameters of fusion and heads, and those of a backbone that trains."""
        own = [p for name, p in self.named_parameters() if name.startswith(OWN_PARTS)]
        return own + ([*self.backbone.parameters()] if self.trains_backbone else [])

    @torch.no_grad()
    def follow(self, other: VLMAgent, rate: float = 1.0) -> None:
        """Moves towards another agent of the same make: theta <- theta + rate (theta_other - theta)."""
        followers = [p for _, p in self._following()]
        leaders = [p for _, p in other._following()]
        for mine, theirs in zip(followers, leaders, strict=True):
            if mine is not theirs:
                # At rate 1 `lerp_` gives exactly the other's weight.
                mine.lerp_(theirs, rate)

    def _following(self) -> list[tuple[str, torch.nn.Parameter]]:
        named = list(self.named_parameters())
        return named if self.trains_backbone else [(n, p) for n, p in named if n.startswith(OWN_PARTS)]

    def following_state(self) -> dict[str, Tensor]:
        """What `follow` moves, by name, for a checkpoint."""
        shared = self._shared
        return {n: p.detach().cpu().clone() for n, p in self._following() if id(p) not in shared}

    @torch.no_grad()
    def load_following_state(self, state: dict[str, Tensor]) -> None:
        """Restores what `following_state` gave."""
        for name, parameter in self._following():
            if id(parameter) not in self._shared:
                parameter.copy_(state[name])

    # Checkpoints

    def own_state(self, state: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Transforms, fusion and heads, by name."""
        state = self.state_dict() if state is None else state
        return {n: t.detach().cpu().contiguous() for n, t in state.items() if n.startswith(OWN_PARTS)}

    def save_pretrained(
        self, folder: str | os.PathLike[str], state_dict: dict[str, Tensor] | None = None
    ) -> None:
        """Writes `agent.json`, transforms, fusion and heads, the processor, and what trains of the backbone.

        `state_dict` is the gathered state of the whole module, where its own tensors are sharded."""
        folder = Path(folder)
        self.save_backbone(folder, state_dict)
        save_file(self.own_state(state_dict), folder / HEADS_FILE)
        self.spec.save(folder)

    def load_checkpoint(self, folder: str | os.PathLike[str]) -> None:
        """Restores every saved weight, bit by bit, into this agent in place.

        Raises:
            ConfigError: the folder holds another kind of agent.
        """
        folder = Path(folder)
        changed = self.spec.differences(AgentSpec.load(folder))
        if changed:
            raise ConfigError(
                f"{folder} holds an agent with {', '.join(changed)}. Use the environment and the settings "
                "that it was trained with."
            )
        self.load_backbone(folder)
        self.load_own_state(load_file(folder / HEADS_FILE))

    def load_own_state(self, state: dict[str, Tensor]) -> None:
        """Restores transforms, fusion and heads."""
        missing = {name for name in self.state_dict() if name.startswith(OWN_PARTS)} ^ set(state)
        if missing:
            raise ConfigError(f"the saved agent and this one differ in the weights {sorted(missing)}.")
        self.load_state_dict(state, strict=False)


def load_agent(
    path: str | os.PathLike[str],
    *,
    base: str | None = None,
    revision: str | None = None,
    device: str | torch.device = "cpu",
    **kwargs: Any,
) -> VLMAgent:
    """The agent of a run, in evaluation mode; nothing in it trains.

    Args:
        path: the run's folder, or its hub id.
        base: the pretrained model under a frozen backbone or an adapter, if it is no longer where it was.
        revision: of the hub's repository.
        device: where to put it.
        **kwargs: for `load_backbone` (`attn_implementation`, ...).

    Raises:
        ConfigError: the folder holds no agent, or the base model is not named.

    Example:
        >>> from mmft import DQNConfig, DQNTrainer, load_agent
        >>> settings = {"total_timesteps": 40, "learning_starts": 20, "num_envs": 4, "buffer_size": 64}
        >>> args = DQNConfig(output_dir="runs/example", **settings)
        >>> trainer = DQNTrainer("mmft/tiny-captioner", "mmft/FindObject-v0", args, env_kwargs={"size": 3})
        >>> _ = trainer.train()
        >>> trainer.save_model()
        >>> agent = load_agent("runs/example")
        >>> agent.spec.kind, agent.spec.num_actions
        ('q', 4)
    """
    folder = local_folder(path, revision=revision)
    spec = AgentSpec.load(folder)
    with torch.random.fork_rng(devices=[]):  # new weights are drawn before they are overwritten
        backbone = load_saved_backbone(
            folder, spec.backbone, base or spec.base, spec.dtype, what="agent", **kwargs
        )
        agent = VLMAgent(backbone, spec)
    agent.load_own_state(load_file(folder / HEADS_FILE))
    return agent.requires_grad_(False).eval().to(device)
