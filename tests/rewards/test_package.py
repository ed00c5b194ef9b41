"""The package as a whole: its public names, its lightness, and that TRL takes it as it is."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from trl.trainer.utils import get_callable_name, is_async_callable

import rewards
from mmft.resolve import SHORT_NAMES, resolve_reward

FOLDER = Path(rewards.__file__).parent


def test_every_public_name_resolves_and_is_listed():
    assert sorted(rewards.__all__) == sorted(rewards._HOME)
    for name in rewards.__all__:
        assert getattr(rewards, name).__name__ == name
        assert name in dir(rewards)


def test_names_known_to_type_checkers_are_the_public_ones():
    tree = ast.parse((FOLDER / "__init__.py").read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    assert {alias.name: node.module for node in imports for alias in node.names} == rewards._HOME


def is_reward(value: Any) -> bool:
    """Whether a class or function takes prompts and completions, as rewards do."""
    call = vars(value).get("__call__") if isinstance(value, type) else value
    code = getattr(call, "__code__", None)
    return code is not None and {"prompts", "completions"} <= set(code.co_varnames[: code.co_argcount])


def test_every_reward_of_every_module_is_public():
    for path in FOLDER.glob("*.py"):
        if path.stem == "__init__":
            continue
        module = importlib.import_module(f"rewards.{path.stem}")
        own = {
            name: value
            for name, value in vars(module).items()
            if getattr(value, "__module__", "") == module.__name__
        }
        for name, value in own.items():
            if is_reward(value) and not name.startswith(("_", "Async")):
                assert rewards._HOME.get(name) == module.__name__, f"{name} is a reward and not public"


def test_every_public_reward_has_a_short_name():
    named = {path.removeprefix("rewards:") for path in SHORT_NAMES.values()}
    public = {name for name in rewards.__all__ if is_reward(getattr(rewards, name))}
    # BleuReward is the same reward with arguments.
    assert public - named == {"bleu_reward"}
    for path in SHORT_NAMES.values():
        package, _, name = path.partition(":")
        assert package != "rewards" or name in rewards.__all__


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ({"name": "exact_match", "normalize": "vqa"}, "exact_match"),
        ({"name": "format", "tags": ["answer"]}, "format"),
        ({"name": "keyword_coverage", "forbidden_column": "never"}, "keyword_coverage"),
        ({"name": "length", "max_length": 20, "slope": 0.5}, "length"),
        ({"name": "length_penalty", "target_length": 20}, "length_penalty"),
        ({"name": "multiple_choice", "choices_column": "options"}, "multiple_choice"),
        ({"name": "numeric_answer", "rel_tolerance": 0.05}, "numeric_answer"),
        ({"name": "regex", "pattern": "^a ", "mode": "search"}, "regex"),
        ({"name": "repetition", "n": 2}, "repetition"),
    ],
)
def test_rewards_come_by_short_name_with_arguments(spec: dict[str, Any], name: str):
    reward: Any = resolve_reward(spec)
    assert reward.__name__ == name == get_callable_name(reward)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(
        AttributeError, match=r"module 'rewards' has no attribute 'nothing'; it has .*CaptioningReward"
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
        "import sys; from rewards import CaptioningReward, check;"
        "CaptioningReward()(None, ['a'], [['a']]); check(CaptioningReward());"
        "print([n for n in ('mmft', 'torch', 'trl') if n in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_checker_is_a_function_and_no_module_hides_it():
    importlib.import_module("rewards.checks")
    assert callable(rewards.check)
    assert not (FOLDER / "check.py").exists()


def test_trl_names_the_reward_and_calls_it_directly():
    reward = rewards.CaptioningReward()
    assert get_callable_name(reward) == "captioning"
    assert not is_async_callable(reward)
