"""`mmft evaluate`: scores a model, with or without an adapter, on a split with any rewards."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from mmft.cli.console import said_lines, say, table
from mmft.cli.loading import load_policy, load_prompts, load_rewards, model_and_adapter
from mmft.cli.run_folder import row_records
from mmft.config import RunConfig, ScriptConfig
from mmft.data.rows import PromptDataset
from mmft.report.record import LABELS, Evaluation, spread, versions, write_json
from mmft.trainers.ppo import PPOTrainer

EVALUATION_FILE = "evaluation.json"


def run(config: RunConfig) -> int:
    """Answers every row as `eval_temperature` says, judges it, writes JSON and prints the means."""
    script = config.script
    rewards = load_rewards(script)
    rows = split_to_score(script)
    backbone = load_policy(config, train=False)
    # Nothing trains, so no reference policy is needed.
    training = dataclasses.replace(config.training, kl_coef=0.0)
    trainer = PPOTrainer(backbone, rewards.optimised, training, None, rows, eval_funcs=rewards.reported)
    outcome = Evaluation.from_metrics(trainer.evaluate(), trainer.eval_samples)
    if trainer.is_world_process_zero():
        target = Path(script.output_file or Path(config.training.output_dir) / EVALUATION_FILE)
        write_json(target, record(config, rows, outcome))
        show(config, rows, outcome, target)
    return 0


def split_to_score(script: ScriptConfig) -> PromptDataset:
    """The held-out rows, or the training rows where the config names no others."""
    if script.eval_split is None:
        return load_prompts(script, script.train_split, script.max_train_rows)
    return load_prompts(script, script.eval_split, script.max_eval_rows)


def record(config: RunConfig, rows: PromptDataset, outcome: Evaluation) -> dict[str, Any]:
    """What evaluation.json holds."""
    model, adapter = model_and_adapter(config)
    samples = [
        row | {name: value for name, value in sample.items() if name != "row"}
        for row, sample in zip(row_records(rows), outcome.samples, strict=True)
    ]
    return {
        "model": model,
        "adapter": adapter,
        "dataset": config.script.dataset_name,
        "split": rows.name,
        "rows": len(rows),
        "means": outcome.means,
        "versions": versions(),
        "samples": samples,
    }


def show(config: RunConfig, rows: PromptDataset, outcome: Evaluation, target: Path) -> None:
    """Prints the means and some rows."""
    model, adapter = model_and_adapter(config)
    name = f"{model} with adapter {adapter}" if adapter else model
    say(f"{name} on {config.script.dataset_name}, {rows.name}\n")
    lines = [
        (LABELS.get(name, name.removeprefix("rewards/")), f"{mean:.3f}")
        for name, mean in outcome.means.items()
    ]
    say(table((f"{len(rows)} rows", "mean"), lines) + "\n")
    for index in spread(config.script.num_samples, len(rows)):
        sample = outcome.samples[index]
        say(said_lines(rows[index].key, [("", sample["reward"], sample["completion"])]))
    say(f"\n{target} holds the means and every completion")
