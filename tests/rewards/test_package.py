"""The package as a whole: its public names, its lightness, and that TRL takes it as it is."""

from __future__ import annotations

import subprocess
import sys

import pytest
from trl.trainer.utils import get_callable_name, is_async_callable

import rewards


def test_every_public_name_resolves_and_is_listed():
    assert sorted(rewards.__all__) == sorted(rewards._HOME)
    for name in rewards.__all__:
        assert getattr(rewards, name).__name__ == name
        assert name in dir(rewards)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(
        AttributeError, match="module 'rewards' has no attribute 'nothing'; it has CaptioningReward"
    ):
        _ = rewards.nothing


def test_import_loads_neither_the_trainer_nor_the_tokeniser():
    code = (
        "import sys, rewards; print([n for n in ('mmft', 'torch', 'trl', 'sacrebleu') if n in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_use_loads_neither_torch_nor_trl():
    code = (
        "import sys; from rewards import CaptioningReward; CaptioningReward()(None, ['a'], [['a']]);"
        "print([n for n in ('mmft', 'torch', 'trl') if n in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_trl_names_the_reward_and_calls_it_directly():
    reward = rewards.CaptioningReward()
    assert get_callable_name(reward) == "captioning"
    assert not is_async_callable(reward)
