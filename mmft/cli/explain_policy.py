"""`mmft explain` of a policy: which rows, which answers, and which token of each."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from mmft.cli.explain_settings import ANSWERS, COMPLETION, VALUE, Wanted, nearest
from mmft.cli.loading import held_out_prompts
from mmft.config import DataConfig
from mmft.data.rows import PromptDataset
from mmft.engine.actor_critic import VLMActorCritic, evaluating
from mmft.engine.attribution import Method, explain_completions
from mmft.engine.completion_batch import CompletionTokenizer
from mmft.engine.prompt_encoder import process_rows
from mmft.engine.sampling import SamplingParams
from mmft.engine.token_texts import token_texts
from mmft.errors import ConfigError
from mmft.report.explanations import Explained
from mmft.report.record import read_json_lines, spread
from mmft.report.state_map import StateMap, check_labels, map_states
from mmft.runs import SAMPLES_FILE, Answerer, Run
from mmft.types import PromptRow

BEFORE, AFTER = "before", "after"
BATCH_SIZE = 8
LONGEST = 100_000
"""Tokens of an answer that somebody gives."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A row, and the tokens of the answer that is explained."""

    row: PromptRow
    text: str
    ids: list[int]


def load(run: Run, *, base: bool) -> VLMActorCritic:
    """The run's policy, or the model it started from, on a GPU where there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return run.load_base().to(device) if base else run.load_policy(device=device)


def held_out_rows(run: Run) -> PromptDataset:
    """The rows that the run was evaluated on.

    Raises:
        ConfigError: it held none out.
    """
    names = {each.name for each in dataclasses.fields(DataConfig)}
    script = DataConfig(**{name: value for name, value in run.settings.items() if name in names})
    rows = held_out_prompts(script)
    if rows is None:
        raise ConfigError(
            f"the run {str(run.folder)!r} held no rows out (`eval_split`). Give a picture: `--image FILE`."
        )
    return rows


def explain_policy(
    run: Run, policy: VLMActorCritic, wanted: Wanted, say: Callable[[str], None] = lambda text: None
) -> list[Explained]:
    """What answers of a policy hang on.

    Args:
        run: whose rows and answers.
        policy: of the run, or what it started from.
        wanted: which answers, and what of them.
        say: told how many answers have nothing to explain.

    Raises:
        ConfigError: it has no critic, no rows, or no answer has a token, or the token.
    """
    target = wanted.target(ANSWERS, "a policy")
    if target == VALUE and policy.value_head is None:
        raise ConfigError(
            f"`--of value` needs a critic, and {'the pretrained model' if wanted.base else 'this run'} has "
            f"none. Explain its answers: `--of {COMPLETION}`."
        )
    asked = _with_words(ask(run, policy, wanted), say)
    processor = policy.backbone.processor
    places: list[int | None] = [None] * len(asked)
    if wanted.token is not None:
        places = [token_place(token_texts(processor, each.ids), wanted.token) for each in asked]
        if all(place is None for place in places):
            said = token_texts(processor, asked[0].ids)
            raise ConfigError(
                f"`--token` {wanted.token!r} is in no answer. The tokens of the first are "
                f"{', '.join(map(repr, said))}, from 0 to {len(said) - 1}."
            )
        _tell(places.count(None), f"no token {wanted.token!r}", say)
        asked = [each for each, place in zip(asked, places, strict=True) if place is not None]
        places = [place for place in places if place is not None]
    position = None if target == COMPLETION or wanted.token is None else cast(list[int], places)
    found = explain_completions(
        policy,
        [each.row for each in asked],
        [each.ids for each in asked],
        target=target,
        position=position,
        method=cast(Method, wanted.method),
        temperature=scored_temperature(run.settings.get("eval_temperature")),
        batch_size=BATCH_SIZE,
    )
    return [
        Explained(_key(each.row), each.text, each.row.images, attribution, place)
        for each, attribution, place in zip(asked, found, places, strict=True)
    ]


def _with_words(asked: list[Asked], say: Callable[[str], None]) -> list[Asked]:
    kept = [each for each in asked if each.ids]
    if not kept:
        raise ConfigError(
            f"none of the {len(asked)} answers asked for has a token, so that nothing can be explained. Ask "
            "for more of them (`--rows`), or give one: `--image FILE --answer TEXT`."
        )
    _tell(len(asked) - len(kept), "no token at all", say)
    return kept


def _tell(count: int, lack: str, say: Callable[[str], None]) -> None:
    if count:
        say(f"{count} {'answer has' if count == 1 else 'answers have'} {lack}")


def scored_temperature(eval_temperature: Any) -> float:
    """The temperature that log-probs in samples.jsonl are of."""
    return SamplingParams(temperature=float(eval_temperature or 0)).policy_temperature


def explain_told(
    policy: VLMActorCritic, told: Sequence[tuple[PromptRow, Mapping[str, Any]]], temperature: float = 1.0
) -> list[Explained]:
    """What answers hang on that are told of as in samples.jsonl; `temperature` is that of their log-probs."""
    tokenize = CompletionTokenizer(policy.backbone, LONGEST)
    asked = [each for each in (_told(row, answer, tokenize) for row, answer in told) if each.ids]
    rows, ids = [each.row for each in asked], [each.ids for each in asked]
    options: dict[str, Any] = {"method": Wanted().method, "temperature": temperature}
    found = explain_completions(policy, rows, ids, batch_size=BATCH_SIZE, **options)
    return [
        Explained(_key(each.row), each.text, each.row.images, attribution)
        for each, attribution in zip(asked, found, strict=True)
    ]


def ask(run: Run, policy: VLMActorCritic, wanted: Wanted) -> list[Asked]:
    """The rows with their answers: given, told of in samples.jsonl, or the policy's likeliest."""
    tokenize = CompletionTokenizer(policy.backbone, LONGEST)
    if wanted.image is not None:
        row = run.make_row(wanted.image, wanted.prompt)
        if wanted.answer is not None:
            return [Asked(row, wanted.answer, tokenize(wanted.answer))]
        return answered(run, policy, [row])
    rows = held_out_rows(run)
    chosen = [rows[index] for index in spread(wanted.rows, len(rows))]
    told = told_answers(run, BEFORE if wanted.base else AFTER)
    known = [told.get(json.dumps(_key(row))) for row in chosen]
    new = iter(answered(run, policy, [row for row, each in zip(chosen, known, strict=True) if each is None]))
    return [
        next(new) if each is None else _told(row, each, tokenize)
        for row, each in zip(chosen, known, strict=True)
    ]


