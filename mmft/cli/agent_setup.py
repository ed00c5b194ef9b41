"""From settings to an agent's environments and trainer, and the evaluations that its commands share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium

from mmft.cli.loading import parameter_counts
from mmft.config import AgentScriptConfig, RunConfig
from mmft.engine.agent import VLMAgent
from mmft.engine.observations import ObservationReader
from mmft.environments.making import make_environment
from mmft.errors import ConfigError
from mmft.models.backbone import Backbone
from mmft.report.agent_record import AFTER, BEFORE, BLANKED, RANDOM, PlayedEpisodes
from mmft.report.episodes import action_names
from mmft.trainers.agent import AgentTrainer
from mmft.trainers.registry import ALGORITHMS

Environment = gymnasium.Env[Any, Any]
SHOWN_NAMES = 8
"""Of actions, in one line."""


@dataclass(frozen=True, slots=True)
class Looked:
    """What an environment is like, without having played it."""

    reader: ObservationReader
    observation_space: str
    action_space: str
    names: tuple[str, ...]
    """Of the actions."""


def environment_name(config: RunConfig) -> str:
    """The environment's id; recipes of agents have one."""
    script: AgentScriptConfig = config.script
    return str(script.env)


def environment_maker(config: RunConfig, *, evaluation: bool = False) -> Callable[[], Environment]:
    """Makes the environment that is trained in, or the one that is evaluated in."""
    name, arguments = environment_name(config), config.script.arguments(evaluation=evaluation)

    def make() -> Environment:
        return make_environment(name, arguments)

    make.__name__ = name  # what trainers and errors call it
    return make


def look(config: RunConfig, *, evaluation: bool = False) -> Looked:
    """Makes the environment once.

    Raises:
        ConfigError: it cannot be made or read.
    """
    env = environment_maker(config, evaluation=evaluation)()
    try:
        observations, actions = env.observation_space, env.action_space
        reading = config.training.reading()
        reader = ObservationReader(observations, actions, environment=environment_name(config), **reading)
        return Looked(reader, str(observations), str(actions), action_names(env, reader))
    finally:
        env.close()


def look_at_both(config: RunConfig) -> Looked:
    """The environment of training, and whether the agent can act in that of evaluation too.

    Raises:
        ConfigError: one cannot be made or read, or they differ in what the agent is built for.
    """
    looked = look(config)
    if config.script.eval_env_kwargs:
        other = look(config, evaluation=True).reader
        for name in ("num_actions", "num_numbers", "image_keys", "text_keys"):
            here, there = getattr(looked.reader, name), getattr(other, name)
            if here != there:
                raise ConfigError(
                    f"`eval_env_kwargs` {config.script.eval_env_kwargs} make an environment with "
                    f"{name}={there}, where training has {name}={here}. Let them agree."
                )
    return looked


def make_agent_trainer(config: RunConfig, model: Backbone | VLMAgent) -> AgentTrainer:
    """The trainer of the config's algorithm, in its environments."""
    script: AgentScriptConfig = config.script
    trainer = ALGORITHMS[script.algorithm].load_agent_trainer()
    own = environment_maker(config, evaluation=True) if script.eval_env_kwargs else None
    return trainer(
        model,
        environment_name(config),
        config.training,
        env_kwargs=script.arguments(),
        eval_env=own,
    )


def method(config: RunConfig) -> str:
    """The algorithm of a config in words."""
    return ALGORITHMS[config.script.algorithm].title


def blankable(config: RunConfig, reader: ObservationReader) -> list[str]:
    """Modalities that say something: an instruction that is always the same tells nothing of a state."""
    instruction = config.training.instruction
    says_something = bool(reader.text_keys) if instruction is None else "{" in instruction
    return ["image"] * bool(reader.image_keys) + ["text"] * says_something


def play(trainer: AgentTrainer, name: str, blank: str | None = None) -> PlayedEpisodes:
    """The episodes of an evaluation; collective."""
    trainer.evaluate(blank=blank)
    return PlayedEpisodes(name, list(trainer.eval_episodes))


def play_before(trainer: AgentTrainer) -> PlayedEpisodes:
    """As `play`, before training: at random where the agent's features have no statistics yet."""
    return play(trainer, BEFORE if trainer.agent.transforms.is_fitted else RANDOM)


def play_after(
    config: RunConfig, trainer: AgentTrainer, name: str = AFTER
) -> tuple[PlayedEpisodes, dict[str, PlayedEpisodes]]:
    """The agent as it is, and the same without each of its modalities."""
    blanked = {
        modality: play(trainer, BLANKED[modality], modality)
        for modality in blankable(config, trainer.player.reader)
    }
    return play(trainer, name), blanked  # last, so that the trainer is left with the agent's own episodes


def opening(config: RunConfig, looked: Looked, agent: VLMAgent) -> str:
    """What is about to happen, in a few lines."""
    counts = parameter_counts(agent.backbone).values()
    total, trained = sum(each for each, _ in counts), sum(each for _, each in counts)
    own = sum(each.numel() for name, each in agent.named_parameters() if not name.startswith("backbone."))
    return (
        f"{config.model.model_name_or_path}: {total:,} parameters, {trained:,} of them train; {own:,} more "
        f"in fusion and heads\n"
        f"{environment_name(config)}: {actions_line(looked)}\n"
        f"{reading_line(config, looked)}; fusion {agent.spec.fusion} of {', '.join(agent.spec.modalities)}"
    )


def actions_line(looked: Looked) -> str:
    """How many actions there are, and what they are called."""
    names = [*looked.names[:SHOWN_NAMES], *(["..."] if len(looked.names) > SHOWN_NAMES else [])]
    return f"{looked.reader.num_actions} actions ({', '.join(names)})"


def reading_line(config: RunConfig, looked: Looked) -> str:
    """What of an observation reaches the agent."""
    reader, instruction = looked.reader, config.training.instruction
    parts = [f"pictures {', '.join(reader.image_keys)}"] if reader.image_keys else []
    if instruction is not None:
        parts.append(f"the instruction {instruction!r}")
    elif reader.text_keys:
        parts.append(f"texts {', '.join(reader.text_keys)}")
    if reader.number_keys:
        parts.append(f"numbers {', '.join(reader.number_keys)} ({reader.num_numbers} in all)")
    return f"reads {'; '.join(parts)}"
