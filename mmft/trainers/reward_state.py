"""What rewards have gathered (statistics, document frequencies), kept with the run and its checkpoints."""

from __future__ import annotations

import json
import os
from pathlib import Path

from mmft.engine.judging import RewardSuite
from mmft.errors import ConfigError

REWARDS_FILE = "rewards.json"


def check_reward_state(suite: RewardSuite) -> None:
    """Finds out before training, not at its first checkpoint, what cannot be saved.

    Raises:
        ConfigError: a state is not made of what JSON knows; a `torch.nn.Module` as a reward has such a one.
    """
    for name, state in suite.state_dict().items():
        try:
            json.dumps(state)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"the `state_dict` of the reward {name!r} cannot be saved as JSON: {error}. Keep plain "
                "numbers, strings, lists and mappings; a module that learns nothing is better called by a "
                "function."
            ) from error


def save_reward_state(suite: RewardSuite, folder: str | os.PathLike[str]) -> None:
    """Writes the state of every reward that keeps one, by name; no file without any."""
    state = suite.state_dict()
    if state:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / REWARDS_FILE).write_text(json.dumps(state, ensure_ascii=False), encoding="utf-8")


def load_reward_state(suite: RewardSuite, folder: str | os.PathLike[str]) -> None:
    """Gives rewards back what `save_reward_state` wrote.

    Raises:
        ConfigError: a reward keeps a state and the folder has none of it.
    """
    path = Path(folder) / REWARDS_FILE
    state = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    missing = sorted(set(suite.state_dict()) - set(state))
    if missing:
        raise ConfigError(
            f"`resume_from_checkpoint`: {path} holds nothing for the reward {missing[0]!r}, which keeps a "
            "state. Resume with the rewards of the stopped run."
        )
    suite.load_state_dict(state)
