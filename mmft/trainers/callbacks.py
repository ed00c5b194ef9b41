"""What a run writes and shows while it trains: `metrics.jsonl`, the reward on the progress bar."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import transformers.trainer
from transformers import (
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

METRICS_FILE = "metrics.jsonl"
SAMPLES_FILE = "samples.jsonl"


class RunFiles(TrainerCallback):
    """Appends every log line to `metrics.jsonl`. A resumed run drops the lines after its checkpoint first."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            path = _metrics_path(args)
            kept = [line for line in _lines(path) if json.loads(line)["step"] <= state.global_step]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(kept if state.global_step else []))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if state.is_world_process_zero and logs:
            append_line(_metrics_path(args), {"step": state.global_step} | logs)


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Adds one JSON line to a file, making its folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def _metrics_path(args: TrainingArguments) -> Path:
    return Path(cast(str, args.output_dir)) / METRICS_FILE  # the Trainer fills an unset folder in


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines(keepends=True) if path.is_file() else []


def replace_progress(trainer: Trainer, progress: TrainerCallback) -> None:
    """Puts a bar in the place of the Trainer's own, if it has one; notebooks have another."""
    if not trainer.args.disable_tqdm:
        trainer.remove_callback(transformers.trainer.DEFAULT_PROGRESS_CALLBACK)
        trainer.add_callback(progress)


class RewardProgress(ProgressCallback):
    """The Trainer's progress bar, with reward and KL behind it instead of a printed line per log."""

    SHOWN: tuple[str, ...] = ("reward", "kl", "completions/mean_length")
    MARK = "reward"
    """Only lines with it are shown."""

    @classmethod
    def install(cls, trainer: Trainer) -> None:
        """Replaces the trainer's own progress bar, if it has one."""
        replace_progress(trainer, cls())

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        bar: Any = self.training_bar  # transformers annotates it as None
        if bar is not None and logs and self.MARK in logs:
            shown = {name.split("/")[-1]: f"{logs[name]:.3f}" for name in self.SHOWN if name in logs}
            bar.set_postfix(shown)


class EpisodeProgress(RewardProgress):
    """The same with what episodes brought."""

    SHOWN = ("return", "success", "epsilon", "temperature", "entropy")
    MARK = "loss"
