"""The run folder of an agent when training is over, and the short story on the terminal."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object

from mmft.cli.agent_setup import Looked, environment_maker, environment_name, method
from mmft.cli.console import say, table
from mmft.cli.explain_finished import explain_decisions
from mmft.cli.launch import CONFIG_FILE, SUMMARY_FILE
from mmft.cli.loading import model_and_adapter
from mmft.cli.report_command import write_page
from mmft.config import RunConfig
from mmft.engine.actor_critic import evaluating
from mmft.engine.agent import VLMAgent
from mmft.errors import EnvError
from mmft.evaluation.bootstrap import Resampling
from mmft.models.agent_spec import Q
from mmft.report.agent_card import CURVES_FILE, EPISODE_FILE, MOVING_FILE, AgentFacts, agent_card
from mmft.report.agent_curves import draw_agent_curves
from mmft.report.agent_record import (
    RANDOM,
    RETURN,
    AgentOutcome,
    PlayedEpisodes,
    blanking_warnings,
    result_table,
    training_warnings,
)
from mmft.report.episode_pictures import draw_gif, draw_strip
from mmft.report.episodes import record_episodes
from mmft.report.page_data import REPORT_FILE
from mmft.report.record import hardware, read_json_lines, versions, write_json, write_json_lines
from mmft.trainers.agent import EVALUATION_SEED, AgentTrainer
from mmft.trainers.callbacks import METRICS_FILE
from mmft.trainers.dqn import DQNTrainer

EPISODES_FILE = "episodes.jsonl"
GYMNASIUM = "gymnasium"


@dataclass(frozen=True, slots=True)
class Usage:
    """What all processes together needed."""

    environment_steps: int
    env_restarts: int
    env_failures: Sequence[str]
    """The last ones, in words."""
    num_asked: int
    """States that were asked for."""
    num_encoded: int
    """States that went through the model."""


def gather_usage(trainer: AgentTrainer) -> Usage:
    """Of every process; collective."""
    pool, encoder = trainer.player.pool, trainer.agent.encoder
    own = (trainer.player.num_played, pool.num_restarts, list(pool.failures))
    parts: list[Any] = gather_object([(*own, encoder.num_asked, encoder.num_encoded)])
    return Usage(
        environment_steps=sum(part[0] for part in parts),
        env_restarts=sum(part[1] for part in parts),
        env_failures=[failure for part in parts for failure in part[2]],
        num_asked=sum(part[3] for part in parts),
        num_encoded=sum(part[4] for part in parts),
    )


def report(
    config: RunConfig, trainer: AgentTrainer, looked: Looked, outcome: AgentOutcome, usage: Usage
) -> None:
    """Writes summary, episodes, pictures and the model card, and prints the evaluations."""
    folder, resampling = Path(config.training.output_dir), Resampling(seed=config.training.seed)
    warnings = training_warnings(outcome, resampling)
    warnings += blanking_warnings(outcome.after, outcome.blanked, resampling)
    warnings += restart_warnings(usage)
    summary = summarize(config, trainer, looked, outcome, usage) | {"warnings": warnings}
    summary["intervals"] = intervals(outcome.evaluations, resampling)
    summary["modality_use"] = explain_decisions(config, trainer, folder)
    write_json(folder / SUMMARY_FILE, summary)
    records = [record for played in outcome.evaluations for record in played.records()]
    write_json_lines(folder / EPISODES_FILE, records)
    header, rows = result_table(outcome.evaluations, resampling)
    say("\n" + table(header, rows))
    pictures = [*draw_run(folder, outcome), *draw_episodes(config, trainer, folder)]
    page = card(config, trainer.agent, (header, rows), summary, pictures)
    (folder / "README.md").write_text(page, encoding="utf-8")
    write_page(folder)
    say("\n" + closing(folder, summary))


def summarize(
    config: RunConfig, trainer: AgentTrainer, looked: Looked, outcome: AgentOutcome, usage: Usage
) -> dict[str, Any]:
    """What summary.json holds, but for intervals and warnings."""
    agent, script = trainer.agent, config.script
    buffer = trainer.buffer if isinstance(trainer, DQNTrainer) else None
    return {
        "algorithm": script.algorithm,
        "trainer": type(trainer).__name__,
        "environment": environment_name(config),
        "env_kwargs": script.arguments(),
        "eval_env_kwargs": script.arguments(evaluation=True),
        "observation_space": looked.observation_space,
        "action_space": looked.action_space,
        "actions": list(looked.names),
        "before": outcome.before.means,
        "before_acts_at_random": outcome.before.name == RANDOM,
        "after": outcome.after.means,
        "blanked": {modality: played.means for modality, played in outcome.blanked.items()},
        "episodes": len(outcome.after.episodes),
        "steps": trainer.state.global_step,
        "environment_steps": usage.environment_steps,
        "wall_seconds": round(outcome.seconds, 2),
        "env_restarts": usage.env_restarts,
        "env_failures": usage.env_failures,
        "buffer": None if buffer is None else {"holds": buffer.describe(), "bytes": buffer.num_bytes},
        "encoder": {
            "asked": usage.num_asked,
            "encoded": usage.num_encoded,
            "cache_hit_rate": agent.encoder.cache.hit_rate,
        },
        "feature_widths": agent.transforms.widths,
        "num_processes": trainer.accelerator.num_processes,
        "device": str(trainer.args.device),
        "hardware": hardware(),
        "versions": versions(GYMNASIUM),
    }


def intervals(
    evaluations: Sequence[PlayedEpisodes], resampling: Resampling
) -> dict[str, dict[str, tuple[float, float]]]:
    """Per evaluation and measure the bounds of the mean."""
    return {
        played.name: {name: (each.low, each.high) for name, each in played.estimates(resampling).items()}
        for played in evaluations
    }


def restart_warnings(usage: Usage) -> list[str]:
    """That environments failed, and how the last one did."""
    if not usage.env_restarts:
        return []
    return [
        f"Environments were made anew after {failures(usage.env_restarts)}; the last one: "
        f"{usage.env_failures[-1]}"
    ]


def failures(count: int) -> str:
    """How many, in words."""
    return f"{count:,} failure{'s' if count != 1 else ''}"


def draw_run(folder: Path, outcome: AgentOutcome) -> list[str]:
    """Draws the curves; returns the file's name."""
    best = [each.optimal_return for each in outcome.after.episodes if each.optimal_return is not None]
    draw_agent_curves(
        read_json_lines(folder / METRICS_FILE),
        folder / CURVES_FILE,
        evaluated=(outcome.before.means[RETURN], outcome.after.means[RETURN]),
        before=outcome.before.name,
        best=statistics.fmean(best) if best else None,
    )
    return [CURVES_FILE]


