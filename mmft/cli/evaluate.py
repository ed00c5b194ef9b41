"""`mmft evaluate`: scores a model, with or without an adapter, on a split: rewards, metrics, comparisons.

What is wrong in the settings or the data is found before a model is loaded. Everything measured goes into
evaluation.json; `evaluate_tables` shows it.
"""

from __future__ import annotations

import dataclasses
import gc
import json
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmft.cli.console import is_main_process, said_lines, say
from mmft.cli.evaluate_inputs import Metrics, group_columns, load_metrics, number_columns
from mmft.cli.evaluate_other import OtherRun, differing_settings, find_other, read_answers, run_title
from mmft.cli.evaluate_report import (
    Report,
    completions,
    correlations,
    state_correlations,
    subgroups,
    versus_other,
)
from mmft.cli.evaluate_tables import comparison_markdown, tables
from mmft.cli.loading import load_policy, load_prompts, model_and_adapter, train_prompts
from mmft.cli.policies import AnsweringPolicy, Rewards, for_answering
from mmft.cli.run_folder import row_records, unoptimised_measures, weights_of
from mmft.config import RunConfig, ScriptConfig
from mmft.data.rows import PromptDataset
from mmft.engine.judging import RewardSuite
from mmft.engine.prompt_states import combined_states
from mmft.engine.reward_calls import no_reward
from mmft.errors import ConfigError
from mmft.evaluation.bootstrap import Array, Resampling
from mmft.evaluation.health import reward_health
from mmft.evaluation.settings import EvaluationSettings
from mmft.report.record import Evaluation, spread, versions, write_json
from mmft.report.statistics import answers, distinct_measures, estimates
from mmft.resolve import resolve_rewards
from mmft.trainers.reward_state import REWARDS_FILE

EVALUATION_FILE = "evaluation.json"


@dataclass(frozen=True, slots=True)
class Task:
    """Everything that an evaluation needs but the model."""

    config: RunConfig
    rows: PromptDataset
    rewards: Rewards
    metrics: Metrics
    groups: dict[str, list[Hashable]]
    numbers: dict[str, list[float | None]]
    other: OtherRun | None
    resampling: Resampling
    known: tuple[Evaluation, dict[str, Any]] | None = None
    """The other run's answers and their whole record, where they come from a file."""


@dataclass(frozen=True, slots=True)
class Answered:
    """What one model said."""

    evaluation: Evaluation
    weights: dict[str, float]
    """Of the rewards by name; those of weight 0 are only reported."""
    states: Array | None = None
    """(N, M * D) what the model saw of each row, if asked for."""


def run(config: RunConfig) -> int:
    """Answers every row as `eval_temperature` says, judges it, writes JSON and prints tables."""
    task = prepare(config)
    answered = answer(config, task, with_states=config.script.correlate_state)
    other, notes = other_answers(task)
    if is_main_process():
        target = output_file(config)
        report = measure(task, answered, other, notes)
        write_json(target, record(task, report))
        show(task, report, target)
    return 0


def measure(task: Task, answered: Answered, other: Evaluation | None, notes: list[str]) -> Report:
    """Every statistic of the answers."""
    evaluation, states, resampling = answered.evaluation, answered.states, task.resampling
    evaluation = evaluation.with_corpus(task.metrics.of(completions(evaluation)))
    versus = None
    if other is not None and task.other is not None:
        versus = versus_other(
            evaluation,
            other.with_corpus(task.metrics.of(completions(other))),
            names=(task.other.label, task.other.title, run_title(task.config)),
            notes=notes,
            watched=unoptimised_measures(answered.weights, evaluation.means),
            resampling=resampling,
        )
    return Report(
        evaluation=evaluation,
        estimates=estimates(evaluation, resampling),
        health=reward_health(answers(evaluation), resampling),
        subgroups=subgroups(evaluation, task.groups, resampling),
        correlations=correlations(evaluation, task.numbers, resampling),
        state={} if states is None else state_correlations(evaluation, states, resampling),
        versus=versus,
    )


def prepare(config: RunConfig) -> Task:
    """Rows, rewards, metrics and columns.

    Raises:
        ConfigError: nothing is measured, or a setting does not fit the data.
        DataError: the answers to compare with are about other rows.
    """
    script = config.script
    if output_file(config).is_dir():
        raise ConfigError(f"`output_file` {str(script.output_file)!r} is a folder; name a file in it.")
    rewards = load_judges(script)
    rows = split_to_score(script)
    other = find_other(config)
    return Task(
        config=config,
        rows=rows,
        rewards=rewards,
        metrics=load_metrics(script.metrics, rows),
        groups=group_columns(script, rows),
        numbers=number_columns(script, rows),
        other=other,
        resampling=script.resampling(config.training.seed),
        known=read_answers(other.file, row_records(rows)) if other is not None and other.file else None,
    )


def output_file(config: RunConfig) -> Path:
    """Where the result goes."""
    return Path(config.script.output_file or Path(config.training.output_dir) / EVALUATION_FILE)


def load_judges(script: ScriptConfig) -> Rewards:
    """The rewards of a config; one that judges nothing where only others are reported.

    Raises:
        ConfigError: there is nothing to measure.
    """
    optimised = resolve_rewards(script.reward_funcs)[0]
    reported = resolve_rewards(script.eval_funcs)[0]
    if not (optimised or reported or script.metrics):
        raise ConfigError(
            "`reward_funcs`, `eval_funcs` and `metrics` are all empty; name at least one, such as "
            "`reward_funcs: [captioning]` or `metrics: [cider_d]`."
        )
    return Rewards(optimised or [no_reward], reported)


