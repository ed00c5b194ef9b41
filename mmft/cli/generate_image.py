"""`mmft generate --model RUN --image FILE`: what a run, or any model, says about pictures of your own.

`mmft generate --config FILE` answers the rows of a data set and lives in `cli.generate`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

from mmft.cli.console import number, said_lines, say, table
from mmft.cli.lone_pictures import (
    BASE,
    TUNED,
    Said,
    Scores,
    is_tuned,
    judge,
    load_answerer,
    named_rewards,
    open_run,
    read_columns,
    read_picture,
    run_rewards,
)
from mmft.cli.run_arguments import TRUST, RunParser
from mmft.engine.judging import RewardSuite
from mmft.errors import ConfigError
from mmft.runs import Run
from mmft.types import Prompt, PromptRow

DESCRIPTION = """\
Prints what a run's policy, or any vision-language model, says about pictures, and what its rewards make of
it. Rewards that read more than the picture (references, an answer) get it by --references and --columns.
"""


def parser() -> RunParser:
    """The words of the command."""
    words = RunParser(prog="mmft generate", description=DESCRIPTION)
    words.add_argument("--model", required=True, help="a run's folder or hub id, or a model")
    words.add_argument("--image", required=True, nargs="+", metavar="FILE", help="pictures")
    words.add_argument("--prompt", help="what is asked; the run's own question if unset")
    words.add_argument(
        "--references", nargs="+", metavar="TEXT", help="captions to compare with, of every picture"
    )
    words.add_argument("--columns", metavar="JSON", help='what else rewards read: \'{"answer": "4"}\'')
    words.add_argument(
        "--reward_funcs", nargs="+", metavar="NAME", help="rewards in place of the run's: length, my:reward"
    )
    words.add_argument("--base", action="store_true", help="also the model that training started from")
    words.add_argument("--do_sample", action="store_true", help="draw instead of taking the likeliest words")
    words.add_argument("--num_generations", type=int, metavar="N", help="how many are drawn; 1 if unset")
    words.add_argument("--temperature", type=float, metavar="T", help="of drawing; 1 if unset")
    words.add_argument("--seed", type=int, help="of drawing; the run's if unset")
    words.add_argument("--max_completion_length", type=int, metavar="N", help="tokens; the run's if unset")
    words.add_argument("--revision", help="of the hub's repository")
    words.add_argument("--base-model", metavar="NAME", help="where the pretrained model is, if it moved")
    words.add_argument("--trust-code", action="store_true", help=TRUST)
    words.add_argument("--json", action="store_true", help="one JSON object per completion and line")
    return words


def main(argv: Sequence[str]) -> int:
    """Answers every picture and prints it."""
    told = parser().parse_args(argv)
    check(told)
    columns = read_columns(told.columns, told.references)
    pictures = [read_picture(file, f"`--image` {file!r}") for file in told.image]
    run = open_run(told.model, revision=told.revision, base=told.base_model, trust_code=told.trust_code)
    if told.base and not is_tuned(run):
        raise ConfigError(
            f"`--base` compares a run with the model it started from, and {told.model!r} is a model without "
            "a run. Leave it out."
        )
    suite = choose_rewards(told, run)
    rows = [question(run, picture, told.prompt, columns) for picture in pictures]
    said = answer(told, run, suite, rows)
    for file, each in zip(told.image, said, strict=True):
        say("\n".join(json_lines(file, each)) if told.json else f"{page(file, each)}\n")
    return 0


def check(told: argparse.Namespace) -> None:
    """Refuses options that contradict each other.

    Raises:
        ConfigError: names them.
    """
    for name in ("num_generations", "temperature", "seed"):
        if getattr(told, name) is not None and not told.do_sample:
            raise ConfigError(f"`--{name}` is for drawing; add `--do_sample`, or leave it out.")
    for name in ("num_generations", "temperature", "max_completion_length"):
        value = getattr(told, name)
        if value is not None and not value > 0:
            raise ConfigError(f"`--{name}` must be > 0; got {value}.")


def choose_rewards(told: argparse.Namespace, run: Run) -> RewardSuite | None:
    """The rewards that were named, or the run's; says so where the latter cannot be made."""
    if told.reward_funcs:
        return named_rewards(told.reward_funcs)
    suite, remark = run_rewards(run)
    if remark:
        print(f"WARNING {remark}", file=sys.stderr)
    return suite


