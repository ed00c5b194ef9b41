"""Pictures and what the policy says about them, for the trackers that `report_to` names.

Transformers' own callbacks open the run and log numbers; this one finds them and hands them a few samples
beside these. Held-out samples are the same rows each time, so that one can watch a caption change. Other
trackers than TensorBoard, trackio and wandb get numbers only.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from PIL import Image
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import (
    TensorBoardCallback,
    TrackioCallback,
    WandbCallback,
    default_logdir,
)

from mmft.data.messages import prompt_text
from mmft.types import PromptRow

if TYPE_CHECKING:
    from mmft.trainers.collector import Judged
    from mmft.trainers.online import OnlineTrainer

TRACKERS = (TensorBoardCallback, TrackioCallback, WandbCallback)
"""Those that take pictures."""
Tracker: TypeAlias = TensorBoardCallback | TrackioCallback | WandbCallback
HELD_OUT = "samples/held_out"
TRAINING = "samples/training"
"""What the last rollout drew, where there are no held-out rows."""
EPISODES = "samples/episodes"
LOGS_PER_RUN = 20
ROLLOUTS_BETWEEN = 10
"""A few samples take nearly as long to decode as a batch of them; this keeps them at a tenth of that."""
DIGITS = 4
PICTURE_SIZE = 256
"""Pixels on the longer side."""
_MARKDOWN = re.compile(r"[!-/:-@\[-`{-~]")
"""Punctuation of ASCII, which means something here and there."""


@dataclass(frozen=True, slots=True)
class TrackedSample:
    """One row and one completion of it."""

    key: str
    pictures: list[Image.Image]
    prompt: str
    completion: str
    reward: float | None
    """The weighted total; None where nothing could judge it."""
    rewards: Mapping[str, float | None]
    """Every part, by name."""

    @classmethod
    def of(
        cls, row: PromptRow, completion: str, reward: float | None, rewards: Mapping[str, float | None]
    ) -> TrackedSample:
        """A row of the data, and what was said and earned there."""
        return cls(
            key=" ".join(map(str, row.key)) if isinstance(row.key, tuple) else str(row.key),
            pictures=[_small(picture) for picture in row.images],
            prompt=_storable(prompt_text(row.prompt)),
            completion=_storable(completion),
            reward=_known(reward),
            rewards={name: _known(value) for name, value in rewards.items()},
        )


class OneRun(TrainerCallback):
    """Evaluations before and after training are logged into the run of the training between them."""

    def __init__(self, trackio: Any) -> None:
        self.trackio = trackio

    @classmethod
    def install(cls, trainer: Trainer) -> None:
        """Does what the trainer's trackers need for it."""
        for tracker in trackers(trainer):
            if isinstance(tracker, TensorBoardCallback) and tracker.logging_dir is None:
                # It looks for the run's folder when training begins, and until then writes into ./runs.
                tracker.logging_dir = os.path.join(str(trainer.args.output_dir), default_logdir())
            if isinstance(tracker, TrackioCallback):
                trainer.add_callback(cls(tracker._trackio))

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keeps the name that trackio made up: the run is closed after training, and opened by name."""
        run = self.trackio.context_vars.current_run.get()
        if args.run_name is None and run is not None:
            args.run_name = run.name


class TrackedSamples(TrainerCallback):
    """Hands a few samples to the trackers at every evaluation and every `tracked_samples_steps`."""

    def __init__(self, trainer: OnlineTrainer) -> None:
        self.trainer = trainer
        self._shown: set[str] = set()
        """Pictures of held-out rows that TensorBoard has; they never change."""

    @classmethod
    def install(cls, trainer: OnlineTrainer) -> None:
        """Adds the callback where a tracker can make use of it."""
        if trainer.args.num_tracked_samples and trackers(trainer):
            trainer.add_callback(cls(trainer))

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The evaluation has answered them anyway."""
        rows = self.trainer.eval_rows
        samples = {sample["row"]: sample for sample in self.trainer.eval_samples}
        chosen = tracked_rows(len(rows), self.trainer.args.num_tracked_samples)
        found = [(rows[row], samples[row]) for row in chosen]
        tracked = [
            TrackedSample.of(row, sample["completion"], sample["reward"], sample["rewards"])
            for row, sample in found
        ]
        self._hand_over(HELD_OUT, tracked, state)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Decodes the held-out rows anew, on every process: with sharded weights that takes them all."""
        if control.should_evaluate or state.global_step == state.max_steps or not self._is_due(state):
            return  # the evaluation shows them, or that after training does
        trainer, count = self.trainer, self.trainer.args.num_tracked_samples
        rows = trainer.eval_dataset
        if rows is not None:
            chosen = tracked_rows(len(rows), count)
            judged = trainer.answer_held_out(rows, chosen)
            self._hand_over(HELD_OUT, _samples(judged, list(range(len(chosen)))), state)
        elif trainer.last_judged is not None:
            places = tracked_rows(len(trainer.last_judged.rows), count)
            self._hand_over(TRAINING, _samples(trainer.last_judged, places), state)

    def _is_due(self, state: TrainerState) -> bool:
        steps = self.trainer.args.tracked_samples_steps
        if steps is None:
            rollouts = ROLLOUTS_BETWEEN * self.trainer.plan.steps_per_rollout
            steps = max(-(-state.max_steps // LOGS_PER_RUN), rollouts)
        return steps > 0 and state.global_step % steps == 0

    def _hand_over(self, name: str, samples: list[TrackedSample], state: TrainerState) -> None:
        if not state.is_world_process_zero:
            return
        for tracker in trackers(self.trainer):
            if isinstance(tracker, TensorBoardCallback):
                _log_to_tensorboard(tracker.tb_writer, name, samples, state.global_step, self._shown)
            else:
                _log_table(tracker, name, samples, state.global_step)


def trackers(trainer: Trainer) -> list[Tracker]:
    """The callbacks of trackers that a trainer logs to and that take pictures."""
    return [each for each in trainer.callback_handler.callbacks if isinstance(each, TRACKERS)]


def tracked_rows(num_rows: int, count: int) -> list[int]:
    """`count` row numbers spread evenly, the same each time."""
    count = min(count, num_rows)
    return [number * num_rows // count for number in range(count)]


def track_picture(trainer: Trainer, name: str, path: Path) -> None:
    """Hands a picture file, such as an agent's episodes, to the trackers; on the first process."""
    if not trainer.is_world_process_zero() or not trackers(trainer) or not path.is_file():
        return
    step = trainer.state.global_step
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    for tracker in trackers(trainer):
        if isinstance(tracker, TensorBoardCallback):
            if tracker.tb_writer is not None:
                tracker.tb_writer.add_image(name, np.asarray(picture), step, dataformats="HWC")
                tracker.tb_writer.flush()
        else:
            package = _package(tracker)
            package.log({name: package.Image(picture), "train/global_step": step})


