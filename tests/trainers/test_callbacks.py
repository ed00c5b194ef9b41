"""The progress bar that takes the place of the Trainer's own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import transformers.trainer
from transformers import ProgressCallback, TrainerCallback
from transformers.trainer_callback import CallbackHandler

from mmft.trainers.callbacks import RewardProgress, replace_progress


class NotebookProgress(TrainerCallback):
    """In the place of transformers' own, which needs IPython's display."""


class SmallTrainer:
    """What is asked of a Trainer here."""

    def __init__(self, *, disable_tqdm: bool, own: type[TrainerCallback]) -> None:
        self.args = SimpleNamespace(disable_tqdm=disable_tqdm)
        nothing: Any = None
        self.handler = CallbackHandler([own], nothing, nothing, nothing, nothing)
        self.add_callback, self.remove_callback = self.handler.add_callback, self.handler.remove_callback

    @property
    def names(self) -> list[str]:
        kinds = [type(each).__name__ for each in self.handler.callbacks]
        return [name for name in kinds if "Progress" in name]


@pytest.mark.parametrize("own", [ProgressCallback, NotebookProgress])
def test_the_bar_replaces_the_trainers_own_in_a_terminal_and_in_a_notebook(
    own: type[TrainerCallback], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(transformers.trainer, "DEFAULT_PROGRESS_CALLBACK", own)
    trainer: Any = SmallTrainer(disable_tqdm=False, own=own)
    replace_progress(trainer, RewardProgress())
    assert trainer.names == ["RewardProgress"]


def test_where_no_bar_is_wanted_there_is_none(monkeypatch: pytest.MonkeyPatch):
    trainer: Any = SmallTrainer(disable_tqdm=True, own=TrainerCallback)
    replace_progress(trainer, RewardProgress())
    assert trainer.names == []
