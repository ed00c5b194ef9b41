"""`mmft ppo`, `a2c`, `rwl`: held-out scores, training, held-out scores again, and a run folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mmft.cli.console import is_main_process, say
from mmft.cli.evaluate_inputs import Metrics, load_metrics
from mmft.cli.evaluate_report import completions
from mmft.cli.final_push import announce_push, push_finished
from mmft.cli.launch import opening, train, write_config
from mmft.cli.loading import held_out_prompts, load_policy, train_prompts
from mmft.cli.policies import load_rewards, make_trainer
from mmft.cli.run_folder import report
from mmft.config import RunConfig
from mmft.report.record import Evaluation, Outcome
from mmft.trainers.modality_use import held_out_use
from mmft.trainers.online import OnlineTrainer


def run(config: RunConfig) -> int:
    """Trains as the config says; every process calls it, the first one writes and prints."""
    rewards = load_rewards(config)
    train_rows, held_out = train_prompts(config.script), held_out_prompts(config.script)
    metrics = load_metrics(config.script.metrics, held_out) if held_out is not None else None
    backbone = load_policy(config, train=True, keep_base=is_main_process())
    folder = Path(config.training.output_dir)
    if is_main_process():
        write_config(config)
    say(opening(config, backbone, len(train_rows), len(held_out or [])))
    announce_push(config.training)
    trainer = make_trainer(config, backbone, rewards, train_rows, held_out)
    before = evaluate(trainer, "before", metrics)
    seconds = train(trainer)
    trainer.save_model(str(folder))  # before anything that an evaluation can spoil
    after = evaluate(trainer, "after", metrics)
    if trainer.is_world_process_zero():
        report(config, trainer, held_out, Outcome(before, after, seconds))
    return push_finished(config.training, trainer.hub_model_id)


def evaluate(trainer: OnlineTrainer, when: str, metrics: Metrics | None) -> Evaluation | None:
    """Scores the held-out rows; None where there are none."""
    if trainer.eval_dataset is None or metrics is None:
        return None
    say(f"scoring held-out rows {when} training ...")
    evaluation = Evaluation.from_metrics(trainer.evaluate(), trainer.eval_samples)
    if not is_main_process():  # the first process alone writes and prints
        return evaluation
    evaluation = evaluation.with_corpus(metrics.of(completions(evaluation)))
    return dataclasses.replace(evaluation, modality_use=held_out_use(trainer))
