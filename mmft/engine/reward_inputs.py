"""From rows and texts to rewards: prompts encoded once, the shared prompt verified once, then estimates.

Shapes: M completions as they were given, N the same number in the order of their prompts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmft.engine.actor_critic import Prompts, evaluating
from mmft.engine.completion_batch import CompletionBatch, group_completions
from mmft.engine.feature_cache import FeatureCache
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


@dataclass(frozen=True, slots=True)
class Reading:
    """What a frozen backbone made of one completion."""

    features: Tensor
    """(D,)"""

    @property
    def num_bytes(self) -> int:
        return self.features.numel() * self.features.element_size()


class RewardInputs:
    """Prepares what a reward model is called with, and calls it where only the numbers are wanted.

    Attributes:
        model: the reward model.
        encoder: makes its prompts, through a cache while nothing before the seam trains.
        readings: features of completions, where a frozen backbone reads the same ones in every epoch.
        verification: what the first batch showed; None before it.
    """

    def __init__(
        self,
        model: VLMRewardModel,
        cache_bytes: int,
        *,
        reread: bool = False,
        sharded: bool = False,
        anyone: Callable[[bool], bool] = lambda flag: flag,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        """Takes the parts.

        Args:
            model: the reward model.
            cache_bytes: bound of the kept prompt encodings, and of the kept readings; 0 keeps none.
            reread: whether the same completions come again; only then readings are kept.
            sharded: weights are whole inside the model's forward only, so that prompts are encoded there.
            anyone: whether a flag is set on any process; collective.
            autocast: the mixed precision that training runs in.
        """
        self.model = model
        self.encoder = PromptEncoder(model.backbone, 0 if sharded else cache_bytes)
        keeps = reread and not sharded and not model.trains_backbone
        self.readings: FeatureCache[Reading] = FeatureCache(cache_bytes if keeps else 0)
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
            return self.model.estimate(self._read(batch, prompts), num_samples, seed=seed)

        with evaluating(self.model), torch.no_grad():
            if self.keeps_readings:
                found = self.model.estimate(self.known_features(batch), num_samples, seed=seed)
            else:
                prompts = self.prompts(batch)
                with self.autocast():
                    found = self.model.within_forward(work)
        place = batch.place.to(found.mean.device)
        return RewardEstimate(found.mean[place], found.epistemic[place], found.aleatoric[place])

    @property
    def keeps_readings(self) -> bool:
        """Whether `known_features` may stand for the backbone: it never changes."""
        return self.readings.max_bytes > 0

    @torch.no_grad()
    def known_features(self, batch: CompletionBatch) -> Tensor:
        """(N, D) features by a backbone that does not train; a completion read before is not read again."""
        if self.verification is None:
            self._verify(batch)
        completions = batch.completions
        prompts = [batch.rows[index] for index in completions.prompt_index.tolist()]
        lengths = completions.lengths.tolist()
        ids = [row[:length] for row, length in zip(completions.ids.tolist(), lengths, strict=True)]
        keys: list[Hashable] = [(row.key, tuple(each)) for row, each in zip(prompts, ids, strict=True)]
        # Kept beside the cache, which may be too small for the batch.
        known = {key: self.readings.get(key) for key in keys}
        new = [number for number, key in enumerate(keys) if known[key] is None]
        if new:
            pad_id = self.model.backbone.pad_id
            part = group_completions([prompts[n] for n in new], [ids[n] for n in new], pad_id)
            encoded = self.prompts(part)
            with evaluating(self.model), self.autocast():
                features = self._read(part, encoded)[part.place.to(self.model.backbone.device)]
            for number, each in zip(new, features, strict=True):
                known[keys[number]] = reading = Reading(each.clone())
                self.readings.put(keys[number], reading)
        return torch.stack([found.features for key in keys if (found := known[key]) is not None])

    def _read(self, batch: CompletionBatch, prompts: Prompts) -> Tensor:
        return self.model.features(prompts, batch.completions.to(self.model.backbone.device))

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
        agrees = difference <= allowed  # False for NaN as well
        reason = (
            f"packed hidden states {'agree with' if agrees else 'differ from'} the plain forward (relative "
            f"difference {difference:.1e}, allowed {allowed:.0e})"
        )
        if self.anyone(not agrees) and agrees:
            agrees, reason = False, "packed hidden states differ from the plain forward on another process"
        if not agrees:
            logger.warning("%s: every completion is read on its own, which is slow.", reason)
        self.verification = Verification(agrees, reason, difference)
        self.model.packed = agrees

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
