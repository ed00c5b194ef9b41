"""`mmft sft`: a warm start on captions, by TRL's SFTTrainer; only the rows and the model are ours."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from datasets import Dataset
from transformers import ProgressCallback

from mmft.cli.console import is_main_process, say
from mmft.cli.final_push import push_finished, take_over_push
from mmft.cli.launch import SUMMARY_FILE, opening, save_merged, train, write_config
from mmft.cli.loading import load_policy, load_rows, merged_folder, model_and_adapter
from mmft.cli.report_command import write_page
from mmft.config import RunConfig, SFTScriptConfig
from mmft.data.rows import PromptDataset
from mmft.errors import ConfigError, DataError
from mmft.models.adapters import can_merge, save_beside
from mmft.report.card import CardFacts, model_card
from mmft.report.record import Change, hardware, versions, write_json
from mmft.tiny import CAPTIONER_NAME
from mmft.trainers.callbacks import RunFiles, replace_progress
from mmft.trl_bridge import SFTTrainer


def run(config: RunConfig) -> int:
    """Trains as the config says; every process calls it, the first one writes and prints."""
    script: SFTScriptConfig = config.script
    train_rows = lessons(script, script.train_split, script.max_train_rows, config.training.seed)
    held_out = (
        None
        if script.eval_split is None
        else lessons(script, script.eval_split, script.max_eval_rows, config.training.seed)
    )
    backbone = load_policy(config, train=True, keep_base=is_main_process())
    mergeable = can_merge(backbone.model)
    if script.save_merged and not mergeable:
        raise ConfigError(
            f"`save_merged` is true, but `peft_method: {script.peft_method}` adapters cannot become part of "
            "the weights. Set `save_merged: false`, and they stay beside the model in `output_dir`."
        )
    folder = Path(config.training.output_dir)
    if is_main_process():
        write_config(config)
    say(opening(config, backbone, len(train_rows), len(held_out or [])))
    repository = take_over_push(config.training)
    # TRL would drop the columns that the lessons' transform turns into messages.
    config.training.remove_unused_columns = False
    trainer = SFTTrainer(
        model=cast(Any, backbone.model),
        args=config.training,
        train_dataset=train_rows,
        eval_dataset=held_out,
        processing_class=backbone.processor,
        callbacks=[RunFiles()],
    )
    replace_progress(trainer, LossProgress())
    before = trainer.evaluate()["eval_loss"] if held_out else None
    seconds = train(trainer)
    after = trainer.evaluate()["eval_loss"] if held_out else None
    trainer.save_model(str(folder))
    if backbone.has_adapters and is_main_process():
        save_beside(backbone.model, folder)
    whole = folder
    if backbone.has_adapters and script.save_merged:
        whole = folder / "merged"
        save_merged(trainer, backbone, whole)
    if trainer.is_world_process_zero():
        summary = summarize(trainer, before, after, seconds) | {"held_out_rows": len(held_out or [])}
        write_json(folder / SUMMARY_FILE, summary)
        page = card(config, summary, adapter=backbone.has_adapters)
        (folder / "README.md").write_text(page, encoding="utf-8")
        write_page(folder)
        say(closing(folder, whole, summary, trains_on=mergeable))
    return push_finished(config.training, repository, wanted=repository is not None)


def summarize(
    trainer: SFTTrainer, before: float | None, after: float | None, seconds: float
) -> dict[str, Any]:
    """What summary.json holds."""
    return {
        "before": {"loss": before},
        "after": {"loss": after},
        "steps": trainer.state.global_step,
        "wall_seconds": round(seconds, 2),
        "num_processes": trainer.accelerator.num_processes,
        "device": str(trainer.args.device),
        "hardware": hardware(),
        "versions": versions(),
    }


def card(config: RunConfig, summary: dict[str, Any], *, adapter: bool) -> str:
    """The run's model card."""
    base, first = model_and_adapter(config)
    before, after = summary["before"]["loss"], summary["after"]["loss"]
    return model_card(
        CardFacts(
            algorithm="sft",
            method="supervised fine-tuning (TRL's SFTTrainer)",
            folder=str(config.training.output_dir),
            base=base if first is None else str(merged_folder(config)),
            dataset=str(config.script.dataset_name),
            rewards=[],
            settings=config.resolved(),
            changes=[] if before is None or after is None else [Change("loss", before, after)],
            num_rows=summary["held_out_rows"],
            versions=summary["versions"],
            adapter=adapter,
            packaged_base=base == CAPTIONER_NAME and first is None,
            summary=summary,
        )
    )


