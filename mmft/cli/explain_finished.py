"""What a run that has just finished explains by itself: the answers or decisions that it shows.

Whatever goes wrong here is told and ends nothing: the weights are written, and `mmft explain` tries again.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmft.cli.console import say
from mmft.cli.explain_agent import explain_agent
from mmft.cli.explain_policy import explain_told, scored_temperature
from mmft.cli.explain_settings import Wanted
from mmft.config import RunConfig
from mmft.data.rows import PromptDataset
from mmft.report.explanations import EXPLAIN_FOLDER, Explained, write_explanations
from mmft.runs import Run
from mmft.trainers.agent import AgentTrainer
from mmft.trainers.online import OnlineTrainer

logger = logging.getLogger(__name__)


def explain_answers(
    trainer: OnlineTrainer,
    rows: PromptDataset,
    samples: Sequence[Mapping[str, Any]],
    shown: Sequence[tuple[int, int]],
    folder: Path,
) -> None:
    """Draws what the shown answers after training hang on.

    Args:
        trainer: that has finished.
        rows: that were held out.
        samples: as samples.jsonl holds them.
        shown: of each sample that is shown its place there and among the rows.
        folder: of the run.
    """
    if trainer._is_sharded:  # whose passes all processes would have to make
        return
    told = [(rows[place], samples[index]["after"]) for index, place in shown]
    temperature = scored_temperature(trainer.args.eval_temperature)
    if told:
        _guarded(folder, lambda: explain_told(trainer.actor_critic, told, temperature), "answers")


def explain_decisions(config: RunConfig, trainer: AgentTrainer, folder: Path) -> dict[str, Any]:
    """Draws what the first decisions of some held-out episodes hang on.

    Returns:
        The shares of image and text in them, as summary.json holds them; before training an agent has no
        features, and nothing to explain.
    """
    count = config.script.num_samples
    if not count:
        return {"before": None, "after": None}
    explained = _guarded(
        folder,
        lambda: explain_agent(Run.from_pretrained(folder), trainer.agent, Wanted(rows=count)),
        "decisions",
    )
    seen = [each.found for each in explained if "image" in each.found.shares]
    if not seen:
        return {"before": None, "after": None}
    shares = {
        "image_share": statistics.fmean(each.image_share for each in seen),
        "text_share": statistics.fmean(each.text_share for each in seen),
    }
    return {"before": None, "after": {"rows": len(seen)} | shares}


def _guarded(folder: Path, explain: Callable[[], list[Explained]], what: str) -> list[Explained]:
    """Explains, draws, and says how long it took, or why not."""
    start = time.perf_counter()
    try:
        explained = explain()
        write_explanations(folder / EXPLAIN_FOLDER, explained)
    except Exception as error:
        logger.exception("what %s of %s hang on", what, folder)
        reason = f"{type(error).__name__}: {error}"
        say(f"note: nothing is explained ({reason}); `mmft explain {folder}` tries again.")
        return []
    seconds = time.perf_counter() - start
    say(f"\nwhat {len(explained)} {what} hang on is drawn in {folder / EXPLAIN_FOLDER}/ ({seconds:.1f} s)")
    return explained
