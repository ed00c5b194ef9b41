"""How much of a policy's answers hangs on the picture: shares of the gradient while it trains, and a test of
whether the picture is read at all on held-out rows.

Shares alone do not tell. A policy that gives every picture one caption still has gradients at the image rows,
and a projector that returns zeros has the largest of all. What tells is the log-prob of an answer under
another row's picture, so that is what the warning goes by; the shares stand beside it.

Nothing here draws random numbers or leaves gradients behind: a run with it has the weights of one without.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mmft.engine.actor_critic import VLMActorCritic, evaluating
from mmft.engine.agent import VLMAgent
from mmft.engine.attribution import Attribution, Method, explain_completions, explain_decisions
from mmft.engine.completion_batch import CompletionTokenizer, right_padded
from mmft.engine.observations import Observation
from mmft.engine.packing import Completions
from mmft.engine.playing import GREY
from mmft.engine.prompt_encoder import process_row
from mmft.trainers.experience import Experience
from mmft.trainers.metric_log import MetricLog
from mmft.types import PromptRow

logger = logging.getLogger(__name__)

COMPLETIONS = 2
"""Of one prompt that training looks at each time."""
OBSERVATIONS = 2
"""Of as many environments."""
HELD_OUT_ROWS = 32
"""At most; enough for means, and a few seconds of a small model."""
BATCH_SIZE = 4
METHODS: tuple[Method, ...] = ("relative", "gradient")
FAILURES = (RuntimeError, ValueError)
"""What may go wrong where one only looks, and must not end a run: an operation without a backward pass, too
little memory, a processor that refuses a picture, and all of `mmft.errors`."""
IGNORED = 0.05
"""Nats per token: an answer of 20 tokens that changes its probability by less than a factor of e with
another picture was not written about this one."""
FORGOTTEN = 0.1
"""Of what another picture changed before training."""


class ImportanceLog:
    """Logs the shares of image and text of what trains, every so many optimizer steps.

    Attributes:
        steps: optimizer steps from one look to the next; 0 never looks.
    """

    def __init__(self, steps: int, log: MetricLog, *, sharded: bool = False) -> None:
        """Takes the settings; with sharded weights, whose passes are collective, says once that it is off."""
        self.steps, self._log = steps, log
        if steps and sharded:
            self._off(
                "weights are sharded, and gradients at the seam would have to be taken by all processes"
            )

    def look(self, step: int, explain: Callable[[], Sequence[Attribution]]) -> None:
        """Logs what `explain` finds where a look is due at optimizer step `step`."""
        if not self.steps or step % self.steps:
            return
        try:
            with self._log.timed("importance"):
                found = explain()
        except FAILURES as error:
            return self._off(" ".join(str(error).split()))
        for each in found:
            if "image" in each.shares and any(each.shares.values()):
                self._log.add("importance/image_share", each.image_share)
                self._log.add("importance/text_share", each.text_share)

    def _off(self, reason: str) -> None:
        logger.warning(
            "`importance_steps` is %d, but nothing is looked at: %s.", self.steps, reason.rstrip(".")
        )
        self.steps = 0


def explain_rollout(
    actor_critic: VLMActorCritic,
    experience: Experience,
    rows: Sequence[Any],
    number: int,
    *,
    temperature: float,
    method: Method,
) -> list[Attribution]:
    """What some completions of one prompt of the rollout hang on; local to this process.

    Args:
        actor_critic: the policy.
        experience: this process's part of the rollout.
        rows: the training set.
        number: which prompt, counted round and round.
        temperature: of the policy.
        method: of the attribution.
    """
    group = number % len(experience.rows)
    completions = experience.completions
    chosen = (completions.prompt_index == group).nonzero().squeeze(1)[:COMPLETIONS].tolist()
    lengths = completions.lengths.tolist()
    ids = [completions.ids[place, : lengths[place]].tolist() for place in chosen if lengths[place]]
    row: PromptRow = rows[experience.rows[group]]
    if not row.images or not ids:
        return []
    options: dict[str, Any] = {"temperature": temperature, "method": method, "batch_size": COMPLETIONS}
    return explain_completions(actor_critic, [row] * len(ids), ids, **options)


def explain_seen(
    agent: VLMAgent, observations: Sequence[Observation], *, method: Method
) -> list[Attribution]:
    """What an agent's decisions hang on, where there are pictures among what some environments show."""
    seen = [each for each in observations if each.images][:OBSERVATIONS]
    if not seen or not agent.transforms.is_fitted:
        return []
    target = "q" if agent.q_head is not None else "policy"
    return explain_decisions(agent, seen, target=target, method=method)


@dataclass(frozen=True, slots=True)
class ModalityUse:
    """What the picture is to the answers to some rows."""

    rows: int
    """With a picture, that were looked at."""
    image_share: float
    """Of ||dL/dE|| ||E||, L the log-prob of an answer; the mean over rows."""
    text_share: float
    image_gradient_share: float
    """The same of ||dL/dE||, which depends on the scale of the embeddings."""
    exchanged: float
    """Mean |change| of a token's log-prob, in nats, where the picture is that of another row."""
    blanked: float
    """The same where the picture is plain grey."""

    def record(self) -> dict[str, float]:
        """As summary.json holds it."""
        return {name: round(float(value), 6) for name, value in dataclasses.asdict(self).items()}


