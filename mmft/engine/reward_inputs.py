"""From rows and texts to rewards: prompts encoded once, the shared prompt verified once, then estimates.

Shapes: M completions as they were given, N the same number in the order of their prompts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from mmft.engine.actor_critic import Prompts, evaluating
from mmft.engine.completion_batch import CompletionBatch
from mmft.engine.packing import Completions
from mmft.engine.prompt_encoder import PromptEncoder
from mmft.engine.reward_model import VLMRewardModel
from mmft.engine.scoring import last_states_packed, last_states_plain
from mmft.engine.verify import Verification, with_sibling
from mmft.models.reward_model import RewardEstimate

logger = logging.getLogger(__name__)

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}
HALF_TOLERANCE = 5e-2
"""Relative differences of hidden states that rounding explains; those of half precision add up by layer."""


class RewardInputs:
    """Prepares what a reward model is called with, and calls it where only the numbers are wanted.

    Attributes:
        model: the reward model.
        encoder: makes its prompts, through a cache while nothing before the seam trains.
        verification: what the first batch showed; None before it.
    """

    def __init__(
        self,
        model: VLMRewardModel,
        cache_bytes: int,
        *,
        sharded: bool = False,
        anyone: Callable[[bool], bool] = lambda flag: flag,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        """Takes the parts.

        Args:
            model: the reward model.
            cache_bytes: bound of the kept prompt encodings; 0 keeps none.
            sharded: weights are whole inside the model's forward only, so that prompts are encoded there.
            anyone: whether a flag is set on any process; collective.
            autocast: the mixed precision that training runs in.
        """
        self.model = model
        self.encoder = PromptEncoder(model.backbone, 0 if sharded else cache_bytes)
        self.sharded = sharded
        self.anyone = anyone
        self.autocast = autocast
        self.verification: Verification | None = None

    def prompts(self, batch: CompletionBatch) -> Prompts:
        """Encodings where they stay valid; raw inputs where the graph or the plain path needs them."""
        if self.verification is None:
            self._verify(batch)
        if self.model.packed and self.model.backbone.caches_encodings and not self.sharded:
            with torch.no_grad(), self.autocast():
                return self.encoder.encode(batch.rows)
        return [self.encoder.inputs(row) for row in batch.rows]

    def estimate(self, batch: CompletionBatch, num_samples: int = 0, *, seed: int = 0) -> RewardEstimate:
        """(M,) rewards with their uncertainty, in the order of the completions as given; without a graph."""

        def work() -> RewardEstimate:
            features = self.model.features(prompts, batch.completions.to(self.model.backbone.device))
            return self.model.estimate(features, num_samples, seed=seed)

        with evaluating(self.model), torch.no_grad():
            prompts = self.prompts(batch)
            with self.autocast():
                found = self.model.within_forward(work)
        place = batch.place.to(found.mean.device)
        return RewardEstimate(found.mean[place], found.epistemic[place], found.aleatoric[place])

    def _verify(self, batch: CompletionBatch) -> None:
        """Trusts the shared prompt once the model's own forward agreed; all processes decide the same."""
        backbone = self.model.backbone
        if not self.model.packed:
            reason = backbone.why_not_packed() or "the plain path was asked for"
            self.verification = Verification(False, reason)
            return
        with evaluating(self.model), torch.no_grad(), self.autocast():
            difference = self.model.within_forward(lambda: self._difference(batch))
        allowed = TOLERANCE.get(self.compute_dtype, HALF_TOLERANCE)
        agrees = not self.anyone(not difference <= allowed)  # NaN does not agree
        reason = (
            f"packed hidden states differ from the plain forward by {difference:.1e}, allowed {allowed:.0e}"
        )
        self.verification = Verification(agrees, reason, difference)
        self.model.packed = agrees
        if not agrees:
            logger.warning("%s: every completion is read on its own, which is slow.", reason)

    @property
    def compute_dtype(self) -> torch.dtype:
        """What the matrix products run in."""
        with self.autocast():
            return self.model.backbone.compute_dtype

    def _difference(self, batch: CompletionBatch) -> float:
        """Largest relative difference over two completions of the first prompt."""
        backbone = self.model.backbone
        completions = first_completions(batch.completions).to(backbone.device)
        inputs = self.encoder.inputs(batch.rows[0])
        packed = last_states_packed(backbone, [backbone.encode(inputs)], completions).float()
        plain = last_states_plain(backbone, [inputs], completions).float()
        return float(((packed - plain).norm(dim=1) / plain.norm(dim=1)).max())


def first_completions(completions: Completions) -> Completions:
    """Two completions of the first prompt, a lone one with a made-up sibling."""
    take = (completions.prompt_index == 0).nonzero().squeeze(-1)[:2]
    index: Tensor = torch.zeros_like(take)
    return with_sibling(Completions(completions.ids[take], completions.mask[take], index))
