"""What every training command does around its trainer: opening lines, resuming, keeping a merged model."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

from transformers import Trainer

from mmft.cli.loading import parameter_counts, save_model
from mmft.config import RunConfig
from mmft.errors import ConfigError
from mmft.models.backbone import Backbone
from mmft.report.explanations import EXPLAIN_FILE, EXPLAIN_FOLDER, forget
from mmft.report.page_data import REPORT_FILE
from mmft.report.page_source import EPISODES_FILE
from mmft.report.thumbnails import SAMPLES_FOLDER
from mmft.trainers.callbacks import SAMPLES_FILE

CONFIG_FILE = "config.yaml"
SUMMARY_FILE = "summary.json"
RESULTS = (SUMMARY_FILE, SAMPLES_FILE, EPISODES_FILE, REPORT_FILE)
THUMBNAIL = re.compile(r"\d{5,}(_\d)?\.jpg")
"""The names of `report.thumbnails`."""


def write_config(config: RunConfig) -> None:
    """config.yaml in the run's folder, without the results of an earlier run unless this one goes on."""
    folder = Path(config.training.output_dir)
    if not _resumes(config.training.resume_from_checkpoint):
        clear_results(folder)
    config.save(folder / CONFIG_FILE)


def clear_results(folder: Path) -> None:
    """Removes what an earlier run reported, which a report of the next would take for its own.

    Checkpoints, weights and whatever mmft did not write stay.
    """
    if (folder / SAMPLES_FILE).is_file():
        for path in (folder / SAMPLES_FOLDER).glob("*.jpg"):
            if THUMBNAIL.fullmatch(path.name):
                path.unlink()
    forget(folder / EXPLAIN_FOLDER)
    explained = folder / EXPLAIN_FOLDER / EXPLAIN_FILE
    for path in (explained, *(folder / name for name in RESULTS)):
        if path.is_file():
            path.unlink()
    for name in (SAMPLES_FOLDER, EXPLAIN_FOLDER):
        if (folder / name).is_dir() and not any((folder / name).iterdir()):
            (folder / name).rmdir()


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
    if not _resumes(given):
        return None
    if str(given).lower() == "true":
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


def _resumes(given: Any) -> bool:
    return str(given).lower() not in ("false", "none", "")


def _step(checkpoint: Path) -> int:
    number = checkpoint.name.removeprefix("checkpoint-")
    return int(number) if number.isdigit() else -1


def save_merged(trainer: Trainer, backbone: Backbone, folder: Path) -> None:
    """Writes the whole model, adapters in the weights, and the processor. The model is used up by it."""
    if trainer.is_world_process_zero():
        model: Any = backbone.model
        save_model(Backbone(model.merge_and_unload(), backbone.processor), folder)
