"""Held-out rows as the page's gallery shows them: pictures, answers and their rewards, tokens, heat.

Left out: whatever does not fit together, such as numbers of tokens that are not as many as the tokens. How
much of all this a page has room for is `page_budget`'s.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mmft.report.agent_record import AFTER, BEFORE
from mmft.report.page_budget import PICTURES_OF
from mmft.report.page_measures import repeated_rewards, row_key
from mmft.report.page_source import RunSource, items, mapping
from mmft.report.page_text import MAX_LABEL, Texts, clean, count, number, rounded, short
from mmft.report.word_diff import word_diff

MAX_REFERENCES = 12
MAX_TOKENS = 1_000
"""Of an answer, or of an explanation."""
MAX_PATCHES = 64 * 64
MAX_GROUPS = 24
"""Different values of a column that one would choose among."""
Sample = dict[str, Any]


def samples(runs: Sequence[RunSource], notes: list[str]) -> tuple[list[str], list[Sample]]:
    """The names of the answers, and every sample that has all of them; pictures are names of files.

    Args:
        runs: one, whose answers are those before and after; or several, with the one after of each.
        notes: where what was left out is said.
    """
    texts = Texts()
    shown_answers = (BEFORE, AFTER) if len(runs) == 1 else (AFTER,)
    if runs[0].kind == "reward_model":
        names, found = _judged_samples(runs, notes, texts)
    elif len(runs) == 1:
        hidden = repeated_rewards(runs[0])
        names = [BEFORE, AFTER]
        found = [_answered(runs[0], sample, texts, hidden) for sample in runs[0].samples]
    else:
        names, found = [run.label for run in runs], _joined(runs, notes, texts)
    shown = [dict(sample, id=place) for place, sample in enumerate(found)]
    for sample in shown:
        first, last = (sample["answers"][place]["text"] for place in (0, -1))
        sample["diff"] = [list(run) for run in word_diff(first, last)] if len(names) > 1 else []
    chosen = group_columns(shown)
    for sample in shown:  # the others tell rows apart, which their keys do already
        sample["columns"] = {name: value for name, value in sample["columns"].items() if name in chosen}
    left_out = sum(int(number(each.get("pictures_left_out")) or 0) for each in runs[0].samples)
    if left_out:
        verb = "is" if left_out == 1 else "are"
        notes.append(f"{count(left_out, 'picture')} of rows that show many {verb} left out.")
    notes += [*texts.notes(), *_unshown_heat(runs, shown_answers), *_cut_lists(runs, shown_answers)]
    return names if shown else [], shown


def group_columns(found: Iterable[Mapping[str, Any]]) -> list[str]:
    """Columns by whose values one would choose rows: at least two, and few beside the rows."""
    values: dict[str, list[str]] = {}
    for sample in found:
        for name, value in sample["columns"].items():
            values.setdefault(name, []).append(json.dumps(value))
    return [
        name
        for name, each in values.items()
        if 1 < len(set(each)) <= MAX_GROUPS and (len(set(each)) < len(each) or len(each) < MAX_GROUPS)
    ]


# Rows


def _answered(run: RunSource, sample: Mapping[str, Any], texts: Texts, hidden: set[str]) -> Sample:
    answers = [_answer(mapping(sample.get(when)), texts, hidden) for when in (BEFORE, AFTER)]
    return _row(sample, texts) | {"answers": answers, "heat": _heat(run, sample, (BEFORE, AFTER))}


def _row(sample: Mapping[str, Any], texts: Texts) -> Sample:
    key, prompt = sample.get("key"), sample.get("prompt")
    parts = key if isinstance(key, (list, tuple)) else [key]
    columns = {short(name): value for name, value in mapping(sample.get("columns")).items()}
    return {
        "key": short(" ".join(map(str, parts))),
        "prompt": texts(_words_of(prompt)),
        "references": [texts(each) for each in _phrases(sample.get("references"))[:MAX_REFERENCES]],
        "pictures": [str(name) for name in items(sample.get("pictures"))],
        "columns": {name: plain for name, value in columns.items() if (plain := _scalar(value)) is not None},
    }


def _words_of(prompt: Any) -> str:
    """A prompt as text; of chat messages the words."""
    if not isinstance(prompt, list):
        return "" if prompt is None else str(prompt)
    contents = [mapping(message).get("content") for message in prompt]
    blocks = [
        block for content in contents for block in (content if isinstance(content, list) else [content])
    ]
    found = [mapping(block).get("text") if isinstance(block, Mapping) else block for block in blocks]
    return "\n".join(str(each) for each in found if each)


def _phrases(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [each for each in items(value) if isinstance(each, str)]


def _scalar(value: Any) -> str | float | bool | None:
    if isinstance(value, (bool, str)):
        return short(value) if isinstance(value, str) else value
    return rounded(value)


def _answer(answer: Mapping[str, Any], texts: Texts, hidden: Iterable[str] = ()) -> Sample:
    rewards = {str(name): value for name, value in mapping(answer.get("rewards")).items()}
    tokens = [clean(token) for token in items(answer.get("token_texts"))[:MAX_TOKENS]]
    return {
        "text": texts(answer.get("completion") or ""),
        "reward": rounded(answer.get("reward")),
        "rewards": {short(name): rounded(value) for name, value in rewards.items() if name not in hidden},
        "ended": answer["ended"] if isinstance(answer.get("ended"), bool) else None,
        "tokens": [short(token) for token in tokens],
    } | {name: _numbers(answer.get(name), len(tokens)) for name in ("logps", "values", "advantages")}


def _numbers(values: Any, length: int) -> list[float | None] | None:
    """A number per token; None where they are not as many."""
    listed = items(values)[:length]
    return [rounded(value) for value in listed] if listed and len(listed) == length else None


def _cut_lists(runs: Sequence[RunSource], shown: Sequence[str]) -> list[str]:
    """Notes on references and tokens beyond those that are shown."""
    told = [sample for run in runs for sample in run.samples]
    lists = [mapping(sample.get(when)).get("token_texts") for sample in told for when in shown]
    lists += [_explanation(run, sample).get("tokens") for run in runs for sample in run.samples]
    long = sum(len(items(tokens)) > MAX_TOKENS for tokens in lists)
    many = sum(len(_phrases(sample.get("references"))) > MAX_REFERENCES for sample in runs[0].samples)
    notes = [f"Of {count(many, 'row')} the first {MAX_REFERENCES} references are shown."] if many else []
    if long:
        notes.append(f"Of {count(long, 'text')} the first {MAX_TOKENS:,} tokens are shown.")
    return notes


# Several runs


def _joined(runs: Sequence[RunSource], notes: list[str], texts: Texts) -> list[Sample]:
    """Rows that every run answered, with the answer that each gave after training."""
    by_key = [{row_key(sample): sample for sample in run.samples} for run in runs]
    shared = [key for key in by_key[0] if all(key in each for each in by_key)]
    total = len({key for each in by_key for key in each})
    if len(shared) < total:
        notes.append(
            f"{count(len(shared), 'row')} of {total:,} were answered by every run; the others are not shown."
        )
    found, hidden = [], repeated_rewards(*runs)
    for key in shared:
        told = [each[key] for each in by_key]
        heats = [_heat(run, sample, (AFTER,)) for run, sample in zip(runs, told, strict=True)]
        answers = [_answer(mapping(sample.get(AFTER)), texts, hidden) for sample in told]
        named = [place for place, heat in enumerate(heats) if heat is not None]
        heat = heats[named[0]] if named else None
        if heat is not None:
            heat["of"] = short(f"{heat['of']} of {runs[named[0]].label}")
        # Folders name their pictures alike; what another run calls so may be of another row.
        place = next((place for place, sample in enumerate(told) if items(sample.get("pictures"))), 0)
        pictures = {"pictures": _row(told[place], texts)["pictures"], PICTURES_OF: place}
        found.append(_row(told[0], texts) | {"answers": answers, "heat": heat} | pictures)
    return found


# Reward models


def _judged_samples(
    runs: Sequence[RunSource], notes: list[str], texts: Texts
) -> tuple[list[str], list[Sample]]:
    """What a reward model read, and what it gave; of several models the first one's."""
    run = runs[0]
    if len(runs) > 1 and run.samples:
        notes.append(f"Samples are those of {run.label}; the tables compare the runs.")
    pairs = [sample for sample in run.samples if "chosen" in sample]
    names = ["rejected", "chosen"] if pairs else ["completion"]
    if pairs:
        notes.append(
            "The preferred completion of a pair comes last: the change is its margin, which is above zero "
            "where the pair was told right."
        )
    group = str(run.settings.get("group_column"))
    found = []
    for sample in pairs or run.samples:
        columns = mapping(sample.get("columns")) | ({group: sample[group]} if group in sample else {})
        answers = [_judged(sample, side, texts) for side in names]
        found.append(_row({**sample, "columns": columns}, texts) | {"answers": answers, "heat": None})
    return names, found


