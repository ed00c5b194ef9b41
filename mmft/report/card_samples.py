"""Rows for a card: a few pictures with what was said of them before and after, chosen by their place."""

from __future__ import annotations

from pathlib import Path

from mmft.data.messages import prompt_text
from mmft.data.rows import PromptDataset
from mmft.report.card_parts import NUM_SAMPLES, CardSample, save_picture
from mmft.report.record import Outcome, is_number, spread


def card_samples(held_out: PromptDataset | None, outcome: Outcome, folder: Path) -> list[CardSample]:
    """Some held-out rows, their pictures written small below the folder; none where none are held out."""
    if held_out is None or not outcome.before or not outcome.after:
        return []
    before = {sample["row"]: sample for sample in outcome.before.samples}
    samples = []
    for number, place in enumerate(spread(NUM_SAMPLES, len(outcome.after.samples))):
        after = outcome.after.samples[place]
        row, earlier = held_out[after["row"]], before[after["row"]]
        samples.append(
            CardSample(
                prompt=prompt_text(row.prompt),
                before=earlier["completion"],
                after=after["completion"],
                reward_before=_known(earlier["reward"]),
                reward_after=_known(after["reward"]),
                picture=save_picture(row.images[0], folder, number) if row.images else None,
            )
        )
    return samples


def _known(reward: float | None) -> float | None:
    return reward if is_number(reward) else None