def draw_episodes(config: RunConfig, trainer: AgentTrainer, folder: Path) -> list[str]:
    """Plays and draws some episodes of the evaluation; returns the files' names."""
    args, count = config.training, config.script.num_samples
    if not count:
        return []
    try:
        with evaluating(trainer.agent):
            recordings = record_episodes(
                environment_maker(config, evaluation=True),
                trainer.act,
                count,
                name=environment_name(config),
                seed=args.seed + EVALUATION_SEED,
                reading=args.reading(),
                time_limit=args.env_time_limit,
            )
    except EnvError as error:  # the run is over, and its numbers are written
        say(f"note: no episode is drawn: {error}")
        return []
    scores = "Q(s, a)" if trainer.kind == Q else "probability"
    draw_strip(recordings, folder / EPISODE_FILE, scores)
    draw_gif(recordings, folder / MOVING_FILE, scores)
    return [EPISODE_FILE, MOVING_FILE]


def card(
    config: RunConfig,
    agent: VLMAgent,
    results: tuple[Sequence[str], Sequence[Sequence[str]]],
    summary: Mapping[str, Any],
    pictures: Sequence[str],
) -> str:
    """The run's model card."""
    return agent_card(
        AgentFacts(
            algorithm=config.script.algorithm,
            method=method(config),
            folder=str(config.training.output_dir),
            base=model_and_adapter(config)[0],
            environment=environment_name(config),
            arguments=config.script.arguments(evaluation=True),
            kind=agent.spec.kind,
            trained=what_trained(agent),
            table=results,
            settings=config.resolved(),
            versions=versions(GYMNASIUM),
            warnings=summary["warnings"],
            pictures=pictures,
            means=summary["after"],
            summary=summary,
        )
    )


def what_trained(agent: VLMAgent) -> str:
    """Of the pretrained model, in a sentence."""
    if not agent.trains_backbone:
        return "The pretrained model is frozen; what reads its embeddings was trained."
    part = (
        "Adapters of the pretrained model" if agent.backbone.has_adapters else "Weights of the model itself"
    )
    return f"{part} were trained along with what reads its embeddings."


def closing(folder: Path, summary: dict[str, Any]) -> str:
    """How long it took, what it needed and where everything is."""
    lines = [f"WARNING {text}" for text in summary["warnings"]]
    encoder, buffer = summary["encoder"], summary["buffer"]
    lines.append(
        f"{summary['steps']:,} optimizer steps, {summary['environment_steps']:,} steps in "
        f"{summary['environment']} in {summary['wall_seconds']:.0f} s; of {encoder['asked']:,} states "
        f"{encoder['encoded']:,} went through the model"
    )
    if buffer is not None:
        lines.append(f"buffer: {buffer['holds']}")
    names = (
        REPORT_FILE, SUMMARY_FILE, EPISODES_FILE, METRICS_FILE, CURVES_FILE, EPISODE_FILE, MOVING_FILE,
        CONFIG_FILE, "README.md",
    )  # fmt: skip
    written = [name for name in names if (folder / name).is_file() or name == "README.md"]
    lines.append(f"{folder}/ holds the agent and {', '.join(written)}")
    return "\n".join(lines)