def answered(run: Run, policy: VLMActorCritic, rows: Sequence[PromptRow]) -> list[Asked]:
    """The policy's own greedy answers."""
    if not rows:
        return []
    answers = Answerer(policy, None, run.settings).answer(rows)
    return [Asked(row, each.text, list(each.ids)) for row, each in zip(rows, answers, strict=True)]


def told_answers(run: Run, when: str) -> dict[str, dict[str, Any]]:
    """By key what samples.jsonl says was answered."""
    samples = read_json_lines(run.folder / SAMPLES_FILE)
    return {json.dumps(each["key"]): each[when] for each in samples if when in each and "key" in each}


def _told(row: PromptRow, answer: Mapping[str, Any], tokenize: CompletionTokenizer) -> Asked:
    text = str(answer["completion"])
    return Asked(row, text, tokenize.said(text, bool(answer.get("ended", True))))


def token_place(texts: Sequence[str], wanted: str) -> int | None:
    """Where a word, or the token of a number, is among the tokens of an answer; None if it is not there."""
    if wanted.isdigit():
        return int(wanted) if int(wanted) < len(texts) else None
    word = wanted.strip().lower()
    for place, text in enumerate(texts):
        if text.strip().lower() == word:
            return place
    # A word of several tokens: the one that it begins in.
    start = "".join(texts).lower().find(word) if word else -1
    end = 0
    for place, text in enumerate(texts):
        end += len(text)
        if 0 <= start < end:
            return place
    return None


def _key(row: PromptRow) -> Any:
    return list(row.key) if isinstance(row.key, tuple) else row.key


# The map of states


def map_rows(run: Run, wanted: Wanted) -> tuple[list[PromptRow], list[Any]]:
    """The held-out rows whose states are mapped, and what each is coloured by.

    Raises:
        ConfigError: there is no such column, or it can be no colour.
    """
    rows, column = held_out_rows(run), str(wanted.map_by)
    chosen = [rows[index] for index in spread(wanted.map_rows, len(rows))]
    labels = column_labels(run, chosen, column)
    check_labels(labels, column)
    return chosen, labels


def map_policy(run: Run, policy: VLMActorCritic | None, rows: Sequence[PromptRow]) -> StateMap:
    """Where states lie, before training and, given a trained policy, after it."""
    states = fused_states(load(run, base=True), rows)
    return map_states(states, None if policy is None else fused_states(policy, rows))


def column_labels(run: Run, rows: Sequence[PromptRow], column: str) -> list[Any]:
    """A column of the rows, or a measure of their answers after training.

    Raises:
        ConfigError: there is no such column.
    """
    if all(column in row.columns for row in rows):
        return [row.columns[column] for row in rows]
    told = told_answers(run, AFTER)
    answers = [told.get(json.dumps(_key(row)), {}) for row in rows]
    measures = [{name: each.get(name) for name in ("reward", "tokens", "mean_logp")} for each in answers]
    for known, each in zip(measures, answers, strict=True):
        known |= {f"rewards/{name}": value for name, value in each.get("rewards", {}).items()}
    if any(known.get(column) is not None for known in measures):
        return [known.get(column) for known in measures]
    offered = sorted({name for row in rows for name in row.columns})
    offered += sorted({name for known in measures for name, value in known.items() if value is not None})
    raise ConfigError(f"`--map-by` {column!r} is no column of the held-out rows. {nearest(column, offered)}")


@torch.no_grad()
def fused_states(policy: VLMActorCritic, rows: Sequence[PromptRow]) -> Tensor:
    """(N, D) last hidden states at the last token of each prompt."""
    backbone, parts = policy.backbone, []
    with evaluating(policy):
        for start in range(0, len(rows), BATCH_SIZE):
            inputs = process_rows(backbone.processor, rows[start : start + BATCH_SIZE])
            states = backbone.embed(inputs, ("fused",)).embeddings["fused"]
            parts.append(states[:, 0].float().cpu())
    return torch.cat(parts)
