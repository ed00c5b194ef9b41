"""What a policy's answer, a critic's value or an agent's decision hangs on: gradients at the seam.

The rows that the text model is called with are what is looked at: image rows are what the projector made,
text rows are embeddings. So one code serves every family, packed and plain, with and without adapters.
Equations are in `evaluation.importance`, the cut at the seam is in `engine.seam_gradients`.

Shapes: N answers, R answer tokens, P prompt tokens, L tokens at the seam.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import torch
from torch import Tensor

from mmft.engine.actor_critic import Prompts, VLMActorCritic, evaluating
from mmft.engine.agent import Decisions, VLMAgent
from mmft.engine.attribution_record import (
    Attribution,
    PictureImportance,
    ReadText,
    TokenImportance,
    put_together,
)
from mmft.engine.completion_batch import CompletionTokenizer, right_padded
from mmft.engine.observations import Observation
from mmft.engine.packing import Completions
from mmft.engine.prompt_encoder import PromptEncoder, process_row
from mmft.engine.scoring import Scores
from mmft.engine.seam_gradients import Method, SeamCall, seam_importance, watched_seam
from mmft.errors import ConfigError, DataError, UnsupportedModelError
from mmft.models.backbone import Backbone
from mmft.models.decision_heads import action_log_probs
from mmft.models.modalities import Modalities
from mmft.models.prompts import PromptInputs
from mmft.types import PromptRow

__all__ = [
    "Attribution",
    "Method",
    "PictureImportance",
    "TokenImportance",
    "explain_completions",
    "explain_decisions",
]

NUMBERS = "numbers"
TARGETS = ("completion", "token", "value")
"""What of an answer can be explained."""


def explain_completions(
    actor_critic: VLMActorCritic,
    rows: Sequence[PromptRow],
    answers: Sequence[str | Sequence[int]],
    *,
    target: str = "completion",
    position: int | Sequence[int] | None = None,
    method: Method = "gradient",
    temperature: float = 1.0,
    batch_size: int = 8,
    encoder: PromptEncoder | None = None,
) -> list[Attribution]:
    """What each answer hangs on, in evaluation mode; the model stays as it is, gradients included.

        completion   L = sum_t log pi(y_t | x, y_<t)
        token        L = log pi(y_t | x, y_<t) at t = `position`
        value        L = V(x, y_<t) at t = `position`, 0 being the state behind the prompt; None: the mean
                     over the states before each token of the answer

    Args:
        actor_critic: the policy and its critic.
        rows: N prompts, one for each answer.
        answers: N texts, behind which an end token is put, or lists of token ids.
        target: `completion`, `token` or `value`.
        position: a token of the answer, from 0, or from the end with a minus; for all rows or one for each.
        method: `gradient`, ||dL/dE||; `relative`, ||dL/dE|| ||E||, where modalities of different scale are
            compared; `gradient_x_input`, |<dL/dE, E>|.
        temperature: of the policy.
        batch_size: answers that go through the model together.
        encoder: knows prompts that were encoded before, by their rows' keys; None encodes all anew.

    Raises:
        ConfigError: a target, method or position that there is not, or `value` without a critic.
        DataError: the processor refuses a row, or an answer has no token.
        NonFiniteError: L or a gradient is not finite.
        UnsupportedModelError: the text model does not see the prompt's tokens one by one.
        ValueError: there are not as many answers as rows.
    """
    if len(rows) != len(answers):
        raise ValueError(f"`answers` has {len(answers)} entries for {len(rows)} rows; give one for each.")
    _check_choice("target", target, TARGETS)
    _check_choice("method", method, get_args(Method))
    if target == "value" and actor_critic.value_head is None:
        raise ConfigError("`target` is 'value', but this policy has no critic. Explain its `completion`.")
    ids = _answer_ids(actor_critic.backbone, rows, answers)
    places = _positions(target, position, ids)
    found: list[Attribution] = []
    for start in range(0, len(rows), batch_size):
        part = slice(start, start + batch_size)
        batch = _Batch(actor_critic, rows[part], ids[part], encoder)
        with torch.enable_grad():
            scores, calls = batch.score(temperature)
            numbers = _number(target, scores, batch.completions, places[part])
            importance = batch.by_answer(seam_importance(numbers.sum(), calls, method))
        for index, number in enumerate(numbers.tolist()):
            text = batch.text(index, importance[index])
            key = rows[start + index].key
            found.append(put_together(actor_critic.backbone, target, number, [text], row=key))
    return found


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ConfigError(f"`{name}` must be one of {', '.join(choices)}; got {value!r}.")


def _answer_ids(
    backbone: Backbone, rows: Sequence[PromptRow], answers: Sequence[str | Sequence[int]]
) -> list[list[int]]:
    tokenizer = CompletionTokenizer(backbone, max_length=0)
    ids = [tokenizer.whole(each) if isinstance(each, str) else list(each) for each in answers]
    for row, each in zip(rows, ids, strict=True):
        if not each:
            raise DataError(f"row {row.key}: the answer has no token, so that nothing can be explained.")
    return ids


def _positions(
    target: str, position: int | Sequence[int] | None, ids: Sequence[Sequence[int]]
) -> list[int | None]:
    """Per answer the index of one token, or None for all of them."""
    if position is None:
        if target == "token":
            raise ConfigError("`position` is missing: `target` is 'token'. Say which token of the answer.")
        return [None] * len(ids)
    if target == "completion":
        raise ConfigError("`position` has no meaning for `target` 'completion'; explain a 'token' instead.")
    places = [position] * len(ids) if isinstance(position, int) else list(position)
    if len(places) != len(ids):
        raise ConfigError(f"`position` has {len(places)} entries for {len(ids)} answers; give one for each.")
    for place, each in zip(places, ids, strict=True):
        if not -len(each) <= place < len(each):
            raise ConfigError(f"`position` is {place}, but the answer has {len(each)} tokens, 0 the first.")
    return [place % len(each) for place, each in zip(places, ids, strict=True)]


def _number(target: str, scores: Scores, completions: Completions, places: Sequence[int | None]) -> Tensor:
    """(N,) L of each answer."""
    tokens = scores.values if target == "value" else scores.logps
    if tokens is None:
        raise TypeError("there are no values without a critic")
    if any(place is None for place in places):
        total = tokens.sum(1)  # padding holds 0
        return total / completions.lengths if target == "value" else total
    index = torch.tensor([[place] for place in places], device=tokens.device)
    return tokens.gather(1, index)[:, 0]


class _Batch:
    """Some answers, each behind a prompt of its own; a shared one would mix up what they hang on."""

    def __init__(
        self,
        actor_critic: VLMActorCritic,
        rows: Sequence[PromptRow],
        ids: Sequence[Sequence[int]],
        encoder: PromptEncoder | None,
    ) -> None:
        self.actor_critic, self.rows, self.ids = actor_critic, rows, ids
        backbone = actor_critic.backbone
        # By identity: rows that somebody made by hand may share a key.
        distinct = {id(row): process_row(backbone.processor, row) for row in rows}
        self.inputs = [distinct[id(row)] for row in rows]
        self.prompts = self._prompts(distinct, encoder)
        padded, mask = right_padded(ids, backbone.pad_id)
        self.completions = Completions(padded, mask, torch.arange(len(rows))).to(backbone.device)

    def _prompts(self, distinct: dict[int, PromptInputs], encoder: PromptEncoder | None) -> Prompts:
        backbone = self.actor_critic.backbone
        if not self.actor_critic.packed:
            return self.inputs
        with torch.no_grad(), evaluating(self.actor_critic):
            if encoder is not None:
                encodings = encoder.encode(self.rows)
            else:
                encoded = {key: backbone.encode(inputs) for key, inputs in distinct.items()}
                encodings = [encoded[id(row)] for row in self.rows]
        for encoding, inputs in zip(encodings, self.inputs, strict=True):
            self._check_length(encoding.num_tokens, inputs.input_ids.shape[1])
        return encodings

    def _check_length(self, found: int, expected: int) -> None:
        if found != expected:
            raise UnsupportedModelError(
                f"{type(self.actor_critic.backbone.base).__name__} reads {found} rows where there are "
                f"{expected} tokens, so that rows and tokens cannot be matched. Explain another model, or "
                "this one without prompt-learning adapters."
            )

    def score(self, temperature: float) -> tuple[Scores, list[SeamCall]]:
        """Scores in the graph, from the seam on."""
        actor_critic = self.actor_critic
        with evaluating(actor_critic), watched_seam(actor_critic.backbone) as calls:
            scores = actor_critic(self.prompts, self.completions, temperature=temperature, entropies=False)
        return scores, calls

    def by_answer(self, importance: Sequence[Tensor]) -> list[Tensor]:
        """(P + R,) per answer, from what the calls had."""
        lengths = [inputs.input_ids.shape[1] for inputs in self.inputs]
        totals = [length + len(ids) for length, ids in zip(lengths, self.ids, strict=True)]
        if not self.actor_critic.packed:
            for each, total in zip(importance, totals, strict=True):
                self._check_length(each.shape[1], total)
            return [each[0] for each in importance]
        (packed,) = importance
        # An answer's last token is predicted and never read: no column, and no importance.
        padded = torch.nn.functional.pad(packed, (0, 1))
        starts = [max(lengths) - length for length in lengths]
        return [
            padded[n, start : start + total]
            for n, (start, total) in enumerate(zip(starts, totals, strict=True))
        ]

    def text(self, index: int, importance: Tensor) -> ReadText:
        """What was read of one answer and its prompt."""
        sizes = [(image.height, image.width) for image in self.rows[index].images]
        return ReadText(importance.cpu(), self.inputs[index], self.ids[index], sizes)


def explain_decisions(
    agent: VLMAgent,
    observations: Sequence[Observation],
    *,
    target: str = "q",
    action: int | Sequence[int] | None = None,
    method: Method = "gradient",
    batch_size: int = 8,
) -> list[Attribution]:
    """What each decision hangs on, through fusion and heads, in evaluation mode; the agent stays as it is.

        q        L = Q(s, a)
        policy   L = log pi(a | s)
        value    L = V(s), whatever the action

    What the encoder keeps is neither used nor changed: a frozen backbone too costs a forward and a backward,
    two of each where the agent reads its words without the pictures. The numbers of a state are a modality
    of another unit than embeddings; compare with method `relative` or `gradient_x_input`.

    Args:
        agent: with the head that the target wants.
        observations: N states.
        target: `q`, `policy` or `value`.
        action: a, one for all states or one for each; None takes the best legal one.
        method: as in `explain_completions`.
        batch_size: states that go through the model together.

    Raises:
        ConfigError: a target or method that there is not, or an action that is not legal.
        NonFiniteError: L or a gradient is not finite.
    """
    _check_choice("target", target, ("q",) if agent.q_head is not None else ("policy", "value"))
    _check_choice("method", method, get_args(Method))
    actions = [action] * len(observations) if action is None or isinstance(action, int) else list(action)
    if len(actions) != len(observations):
        raise ConfigError(
            f"`action` has {len(actions)} entries for {len(observations)} states; give one for each."
        )
    found: list[Attribution] = []
    for start in range(0, len(observations), batch_size):
        part = slice(start, start + batch_size)
        found += _explain_states(agent, observations[part], target, actions[part], method)
    return found


@torch.enable_grad()
def _explain_states(
    agent: VLMAgent,
    observations: Sequence[Observation],
    target: str,
    actions: Sequence[int | None],
    method: Method,
) -> list[Attribution]:
    backbone = agent.backbone
    legal = _legal(observations, agent.spec.num_actions, actions).to(backbone.device)
    with evaluating(agent), watched_seam(backbone) as calls:
        states, inputs = agent.encoder.encode_anew(observations)
        states, numbers = _with_numbers_cut(states)
        decisions = agent(states, legal)
        values, chosen = _decided(decisions, legal, target, actions)
    importance = seam_importance(values.sum(), [*calls, *numbers], method)
    found = []
    for row, (value, taken) in enumerate(zip(values.tolist(), chosen.tolist(), strict=True)):
        texts = [
            _text_of(observations, row, prompts, each, read != ("image",))
            for prompts, each, read in zip(inputs, importance, agent.encoder.passes, strict=False)
        ]
        of_numbers = float(importance[-1][row].sum()) if numbers else None
        key = repr(observations[row].text)
        one = put_together(backbone, target, value, texts, row=key, numbers=of_numbers)
        found.append(replace(one, action=taken))
    return found


def _legal(observations: Sequence[Observation], num_actions: int, actions: Sequence[int | None]) -> Tensor:
    """(N, A) True at legal actions, those that were asked for among them."""
    every = torch.ones(num_actions, dtype=torch.bool)
    legal = torch.stack([every if each.legal is None else each.legal for each in observations])
    for row, action in zip(legal, actions, strict=True):
        if action is not None and not (0 <= action < num_actions and row[action]):
            raise ConfigError(
                f"`action` is {action}, which is not legal here; {row.nonzero()[:, 0].tolist()} are."
            )
    return legal


def _with_numbers_cut(states: Modalities) -> tuple[Modalities, list[SeamCall]]:
    """The states with their numbers as a leaf of its own, if they have any."""
    if NUMBERS not in states.names:
        return states, []
    leaf = states.embeddings[NUMBERS].detach().requires_grad_()
    return Modalities(states.embeddings | {NUMBERS: leaf}, states.masks), [SeamCall(leaf)]


def _decided(
    decisions: Decisions, legal: Tensor, target: str, actions: Sequence[int | None]
) -> tuple[Tensor, Tensor]:
    """(N,) L, and (N,) the actions."""
    scores = decisions.q if decisions.q is not None else decisions.logits
    if scores is None:
        raise TypeError("this agent decides nothing")
    best = scores.detach().masked_fill(~legal, float("-inf")).argmax(1)
    given = torch.tensor([-1 if action is None else action for action in actions], device=best.device)
    chosen = torch.where(given < 0, best, given)
    if target == "value" and decisions.values is not None:
        return decisions.values, chosen
    if target == "policy":
        return action_log_probs(scores, chosen), chosen
    return scores.gather(1, chosen[:, None])[:, 0], chosen


def _text_of(
    observations: Sequence[Observation], row: int, prompts: PromptInputs, importance: Tensor, was_read: bool
) -> ReadText:
    """One row of a padded batch, without its padding."""
    counts = [len(each.images) for each in observations]
    own = slice(sum(counts[:row]), sum(counts[: row + 1]))
    mask = prompts.tensors["attention_mask"][row].bool().cpu()
    per_picture = ("image_grid_thw", "image_sizes")
    tensors = {name: prompts.tensors[name][own] for name in per_picture if name in prompts.tensors}
    alone = PromptInputs(tensors | {"input_ids": prompts.input_ids[row].cpu()[mask][None]})
    sizes = [(image.height, image.width) for image in observations[row].images]
    return ReadText(importance[row].cpu()[mask], alone, sizes=sizes, was_read=was_read)
