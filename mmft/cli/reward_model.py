"""`mmft reward-model`: learns a reward from preferences or ratings; held-out rows before and after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import ProgressCallback

from mmft.cli.console import is_main_process, say
from mmft.cli.final_push import announce_push, push_finished
from mmft.cli.launch import opening, train, write_config
from mmft.cli.loading import load_policy, load_rows
from mmft.cli.reward_model_report import report, with_binary_measures
from mmft.config import RewardModelScriptConfig, RunConfig
from mmft.data.rows import PromptDataset
from mmft.data.splits import held_out_rows
from mmft.errors import ConfigError, DataError
from mmft.report.record import Evaluation, Outcome
from mmft.trainers.callbacks import replace_progress
from mmft.trainers.reward_model import RewardModelTrainer

WORDS = {"true": 1.0, "false": 0.0}
"""Ratings that may be written as words, in any case; booleans count likewise."""


def run(config: RunConfig) -> int:
    """Trains as the config says; every process calls it, the first one writes and prints."""
    script: RewardModelScriptConfig = config.script
    train_rows, held_out = judged_rows(script, config.training.learns_preferences, config.training.seed)
    backbone = load_policy(config, train=True, keep_base=is_main_process())
    folder = Path(config.training.output_dir)
    if is_main_process():
        write_config(config)
    say(opening(config, backbone, len(train_rows), len(held_out or [])))
    announce_push(config.training)
    trainer = RewardModelTrainer(
        backbone,
        config.training,
        as_prompts(train_rows, script, script.train_split),
        None if held_out is None else as_prompts(held_out, script, script.eval_split or "held out"),
    )
    replace_progress(trainer, JudgementProgress())
    before = evaluate(trainer, "before")
    seconds = train(trainer)
    after = evaluate(trainer, "after")
    trainer.save_model(str(folder))
    if trainer.is_world_process_zero():
        report(config, trainer, held_out, Outcome(before, after, seconds))
    return push_finished(config.training, trainer.hub_model_id)


class JudgementProgress(ProgressCallback):
    """The Trainer's progress bar with loss and accuracy behind it instead of a printed line per log."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Called by the Trainer with each log line."""
        bar: Any = self.training_bar  # untyped in transformers
        if bar is not None and logs and "loss" in logs:
            shown = {name: f"{float(logs[name]):.3f}" for name in ("loss", "accuracy") if name in logs}
            bar.set_postfix(shown)


def evaluate(trainer: RewardModelTrainer, when: str) -> Evaluation | None:
    """Judges the held-out rows; None where there are none."""
    if trainer.eval_dataset is None:
        return None
    say(f"judging held-out rows {when} training ...")
    return with_binary_measures(Evaluation.from_metrics(trainer.evaluate(), trainer.eval_samples))


def as_prompts(rows: Dataset, script: RewardModelScriptConfig, name: str) -> PromptDataset:
    """The rows as the trainer reads them."""
    return PromptDataset(rows, name=name, instruction=script.instruction, system_prompt=script.system_prompt)


def judged_rows(
    script: RewardModelScriptConfig, preferences: bool, seed: int
) -> tuple[Dataset, Dataset | None]:
    """Rows to train on and rows held out, with the columns that the trainer reads, ratings as numbers."""
    rows = load_rows(script, script.train_split, script.max_train_rows)
    held_out = None
    if script.eval_split is not None:
        held_out = load_rows(script, script.eval_split, script.max_eval_rows)
    elif script.held_out_share is not None:
        rows, held_out = split_rows(rows, script.held_out_share, script.split_column, seed)
        if script.max_eval_rows is not None and script.max_eval_rows < len(held_out):
            held_out = held_out.select(range(script.max_eval_rows))
    train_rows = with_columns(rows, script, preferences, script.train_split)
    column = script.group_column
    if held_out is not None and column is not None and column not in held_out.column_names:
        raise ConfigError(
            f"`group_column` {column!r} is no column of the held-out rows; they have "
            f"{', '.join(held_out.column_names)}."
        )
    if held_out is None:
        return train_rows, None
    return train_rows, with_columns(held_out, script, preferences, script.eval_split or "held out")


def split_rows(rows: Dataset, share: float, column: str | None, seed: int) -> tuple[Dataset, Dataset]:
    """Holds out a share of the rows, or of the values of a column with all rows that have them.

    Raises:
        ConfigError: there is no such column, or a side would be empty.
    """
    if column is not None and column not in rows.column_names:
        raise ConfigError(
            f"`split_column` {column!r} is no column of the rows; they have {', '.join(rows.column_names)}."
        )
    keys: list[Any] = list(range(len(rows))) if column is None else [str(value) for value in rows[column]]
    what = "rows" if column is None else f"values of `{column}`"
    held_out = held_out_rows(keys, share, seed=seed, what=what)
    kept = [row for row in range(len(rows)) if row not in held_out]
    return rows.select(kept), rows.select(sorted(held_out))


def with_columns(rows: Dataset, script: RewardModelScriptConfig, preferences: bool, split: str) -> Dataset:
    """The rows with the columns' names that the trainer knows, and ratings as numbers.

    Raises:
        ConfigError: a column is missing or a name is taken.
        DataError: a rating is neither a number nor true or false.
    """
    wanted = {"chosen": script.chosen_column, "rejected": script.rejected_column}
    if script.margin_column is not None:
        wanted["margin"] = script.margin_column
    if not preferences:
        wanted = {"completion": script.completion_column, "rating": script.rating_column}
    for name, column in wanted.items():
        if column not in rows.column_names:
            raise ConfigError(
                f"`{name}_column` {column!r} is no column of the split {split!r}; it has "
                f"{', '.join(rows.column_names)}. Ratings need `loss_type: mse` or `heteroscedastic`, "
                "preferences `bradley_terry`."
            )
        if column != name and name in rows.column_names:
            raise ConfigError(
                f"`{name}_column` is {column!r}, but the split {split!r} has a column {name!r} too. Rename "
                "that one (`rename_columns`)."
            )
        rows = rows if column == name else rows.rename_column(column, name)
    if preferences:
        return rows
    ratings = [
        rating(value, index, split, script.rating_column) for index, value in enumerate(rows["rating"])
    ]
    # Added before the old one goes: a dataset whose last column goes forgets how many rows it has.
    return rows.add_column("numbers", ratings).remove_columns("rating").rename_column("numbers", "rating")


def rating(value: Any, index: int, split: str, column: str) -> float:
    """A rating as a number: `true` is 1 and `false` 0, as words or booleans; numbers stay, text or not.

    Raises:
        DataError: it is something else.
    """
    text = str(value).strip().lower()
    try:
        return WORDS[text] if text in WORDS else float(text)
    except ValueError as error:
        raise DataError(
            f"row {index} of {split!r}: `{column}` is {value!r}; a rating is a number, true or false. "
            "Write one, or drop the row."
        ) from error
