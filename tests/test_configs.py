"""Every recipe is read by the parser that will read it, and says what it means."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import trl
import yaml

from mmft import trl_bridge
from mmft.cli import COMMANDS
from mmft.cli.arguments import parse_run

CONFIGS = Path(__file__).parents[1] / "configs"
RECIPES = sorted(CONFIGS.glob("*.yaml"))
LAUNCHES = sorted((CONFIGS / "accelerate").glob("*.yaml"))


def command(path: Path) -> str:
    """Recipes are named after the command that reads them."""
    return next((name for name in COMMANDS if path.stem.endswith(name.replace("-", "_"))), "ppo")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_parses_into_the_settings_of_its_command(path: Path, tmp_path: Path):
    # On the CPU half precision is refused where there is none, so the device is said.
    run = parse_run(command(path), ["--config", str(path), "--use_cpu", "--bf16", "false"])
    written = yaml.safe_load(path.read_text())
    assert run.model.model_name_or_path == written["model_name_or_path"]
    assert run.training.learning_rate == float(written["learning_rate"])
    run.save(tmp_path / "config.yaml")
    assert parse_run(command(path), ["--config", str(tmp_path / "config.yaml")]).resolved() == run.resolved()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_keeps_its_runs_in_the_runs_folder(path: Path):
    assert yaml.safe_load(path.read_text())["output_dir"].startswith("runs/")


@pytest.mark.parametrize("path", LAUNCHES, ids=lambda path: path.stem)
def test_accelerate_reads_a_launch_config(path: Path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    kind = {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "zero3": "DEEPSPEED"}[path.stem]
    assert getattr(config.distributed_type, "value", config.distributed_type) == kind
    assert config.num_processes == 2


def test_there_is_a_launch_config_for_each_way_to_shard():
    assert {path.stem for path in LAUNCHES} == {"ddp", "fsdp2", "zero3"}


def imports_trl(path: Path) -> bool:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if any(name == "trl" or name.startswith("trl.") for name in names):
            return True
    return False


def test_trl_is_imported_in_one_place_and_by_public_names():
    sources = (CONFIGS.parent / "mmft").rglob("*.py")
    assert [path.stem for path in sources if imports_trl(path)] == ["trl_bridge"]
    assert set(trl_bridge.__all__) <= set(dir(trl))
    with pytest.raises(AttributeError, match="no attribute 'PPOTrainer'; it passes on ModelConfig"):
        _ = trl_bridge.PPOTrainer


def test_rewards_may_be_mappings_in_a_config_and_on_the_command_line(tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "output_dir: x\nreward_funcs:\n- {name: captioning, alpha: 2}\n- bleu\nlearning_rate: 1e-5\n"
    )
    argv = [
        "--config",
        str(path),
        "--eval_funcs",
        "{name: captioning, beta: 0}",
        "--rename_columns",
        "{a: b}",
    ]
    run = parse_run("ppo", [*argv, "--use_cpu"])
    assert run.script.reward_funcs == [{"name": "captioning", "alpha": 2}, "bleu"]
    assert run.script.eval_funcs == [{"name": "captioning", "beta": 0}]
    assert run.script.rename_columns == {"a": "b"}
    assert run.training.learning_rate == 1e-5
