"""Every public name shows how it is used, and what is shown runs: examples in docstrings and the README."""

from __future__ import annotations

import doctest
import functools
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import rewards
from mmft.tiny import load_scenes
from tests.notebooks.names import complaints
from tests.rewards.contrastive import build_contrastive

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PACKAGES = ("mmft", "rewards", "mmft.tiny", "mmft.evaluation.metrics")
"""Whose `__all__` is public."""
OTHERS = ("mmft.hub.push", "mmft.hub.PushPlan")
"""Public names of packages whose others serve commands."""
CLIP = "openai/clip-vit-base-patch32"
"""What examples name; here a folder of that name holds a small random model of the same make."""
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def public_objects() -> dict[str, Any]:
    """Every public class and function by its dotted name; constants carry no docstring of their own."""
    found = {f"{package}.{name}": value for package in PACKAGES for name, value in public(package)}
    found |= {name: resolve(name) for name in (*OTHERS, *named_in_readme())}
    return {name: value for name, value in found.items() if callable(value)}


def public(package: str) -> list[tuple[str, Any]]:
    module = importlib.import_module(package)
    return [(name, getattr(module, name)) for name in module.__all__]


def named_in_readme() -> set[str]:
    """`mmft.part.name` in backticks; a call's arguments are left out."""
    return set(re.findall(r"`((?:mmft|rewards)(?:\.\w+)+)[`(]", README))


def resolve(name: str) -> Any:
    """A module, or what a module holds.

    Raises:
        ImportError, AttributeError: there is none.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        module, _, attribute = name.rpartition(".")
        return getattr(importlib.import_module(module), attribute)


def example_modules() -> list[str]:
    """Modules of both packages that show an example anywhere."""
    return [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for package in ("mmft", "rewards")
        for path in sorted((ROOT / package).rglob("*.py"))
        if ">>> " in path.read_text(encoding="utf-8")
    ]


def readme_blocks() -> list[str]:
    """The README's Python."""
    return re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def readme_block(mark: str) -> str:
    """The one block that holds `mark`."""
    (block,) = [block for block in readme_blocks() if mark in block]
    return block


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the test's own to be in, for examples that write."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@functools.cache
def clip() -> Any:
    """The model and the processor that stand in for the hub's."""
    return build_contrastive("clip")


def test_every_public_name_has_an_example():
    found = public_objects()
    assert len(found) > 60
    lacking = [name for name, value in found.items() if ">>> " not in (value.__doc__ or "")]
    assert lacking == [], "each needs an `Example:` in its docstring"


def test_an_example_says_what_comes_out():
    """One without any expected output would pass whatever it gave."""
    for name, value in public_objects().items():
        examples = doctest.DocTestParser().get_examples(inspect.cleandoc(value.__doc__ or ""), name)
        assert any(example.want for example in examples), f"the example of {name} shows no result"


@pytest.mark.parametrize("name", example_modules())
def test_examples_run_as_they_are_written(name: str, folder: Path):
    module = importlib.import_module(name)
    if CLIP in Path(str(module.__file__)).read_text(encoding="utf-8"):
        for part in clip():
            part.save_pretrained(folder / CLIP)
    tests = [test for test in doctest.DocTestFinder().find(module, globs={}) if test.examples]
    assert tests
    for test in tests:
        report: list[str] = []
        runner = doctest.DocTestRunner(optionflags=OPTIONS)
        runner.run(test, out=report.append)
        assert runner.summarize(verbose=False).failed == 0, "".join(report)


def test_an_example_with_another_result_fails():
    test = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, None)
    runner = doctest.DocTestRunner(optionflags=OPTIONS)
    runner.run(test, out=lambda text: None)
    assert runner.summarize(verbose=False).failed == 1


# The README


def test_what_the_readme_names_exists():
    names = named_in_readme()
    assert names
    for name in names:
        resolve(name)


@pytest.mark.parametrize("number", range(len(readme_blocks())))
def test_python_of_the_readme_names_what_exists(number: int):
    code = readme_blocks()[number]
    compile(code, f"block {number} of README.md", "exec")
    assert complaints(code) == []


def run(code: str, replace: dict[str, str], **names: Any) -> dict[str, Any]:
    """Runs code with a few words replaced, each of which must be there."""
    for old, new in replace.items():
        assert old in code
        code = code.replace(old, new)
    exec(compile(code, "README.md", "exec"), names)
    return names


def test_the_readmes_training_runs_on_a_packaged_model(folder: Path):
    rows = load_scenes("train", 1).add_column("prompt", ["Describe the picture."])
    names = run(readme_block("PPOTrainer"), {"Qwen/Qwen2.5-VL-3B-Instruct": "mmft/tiny-captioner"}, rows=rows)
    assert names["trainer"].state.global_step > 0
    assert (folder / "runs/caption/metrics.jsonl").is_file()


def test_the_readmes_reward_keeps_the_protocol():
    names_the_colour = run(readme_block("names_the_colour"), {})["names_the_colour"]
    rows = {"prompts": ["What?"] * 2, "completions": ["a red circle", "red " * 14], "colour": ["red", "blue"]}
    assert rewards.check(names_the_colour, **rows, none_columns=[]) == pytest.approx([1.0, -0.1])


def test_the_readmes_agent_learns_from_its_environment(folder: Path):
    block = readme_block("DQNTrainer")
    trainer = run(block, {"30_000": "1_040"})["trainer"]
    assert trainer.state.global_step == trainer.args.max_steps == 10
    assert len(trainer.eval_episodes) == trainer.args.eval_episodes


# The checks of code that is not run


def test_code_that_names_what_does_not_exist_is_found():
    assert complaints("import rewards\nrewards.chekc()") == ["rewards has no chekc"]
    assert complaints("from mmft import PPO") == ["mmft has no PPO"]
    assert complaints("from mmft import PPOConfig\nPPOConfig(output_dir='x', clip=1)") == [
        "PPOConfig takes no clip"
    ]
    assert complaints("from mmft import DQNTrainer\nDQNTrainer('m', 'e', env_args={})") == [
        "DQNTrainer takes no env_args"
    ]
    assert complaints("from mmft import Run\nRun.from_pretrained('r', version=1)") == [
        "from_pretrained takes no version"
    ]


def test_code_that_names_what_exists_passes():
    assert complaints("from mmft import PPOTrainer\nPPOTrainer('m', r, a, peft_config=None)") == []
    assert complaints("from mmft import load_policy\nload_policy('x', attn_implementation='sdpa')") == []
