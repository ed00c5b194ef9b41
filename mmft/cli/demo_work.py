"""What the page of `mmft demo` has done for it: answers of both models, their rewards, a heat map."""

from __future__ import annotations

import itertools
import json
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmft.cli.lone_pictures import (
    BASE,
    TUNED,
    Said,
    is_tuned,
    judge,
    load_answerer,
    read_columns,
    read_picture,
    run_rewards,
)
from mmft.data.messages import prompt_text
from mmft.engine.attribution import Method, explain_completions
from mmft.errors import ConfigError
from mmft.report.explanations import Explained, heat_map
from mmft.report.heat_maps import draw_heat_map
from mmft.report.thumbnails import SAMPLES_FOLDER
from mmft.runs import SAMPLES_FILE, Answerer, Run
from mmft.tiny import CAPTIONER_NAME, PROMPT, SCENES_NAME, load_scenes
from mmft.types import Prompt, PromptRow

NUM_EXAMPLES = 6
COMPLETION, TOKEN, VALUE = "completion", "token", "value"
METHOD: Method = "relative"
"""Of the heat: by it, picture and words of different scale compare."""


@dataclass(frozen=True, slots=True)
class Example:
    """A picture to try, with what is known of it."""

    picture: str
    prompt: str
    references: str
    """One a line."""
    columns: str = ""
    """What else rewards read, as JSON."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One question and what was said to it."""

    row: PromptRow
    said: list[Said]

    def of(self, model: str) -> Said:
        """What one of the models said."""
        return next(each for each in self.said if each.model == model)


class Workshop:
    """A run's models and rewards, one question at a time.

    Attributes:
        models: `base` and `tuned`, or `tuned` alone where nothing was trained.
        remark: why nothing is judged, where the run names rewards.
        prompt: the run's question as text; empty where it has none of its own.
    """

    def __init__(self, run: Run, folder: Path) -> None:
        """Loads everything; heat maps and examples go to `folder`."""
        self.run, self.folder = run, folder
        self.models = (BASE, TUNED) if is_tuned(run) else (TUNED,)
        self.answerers: dict[str, Answerer] = {
            which: load_answerer(run, which, run.settings) for which in self.models
        }
        self.suite, self.remark = run_rewards(run)
        self.prompt = self._run_prompt()
        self._lock = threading.Lock()
        self._numbers = itertools.count()

    @property
    def has_critic(self) -> bool:
        """Whether there is a value to explain."""
        return self.answerers[TUNED].policy.value_head is not None

    def wait(self) -> None:
        """Returns when nothing is being worked on: Python cannot end in the middle of a forward."""
        with self._lock:
            return

    def answer(
        self, picture: str | None, prompt: str, references: str, columns: str, temperature: float
    ) -> Outcome:
        """What each model says.

        Args:
            picture: path of the file.
            prompt: what is asked.
            references: captions to compare with, one a line.
            columns: what else rewards read, as JSON.
            temperature: 0 takes the likeliest words; drawn ones are new each time, by the same luck for both.

        Raises:
            ConfigError: the question is not complete.
        """
        if picture is None:
            raise ConfigError("there is no picture yet. Upload one, or choose an example.")
        if not prompt.strip():
            raise ConfigError("the question is empty. Write what to ask about the picture.")
        phrases = [line.strip() for line in references.splitlines() if line.strip()]
        given = read_columns(columns if columns.strip() else None, phrases)
        row = self.run.make_row(read_picture(picture, "the file"), self._question(prompt), **given)
        with self._lock:
            number = next(self._numbers)
            return Outcome(row, [self._said(which, row, temperature, number) for which in self.models])

    def _said(self, which: str, row: PromptRow, temperature: float, number: int) -> Said:
        answerer = self.answerers[which]
        answerer.seed = int(self.run.settings.get("seed") or 0) + number
        (answer,) = answerer.answer([row], temperature=temperature)
        return Said(which, answer, None if self.suite is None else judge(self.suite, row, answer.text))

    def explain(self, outcome: Outcome, which: str, target: str, position: int) -> Path:
        """Draws what an answer, one of its tokens or its value depends on; returns the PNG.

        Raises:
            ConfigError: there is nothing to explain.
        """
        answer = outcome.of(which).answer
        if target == TOKEN and not 0 <= position < len(answer.token_texts):
            raise ConfigError("the answer has no such token. Choose one of the list.")
        policy = self.answerers[which].policy
        if target == VALUE and policy.value_head is None:
            raise ConfigError("the model before training has no critic. Choose the tuned one.")
        place = position if target == TOKEN else None
        with self._lock:
            (found,) = explain_completions(
                policy,
                [outcome.row],
                [answer.ids],
                target=target,
                position=place,
                method=METHOD,
            )
            path = self.folder / f"heat-{next(self._numbers)}.png"
        explained = Explained(outcome.row.key, answer.text, outcome.row.images, found, position=place)
        draw_heat_map(heat_map(explained, METHOD), path)
        return path

    def examples(self) -> list[Example]:
        """The run's held-out rows with their thumbnails, or drawn scenes where the run is about those."""
        return self._kept_examples() or self._drawn_examples()

    def _kept_examples(self) -> list[Example]:
        file = self.run.folder / SAMPLES_FILE
        if not file.is_file():
            return []
        with file.open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        rows = [row for row in rows if self._thumbnail(row) is not None]
        count = min(NUM_EXAMPLES, len(rows))
        chosen = [rows[number * len(rows) // count] for number in range(count)]
        return [
            Example(
                self._copied(self._thumbnail(row), number),
                prompt_text(row["prompt"]),
                _lines(row.get("references")),
                json.dumps({"keywords": row["keywords"]}) if row.get("keywords") else "",
            )
            for number, row in enumerate(chosen)
        ]

    def _copied(self, picture: Path | None, number: int) -> str:
        """Into the page's own folder: Gradio serves no file of another one."""
        return str(
            shutil.copyfile(str(picture), self.folder / f"example-{number}{Path(str(picture)).suffix}")
        )

    def _thumbnail(self, row: dict[str, Any]) -> Path | None:
        """Of a row with one picture; it lies among the run's own."""
        names = row.get("pictures") or []
        path = (self.run.folder / names[0]).resolve() if len(names) == 1 else None
        own = (self.run.folder / SAMPLES_FOLDER).resolve()
        return path if path is not None and path.is_relative_to(own) and path.is_file() else None

    def _drawn_examples(self) -> list[Example]:
        if SCENES_NAME != self.run.settings.get("dataset_name") and self.run.name != CAPTIONER_NAME:
            return []
        examples = []
        for number, row in enumerate(load_scenes("test", NUM_EXAMPLES)):
            path = self.folder / f"scene-{number}.png"
            row["image"].save(path)
            facts = json.dumps({"facts": row["facts"]})
            examples.append(Example(str(path), self.prompt or PROMPT, _lines(row["references"]), facts))
        return examples

    def _run_prompt(self) -> str:
        try:
            return prompt_text(self.run.prompt)
        except ConfigError:
            return ""

    def _question(self, text: str) -> Prompt:
        """A prompt in messages stays what it is, unless its words were changed."""
        return self.run.prompt if self.prompt and text == self.prompt else text


def _lines(references: Any) -> str:
    phrases = [references] if isinstance(references, str) else references or []
    return "\n".join(" ".join(str(phrase).split()) for phrase in phrases)