def _judged(sample: Mapping[str, Any], side: str, texts: Texts) -> Sample:
    before, after = (mapping(sample.get(when)) for when in (BEFORE, AFTER))
    prefix = "" if side == "completion" else f"{side}_"
    rewards = {
        "before training": before.get(f"{prefix}reward"),
        "rating": sample.get("rating"),
        "uncertainty of the model": _deviation(after.get(f"{prefix}epistemic")),
        "noise of the ratings": _deviation(after.get(f"{prefix}aleatoric")),
    }
    return _answer(
        {
            "completion": sample.get(side),
            "reward": after.get(f"{prefix}reward"),
            "rewards": {name: value for name, value in rewards.items() if value is not None},
        },
        texts,
    )


def _deviation(variance: Any) -> float | None:
    """The standard deviation; None where the model states none."""
    found = number(variance)
    return math.sqrt(found) if found is not None and found > 0 else None


# Heat


def _explanation(run: RunSource, sample: Mapping[str, Any]) -> dict[str, Any]:
    explained, key = mapping(run.explained.get("samples")), sample.get("key")
    names = [json.dumps(key, default=str), json.dumps(key, default=str, ensure_ascii=False)]
    return mapping(next((explained[name] for name in names if name in explained), None))


def _is_of(told: Mapping[str, Any], sample: Mapping[str, Any], shown: Sequence[str]) -> bool:
    """Whether an answer is explained that the page shows; an explanation without a text says nothing else."""
    texts = [mapping(sample.get(when)).get("completion") for when in shown]
    return "text" not in told or told["text"] in texts


