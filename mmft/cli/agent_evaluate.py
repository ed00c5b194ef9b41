"""`mmft evaluate` of a recipe with `env`: the agent of a run plays its evaluation, as it is and blanked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmft.cli.agent_folder import GYMNASIUM, intervals
from mmft.cli.agent_setup import environment_name, look_at_both, make_agent_trainer, play_after
from mmft.cli.console import is_main_process, say, table
from mmft.cli.policies import for_answering
from mmft.config import RunConfig
from mmft.engine.agent import VLMAgent, load_agent
from mmft.errors import ConfigError
from mmft.evaluation.bootstrap import Resampling
from mmft.models.agent_spec import SPEC_FILE
from mmft.report.agent_record import PlayedEpisodes, blanking_warnings, result_table
from mmft.report.record import versions, write_json
from mmft.trainers.callbacks import RunFiles

EVALUATION_FILE = "evaluation.json"
AGENT = "agent"
"""What tables call the agent as it is."""


def run(config: RunConfig) -> int:
    """Every process plays its share, the first one writes and prints."""
    config = dataclasses.replace(config, training=for_answering(config.training))
    folder = agent_folder(config)
    look_at_both(config)
    agent = load_agent(folder)
    agent.encoder.batch_size = config.training.encode_batch_size
    say(f"{folder}: {environment_name(config)}, {config.training.eval_episodes} episodes ...")
    for note in differing_readings(config, agent):
        say(note)
    trainer = make_agent_trainer(config, agent)
    trainer.remove_callback(RunFiles)  # the metrics of the run are those of its training
    played, blanked = play_after(config, trainer, AGENT)
    if is_main_process():
        report(config, folder, played, blanked)
    return 0


def agent_folder(config: RunConfig) -> Path:
    """Where the agent is.

    Raises:
        ConfigError: it is not there.
    """
    given = config.script.agent_path
    folder = Path(config.training.output_dir if given is None else given)
    if not (folder / SPEC_FILE).is_file():
        where = "`agent_path` is unset, and `output_dir`" if given is None else "`agent_path`"
        raise ConfigError(
            f"{where} {folder} holds no {SPEC_FILE}. Give the folder of a finished run, or train one first: "
            f"`mmft {config.script.algorithm} --config FILE`."
        )
    return folder


def differing_readings(config: RunConfig, agent: VLMAgent) -> list[str]:
    """What the settings show an agent otherwise than its training did."""
    trained, now = agent.spec.reading, config.training.reading()
    return [
        f"note: `{name}` is {now[name]!r}, and the agent was trained with {trained[name]!r}"
        for name in trained
        if trained[name] != now.get(name)
    ]


def report(
    config: RunConfig, folder: Path, played: PlayedEpisodes, blanked: Mapping[str, PlayedEpisodes]
) -> None:
    """Writes evaluation.json and prints the table."""
    resampling, evaluations = Resampling(seed=config.training.seed), [played, *blanked.values()]
    target = Path(config.training.output_dir) / EVALUATION_FILE
    warnings = blanking_warnings(played, blanked, resampling)
    record: dict[str, Any] = {
        "agent": str(folder),
        "environment": environment_name(config),
        "env_kwargs": config.script.arguments(evaluation=True),
        "means": played.means,
        "blanked": {modality: each.means for modality, each in blanked.items()},
        "intervals": intervals(evaluations, resampling),
        "warnings": warnings,
        "seed": config.training.seed,
        "versions": versions(GYMNASIUM),
        "episodes": [record for each in evaluations for record in each.records()],
    }
    write_json(target, record)
    say("\n" + table(*result_table(evaluations, resampling)) + "\n")
    for text in warnings:
        say(f"WARNING {text}")
    say(f"{target} holds every episode")