def held_out_use(trainer: Any) -> ModalityUse | None:
    """How much the answers of an `OnlineTrainer`'s last evaluation hang on their pictures; local.

    None with sharded weights and where `importance_steps` is 0."""
    if not trainer.args.importance_steps or trainer._is_sharded:
        return None
    samples = trainer.eval_samples
    count = min(HELD_OUT_ROWS, len(samples))
    chosen = [samples[number * len(samples) // count] for number in range(count)]
    return measure_modality_use(
        trainer.actor_critic,
        [trainer.eval_rows[sample["row"]] for sample in chosen],
        [sample["completion"] for sample in chosen],
        [sample["ended"] for sample in chosen],
        max_length=trainer.args.max_completion_length,
        temperature=trainer.args.temperature,
        autocast=trainer.accelerator.autocast,
    )


def measure_modality_use(
    actor_critic: VLMActorCritic,
    rows: Sequence[PromptRow],
    answers: Sequence[str],
    ended: Sequence[bool] | None = None,
    *,
    max_length: int = 10_000,
    temperature: float = 1.0,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> ModalityUse | None:
    """How much the answers to these rows hang on their pictures.

    Args:
        actor_critic: the policy that gave the answers.
        rows: their prompts.
        answers: one for each row.
        ended: whether each came to its end, rather than being cut; all of them if None.
        max_length: tokens of an answer that are looked at.
        temperature: of the policy.
        autocast: the precision that the policy runs in.

    Returns:
        None where fewer than two rows have different pictures, or the model cannot be looked into.
    """
    tokenize = CompletionTokenizer(actor_critic.backbone, max_length)
    ends = [True] * len(rows) if ended is None else ended
    ids = [tokenize.said(text, end) for text, end in zip(answers, ends, strict=True)]
    seen = [number for number, row in enumerate(rows) if row.images and ids[number]]
    partners = exchange_partners([rows[number] for number in seen])
    chosen = [(rows[n], ids[n], rows[seen[p]]) for n, p in zip(seen, partners, strict=True) if p is not None]
    if not chosen:
        return None
    own, given = [each for each, _, _ in chosen], [answer for _, answer, _ in chosen]
    try:
        with evaluating(actor_critic), autocast():
            found = {
                method: explain_completions(
                    actor_critic, own, given, method=method, temperature=temperature, batch_size=BATCH_SIZE
                )
                for method in METHODS
            }
            logps = _token_logps(actor_critic, own, given, temperature)
            other = [_with_pictures(row, partner.images) for row, _, partner in chosen]
            exchanged = _token_logps(actor_critic, other, given, temperature)
            blank = [_with_pictures(row, [Image.new("RGB", i.size, GREY) for i in row.images]) for row in own]
            blanked = _token_logps(actor_critic, blank, given, temperature)
    except FAILURES as error:
        logger.warning("how much pictures count is not measured: %s", " ".join(str(error).split()))
        return None
    return ModalityUse(
        rows=len(own),
        image_share=_mean([each.image_share for each in found["relative"]]),
        text_share=_mean([each.text_share for each in found["relative"]]),
        image_gradient_share=_mean([each.image_share for each in found["gradient"]]),
        exchanged=float((exchanged - logps).abs().mean()),
        blanked=float((blanked - logps).abs().mean()),
    )


def exchange_partners(rows: Sequence[PromptRow]) -> list[int | None]:
    """Per row another one with as many pictures, but not the same; None where there is none.

    The first that will do, from the one half the rows away: neighbours may be alike."""
    pictures = [tuple((image.size, image.tobytes()) for image in row.images) for row in rows]
    partners: list[int | None] = []
    for number, own in enumerate(pictures):
        order = [(number + len(rows) // 2 + step) % len(rows) for step in range(len(rows))]
        fitting = (n for n in order if len(pictures[n]) == len(own) and pictures[n] != own)
        partners.append(next(fitting, None))
    return partners


def modality_warnings(before: ModalityUse | None, after: ModalityUse | None) -> list[str]:
    """That the trained policy takes no account of its pictures, if it does not.

    Args:
        before: the policy that training started from, with its own answers.
        after: the trained one with its own.
    """
    if after is None:
        return []
    started = "" if before is None else f" (before training {before.exchanged:.2g})"
    numbers = (
        f"with another row's picture the log-probs of answers change by {after.exchanged:.2g} nats per "
        f"token{started}, over {after.rows} rows; the picture's share of their gradient is "
        f"{after.image_share:.0%}"
    )
    if after.exchanged < IGNORED:
        return [f"The picture is ignored: {numbers}."]
    if before is not None and after.exchanged < FORGOTTEN * before.exchanged:
        return [f"The picture hardly counts any more: {numbers}."]
    return []


def _with_pictures(row: PromptRow, images: Sequence[Image.Image]) -> PromptRow:
    return dataclasses.replace(row, images=list(images))


@torch.no_grad()
def _token_logps(
    actor_critic: VLMActorCritic, rows: Sequence[PromptRow], ids: Sequence[Sequence[int]], temperature: float
) -> Tensor:
    """(M,) log-probs of all tokens of the answers."""
    backbone = actor_critic.backbone
    parts = []
    for start in range(0, len(rows), BATCH_SIZE):
        batch = rows[start : start + BATCH_SIZE]
        prompts = [process_row(backbone.processor, row) for row in batch]
        padded, mask = right_padded(ids[start : start + BATCH_SIZE], backbone.pad_id)
        completions = Completions(padded, mask, torch.arange(len(batch))).to(backbone.device)
        scores = actor_critic(prompts, completions, temperature=temperature, entropies=False)
        parts.append(scores.logps[completions.mask].float().cpu())
    return torch.cat(parts)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
