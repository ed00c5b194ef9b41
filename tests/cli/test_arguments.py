"""Which algorithm a recipe is for, whose fields it may hold, and how mappings are written."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mmft.cli.arguments import parse_run
from mmft.errors import ConfigError
from mmft.trainers.registry import ALGORITHMS
from tests.cli.support import write_config

SHARED = ("evaluate", "generate", "check")


def recipe(folder: Path, **settings: object) -> list[str]:
    return ["--config", write_config(folder, {"output_dir": str(folder), "use_cpu": True} | settings)]


def test_the_registry_finds_every_trainer_and_the_config_it_takes():
    for name, algorithm in ALGORITHMS.items():
        assert name == algorithm.name
        annotation = algorithm.load_trainer().__annotations__["args"]
        assert annotation == algorithm.load_config().__name__ == algorithm.config


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_recipe_without_the_key_is_taken_as_one_for_the_command(name: str, tmp_path: Path):
    run = parse_run(name, recipe(tmp_path))
    assert run.script.algorithm == name
    assert type(run.training).__name__ == ALGORITHMS[name].config


@pytest.mark.parametrize("command", SHARED)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_commands_that_serve_all_read_the_fields_of_the_recipes_algorithm(
    command: str, name: str, tmp_path: Path
):
    run = parse_run(command, recipe(tmp_path, algorithm=name))
    assert type(run.training).__name__ == ALGORITHMS[name].config
    # The command line goes first.
    other = parse_run(command, [*recipe(tmp_path, algorithm=name), "--algorithm", "rwl"])
    assert type(other.training).__name__ == "RewardWeightedConfig"
    assert other.script.algorithm == "rwl"


@pytest.mark.parametrize("command", SHARED)
def test_without_a_key_those_commands_read_a_recipe_of_ppo(command: str, tmp_path: Path):
    assert type(parse_run(command, recipe(tmp_path)).training).__name__ == "PPOConfig"


@pytest.mark.parametrize("command", ["ppo", "a2c", "sft", "reward-model"])
def test_a_recipe_for_another_command_is_refused_by_its_name(command: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"`algorithm` is rwl: this recipe is for `mmft rwl`\."):
        parse_run(command, recipe(tmp_path, algorithm="rwl"))


def test_the_command_line_may_say_that_a_recipe_is_for_this_command_after_all(tmp_path: Path):
    assert parse_run("a2c", [*recipe(tmp_path, algorithm="ppo"), "--algorithm=a2c"]).script.algorithm == "a2c"


def test_an_unknown_algorithm_is_refused_with_the_known_ones(tmp_path: Path):
    with pytest.raises(ConfigError, match="`algorithm` must be one of ppo, a2c, rwl; got 'grpo'"):
        parse_run("check", recipe(tmp_path, algorithm="grpo"))
    with pytest.raises(ConfigError, match=r"got \['ppo'\]"):
        parse_run("check", recipe(tmp_path, algorithm=["ppo"]))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_resolved_settings_hold_the_key_and_repeat_the_run(name: str, tmp_path: Path):
    run = parse_run(name, recipe(tmp_path))
    run.save(tmp_path / "config.yaml")
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["algorithm"] == name
    for command in (name, *SHARED):
        assert parse_run(command, ["--config", str(tmp_path / "config.yaml")]).resolved() == run.resolved()


def test_a_field_that_another_algorithm_knows_is_refused_with_its_name(tmp_path: Path):
    with pytest.raises(ConfigError) as refused:
        parse_run("a2c", recipe(tmp_path, weighting="reward"))
    assert str(refused.value) == (
        f"{tmp_path / 'recipe.yaml'}: `weighting` is a field of `mmft rwl`, and this recipe is for "
        "`mmft a2c`. Leave it out, or run `mmft rwl`."
    )
    with pytest.raises(ConfigError, match="`--kl_target` is a field of `mmft ppo` and `mmft a2c`, and this"):
        parse_run("rwl", [*recipe(tmp_path), "--kl_target", "1"])
    with pytest.raises(ConfigError, match="If it is for `mmft rwl`, write `algorithm: rwl`"):
        parse_run("evaluate", recipe(tmp_path, weighting="reward"))


def test_a_field_that_nobody_knows_is_refused_with_the_nearest(tmp_path: Path):
    with pytest.raises(
        ConfigError, match=r"`weightin` is no field of this command\. Did you mean `weighting`"
    ):
        parse_run("rwl", recipe(tmp_path, weightin="reward"))


@pytest.mark.parametrize("text", ['{"min_lr_rate": 0.1}', "{min_lr_rate: 0.1}"])
def test_the_schedule_takes_a_mapping_in_a_recipe_and_on_the_command_line(text: str, tmp_path: Path):
    path = tmp_path / "scheduled.yaml"
    path.write_text(
        f"output_dir: x\nlr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs: {text}\nuse_cpu: true\n"
    )
    for argv in (["--config", str(path)], [*recipe(tmp_path), "--lr_scheduler_kwargs", text]):
        assert parse_run("ppo", argv).training.lr_scheduler_kwargs == {"min_lr_rate": 0.1}


def test_a_mapping_that_is_none_is_answered_by_its_field(tmp_path: Path):
    with pytest.raises(ConfigError, match="reward_funcs"):
        parse_run("ppo", [*recipe(tmp_path), "--reward_funcs", "{name: "])


def test_the_config_of_a_resumed_run_begins_at_the_beginning(tmp_path: Path):
    argv = ["--output_dir", str(tmp_path), "--use_cpu", "true", "--resume_from_checkpoint", "true"]
    run = parse_run("ppo", argv)
    assert run.training.resume_from_checkpoint == "true"
    assert "resume_from_checkpoint" not in run.resolved()
