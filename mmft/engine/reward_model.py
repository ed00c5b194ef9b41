"""A learned reward model as one module: a vision-language backbone that reads, a small head that judges.

It lives in the engine, above `models`, because its forward is the engine: a prompt and its pictures are
computed once for all completions of that prompt.

Shapes: N completions, D width, T dropout samples.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmft.engine.actor_critic import Prompts, evaluating, raw_prompts
from mmft.engine.backbone_module import BackboneModule, load_saved_backbone
from mmft.engine.packing import Completions
from mmft.engine.scoring import last_states_packed, last_states_plain
from mmft.errors import ConfigError
from mmft.evaluation.uncertainty import mc_variance
from mmft.models.backbone import Backbone
from mmft.models.prompts import PromptInputs
from mmft.models.reward_model import NUM_LIKELIHOODS, RewardEstimate, RewardHead, RewardModelSpec
from mmft.models.snapshots import local_folder

HEAD_FILE = "reward_head.safetensors"
HEAD_PREFIX = "reward_head."


@dataclass(frozen=True, slots=True)
class RewardScores:
    """What a forward gives for N completions."""

    mean: Tensor
    """(N,) rewards, fp32, in the unit of the ratings."""
    log_variance: Tensor | None
    """(N,) logarithm of the ratings' variance, fp32; None where the head states none."""
    features: Tensor
    """(N, D) last hidden states of the text model at the last token of each completion."""


