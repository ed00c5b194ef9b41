"""`mmft explain RUN`: what answers, values or decisions of a finished run hang on, as pictures and a table.

`explain_run` is the same from Python. How importance is measured is in `engine.attribution`.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmft.cli.console import say, table
from mmft.cli.explain_agent import explain_agent, map_agent
from mmft.cli.explain_agent import load as load_agent
from mmft.cli.explain_policy import explain_policy, map_policy, map_rows
from mmft.cli.explain_policy import load as load_policy
from mmft.cli.explain_settings import Explanations, Wanted
from mmft.cli.lone_pictures import read_picture
from mmft.cli.report_command import write_page
from mmft.cli.run_arguments import TRUST, RunParser
from mmft.errors import ConfigError
from mmft.report.explanations import EXPLAIN_FOLDER, Figure, table_rows, write_explanations
from mmft.report.state_map import draw_state_map
from mmft.runs import Run
from mmft.trainers.importance_settings import METHODS

DESCRIPTION = """\
Shows what an answer, a critic's value or an agent's decision depends on: gradients of it with respect to the
rows that the language model reads, as heat over the picture, shades behind the words, and shares of both.
Writes pictures and explain.json, and makes the run's report again; a picture of your own is no part of it.
"""
GIVEN_FOLDER = "given"
"""Within the run's explanations: those of pictures of one's own, which the report does not show."""
MAP_FILE = "pca.png"
SAVED, BASE = "saved", "base"


def parser() -> RunParser:
    """The words of the command."""
    words = RunParser(prog="mmft explain", description=DESCRIPTION)
    words.add_argument("run", help="a run's folder or hub id")
    words.add_argument(
        "--rows", type=int, default=5, metavar="N", help="held-out rows, or episodes of an agent (5)"
    )
    words.add_argument("--image", metavar="FILE", help="a picture of your own in their place")
    words.add_argument("--prompt", help="what is asked about it; the run's own question if unset")
    words.add_argument("--answer", help="what is said about it; the policy's own answer if unset")
    words.add_argument(
        "--of",
        choices=("completion", "token", "value", "q", "policy"),
        help="of a policy: completion (the log-prob of the answer), token, value (of the critic); of an "
        "agent: q, policy (log-prob of the chosen action), value",
    )
    words.add_argument(
        "--token", metavar="WORD", help="which token of the answer: a word, or its place from 0"
    )
    words.add_argument("--base", action="store_true", help="the model that training started from")
    words.add_argument(
        "--method", choices=METHODS, default=METHODS[0],
        help="||dL/dE|| ||E|| (relative; unset), by which picture and words of different scale compare, "
        "||dL/dE|| (gradient), or |<dL/dE, E>| (gradient_x_input)",
    )  # fmt: skip
    words.add_argument(
        "--map-by",
        metavar="COLUMN",
        help="also a map of held-out states (PCA), before and after training, coloured by this column or by "
        "reward; of an agent by action, value, step or text",
    )
    words.add_argument("--map-rows", type=int, default=200, metavar="N", help="states on it (200)")
    words.add_argument(
        "--output",
        metavar="DIR",
        help=f"where to write; unset: {EXPLAIN_FOLDER} in the run's folder, and "
        f"{EXPLAIN_FOLDER}/{GIVEN_FOLDER} with `--image`",
    )
    words.add_argument("--revision", help="of the hub's repository")
    words.add_argument("--base-model", metavar="NAME", help="where the pretrained model is, if it moved")
    words.add_argument("--trust-code", action="store_true", help=TRUST)
    return words


def main(argv: Sequence[str]) -> int:
    """Explains, draws and prints."""
    told = parser().parse_args(argv)
    wanted = _wanted(told)
    run = Run.from_pretrained(
        told.run, revision=told.revision, base=told.base_model, trust_code=told.trust_code
    )
    local = Path(told.run).is_dir()
    usual = _usual_folder(run, wanted) if local else Path(EXPLAIN_FOLDER)
    output = Path(told.output) if told.output else usual
    found = explain(run, wanted, output)
    say(table(*table_rows(found.explained)) + "\n")
    for note in found.notes:
        say(f"note: {note}")
    say(f"{found.folder}/ holds explain.json and {', '.join(_names(found))}")
    if local and output.resolve() == (run.folder / EXPLAIN_FOLDER).resolve():
        write_page(run.folder)
    elif local and wanted.image is not None:
        say("the run's own explanations and its report are as they were")
    return 0


def explain_run(
    run: str | os.PathLike[str] | Run, *, output: Path | None = None, **wanted: Any
) -> Explanations:
    """Explains some answers or decisions of a run and draws them; nothing is printed.

    Args:
        run: its folder, its hub id, or the run itself.
        output: where to write; if None `explain` in the run's folder, and `explain/given` with an image.
        **wanted: as in `Wanted`: `rows`, `image` and `prompt`, `of`, `token`, `base`, `method`, `map_by`.

    Raises:
        ConfigError: the run has nothing of what is asked.
    """
    opened = run if isinstance(run, Run) else Run.from_pretrained(run)
    asked = Wanted(**wanted)
    return explain(opened, asked, output or _usual_folder(opened, asked))


def explain(run: Run, wanted: Wanted, output: Path) -> Explanations:
    """As `explain_run`."""
    if run.kind == "reward_model":
        raise ConfigError(
            f"the run {str(run.folder)!r} trained a reward model; what is explained are answers of a policy "
            "and decisions of an agent. Give the folder of a run of `mmft ppo`, `a2c`, `rwl`, `sft` or `dqn`."
        )
    figures: list[Figure] = []
    notes: list[str] = []
    if run.kind == "agent":
        agent = load_agent(run)
        explained = explain_agent(run, agent, wanted)
        if wanted.map_by is not None:
            figures.append(_draw_map(*map_agent(run, agent, wanted), wanted.map_by, output))
    else:
        mapped = None if wanted.map_by is None else map_rows(run, wanted)
        policy = load_policy(run, base=wanted.base)
        explained = explain_policy(run, policy, wanted, notes.append)
        if mapped is not None:
            rows, labels = mapped
            found = map_policy(run, None if wanted.base else policy, rows)
            figures.append(_draw_map(found, labels, str(wanted.map_by), output))
    write_explanations(
        output,
        explained,
        baseline=BASE if wanted.base else SAVED,
        method=wanted.method,
        figures=figures,
        say=notes.append,
    )
    return Explanations(output, explained, figures, notes)


def _usual_folder(run: Run, wanted: Wanted) -> Path:
    folder = run.folder / EXPLAIN_FOLDER
    return folder if wanted.image is None else folder / GIVEN_FOLDER


def _draw_map(found: Any, labels: Sequence[Any], column: str, output: Path) -> Figure:
    titles = ("before training", "after training") if found.moved is not None else ("held-out states",)
    draw_state_map(found, labels, column, output / MAP_FILE, titles)
    moved = "" if found.moved is None else ", before and after training on the axes of before"
    return Figure(
        MAP_FILE,
        f"States by {column}",
        f"{len(labels)} held-out states on their first two principal components{moved}; the axes say how "
        "much of the variance they have.",
    )


def _wanted(told: argparse.Namespace) -> Wanted:
    image = None if told.image is None else read_picture(told.image, f"`--image` {told.image!r}")
    names = ("rows", "prompt", "answer", "of", "token", "base", "method", "map_by", "map_rows")
    return Wanted(image=image, **{name: getattr(told, name) for name in names})


def _names(found: Explanations) -> list[str]:
    count = len(found.explained)
    pictures = [path.name for path in found.pictures]
    shown = pictures if count < 3 else [pictures[0], "...", pictures[-1]]
    return [*shown, *(figure.file for figure in found.figures)]