def split_to_score(script: ScriptConfig) -> PromptDataset:
    """The held-out rows, or the training rows where the config names no others."""
    if script.eval_split is None:
        return load_prompts(script, script.train_split, script.max_train_rows)
    return load_prompts(script, script.eval_split, script.max_eval_rows)


def answer(config: RunConfig, task: Task, *, with_states: bool = False) -> Answered:
    """One completion per row by the model of `config`, judged; collective.

    The noise of sampled completions depends on seed and row alone, so that two models draw the same.

    Args:
        config: names the model.
        task: rows and rewards.
        with_states: also give what the model sees of each row.
    """
    backbone = load_policy(config, train=False)
    training, rewards = for_answering(config.training), task.rewards
    if not config.script.reward_funcs:
        training = dataclasses.replace(training, reward_weights=None)
    policy = AnsweringPolicy(
        backbone, rewards.optimised, training, None, task.rows, eval_funcs=rewards.reported
    )
    ready_rewards(task.config, policy.eval_suite)
    evaluation = Evaluation.from_metrics(policy.evaluate(), policy.eval_samples)
    weights = weights_of(policy.eval_suite)
    if not with_states:
        return Answered(evaluation, weights)
    rows = [task.rows[index] for index in range(len(task.rows))]
    encoder = policy.collector.encoder
    states = policy.actor_critic.within_forward(lambda: combined_states(encoder, rows))
    return Answered(evaluation, weights, states.double().numpy())


def ready_rewards(config: RunConfig, suite: RewardSuite) -> None:
    """Gives rewards the state that lies beside the evaluated weights, or the training rows to learn it from.

    Two runs that are compared are judged by the state of the evaluated one."""
    model, adapter = model_and_adapter(config)
    path = Path(adapter or model) / REWARDS_FILE
    state = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    suite.load_state_dict(state)
    named = zip(suite.names, suite.reward_funcs, strict=True)
    if any(hasattr(reward, "prepare") and name not in state for name, reward in named):
        suite.prepare(train_prompts(config.script).column)


def other_answers(task: Task) -> tuple[Evaluation | None, list[str]]:
    """The other run's answers to the same rows, and what makes the two hard to compare; collective."""
    if task.other is None:
        return None, []
    if task.known is not None:
        evaluation, found = task.known
        return evaluation, differing_settings(settings(task.config), found)
    gc.collect()  # the first model goes before the second comes
    return answer(task.other.config, task).evaluation, []


def record(task: Task, report: Report) -> dict[str, Any]:
    """What evaluation.json holds."""
    model, adapter = model_and_adapter(task.config)
    evaluation = report.evaluation
    return {
        "model": model,
        "adapter": adapter,
        "dataset": task.config.script.dataset_name,
        "split": task.rows.name,
        "rows": len(task.rows),
        "settings": settings(task.config),
        "means": evaluation.means,
        "intervals": report.estimates,
        "signatures": evaluation.corpus.signatures if evaluation.corpus else {},
        "masked_samples": evaluation.masked,
        "health": report.health,
        "subgroups": report.subgroups,
        "correlations": report.correlations,
        "state": report.state,
        "comparison": report.versus,
        "versions": versions(),
        "samples": sample_records(task.rows, evaluation),
    }


def settings(config: RunConfig) -> dict[str, Any]:
    """The settings that the numbers depend on."""
    script, training = config.script, config.training
    told = ("reward_funcs", "eval_funcs", *(each.name for each in dataclasses.fields(EvaluationSettings)))
    drawn = ("seed", "eval_temperature", "max_completion_length", "reward_weights")
    return {name: getattr(training, name) for name in drawn} | {name: getattr(script, name) for name in told}


def sample_records(rows: PromptDataset, evaluation: Evaluation) -> list[dict[str, Any]]:
    """Per row its key, prompt and references with the completion and every number it got."""
    scores = evaluation.corpus.per_sample if evaluation.corpus else {}
    return [
        row
        | {name: value for name, value in sample.items() if name != "row"}
        | {"metrics": {name: values[index] for name, values in scores.items()}}
        for index, (row, sample) in enumerate(zip(row_records(rows), evaluation.samples, strict=True))
    ]


def show(task: Task, report: Report, target: Path) -> None:
    """Prints tables and some rows; a comparison is written as Markdown too."""
    config, evaluation = task.config, report.evaluation
    say(f"{run_title(config)} on {config.script.dataset_name}, {task.rows.name}\n")
    say("\n\n".join(tables(report, config.script.confidence_level)) + "\n")
    for index in spread(config.script.num_samples, len(task.rows)):
        sample = evaluation.samples[index]
        say(said_lines(task.rows[index].key, [("", sample["reward"], sample["completion"])]))
    say(f"\n{target} holds every number and every completion")
    if report.versus is not None:
        page = target.with_suffix(".md")
        names = distinct_measures(evaluation)
        text = comparison_markdown(report.versus, names, config.script.confidence_level)
        page.write_text(text, encoding="utf-8")
        say(f"{page} holds the comparison as Markdown")