class VLMRewardModel(BackboneModule):
    """Owns the backbone and the head.

    Attributes:
        reward_head: judges.
        packed: True shares prompts; False takes the plain path.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        loss_type: str = "bradley_terry",
        head_width: int = 256,
        dropout: float = 0.1,
        max_completion_length: int = 256,
        reads_likelihood: bool = False,
    ) -> None:
        super().__init__(backbone)
        self._spec = RewardModelSpec(
            loss_type=loss_type,
            hidden_size=backbone.hidden_size,
            head_width=head_width,
            dropout=dropout,
            max_completion_length=max_completion_length,
            backbone="full",
            reads_likelihood=reads_likelihood,
        )
        self.packed = backbone.why_not_packed() is None
        variance = loss_type == "heteroscedastic"
        self.reward_head = RewardHead(
            backbone.hidden_size + NUM_LIKELIHOODS * reads_likelihood,
            width=head_width,
            dropout=dropout,
            states_variance=variance,
        ).to(backbone.device)

    @property
    def loss_type(self) -> str:
        """What the model was, or will be, trained with."""
        return self._spec.loss_type

    @property
    def max_completion_length(self) -> int:
        """Tokens after which a completion is cut."""
        return self._spec.max_completion_length

    @property
    def spec(self) -> RewardModelSpec:
        """The description that is saved beside the weights."""
        return dataclasses.replace(
            self._spec,
            backbone=self.saved_part,
            base=self.backbone.source,
            dtype=str(self.backbone.dtype).removeprefix("torch."),
        )

    def forward(
        self, prompts: Prompts | None, completions: Completions | None, *, features: Tensor | None = None
    ) -> RewardScores:
        """Rewards of completions, from `features` alone where these are known."""
        if features is None:
            if prompts is None or completions is None:
                raise TypeError("`prompts` and `completions` may only be None where `features` are given")
            features = self.features(prompts, completions)
        mean, log_variance = self.reward_head(features)
        return RewardScores(mean, log_variance, features)

    def features(self, prompts: Prompts, completions: Completions) -> Tensor:
        """(N, D) what the backbone makes of each completion; without a graph where it does not train.

        With `reads_likelihood` two more columns: how likely it finds the completion's tokens."""
        likelihood = self._spec.reads_likelihood
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trains_backbone):
            if not self.packed:
                return last_states_plain(
                    self.backbone, raw_prompts(prompts), completions, likelihood=likelihood
                )
            encode = self.backbone.encode
            encoded = [encode(p) if isinstance(p, PromptInputs) else p for p in prompts]
            return last_states_packed(self.backbone, encoded, completions, likelihood=likelihood)

    def mc_samples(
        self, features: Tensor, num_samples: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor | None]:
        """(T, N) rewards and log-variances of T networks drawn by dropout, from one pass of the backbone."""
        return self.reward_head.sample(features, num_samples, generator)

    @torch.no_grad()
    def estimate(self, features: Tensor, num_samples: int = 0, *, seed: int = 0) -> RewardEstimate:
        """Rewards with their uncertainty; equal seeds draw the same networks, whatever the batch.

        Without samples the reward is the prediction without dropout and its epistemic variance 0.
        """
        if num_samples:
            means, log_variances = self.mc_samples(features, num_samples, torch.Generator().manual_seed(seed))
        else:
            with evaluating(self.reward_head):
                mean, log_variance = self.reward_head(features)
            means, log_variances = mean[None], None if log_variance is None else log_variance[None]
        aleatoric = torch.zeros_like(means[0]) if log_variances is None else log_variances.exp().mean(0)
        return RewardEstimate(means.mean(0), mc_variance(means), aleatoric)

    # Checkpoints

    def save_pretrained(
        self, folder: str | os.PathLike[str], state_dict: dict[str, Tensor] | None = None
    ) -> None:
        """Writes `reward_model.json`, the head, the processor, and what `spec.backbone` says of the backbone.

        `state_dict` is the gathered state of the whole module, where its own tensors are sharded."""
        folder = Path(folder)
        self.save_backbone(folder, state_dict)
        state = self.state_dict() if state_dict is None else state_dict
        head = {name: tensor for name, tensor in state.items() if name.startswith(HEAD_PREFIX)}
        save_file({n: t.detach().cpu().contiguous() for n, t in head.items()}, folder / HEAD_FILE)
        self.spec.save(folder)

    def load_checkpoint(self, folder: str | os.PathLike[str]) -> None:
        """Restores every saved weight, bit by bit, into this model in place.

        Raises:
            ConfigError: the folder holds another kind of reward model.
        """
        folder = Path(folder)
        saved, own = RewardModelSpec.load(folder), self.spec
        if (saved.backbone, saved.loss_type) != (own.backbone, own.loss_type):
            raise ConfigError(
                f"{folder} holds a reward model with {saved.backbone} backbone and loss_type="
                f"{saved.loss_type!r}; this one has {own.backbone} and {own.loss_type!r}."
            )
        self.load_backbone(folder)
        self.load_head(folder)

    def load_head(self, folder: str | os.PathLike[str]) -> None:
        """Restores the head, its unit among it."""
        state = load_file(Path(folder) / HEAD_FILE)
        self.reward_head.load_state_dict({n.removeprefix(HEAD_PREFIX): t for n, t in state.items()})


def load_reward_model(
    path: str | os.PathLike[str],
    *,
    base: str | None = None,
    revision: str | None = None,
    device: str | torch.device = "cpu",
    **kwargs: Any,
) -> VLMRewardModel:
    """The reward model of a run, in evaluation mode; nothing in it trains, and no random number is used up.

    Args:
        path: the run's folder, or its hub id.
        base: the pretrained model under a frozen backbone or an adapter, if it is no longer where it was.
        revision: of the hub's repository.
        device: where to put it.
        **kwargs: for `load_backbone` (`attn_implementation`, `quantization_config`, ...).

    Raises:
        ConfigError: the folder holds no reward model, or the base model is not named.
    """
    folder = local_folder(path, revision=revision)
    spec = RewardModelSpec.load(folder)
    with torch.random.fork_rng(devices=[]):  # new weights are drawn before they are overwritten
        backbone = load_saved_backbone(
            folder, spec.backbone, base or spec.base, spec.dtype, what="reward model", **kwargs
        )
        model = VLMRewardModel(
            backbone,
            loss_type=spec.loss_type,
            head_width=spec.head_width,
            dropout=spec.dropout,
            max_completion_length=spec.max_completion_length,
            reads_likelihood=spec.reads_likelihood,
        )
    model.load_head(folder)
    return model.requires_grad_(False).eval().to(device)
