"""Making experience: rows in, completions, rewards and reference log-probs out; one process's share."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mmft.data.rows import PromptDataset
from mmft.engine.actor_critic import Prompts, VLMActorCritic, evaluating
from mmft.engine.judging import Judgement, RewardSuite
from mmft.engine.packing import Completions
from mmft.engine.prompt_encoder import PromptEncoder
from mmft.engine.rollout import Samples
from mmft.engine.sampling import SamplingParams
from mmft.engine.verify import Verification, check_head, verify_packed
from mmft.estimators.rewards import judged_mask
from mmft.trainers.experience import Experience, load_experience
from mmft.trainers.metric_log import MetricLog
from mmft.types import PromptRow

logger = logging.getLogger(__name__)

FULL_PRECISION = (torch.float32, torch.float64)
"""Where the sampler's log-probs equal those of scoring up to rounding that no ratio notices."""


@dataclass(frozen=True, slots=True)
class Judged:
    """Sampled completions of some rows, with their texts and what the rewards said."""

    rows: list[PromptRow]
    prompts: Prompts
    samples: Samples
    texts: list[list[str]]
    """Per row, its G completions."""
    judgement: Judgement


class Collector:
    """Samples and judges completions with the policy as it is.

    Attributes:
        verification: outcome of comparing packed with plain scoring on the first batch; None before it.
    """

    def __init__(
        self,
        actor_critic: VLMActorCritic,
        encoder: PromptEncoder,
        rewards: RewardSuite,
        metrics: MetricLog,
        *,
        anyone: Callable[[bool], bool],
        anyone_open: Callable[[bool], bool],
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        """Takes the parts.

        Args:
            actor_critic: the policy.
            encoder: makes its prompts.
            rewards: judge its completions.
            metrics: where the seconds go.
            anyone: whether a flag is set on any process; collective.
            anyone_open: the same where sampling is collective (sharded weights), else the flag itself.
            autocast: the mixed precision that updates run in; log-probs must come from the same arithmetic.
        """
        self.actor_critic = actor_critic
        self.encoder = encoder
        self.rewards = rewards
        self.metrics = metrics
        self.anyone = anyone
        self.anyone_open = anyone_open
        self.autocast = autocast
        self.verification: Verification | None = None

    @property
    def backbone(self) -> Any:
        return self.actor_critic.backbone

    def prepare_prompts(self, rows: list[PromptRow]) -> Prompts:
        """Encodings where they stay valid; raw inputs where the graph or the plain path needs them."""
        if self.actor_critic.packed and self.backbone.caches_encodings:
            return self.encoder.encode(rows)
        return [self.encoder.inputs(row) for row in rows]

    def judge(
        self,
        rows: list[PromptRow],
        params: SamplingParams,
        noise: Tensor | None,
        *,
        rewards: RewardSuite | None = None,
        batch_size: int | None = None,
        trainer_state: Any = None,
        discount: float = 1.0,
        training: bool = True,
    ) -> Judged:
        """Draws completions for the rows and scores them; greedy without noise.

        `batch_size` bounds the completions that are decoded together; `discount` is that of dense rewards,
        which are paid per token only in training."""
        with evaluating(self.actor_critic), self.autocast():
            prompts, samples = self.actor_critic.within_forward(
                lambda: self._draw(rows, params, noise, batch_size)
            )
        texts = self._decode(samples.completions, len(rows))
        with self.metrics.timed("rewards"):
            suite = self.rewards if rewards is None else rewards
            ids = ids_by_row(samples.completions, len(rows))
            prefixes = self._decode_prefixes(ids) if training and suite.is_dense else None
            judgement = suite.score(
                rows, texts, ids, trainer_state, prefixes=prefixes, discount=discount, training=training
            )
        for name, number in judgement.masked.items():
            self.metrics.count(f"rewards/{name}/masked", number)
        return Judged(rows, prompts, samples, texts, judgement)

    @torch.no_grad()
    def with_values(self, judged: Judged) -> Judged:
        """The same completions with the critic's values, which plain sampling has not computed."""
        if self.actor_critic.value_head is None or judged.samples.values is not None:
            return judged
        with evaluating(self.actor_critic), self.autocast():
            scores = self.actor_critic(judged.prompts, judged.samples.completions, entropies=False)
        return replace(judged, samples=replace(judged.samples, values=scores.values))

    def _draw(
        self, rows: list[PromptRow], params: SamplingParams, noise: Tensor | None, batch_size: int | None
    ) -> tuple[Prompts, Samples]:
        with self.metrics.timed("encoding"):
            prompts = self.prepare_prompts(rows)
        with self.metrics.timed("sampling"):
            samples = self._sample(prompts, params, noise, batch_size)
        if self.verification is None:
            was_packed = self.actor_critic.packed
            self._verify(rows[0], samples.completions, samples.logps, params.policy_temperature)
            if was_packed and not self.actor_critic.packed:
                prompts = self.prepare_prompts(rows)
                samples = self._sample(prompts, params, noise, batch_size)
        return prompts, samples

    def _sample(
        self, prompts: Prompts, params: SamplingParams, noise: Tensor | None, batch_size: int | None
    ) -> Samples:
        count = params.num_generations
        size = len(prompts) if batch_size is None else max(batch_size // count, 1)
        parts = []
        for start in range(0, len(prompts), size):
            part = None if noise is None else noise[start * count : (start + size) * count]
            parts.append(
                self.actor_critic.sample(
                    prompts[start : start + size], params, part, anyone_open=self.anyone_open
                )
            )
        return parts[0] if len(parts) == 1 else join_samples(parts, self.backbone.pad_id)

    def _verify(
        self, row: PromptRow, completions: Completions, logps: Tensor | None, temperature: float
    ) -> None:
        """Trusts packed scoring only after the model's own forward agreed; every process decides the same."""
        inputs = self.encoder.inputs(row)
        if not self.actor_critic.packed:
            check_head(self.backbone, inputs)
            reason = self.backbone.why_not_packed() or "the plain path was asked for"
            self.verification = Verification(packed=False, reason=reason)
            return
        with torch.no_grad():
            encoding = self.backbone.encode(inputs)
        verification = verify_packed(self.backbone, inputs, encoding, completions, logps, temperature)
        if self.anyone(not verification.packed) and verification.packed:
            verification = Verification(False, "packed log-probs differ on another process")
        if not verification.packed:
            logger.warning("%s: every completion is scored on its own, which is slow.", verification.reason)
        self.verification = verification
        self.actor_critic.packed = verification.packed

    def _decode(self, completions: Completions, num_rows: int) -> list[list[str]]:
        tokenizer = getattr(self.backbone.processor, "tokenizer", self.backbone.processor)
        groups = ids_by_row(completions, num_rows)
        return [tokenizer.batch_decode(group, skip_special_tokens=True) for group in groups]

    def _decode_prefixes(self, ids: list[list[list[int]]]) -> list[list[str]]:
        """Per sample the texts of its first 0, 1, ..., T tokens."""
        tokenizer = getattr(self.backbone.processor, "tokenizer", self.backbone.processor)
        return [
            tokenizer.batch_decode([sample[:end] for end in range(len(sample) + 1)], skip_special_tokens=True)
            for group in ids
            for sample in group
        ]

    def to_experience(
        self,
        number: int,
        row_indices: list[int],
        judged: Judged,
        *,
        kl: bool,
        temperature: float,
        size: int,
        old_logps: bool = True,
    ) -> Experience:
        """Adds what training needs beyond the samples.

        That is reference log-probs, and fresh scores where the sampler's differ from scoring by rounding
        (half precision) or lack values (plain path).

        Args:
            number: of the rollout.
            row_indices: rows of the training set.
            judged: the samples.
            kl: whether reference log-probs are needed.
            temperature: of the policy.
            size: prompt groups per forward.
            old_logps: whether log-probs of the sampling policy are needed; if not, and the sampler's are not
                those of scoring, the experience has none.
        """
        samples, scores = judged.samples, judged.judgement.total.to(judged.samples.logps.device)
        experience = Experience(
            number=number,
            rows=row_indices,
            prompts=judged.prompts,
            completions=samples.completions,
            scores=scores,
            ended=samples.ended,
            train_mask=judged_mask(scores, samples.completions.mask),
            token_rewards=_padded(judged.judgement.token_rewards, samples.logps),
            old_logps=samples.logps,
            values=samples.values,
        )
        updates: dict[str, Tensor | None] = {}
        with evaluating(self.actor_critic), self.autocast(), torch.no_grad():
            exact = self.actor_critic.packed and self.backbone.compute_dtype in FULL_PRECISION
            if not exact and not old_logps and self.actor_critic.value_head is None:
                updates["old_logps"] = None
            elif not exact:
                with self.metrics.timed("rescoring"):
                    updates |= self._rescore(experience, temperature, size)
            if kl:
                with self.metrics.timed("reference"):
                    updates |= self.actor_critic.within_forward(
                        lambda: self._score_reference(experience, temperature, size)
                    )
        return experience.with_tensors(**updates)

    def _score_reference(self, experience: Experience, temperature: float, size: int) -> dict[str, Tensor]:
        def score(part: Experience) -> dict[str, Tensor]:
            return {
                "ref_logps": self.actor_critic.reference_logps(
                    part.prompts, part.completions, temperature=temperature
                )
            }

        return self._by_groups(experience, size, score)

    def _rescore(self, experience: Experience, temperature: float, size: int) -> dict[str, Tensor]:
        def score(part: Experience) -> dict[str, Tensor]:
            scores = self.actor_critic(
                part.prompts, part.completions, temperature=temperature, entropies=False
            )
            values = {} if scores.values is None else {"values": scores.values}
            return {"old_logps": scores.logps} | values

        return self._by_groups(experience, size, score)

    def _by_groups(
        self, experience: Experience, size: int, score: Callable[[Experience], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Scores `size` prompt groups at a time and joins the (N, R) results."""
        width = experience.completions.ids.shape[1]
        parts: dict[str, list[Tensor]] = {}
        for start in range(0, len(experience.rows), size):
            part = experience.take(list(range(start, min(start + size, len(experience.rows)))))
            for name, tensor in score(part).items():
                padded = torch.nn.functional.pad(tensor, (0, width - tensor.shape[1]))
                parts.setdefault(name, []).append(padded)
        return {name: torch.cat(tensors) for name, tensors in parts.items()}

    def prompts_of_given(
        self, rows: list[PromptRow], completions: Completions, logps: Tensor | None, temperature: float
    ) -> Prompts:
        """The prompts of completions that are not sampled now, and how they are scored if that is still open.

        Args:
            rows: the prompts.
            completions: their completions.
            logps: (N, R) what the sampler of the completions said, if that was this policy.
            temperature: of the policy.
        """

        def prepare() -> Prompts:
            if self.verification is None:  # before prompts are encoded for a path that may not be taken
                self._verify(rows[0], completions, logps, temperature)
            with self.metrics.timed("encoding"):
                return self.prepare_prompts(rows)

        with evaluating(self.actor_critic), self.autocast():
            return self.actor_critic.within_forward(prepare)

    def restore(self, path: str, dataset: PromptDataset, temperature: float) -> Experience:
        """A saved rollout, its prompts encoded again."""
        saved = load_experience(path, self.backbone.device)
        rows = [dataset[index] for index in saved["rows"]]
        prompts = self.prompts_of_given(rows, saved["completions"], saved.get("old_logps"), temperature)
        return Experience(prompts=prompts, **saved)


def _padded(rows: list[list[float]] | None, like: Tensor) -> Tensor | None:
    """Ragged per-token numbers in the shape of `like`, zeros behind them."""
    if rows is None:
        return None
    width = like.shape[1]
    return like.new_tensor([row + [0.0] * (width - len(row)) for row in rows])


def join_samples(parts: list[Samples], pad_id: int) -> Samples:
    """Samples of consecutive prompts as one."""
    width = max(part.completions.ids.shape[1] for part in parts)

    def wide(tensors: list[Tensor], fill: float) -> Tensor:
        return torch.cat([torch.nn.functional.pad(t, (0, width - t.shape[1]), value=fill) for t in tensors])

    offsets, index = 0, []
    for part in parts:
        index.append(part.completions.prompt_index + offsets)
        offsets = int(index[-1][-1]) + 1
    values = [part.values for part in parts if part.values is not None]
    return Samples(
        completions=Completions(
            ids=wide([part.completions.ids for part in parts], pad_id),
            mask=wide([part.completions.mask for part in parts], False),
            prompt_index=torch.cat(index),
        ),
        logps=wide([part.logps for part in parts], 0.0),
        values=wide(values, 0.0) if len(values) == len(parts) else None,
        ended=torch.cat([part.ended for part in parts]),
    )


def ids_by_row(completions: Completions, num_rows: int) -> list[list[list[int]]]:
    """Per row, the token ids of each of its completions."""
    rows: list[list[list[int]]] = [[] for _ in range(num_rows)]
    for ids, length, index in zip(
        completions.ids.tolist(), completions.lengths.tolist(), completions.prompt_index.tolist(), strict=True
    ):
        rows[index].append(ids[:length])
    return rows
