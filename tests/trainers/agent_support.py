"""What the tests of trainers in environments share: pictures and words that count, and small trainers."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from peft import LoraConfig
from torch import Tensor

from mmft.engine.agent import VLMAgent
from mmft.engine.observations import Observation
from mmft.engine.playing import Played
from mmft.models.backbone import make_backbone
from mmft.trainers.agent import AgentTrainer
from mmft.trainers.agent_config import AgentConfig
from mmft.trainers.dqn import DQNConfig, DQNTrainer
from tests import zoo
from tests.trainers.support import TEXT_ATTENTION

# Each run collects garbage as it begins, for which Python would visit all that was ever imported.
gc.freeze()

NUM_ACTIONS = 3
NUM_STARTS = 4
WORDS = ("one", "two", "three", "four")
Hook = Callable[["Counter"], Any]


class Counter(gymnasium.Env[Any, Any]):
    """Shows a number drawn at the reset, the steps so far and the last action; pays for all three.

    The picture has a stripe of grey for each of them, the text names the number.

    Args:
        length: steps of an episode.
        ending: how it ends: `terminated`, `truncated`, or `mixed`: truncated where the number is even.
        masked: whether the action that equals the number of steps (modulo 3) is illegal.
        on_step: called before a step; what it returns, if it is not None, is what the step returns.
        on_reset: called before a reset.
    """

    def __init__(
        self,
        length: int = 3,
        ending: str = "mixed",
        masked: bool = False,
        on_step: Hook | None = None,
        on_reset: Hook | None = None,
    ) -> None:
        self.length, self.ending, self.masked = length, ending, masked
        self.on_step, self.on_reset = on_step, on_reset
        self.observation_space = spaces.Dict(
            {"image": spaces.Box(0, 255, (8, 6, 3), np.uint8), "mission": spaces.Text(20)}
        )
        self.action_space = spaces.Discrete(NUM_ACTIONS)
        self.start = self.num_steps = self.last_action = 0
        self.num_resets = 0
        self.seeds: list[int | None] = []
        self.taken: list[tuple[int, int]] = []
        """(steps before it, action) of every step."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if self.on_reset is not None:
            self.on_reset(self)
        self.num_resets += 1
        self.seeds.append(seed)
        self.start, self.num_steps, self.last_action = int(self.np_random.integers(NUM_STARTS)), 0, 0
        return self._observe(), self._info()

    def step(self, action: int) -> Any:
        returned = None if self.on_step is None else self.on_step(self)
        if returned is not None:
            return returned
        self.taken.append((self.num_steps, action))
        reward = reward_of(self.start, self.num_steps, self.last_action, action)
        self.num_steps, self.last_action = self.num_steps + 1, action
        over = self.num_steps == self.length
        truncated = over and (self.ending == "truncated" or (self.ending == "mixed" and self.start % 2 == 0))
        return self._observe(), reward, over and not truncated, truncated, self._info(over)

    def _observe(self) -> dict[str, Any]:
        picture = np.zeros((8, 6, 3), np.uint8)
        picture[:, :2] = 60 * self.start
        picture[:, 2:4] = 40 * self.num_steps
        picture[:, 4:] = 80 * self.last_action
        return {"image": picture, "mission": WORDS[self.start]}

    def _info(self, over: bool = False) -> dict[str, Any]:
        info: dict[str, Any] = {"is_success": self.last_action == 1} if over else {}
        if self.masked:
            info["action_mask"] = np.array(legal_at(self.num_steps), np.int8)
        return info


def reward_of(start: int, num_steps: int, last_action: int, action: int) -> float:
    """What a step pays; each of its circumstances shows."""
    return 0.1 * start + 0.25 * num_steps - 0.05 * last_action + 0.5 * (action == start % NUM_ACTIONS)


def legal_at(num_steps: int) -> list[bool]:
    """The actions that a masked counter allows after so many steps."""
    return [action != num_steps % NUM_ACTIONS for action in range(NUM_ACTIONS)]


class Makes:
    """Makes counters and remembers them; `settings[i]` are those of the i-th one made, else `others`."""

    def __init__(self, *settings: dict[str, Any], **others: Any) -> None:
        self.settings, self.others = settings, others
        self.made: list[Counter] = []

    def __call__(self) -> Counter:
        chosen = self.settings[len(self.made)] if len(self.made) < len(self.settings) else {}
        self.made.append(Counter(**(self.others | chosen)))
        return self.made[-1]