def plain_markdown(text: str) -> str:
    """A text of which a Markdown page shows every character as it is, in one line."""
    # As entities: which signs a backslash works on differs from one Markdown to the next.
    return _MARKDOWN.sub(lambda sign: f"&#{ord(sign[0])};", " ".join(text.split()))


def _samples(judged: Judged, places: Sequence[int]) -> list[TrackedSample]:
    """The first completion of some of the judged rows."""
    totals, parts = judged.judgement.total.tolist(), judged.judgement.components
    samples = []
    for place in places:
        texts = judged.texts[place]
        first = place * len(texts)  # completions of one row lie side by side
        rewards = {name: values[first] for name, values in parts.items()}
        samples.append(TrackedSample.of(judged.rows[place], texts[0], totals[first], rewards))
    return samples


def _log_to_tensorboard(
    writer: Any, name: str, samples: Sequence[TrackedSample], step: int, shown: set[str]
) -> None:
    """A picture and a text for each sample; the page shows them on two tabs, under one name."""
    for number, sample in enumerate(samples):
        for place, picture in enumerate(sample.pictures):
            tag = f"{name}/{number}" + (f"/{place}" if place else "")
            mark = f"{tag} {sample.key}"
            if mark not in shown:
                shown.add(mark)
                writer.add_image(tag, np.asarray(picture), step, dataformats="HWC")
        writer.add_text(f"{name}/{number}", _page(sample), step)
    writer.flush()


def _page(sample: TrackedSample) -> str:
    """A sample as Markdown; a table would leave its words no room on TensorBoard's page."""
    texts = {"row": sample.key, "prompt": sample.prompt, "completion": sample.completion}
    numbers = {"reward": sample.reward, **sample.rewards}
    lines = [f"**{name}** {plain_markdown(text)}" for name, text in texts.items()]
    told = [f"**{plain_markdown(name)}** {_number(value)}" for name, value in numbers.items()]
    return "\n\n".join([*lines, ", ".join(told)])


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:g}"


def _log_table(
    tracker: TrackioCallback | WandbCallback, name: str, samples: Sequence[TrackedSample], step: int
) -> None:
    """One row per sample; both show texts as they are."""
    package = _package(tracker)
    parts = list(dict.fromkeys(part for sample in samples for part in sample.rewards))
    # One picture in a cell, as both describe it; lists of them are not.
    num_pictures = max(len(sample.pictures) for sample in samples)
    rows = [
        [
            step,
            sample.key,
            *(package.Image(picture) for picture in sample.pictures),
            *[None] * (num_pictures - len(sample.pictures)),
            sample.prompt,
            sample.completion,
            sample.reward,
            *(sample.rewards.get(part) for part in parts),
        ]
        for sample in samples
    ]
    pictures = [f"picture {place + 1}" for place in range(num_pictures)]
    columns = ["step", "row", *pictures, "prompt", "completion", "reward", *parts]
    # As in transformers' callbacks, of whose counter wandb and trackio know nothing.
    package.log({name: package.Table(columns=columns, data=rows), "train/global_step": step})


def _package(tracker: TrackioCallback | WandbCallback) -> Any:
    return tracker._trackio if isinstance(tracker, TrackioCallback) else tracker._wandb


def _small(picture: Image.Image) -> Image.Image:
    copy = picture.convert("RGB")
    copy.thumbnail((PICTURE_SIZE, PICTURE_SIZE))
    return copy


def _storable(text: str) -> str:
    """Without halves of surrogate pairs, which no tracker can write."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _known(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else round(float(value), DIGITS)
