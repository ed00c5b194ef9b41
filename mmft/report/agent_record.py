"""What an agent did in the episodes it was evaluated on: numbers with intervals, and what they warn of.

The episodes are the same ones each time, so that differences are taken episode by episode.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmft.engine.environment_pool import Episode
from mmft.evaluation.bootstrap import Array, Estimate, Resampling, as_numbers, interval, mean_estimate
from mmft.evaluation.compare import compare_rows
from mmft.trainers.held_out_episodes import episode_means

RETURN, SHARE, SUCCESS, LENGTH = "return", "optimal_share", "success", "episode_length"
MEASURES = {RETURN: "return", SHARE: "share of best", SUCCESS: "success", LENGTH: "length"}
"""What `episode_means` gives, as tables show it."""
RANDOM, BEFORE, AFTER = "random", "before", "after"
BLANKED = {"image": "without the picture", "text": "without the text"}
"""What an evaluation is called where the agent is not shown a modality."""
BEST = 0.999
"""A share of the best possible return that leaves nothing to learn."""


@dataclass(frozen=True, slots=True)
class PlayedEpisodes:
    """One evaluation.

    Attributes:
        name: what tables call it.
        episodes: what was played.
    """

    name: str
    episodes: Sequence[Episode]

    @property
    def means(self) -> dict[str, float]:
        """The measures that these episodes have."""
        return episode_means(self.episodes)

    def estimates(self, resampling: Resampling) -> dict[str, Estimate]:
        """The means with their intervals over episodes."""
        columns = {
            RETURN: as_numbers([each.total_reward for each in self.episodes]),
            SUCCESS: as_numbers([each.success for each in self.episodes]),
            LENGTH: as_numbers([each.length for each in self.episodes]),
        }
        best = as_numbers([each.optimal_return for each in self.episodes])
        return {
            name: _share(mean, columns[RETURN], best, resampling)
            if name == SHARE
            else mean_estimate(columns[name], resampling)
            for name, mean in self.means.items()
        }

    def records(self) -> list[dict[str, Any]]:
        """One for each episode, as episodes.jsonl holds them."""
        return [
            {
                "evaluation": self.name,
                "environment": each.environment,
                "episode": each.number,
                "return": each.total_reward,
                "length": each.length,
                "success": each.success,
                "optimal_return": each.optimal_return,
            }
            for each in self.episodes
        ]


def _share(mean: float, returns: Array, best: Array, resampling: Resampling) -> Estimate:
    """The mean return by the mean of the best possible ones, episodes drawn together with their best."""
    if len(returns) < 2:
        return Estimate(mean, count=len(returns), reason="one episode says nothing about chance")

    def ratio(drawn: Array, drawn_best: Array, axis: int = -1) -> Any:
        return drawn.mean(axis=axis) / drawn_best.mean(axis=axis)

    return Estimate(mean, *interval(ratio, (returns, best), resampling), len(returns))


@dataclass(frozen=True, slots=True)
class AgentOutcome:
    """What training left behind.

    Attributes:
        before: the agent before training, acting at random where its features had no statistics yet.
        after: the agent after it.
        blanked: the same without a modality, by its name.
        seconds: that training took.
    """

    before: PlayedEpisodes
    after: PlayedEpisodes
    blanked: Mapping[str, PlayedEpisodes] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def evaluations(self) -> list[PlayedEpisodes]:
        """All of them, in the order of tables."""
        return [self.before, self.after, *self.blanked.values()]


def difference(first: PlayedEpisodes, second: PlayedEpisodes, resampling: Resampling) -> Estimate:
    """How much more the second one earned on the episodes that both played."""
    returns = [
        {(each.environment, each.number): each.total_reward for each in played.episodes}
        for played in (first, second)
    ]
    shared = [key for key in returns[0] if key in returns[1]]
    one, other = ([known[key] for key in shared] for known in returns)
    return compare_rows(one, other, resampling).difference


def training_warnings(outcome: AgentOutcome, resampling: Resampling) -> list[str]:
    """What is wrong with the change: training did not help."""
    before, after = outcome.before, outcome.after
    gain = difference(before, after, resampling)
    ends = f"{before.means[RETURN]:.3f} {before.name}, {after.means[RETURN]:.3f} after training"
    if gain.is_below_zero:
        return [f"Training lowered the return: {ends} ({_signed(gain)})."]
    if not _is_certain(gain) or gain.is_above_zero or after.means.get(SHARE, 0.0) > BEST:
        return []
    return [f"Training did not raise the return beyond chance: {ends} ({_signed(gain)})."]


def blanking_warnings(
    after: PlayedEpisodes, blanked: Mapping[str, PlayedEpisodes], resampling: Resampling
) -> list[str]:
    """Modalities that the agent does as well without."""
    found = []
    for modality, played in blanked.items():
        lost = difference(played, after, resampling)
        if _is_certain(lost) and not lost.is_above_zero:
            what = "picture" if modality == "image" else modality
            found.append(
                f"The {what} is not used, as far as {lost.count} episodes tell: the return is "
                f"{after.means[RETURN]:.3f} with it and {played.means[RETURN]:.3f} without it "
                f"({_signed(lost)})."
            )
    return found


def _is_certain(estimate: Estimate) -> bool:
    return not math.isnan(estimate.low)


def _signed(estimate: Estimate) -> str:
    return f"difference {estimate.value:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}]"


def result_table(
    evaluations: Sequence[PlayedEpisodes], resampling: Resampling
) -> tuple[list[str], list[list[str]]]:
    """Header and rows: each measure that is known somewhere, with its interval."""
    estimates = [each.estimates(resampling) for each in evaluations]
    known = [name for name in MEASURES if any(name in each for each in estimates)]
    rows = [
        [
            played.name,
            *(_cell(each[name], 1 if name == LENGTH else 3) if name in each else "-" for name in known),
        ]
        for played, each in zip(evaluations, estimates, strict=True)
    ]
    count = max(len(each.episodes) for each in evaluations)
    return [f"{count} episodes", *(MEASURES[name] for name in known)], rows


def _cell(estimate: Estimate, digits: int) -> str:
    if not _is_certain(estimate):
        return f"{estimate.value:.{digits}f}"
    return f"{estimate.value:.{digits}f} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"
