"""Every recipe is read by the parser that will read it, and says what it means."""

from __future__ import annotations

import ast
import math
from pathlib import Path

import pytest
import trl
import yaml

from mmft import trl_bridge
from mmft.cli import COMMANDS
from mmft.cli.agent_setup import look_at_both
from mmft.cli.arguments import parse_run
from mmft.config import RunConfig
from mmft.tiny import CAPTIONER_NAME
from mmft.trainers.registry import ALGORITHMS
from tests.trainers.support import make_trainer

CONFIGS = Path(__file__).parents[1] / "configs"
RECIPES = sorted([*CONFIGS.glob("*.yaml"), *CONFIGS.glob("tiny/*.yaml")])
NAMES = [path.relative_to(CONFIGS).with_suffix("").as_posix() for path in RECIPES]
ALGORITHM = {
    "caption_ppo": "ppo", "caption_group": "ppo", "caption_a2c": "a2c", "caption_rwl": "rwl",
    "caption_rwl_offline": "rwl", "full_finetune_l2sp": "ppo",
    "tiny/ppo": "ppo", "tiny/group": "ppo", "tiny/a2c": "a2c", "tiny/rwl": "rwl", "tiny/rwl_offline": "rwl",
    "tiny/l2sp": "ppo",
}  # fmt: skip
AGENTS = {
    "grid_dqn": "dqn", "grid_ppo": "ppo", "grid_a2c": "a2c", "scene_questions_dqn": "dqn", "nlvr_dqn": "dqn",
    "minigrid_dqn": "dqn",
}  # fmt: skip
"""Recipes for agents in environments."""
LAUNCHES = sorted((CONFIGS / "accelerate").glob("*.yaml"))


def command(path: Path) -> str:
    """Recipes say their algorithm, or are named after the command that reads them, or are for `mmft ppo`."""
    written = yaml.safe_load(path.read_text()).get("algorithm")
    named = (name for name in COMMANDS if path.stem.endswith(name.replace("-", "_")))
    return written or next(named, "ppo")


@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_a_recipe_parses_into_the_settings_of_its_command(path: Path, tmp_path: Path):
    # On the CPU half precision is refused where there is none, so the device is said.
    run = parse_run(command(path), ["--config", str(path), "--use_cpu", "--bf16", "false"])
    written = yaml.safe_load(path.read_text())
    assert run.model.model_name_or_path == written["model_name_or_path"]
    assert run.training.learning_rate == float(written["learning_rate"])
    run.save(tmp_path / "config.yaml")
    assert parse_run(command(path), ["--config", str(tmp_path / "config.yaml")]).resolved() == run.resolved()


def settings(name: str) -> RunConfig:
    """A recipe as `mmft check` reads it."""
    path = CONFIGS / f"{name}.yaml"
    return parse_run("check", ["--config", str(path), "--use_cpu", "--bf16", "false"])


@pytest.mark.parametrize(("name", "algorithm"), ALGORITHM.items())
def test_a_recipe_is_read_with_the_fields_of_its_algorithm(name: str, algorithm: str):
    run = settings(name)
    assert run.script.algorithm == algorithm
    assert type(run.training) is ALGORITHMS[algorithm].load_config()


@pytest.mark.parametrize(("name", "algorithm"), AGENTS.items())
def test_a_recipe_of_an_agent_is_read_with_the_fields_of_its_algorithm(name: str, algorithm: str):
    run = settings(name)
    assert run.acts
    assert run.script.algorithm == algorithm
    assert type(run.training) is ALGORITHMS[algorithm].load_agent_config()
    assert run.model.model_name_or_path == CAPTIONER_NAME
    assert not run.model.use_peft
    assert run.training.eval_episodes >= 100


def test_the_recipes_with_an_environment_are_those_of_agents():
    with_env = {
        name for name, path in zip(NAMES, RECIPES, strict=True) if "env" in yaml.safe_load(path.read_text())
    }
    assert with_env == set(AGENTS)


@pytest.mark.parametrize("name", ["grid_dqn", "grid_ppo", "grid_a2c", "scene_questions_dqn", "minigrid_dqn"])
def test_a_recipe_of_an_agent_finds_its_environment_and_all_of_it_is_read(name: str):
    run = settings(name)
    looked = look_at_both(run)
    assert looked.reader.image_keys
    assert looked.reader.text_keys
    assert looked.reader.num_numbers == (4 if name == "minigrid_dqn" else 0)


def test_every_recipe_of_an_algorithm_has_a_tiny_version_and_all_are_known():
    assert {name for name in NAMES if name.startswith("tiny/")} <= set(ALGORITHM)
    assert set(ALGORITHM) <= set(NAMES)
    sizes = [sum(name.startswith("tiny/") == tiny for name in ALGORITHM) for tiny in (True, False)]
    assert sizes[0] == sizes[1]


def test_recipes_train_what_their_names_say():
    trainer = ALGORITHMS["ppo"].load_trainer()
    for name in ("caption_group", "tiny/group"):
        assert not trainer.needs_critic(settings(name).training)
    for name in ("caption_ppo", "tiny/ppo"):
        assert trainer.needs_critic(settings(name).training)
    for name in ("caption_rwl_offline", "tiny/rwl_offline"):
        assert settings(name).training.offline
    for name in ("full_finetune_l2sp", "tiny/l2sp"):
        run = settings(name)
        assert run.training.regularizes
        assert not run.model.use_peft
        assert run.script.trainable == ["projector", "language"]
        assert not trainer.needs_reference(run.training)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("tiny/")])
def test_a_tiny_recipe_needs_no_network_and_watches_the_truth(name: str):
    run = settings(name)
    assert run.model.model_name_or_path == CAPTIONER_NAME
    assert run.script.dataset_name.startswith("mmft/")
    assert run.script.eval_funcs == ["mmft.tiny:true_fact_share"]
    assert run.training.max_steps <= 150


@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_a_recipe_keeps_its_runs_in_the_runs_folder(path: Path):
    assert yaml.safe_load(path.read_text())["output_dir"].startswith("runs/")


@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_a_recipe_anneals_its_learning_rate_to_a_floor(path: Path):
    written = yaml.safe_load(path.read_text())
    assert written["lr_scheduler_type"] == "cosine_with_min_lr"
    assert written["lr_scheduler_kwargs"] == {"min_lr_rate": 0.05 if "env" in written else 0.1}


def test_the_schedule_of_a_recipe_follows_the_equation_and_the_critics_keeps_its_ratio(tmp_path: Path):
    args = settings("tiny/ppo").training
    top, floor, steps = args.learning_rate, 0.1 * args.learning_rate, args.max_steps
    fields = ("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "max_steps")
    chosen = {name: getattr(args, name) for name in fields}
    trainer = make_trainer(tmp_path, critic_learning_rate=5 * top, **chosen)
    trainer.create_optimizer_and_scheduler(num_training_steps=steps)
    rates = []
    for _ in range(steps + 1):
        rates.append(sorted({group["lr"] for group in trainer.optimizer.param_groups}))
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    assert args.warmup_steps == 0
    for t in (0, 1, steps // 3, steps // 2, steps - 1, steps):
        expected = floor + (top - floor) * (1 + math.cos(math.pi * t / steps)) / 2
        assert rates[t] == pytest.approx([expected, 5 * expected])
    assert rates[0] == pytest.approx([top, 5 * top])
    assert rates[steps // 2] == pytest.approx([(top + floor) / 2, 5 * (top + floor) / 2])
    assert rates[steps] == pytest.approx([floor, 5 * floor])


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