def _unshown_heat(runs: Sequence[RunSource], shown: Sequence[str]) -> list[str]:
    told = [(_explanation(run, sample), sample) for run in runs for sample in run.samples]
    number_left = sum(not _is_of(each, sample, shown) for each, sample in told)
    if not number_left:
        return []
    return [f"{count(number_left, 'explanation')} left out: of answers that this page does not show."]


def _heat(run: RunSource, sample: Mapping[str, Any], shown: Sequence[str]) -> Sample | None:
    """What an answer depends on, where that was explained and fits together.

    Args:
        run: whose explanations.
        sample: that was answered.
        shown: which of its answers the page has.
    """
    told = _explanation(run, sample)
    if not told or not _is_of(told, sample, shown):
        return None
    sides = [number(each) for each in items(told.get("grid"))]
    patches = [number(each) for each in items(told.get("patches"))]
    fits = (
        len(sides) == 2
        and all(side is not None and side >= 1 and side == int(side) for side in sides)
        and math.prod(side or 0 for side in sides) == len(patches) <= MAX_PATCHES
        and all(each is not None and each >= 0 for each in patches)
    )
    tokens = [
        [short(pair[0], MAX_LABEL), rounded(pair[1]) or 0.0]
        for pair in items(told.get("tokens"))[:MAX_TOKENS]
        if isinstance(pair, (list, tuple)) and len(pair) == 2
    ]
    shares = {short(name): rounded(value) for name, value in mapping(told.get("shares")).items()}
    if not fits and not tokens:
        return None
    return {
        "grid": [int(side or 0) for side in sides] if fits else [0, 0],
        "patches": [rounded(each) for each in patches] if fits else [],
        "tokens": tokens,
        "shares": {name: value for name, value in shares.items() if value is not None},
        "of": short(f"{run.explained.get('of', 'completion')}{_when(run)}"),
    }


def _when(run: RunSource) -> str:
    return " before training" if run.explained.get("baseline") == "base" else ""
