"""What every training command does around its trainer: opening lines, resuming, keeping a merged model."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from transformers import Trainer

from mmft.cli.loading import parameter_counts, save_model
from mmft.config import RunConfig
from mmft.errors import ConfigError
from mmft.models.backbone import Backbone

CONFIG_FILE = "config.yaml"
SUMMARY_FILE = "summary.json"


def opening(config: RunConfig, backbone: Backbone, num_train: int, num_held_out: int) -> str:
    """Two lines on what is about to happen."""
    counts = parameter_counts(backbone).values()
    total, trained = sum(each for each, _ in counts), sum(each for _, each in counts)
    rows = f"{num_train:,} training rows" + (f", {num_held_out:,} held out" if num_held_out else "")
    return (
        f"{config.model.model_name_or_path}: {total:,} parameters, {trained:,} of them train\n"
        f"{config.script.dataset_name}: {rows}"
    )


def train(trainer: Trainer) -> float:
    """Trains, from a checkpoint if `resume_from_checkpoint` says so; returns the seconds it took.

    Raises:
        ConfigError: there is no such checkpoint.
    """
    resume = resume_point(trainer.args.resume_from_checkpoint, Path(str(trainer.args.output_dir)))
    start = time.perf_counter()
    trainer.train(resume_from_checkpoint=resume)
    return time.perf_counter() - start


def resume_point(given: Any, folder: Path) -> str | None:
    """The checkpoint to go on from; `true` means the last one in the run's folder."""
    word = str(given).lower()
    if given is None or word in ("false", "none", ""):
        return None
    if word == "true":
        found = sorted(folder.glob("checkpoint-*"), key=_step)
        if not found:
            raise ConfigError(
                f"`resume_from_checkpoint` is true, but {folder} holds no checkpoint. Leave it out."
            )
        return str(found[-1])
    if not (Path(given) / "trainer_state.json").is_file():
        raise ConfigError(
            f"`resume_from_checkpoint` {given} holds no trainer_state.json; give `true` or checkpoint-N."
        )
    return str(given)


def _step(checkpoint: Path) -> int:
    number = checkpoint.name.removeprefix("checkpoint-")
    return int(number) if number.isdigit() else -1


def save_merged(trainer: Trainer, backbone: Backbone, folder: Path) -> None:
    """Writes the whole model, adapters in the weights, and the processor. The model is used up by it."""
    if trainer.is_world_process_zero():
        model: Any = backbone.model
        save_model(Backbone(model.merge_and_unload(), backbone.processor), folder)
