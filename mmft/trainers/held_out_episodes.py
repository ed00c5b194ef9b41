"""Episodes that are played to see what was learned, and their means."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mmft.engine.environment_pool import Episode
from mmft.engine.observations import Observation
from mmft.engine.playing import Player
from mmft.errors import EnvError

Act = Callable[[Sequence[Observation], Tensor], tuple[Tensor, Tensor]]
"""Observations and legal actions to actions and the scores they are chosen by."""
MAX_STEPS = 100_000
"""Of one environment without the end of an episode, before it is taken to have none."""


@torch.no_grad()
def play_episodes(player: Player, act: Act, num_episodes: int) -> list[Episode]:
    """The first episodes of each environment, `num_episodes` in all.

    Each environment has its quota: whoever takes the first that end prefers short ones.

    Raises:
        EnvError: an episode does not end.
    """
    count = player.pool.num_envs
    quotas = [num_episodes // count + (number < num_episodes % count) for number in range(count)]
    first = player.pool.first
    found: list[Episode] = []
    player.start()
    steps = 0
    while len(found) < num_episodes:
        actions, _ = act(player.observations, player.legal)
        player.play(actions)
        steps += 1
        for episode in player.pool.finished():
            # The episodes of a failed environment leave gaps in its numbers, hence counted, not compared.
            number = episode.environment - first
            if quotas[number] > 0:
                quotas[number] -= 1
                found.append(episode)
                steps = 0
        if steps > MAX_STEPS:
            raise EnvError(
                f"environment {player.pool.name!r}: no episode ended in {MAX_STEPS:,} steps. Give it a time "
                "limit (`gymnasium.wrappers.TimeLimit`), or one when its id is registered."
            )
    return found


def episode_means(episodes: Sequence[Episode]) -> dict[str, float]:
    """Means over episodes; `optimal_share` is the mean return by the mean of the best possible ones."""
    returns = [episode.total_reward for episode in episodes]
    means = {
        "return": statistics.fmean(returns),
        "episode_length": statistics.fmean(episode.length for episode in episodes),
    }
    successes = [float(episode.success) for episode in episodes if episode.success is not None]
    if successes:
        means["success"] = statistics.fmean(successes)
    best = [episode.optimal_return for episode in episodes if episode.optimal_return is not None]
    if len(best) == len(episodes) and min(best) > 0:
        means["optimal_share"] = means["return"] / statistics.fmean(best)
    return means