def failing(in_reset: int, at: int = 1) -> Hook:
    """Raises after `at` steps of the environment's episode number `in_reset` (from 1 on)."""

    def hook(env: Counter) -> None:
        if (env.num_resets, env.num_steps) == (in_reset, at):
            raise RuntimeError("no luck")

    return hook


def unlucky_counter() -> Counter:
    """Fails in some episodes, by what they began with alone: a resumed run fails where the whole one did."""

    def hook(env: Counter) -> None:
        if (env.start, env.num_steps) == (3, 1):
            raise RuntimeError("no luck")

    return Counter(on_step=hook)


SETTINGS: dict[str, Any] = {
    "use_cpu": True,
    "disable_tqdm": True,
    "save_strategy": "no",
    "dataloader_pin_memory": False,
    "num_envs": 2,
    "hidden_sizes": [8],
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "eval_episodes": 4,
    "gamma": 0.9,
}
DQN: dict[str, Any] = {
    "total_timesteps": 48,
    "learning_starts": 16,
    "train_freq": 4,
    "per_device_train_batch_size": 8,
    "buffer_size": 64,
    "target_update_interval": 3,
}
"""8 optimizer steps, the first after 16 steps in two environments."""
ROLLOUT: dict[str, Any] = {
    "total_timesteps": 48,
    "per_device_train_batch_size": 8,
    "num_mini_batches": 2,
    "num_ppo_epochs": 2,
    "warm_up_steps": 8,
}
"""Rollouts of 8 steps in each of two environments, 4 optimizer steps each, 12 in all."""


def make_agent_trainer(
    folder: Path,
    trainer_class: type[AgentTrainer] = DQNTrainer,
    config_class: type[AgentConfig] = DQNConfig,
    *,
    env: Any = Counter,
    family: str = "llava",
    lora: bool = False,
    lora_dropout: float = 0.0,
    trainable: Sequence[str] = (),
    model: Any = None,
    callbacks: list[Any] | None = None,
    env_kwargs: dict[str, Any] | None = None,
    eval_env: Any = None,
    **settings: Any,
) -> Any:
    """A trainer of a zoo model, whose weights are the same whenever its arguments are."""
    own = DQN if issubclass(config_class, DQNConfig) else ROLLOUT
    args = config_class(output_dir=str(folder), **(SETTINGS | own | settings))
    return trainer_class(
        make_model(family, lora, lora_dropout, trainable) if model is None else model,
        env,
        args,
        env_kwargs=env_kwargs,
        eval_env=eval_env,
        callbacks=callbacks,
    )


def make_model(
    family: str = "llava", lora: bool = False, lora_dropout: float = 0.0, trainable: Sequence[str] = ()
) -> Any:
    """A backbone: frozen, adapted or with parts that train."""
    peft_config = LoraConfig(r=2, target_modules=TEXT_ATTENTION, lora_dropout=lora_dropout)
    with warnings.catch_warnings():
        # PEFT 0.21 still reads the old name of a transformers attribute.
        warnings.filterwarnings("ignore", message=".is_gradient_checkpointing. is", category=FutureWarning)
        return make_backbone(
            zoo.build_model(family),
            zoo.build_processor(family),
            peft_config=peft_config if lora else None,
            trainable=None if lora else trainable,
        )


@dataclass
class Taken:
    """A step as the player saw it."""

    before: Observation
    action: int
    reward: float
    terminated: bool
    last: bool
    failed: bool
    final: Observation | None


def recorded(trainer: Any) -> list[list[Taken]]:
    """Every step of every environment from now on, in time order."""
    play = trainer.player.play
    streams: list[list[Taken]] = [[] for _ in range(trainer.args.num_envs)]

    def watch(actions: Tensor) -> Played:
        before = list(trainer.player.observations)
        played = play(actions)
        columns = (actions, played.rewards, played.terminated, played.last, played.failed)
        for number, steps in enumerate(streams):
            steps.append(Taken(before[number], *(c[number].item() for c in columns), played.finals[number]))
        return played

    trainer.player.play = watch
    return streams


@torch.no_grad()
def perturb(agent: VLMAgent, scale: float = 0.3) -> None:
    """Moves the heads: as they begin, a critic says 0 and a target network what its agent says."""
    for name, weight in agent.named_parameters():
        if "_head." in name:
            weight.add_(scale * torch.randn_like(weight))


def agent_weights(trainer: Any) -> dict[str, Tensor]:
    """Copies of every weight and statistic of the agent."""
    return {name: tensor.detach().clone() for name, tensor in trainer.agent.state_dict().items()}
