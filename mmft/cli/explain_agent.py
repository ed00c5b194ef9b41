"""`mmft explain` of an agent: what its decisions in held-out episodes hang on, and a map of its states."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import gymnasium
import torch

from mmft.cli.explain_settings import DECISIONS, POLICY, VALUE, Q, Wanted, nearest
from mmft.config import AgentScriptConfig
from mmft.engine.agent import VLMAgent
from mmft.engine.attribution import Method, explain_decisions
from mmft.engine.environment_pool import EnvironmentPool
from mmft.engine.observations import Observation, ObservationReader
from mmft.engine.playing import Player
from mmft.environments.making import make_environment
from mmft.errors import ConfigError
from mmft.report.episodes import action_names
from mmft.report.explanations import Explained
from mmft.report.heat_maps import Choice
from mmft.report.state_map import StateMap, map_states
from mmft.runs import Run
from mmft.trainers.agent import EVALUATION_SEED

COLUMNS = ("action", "value", "step", "text")
"""What states of an agent can be coloured by."""
MAX_ENVIRONMENTS = 16


@dataclass(frozen=True, slots=True)
class Decided:
    """A state of an agent, and what it does there."""

    environment: int
    step: int
    observation: Observation
    scores: list[float]
    """Q or probability of every action."""
    value: float
    """V, or the largest Q of legal actions."""
    action: int


def load(run: Run) -> VLMAgent:
    """The run's agent, on a GPU where there is one."""
    return run.load_agent(device="cuda" if torch.cuda.is_available() else "cpu")


def explain_agent(run: Run, agent: VLMAgent, wanted: Wanted) -> list[Explained]:
    """What the first decision of each of some held-out episodes hangs on.

    Raises:
        ConfigError: the agent has no such number, there is no such column, or something is asked that is
            for policies.
    """
    _check(wanted)
    _check_column(wanted)
    known = (Q,) if agent.q_head is not None else (POLICY, VALUE)
    target = wanted.target(known, "an agent that learned " + ("Q" if known == (Q,) else "a policy"))
    with playing(run, wanted.rows) as (player, names):
        states = [_decide(agent, player, number, 0) for number in range(wanted.rows)]
    found = explain_decisions(
        agent,
        [each.observation for each in states],
        target=target,
        action=[each.action for each in states],
        method=cast(Method, wanted.method),
    )
    score = "Q(s, a)" if agent.q_head is not None else "probability"
    return [
        Explained(
            ["episode", state.environment, "step", state.step],
            names[state.action],
            state.observation.images,
            attribution,
            choices=_choices(state, names),
            score=score,
        )
        for state, attribution in zip(states, found, strict=True)
    ]


def map_agent(run: Run, agent: VLMAgent, wanted: Wanted) -> tuple[StateMap, list[Any]]:
    """Where states of held-out episodes lie, and what they are coloured by: one of `COLUMNS`."""
    states, names = _played(run, agent, wanted.map_rows)
    with torch.no_grad():
        fused = torch.cat([agent.fused([each.observation]).float().cpu() for each in states])
    labels: dict[str, list[Any]] = {
        "action": [names[each.action] for each in states],
        "value": [each.value for each in states],
        "step": [each.step for each in states],
        "text": [each.observation.text for each in states],
    }
    return map_states(fused), labels[str(wanted.map_by)]


def _check_column(wanted: Wanted) -> None:
    if wanted.map_by is not None and wanted.map_by not in COLUMNS:
        raise ConfigError(
            f"`--map-by` {wanted.map_by!r} is nothing of an agent's. {nearest(wanted.map_by, COLUMNS)}"
        )


def _check(wanted: Wanted) -> None:
    for option, given in (("image", wanted.image), ("token", wanted.token), ("base", wanted.base or None)):
        if given is not None:
            raise ConfigError(
                f"`--{option}` is for policies, and this run trained an agent. Leave it out; what is "
                f"explained are its decisions: `--of {' | '.join(DECISIONS)}`."
            )


@contextmanager
def playing(run: Run, num_envs: int) -> Iterator[tuple[Player, tuple[str, ...]]]:
    """The environments of the run's evaluation, at the beginning of episodes, and their actions' names.

    Raises:
        ConfigError: the run does not say which, or they cannot be made here.
    """
    fields = {each.name for each in dataclasses.fields(AgentScriptConfig)}
    script = AgentScriptConfig(**{name: value for name, value in run.settings.items() if name in fields})
    if script.env is None:
        raise ConfigError(f"{run.folder} holds no config.yaml that names the agent's environment (`env`).")
    run.check_code()
    name, arguments = script.env, script.arguments(evaluation=True)
    made: list[gymnasium.Env[Any, Any]] = []

    def make() -> gymnasium.Env[Any, Any]:
        made.append(make_environment(name, arguments))
        return made[-1]

    seed = int(run.settings.get("seed") or 0) + EVALUATION_SEED
    pool = EnvironmentPool(
        make, num_envs, name=name, seed=seed, time_limit=run.settings.get("env_time_limit")
    )
    try:
        keys = ("image_keys", "text_keys", "number_keys", "instruction")
        reading: dict[str, Any] = {key: run.settings.get(key) for key in keys}
        reader = ObservationReader(pool.observation_space, pool.action_space, environment=name, **reading)
        player = Player(pool, reader)
        player.start()
        yield player, action_names(made[0], reader)
    finally:
        pool.close()


def _played(run: Run, agent: VLMAgent, count: int) -> tuple[list[Decided], tuple[str, ...]]:
    """So many states, of as many episodes as can be played side by side."""
    num_envs = min(MAX_ENVIRONMENTS, count)
    states: list[Decided] = []
    with playing(run, num_envs) as (player, names):
        steps = [0] * num_envs
        while len(states) < count:
            now = [_decide(agent, player, number, steps[number]) for number in range(num_envs)]
            states += now
            played = player.play(torch.tensor([each.action for each in now]))
            ended = played.last.tolist()
            steps = [0 if last else step + 1 for step, last in zip(steps, ended, strict=True)]
    return states[:count], names


@torch.no_grad()
def _decide(agent: VLMAgent, player: Player, number: int, step: int) -> Decided:
    observation, legal = player.observations[number], player.legal[number]
    decisions = agent([observation], legal[None].to(agent.backbone.device))
    if decisions.q is not None:
        scores = decisions.q[0].float().cpu()
        value = float(scores[legal].max())
    else:
        if decisions.logits is None or decisions.values is None:
            raise TypeError("this agent decides nothing")
        scores, value = decisions.logits[0].float().softmax(0).cpu(), float(decisions.values[0])
    action = int(scores.masked_fill(~legal, float("-inf")).argmax())
    return Decided(number, step, observation, scores.tolist(), value, action)


def _choices(state: Decided, names: tuple[str, ...]) -> list[Choice]:
    legal = state.observation.legal
    return [
        Choice(name, score, number == state.action, legal is None or bool(legal[number]))
        for number, (name, score) in enumerate(zip(names, state.scores, strict=True))
    ]