class LossProgress(ProgressCallback):
    """The Trainer's progress bar with the loss behind it instead of a printed line per log."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Called by the Trainer with each log line."""
        bar: Any = self.training_bar  # untyped in transformers
        if bar is not None and logs and "loss" in logs:
            bar.set_postfix({"loss": f"{float(logs['loss']):.3f}"})


def lessons(script: SFTScriptConfig, split: str, max_rows: int | None, seed: int) -> Dataset:
    """The rows of a split in TRL's prompt-completion format, each decoded when it is asked for.

    Pictures go through the same loader as in `ppo` (transparency, rotation): both see the same pixels.
    """
    stored = load_rows(script, split, max_rows)
    prompts = PromptDataset(
        stored, name=split, instruction=script.instruction, system_prompt=script.system_prompt
    )
    pairs = chosen_texts(stored, split, script, seed)
    table = Dataset.from_dict({"row": [row for row, _ in pairs], "text": [text for _, text in pairs]})
    return table.with_transform(_reader(prompts))


def chosen_texts(stored: Dataset, split: str, script: SFTScriptConfig, seed: int) -> list[tuple[int, str]]:
    """(row, text to learn) by `completion_choice`; a random choice depends on the seed and the row only.

    Raises:
        ConfigError: the column does not exist.
        DataError: a row has no text.
    """
    if script.completion_column not in stored.column_names:
        raise ConfigError(
            f"`completion_column` {script.completion_column!r} is no column of the split {split!r}; "
            f"it has {', '.join(stored.column_names)}."
        )
    pairs = []
    for index, value in enumerate(stored[script.completion_column]):
        texts = [value] if isinstance(value, str) else list(value or [])
        texts = [text for text in texts if isinstance(text, str) and text.strip()]
        if not texts:
            raise DataError(
                f"row {index} of {split!r}: `{script.completion_column}` is {value!r}: nothing to learn. "
                "Write a text, or drop the row."
            )
        pairs += [(index, text) for text in _choose(texts, script.completion_choice, f"{seed}/{index}")]
    return pairs


def _choose(texts: list[str], choice: str, seed: str) -> list[str]:
    if choice == "all":
        return texts
    return texts[:1] if choice == "first" else [random.Random(seed).choice(texts)]


def _reader(rows: PromptDataset) -> Callable[[dict[str, list[Any]]], dict[str, list[Any]]]:
    def read(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        prompts = [rows[index] for index in batch["row"]]
        return {
            "images": [row.images for row in prompts],
            "prompt": [row.messages for row in prompts],
            "completion": [[{"role": "assistant", "content": text}] for text in batch["text"]],
        }

    return read


def closing(folder: Path, whole: Path, summary: dict[str, Any], *, trains_on: bool) -> str:
    """What was learned and how to go on; `trains_on` says whether new training can start from it."""
    before, after = summary["before"]["loss"], summary["after"]["loss"]
    losses = "" if before is None else f"held-out loss {before:.3f} before, {after:.3f} after; "
    command = "ppo" if trains_on else "evaluate"
    return (
        f"{losses}{summary['steps']} steps in {summary['wall_seconds']:.0f} s\n"
        f"everything is in {folder}/; go on with `mmft {command} --config FILE --model_name_or_path {whole}`"
    )
