"""A run and pictures that belong to no data set: what its policies say about them, and what that earns.

Rewards judge one by one here, because some will miss a column (references, an answer) that only data has:
those are named and left out of the total, instead of stopping everything.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL.Image import Image

from mmft.data.images import load_image
from mmft.engine.judging import RewardSuite
from mmft.engine.reward_calls import is_dense
from mmft.errors import ConfigError, DataError, RewardError
from mmft.models.adapters import ADAPTER_FILE
from mmft.resolve import resolve_rewards
from mmft.runs import Answer, Answerer, Run
from mmft.tiny import CAPTIONER_NAME, captioner_path
from mmft.types import PromptRow

BASE = "base"
TUNED = "tuned"
CANNOT_JUDGE = "said it cannot judge this"
_MISSING = (
    re.compile(r"needs? (?:a|the) column `(\w+)`"),
    re.compile(r"missing \d+ required [\w-]+ arguments?: '(\w+)'"),
    re.compile(r"KeyError: '(\w+)'"),
)
"""How rewards say that a column is not there: ours, functions, and those that look it up."""
REASON_LENGTH = 160


@dataclass(frozen=True, slots=True)
class Part:
    """What one reward said about a completion."""

    name: str
    weight: float
    """0 where it is only reported."""
    value: float | None
    details: dict[str, float | None] = field(default_factory=dict)
    """The numbers it logged beside its own."""
    why: str = ""
    """Why there is no value."""
    needs: str = ""
    """The column it misses, if that is why."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Everything that was said about a completion."""

    parts: list[Part]

    @property
    def total(self) -> float | None:
        """The weighted sum over the rewards that judged; None where none did."""
        found = [part.weight * part.value for part in self.parts if part.value is not None and part.weight]
        return sum(found) if found else None


def open_run(
    name: str, *, revision: str | None = None, base: str | None = None, trust_code: bool = False
) -> Run:
    """A run's folder or hub id, a model without a run, or the packaged captioner.

    Raises:
        ConfigError: there is nothing of that name, or what is there writes no text.
    """
    if name == CAPTIONER_NAME:
        return Run(Path(captioner_path()), name, {"model_name_or_path": name})
    run = Run.from_pretrained(name, revision=revision, base=base, trust_code=trust_code)
    if run.kind in ("agent", "reward_model"):
        trained = "an agent, which acts" if run.kind == "agent" else "a reward model, which judges"
        raise ConfigError(
            f"the run {name!r} trained {trained} and writes no text. Give a run of `mmft ppo`, `a2c`, `rwl` "
            "or `sft`, or a vision-language model."
        )
    return run


def is_tuned(run: Run) -> bool:
    """Whether something was trained, so that there is a model before and one after."""
    return (run.folder / ADAPTER_FILE).is_file() or (bool(run.settings) and run.name != CAPTIONER_NAME)


def load_answerer(run: Run, which: str, settings: Mapping[str, Any]) -> Answerer:
    """The run's policy (`tuned`), or the model it started from (`base`), on a GPU where there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if which == TUNED:
        return Answerer(run.load_policy(device=device), None, dict(settings))
    return Answerer(run.load_base().to(device), None, dict(settings))


def read_picture(file: str, told: str) -> Image:
    """A picture from a file, which a message calls `told`.

    Raises:
        ConfigError: there is none, or it cannot be read.
    """
    path = Path(file)
    if not path.is_file():
        raise ConfigError(f"{told} is no file. Give the path of a picture.")
    try:
        return load_image(path)
    except DataError as error:
        kind = type(error.__cause__ or error).__name__
        raise ConfigError(f"{told} cannot be read as a picture ({kind}). Give a PNG or JPEG.") from error


def read_columns(text: str | None, references: Sequence[str] | None) -> dict[str, Any]:
    """What rewards read beside the picture, as the command line says it.

    Raises:
        ConfigError: the columns are no JSON object, or name references a second time.
    """
    try:
        columns = {} if text is None else json.loads(text)
    except ValueError as error:
        raise ConfigError(f"`--columns` is no JSON: {text!r} ({error}).") from error
    if not isinstance(columns, dict):
        raise ConfigError(f'`--columns` must be a JSON object such as {{"answer": "4"}}; got {text!r}.')
    if references:
        if "references" in columns:
            raise ConfigError("`--columns` holds `references`, and `--references` is given too. Keep one.")
        columns["references"] = list(references)
    return columns


def named_rewards(words: Sequence[str]) -> RewardSuite:
    """Rewards as the command line names them, of weight 1.

    Raises:
        ConfigError: there is none of that name, or its arguments are wrong.
    """
    try:
        specs = [yaml.safe_load(word) if word.startswith("{") else word for word in words]
    except yaml.YAMLError as error:
        raise ConfigError(f"`--reward_funcs` is no YAML or JSON: {' '.join(words)!r}.") from error
    return RewardSuite(resolve_rewards(specs)[0])


def run_rewards(run: Run) -> tuple[RewardSuite | None, str]:
    """The rewards of a run, and a remark where they cannot be made here; None and "" where it names none."""
    if not (run.settings.get("reward_funcs") or run.settings.get("eval_funcs")):
        return None, ""
    try:
        return run.load_rewards(), ""
    except ConfigError as error:
        return None, f"the rewards of the run cannot be made here, so nothing is judged: {error}"


def judge(suite: RewardSuite, row: PromptRow, completion: str) -> Scores:
    """What each reward says about a completion; failures are told, not raised."""
    parts = [_part(suite, number, row, completion) for number in range(len(suite.names))]
    # As in training: what pays for single tokens is the score only where nothing else is.
    dense = [is_dense(reward) for reward in suite.reward_funcs]
    if any(part.weight and not pays_tokens for part, pays_tokens in zip(parts, dense, strict=True)):
        parts = [
            dataclasses.replace(part, weight=0.0) if pays_tokens else part
            for part, pays_tokens in zip(parts, dense, strict=True)
        ]
    return Scores(parts)


def _part(suite: RewardSuite, number: int, row: PromptRow, completion: str) -> Part:
    name, weight = suite.names[number], suite.weights[number]
    isolation = dataclasses.replace(suite.isolations[number], on_error="raise")
    alone = RewardSuite([suite.reward_funcs[number]], [1.0], [name], isolation)
    try:
        found = alone.score([row], [[completion]], training=False).components
    except RewardError as error:
        needs, text = missing_column(error), " ".join(str(error).split())
        short = text if len(text) <= REASON_LENGTH else f"{text[: REASON_LENGTH - 3]}..."
        return Part(name, weight, None, why=f"needs {needs}" if needs else short, needs=needs)
    values = {each: None if value != value else value for each, (value,) in found.items()}
    value = values.pop(name)
    return Part(name, weight, value, values, "" if value is not None else CANNOT_JUDGE)


def missing_column(error: Exception) -> str:
    """What a reward looked for in vain, by what it says; empty if it failed for another reason."""
    matches = (pattern.search(str(error)) for pattern in _MISSING)
    return next((found[1] for found in matches if found is not None), "")


@dataclass(frozen=True, slots=True)
class Said:
    """A completion with who said it and what it earned."""

    model: str
    """`base` or `tuned`."""
    answer: Answer
    scores: Scores | None
    """None where nothing judges."""
