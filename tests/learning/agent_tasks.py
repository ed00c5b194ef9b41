"""Decision problems whose answer is known: a chain of states that are said, arms that a picture tells apart.

Both have few observations, so that a frozen model encodes each once and steps cost next to nothing.

Shapes: S states, A actions.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from mmft.engine.observations import Observation
from mmft.engine.playing import legal_actions
from mmft.models.packaged import CAPTIONER_NAME
from mmft.tiny.drawing import draw_scene
from mmft.tiny.lexicon import CANVAS, SceneObject
from mmft.trainers.agent import AgentTrainer
from mmft.trainers.agent_config import AgentConfig

LEFT, RIGHT = range(2)
LENGTH = 5
LOW, HIGH = 0.2, 1.0
"""What leaving the chain pays, at its left end and at its right one."""
MIDDLE = LENGTH // 2
GAMMA = 0.9

State = tuple[int, int]
"""Where in the chain, and how many steps a limited episode still has."""
Shown = tuple[dict[str, Any], dict[str, Any]]
"""An observation, and the `info` beside it."""


class Problem(Protocol):
    """An environment all of whose states can be shown."""

    def all_shown(self) -> list[Shown]:
        """Every state as the agent sees it, (S)."""


class Chain(gymnasium.Env[dict[str, Any], Any]):
    """Five states in a row, as text. Leaving the row pays 0.2 on the left and 1 on the right.

    An episode begins anywhere. Leaving ends it, unless `endless`: then it goes on in the middle. After as
    many steps as the text counts down from `limit` it ends in any case, truncated, or if `limit_terminates`
    because nothing follows; what a truncated episode ends in counts from `limit` again, as if it went on.
    """

    def __init__(
        self,
        *,
        endless: bool = False,
        limit: int = 0,
        limit_terminates: bool = False,
        barrier: int | None = None,
        exploring_starts: bool = False,
    ) -> None:
        """Sets the rules.

        Args:
            endless: leaving the row does not end the episode.
            limit: steps of an episode at most; 0 is no limit.
            limit_terminates: whether the limit is the end of the world or of our patience.
            barrier: a state that cannot be left to the right.
            exploring_starts: draw the first action of an episode too, by allowing no other. Then an agent
                that is always greedy tries everything.
        """
        self.endless, self.limit, self.limit_terminates = endless, limit, limit_terminates
        self.barrier, self.exploring_starts = barrier, exploring_starts
        self.observation_space = spaces.Dict({"text": spaces.Text(20)})
        self.action_space = spaces.Discrete(2)
        self.state: State = (0, limit)

    def states(self) -> list[State]:
        """All there are, (S)."""
        return [(place, left) for place in range(LENGTH) for left in range(1, self.limit + 1) or [0]]

    def legal(self, place: int) -> list[int]:
        """The actions that may be taken."""
        return [LEFT] if place == self.barrier else [LEFT, RIGHT]

    def outcome(self, state: State, action: int) -> tuple[float, State, bool]:
        """Reward, the state that follows, and whether nothing follows. Truncation changes none of them."""
        place, left = state
        place += 1 if action == RIGHT else -1
        reward = LOW if place < 0 else HIGH if place == LENGTH else 0.0
        terminated = (bool(reward) and not self.endless) or (self.limit_terminates and left == 1)
        following = (MIDDLE if reward else place, left - 1 if left > 1 else self.limit)
        return reward, following, terminated

    def shown(self, state: State, actions: list[int] | None = None) -> Shown:
        """How a state looks; `actions` are the legal ones, if these are not the state's own."""
        place, left = state
        mask = np.zeros(2, dtype=np.int8)
        mask[self.legal(place) if actions is None else actions] = 1
        return {"text": f"state {place}, {left} left" if self.limit else f"state {place}"}, {
            "action_mask": mask
        }

    def all_shown(self) -> list[Shown]:
        return [self.shown(state) for state in self.states()]

    def reset(self, *, seed: int | None = None, options: Any = None) -> Shown:
        super().reset(seed=seed)
        states = self.states()
        self.state = states[int(self.np_random.integers(len(states)))]
        actions = self.legal(self.state[0])
        if self.exploring_starts:
            actions = [actions[int(self.np_random.integers(len(actions)))]]
        return self.shown(self.state, actions)

    def step(self, action: int) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        at_limit = self.state[1] == 1
        reward, self.state, terminated = self.outcome(self.state, action)
        observation, info = self.shown(self.state)
        return observation, reward, terminated, at_limit and not terminated, info