def question(run: Run, picture: Any, prompt: Prompt | None, columns: dict[str, Any]) -> PromptRow:
    """The row of a picture.

    Raises:
        ConfigError: nobody says what to ask.
    """
    if prompt is None:
        try:
            prompt = run.prompt
        except ConfigError as error:
            raise ConfigError(f"{error} It is `--prompt` here.") from error
    return run.make_row(picture, prompt, **columns)


def answer(
    told: argparse.Namespace, run: Run, suite: RewardSuite | None, rows: Sequence[PromptRow]
) -> list[list[Said]]:
    """Per picture what each model says; one model is in memory at a time."""
    settings = dict(run.settings)
    for name in ("seed", "max_completion_length"):
        if getattr(told, name) is not None:
            settings[name] = getattr(told, name)
    count = told.num_generations or 1
    temperature = (told.temperature or 1.0) if told.do_sample else 0.0
    said: list[list[Said]] = [[] for _ in rows]
    for which in (BASE, TUNED) if told.base else (TUNED,):
        answerer = load_answerer(run, which, settings)
        for row, found in zip(rows, said, strict=True):
            for each in answerer.answer([row] * count, temperature=temperature):
                found.append(Said(which, each, judge(suite, row, each.text) if suite else None))
        del answerer  # before the next one is loaded
    return said


def page(file: str, said: Sequence[Said]) -> str:
    """What was said about a picture, and below it a table of the rewards."""
    labels = labels_of(said)
    scores = [each.scores for each in said if each.scores is not None]
    if not scores:
        width = max(map(len, labels))
        lines = [f"  {label:{width}}  {each.answer.text}" for label, each in zip(labels, said, strict=True)]
        return "\n".join([file, *lines])
    totals = [each.total for each in scores]
    texts = [each.answer.text for each in said]
    return "\n".join(
        [
            said_lines(file, list(zip(labels, totals, texts, strict=True))),
            reward_table(labels, scores),
            *remarks(scores),
        ]
    )


def reward_table(labels: Sequence[str], scores: Sequence[Scores]) -> str:
    """A line for each reward and for each number it logged; a column for each completion."""
    rows: list[tuple[str, ...]] = []
    for parts in zip(*(each.parts for each in scores), strict=True):  # one reward, all completions
        name, weight = parts[0].name, parts[0].weight
        values = (number(each.value).strip() for each in parts)
        rows.append((name, f"{weight:g}" if weight else "reported", *values))
        for detail in dict.fromkeys(key for each in parts for key in each.details):
            found = (number(each.details.get(detail)).strip() for each in parts)
            rows.append((f"  {detail.removeprefix(f'{name}/')}", "", *found))
    rows.append(("total", "", *(number(each.total).strip() for each in scores)))
    return table(("reward", "weight", *(label or "value" for label in labels)), rows)


def remarks(scores: Sequence[Scores]) -> list[str]:
    """Why rewards did not judge, each reason once."""
    lines = [
        f"{part.name}: n/a ({part.why}{option(part.needs)})"
        + (", left out of the total" if part.weight else "")
        for each in scores
        for part in each.parts
        if part.value is None
    ]
    return list(dict.fromkeys(lines))


def option(column: str) -> str:
    """How to give a reward the column it misses."""
    if not column:
        return ""
    return ": --references" if column == "references" else f": --columns '{{\"{column}\": ...}}'"


def labels_of(said: Sequence[Said]) -> list[str]:
    """Who said it, and its number, as far as that tells answers apart."""
    models = [each.model for each in said]
    several = len(set(models)) > 1
    labels = []
    for place, model in enumerate(models):
        words = [model] if several else []
        if models.count(model) > 1:
            words.append(str(models[: place + 1].count(model)))
        labels.append(" ".join(words))
    return labels


def json_lines(file: str, said: Sequence[Said]) -> list[str]:
    """One object per completion."""
    return [
        json.dumps(
            {
                "image": file,
                "model": each.model,
                "completion": each.answer.text,
                "ended": each.answer.ended,
                "logp": sum(each.answer.logps),
                "reward": each.scores.total if each.scores else None,
                "rewards": {part.name: dataclasses.asdict(part) for part in each.scores.parts}
                if each.scores
                else {},
            },
            ensure_ascii=False,
        )
        for each in said
    ]