def optimal_values(chain: Chain) -> Tensor:
    """(S, A) Q* by value iteration, NaN at illegal actions."""
    values = dict.fromkeys(chain.states(), 0.0)

    def worth(state: State, action: int) -> float:
        reward, following, terminated = chain.outcome(state, action)
        return reward if terminated else reward + GAMMA * values[following]

    for _ in range(300):  # GAMMA^300 is 2e-14
        values = {state: max(worth(state, action) for action in chain.legal(state[0])) for state in values}
    table = torch.full((len(values), 2), torch.nan)
    for row, state in enumerate(values):
        for action in chain.legal(state[0]):
            table[row, action] = worth(state, action)
    return table


ARMS = torch.tensor([[0.9, 0.5, 0.1], [0.1, 0.9, 0.5], [0.5, 0.1, 0.9]])
"""What each arm pays on average, by picture; to those who do not look they all pay 0.5."""
LUCK = 0.25
"""Added to what an arm pays, or taken from it."""


class Arms(gymnasium.Env[dict[str, Any], Any]):
    """Three arms, and a picture that says which of them is good today."""

    def __init__(self) -> None:
        self.observation_space = spaces.Dict({"image": spaces.Box(0, 255, (CANVAS, CANVAS, 3), np.uint8)})
        self.action_space = spaces.Discrete(ARMS.shape[1])
        self.pictures = [_picture(shape) for shape in ("circle", "square", "star")]
        self.context = 0

    def all_shown(self) -> list[Shown]:
        return [({"image": picture}, {}) for picture in self.pictures]

    def reset(self, *, seed: int | None = None, options: Any = None) -> Shown:
        super().reset(seed=seed)
        self.context = int(self.np_random.integers(len(self.pictures)))
        return {"image": self.pictures[self.context]}, {}

    def step(self, action: int) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        luck = LUCK if self.np_random.random() < 0.5 else -LUCK
        reward = float(ARMS[self.context, action]) + luck
        return {"image": self.pictures[self.context]}, reward, True, False, {}


def _picture(shape: str) -> NDArray[np.uint8]:
    middle = CANVAS / 2
    return np.array(draw_scene([SceneObject("red", shape, "large", middle, middle)], random.Random(0)))


def make_agent(
    trainer_class: type[AgentTrainer],
    config_class: type[AgentConfig],
    env: str | Callable[[], gymnasium.Env[Any, Any]],
    folder: Path,
    *,
    env_kwargs: dict[str, Any] | None = None,
    **settings: Any,
) -> Any:
    """The packaged captioner, frozen, with small heads that learn."""
    defaults = {
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "dataloader_pin_memory": False,
        "logging_steps": 1_000_000,
        "hidden_sizes": [64],
        "learning_rate": 3e-3,
        "gamma": GAMMA,
        "seed": 1,
    }
    args = config_class(output_dir=str(folder), **(defaults | settings))
    return trainer_class(CAPTIONER_NAME, env, args, env_kwargs=env_kwargs)


def learned_scores(trainer: AgentTrainer, problem: Problem) -> Tensor:
    """(S, A) what the agent makes of each action in each state: its Q-value or its probability."""
    _, scores = trainer.act(*_seen(trainer, problem))
    return scores


@torch.no_grad()
def learned_values(trainer: AgentTrainer, problem: Problem) -> Tensor:
    """(S) what the critic makes of each state."""
    observations, legal = _seen(trainer, problem)
    values: Tensor = trainer.agent(trainer.states(observations), legal).values
    return values


def _seen(trainer: AgentTrainer, problem: Problem) -> tuple[list[Observation], Tensor]:
    """Every state as the agent reads it, and the legal actions."""
    trainer.agent.eval()
    reader = trainer.player.reader
    observations = [reader.read(*shown) for shown in problem.all_shown()]
    return observations, legal_actions(observations, reader.num_actions)
