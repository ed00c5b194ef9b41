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
WRITERS = [name for name, each in ALGORITHMS.items() if each.writes]
ACTORS = [name for name, each in ALGORITHMS.items() if each.acts]
GRID = "mmft/FindObject-v0"


def recipe(folder: Path, **settings: object) -> list[str]:
    return ["--config", write_config(folder, {"output_dir": str(folder), "use_cpu": True} | settings)]


def test_the_registry_finds_every_trainer_and_the_config_it_takes():
    assert (WRITERS, ACTORS) == (["ppo", "a2c", "rwl"], ["ppo", "a2c", "dqn"])
    for name, algorithm in ALGORITHMS.items():
        assert name == algorithm.name
        if algorithm.writes:
            annotation = algorithm.load_trainer().__annotations__["args"]
            assert annotation == algorithm.load_config().__name__ == algorithm.config
        if algorithm.acts:
            annotation = algorithm.load_agent_trainer().__annotations__["args"]
            assert annotation == algorithm.load_agent_config().__name__ == algorithm.agent_config


def test_a_class_that_an_algorithm_does_not_have_is_not_loaded():
    with pytest.raises(ValueError, match="'dqn' does not train that: ask `writes` and `acts`"):
        ALGORITHMS["dqn"].load_config()
    with pytest.raises(ValueError, match="'rwl' does not train that"):
        ALGORITHMS["rwl"].load_agent_trainer()


@pytest.mark.parametrize("name", WRITERS)
def test_a_recipe_without_the_key_is_taken_as_one_for_the_command(name: str, tmp_path: Path):
    run = parse_run(name, recipe(tmp_path))
    assert run.script.algorithm == name
    assert type(run.training).__name__ == ALGORITHMS[name].config


@pytest.mark.parametrize("command", SHARED)
@pytest.mark.parametrize("name", WRITERS)
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
    with pytest.raises(ConfigError, match="`algorithm` must be one of ppo, a2c, rwl, dqn; got 'grpo'"):
        parse_run("check", recipe(tmp_path, algorithm="grpo"))
    with pytest.raises(ConfigError, match=r"got \['ppo'\]"):
        parse_run("check", recipe(tmp_path, algorithm=["ppo"]))


@pytest.mark.parametrize("name", WRITERS)
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


# Agents


@pytest.mark.parametrize("name", ACTORS)
def test_a_recipe_with_an_environment_is_read_with_the_fields_of_an_agent(name: str, tmp_path: Path):
    run = parse_run(name, recipe(tmp_path, env=GRID, env_kwargs={"size": 3, "jitter": False}))
    assert run.acts
    assert type(run.training).__name__ == ALGORITHMS[name].agent_config
    assert (run.script.algorithm, run.script.env) == (name, GRID)
    assert run.script.arguments() == {"size": 3, "jitter": False}
    for command in ("evaluate", "check"):
        again = parse_run(command, recipe(tmp_path, algorithm=name, env=GRID))
        assert type(again.training).__name__ == ALGORITHMS[name].agent_config


def test_the_environment_may_be_said_on_the_command_line(tmp_path: Path):
    argv = [*recipe(tmp_path), "--env", GRID, "--env_kwargs", "{size: 2, colours: [red]}"]
    run = parse_run("ppo", [*argv, "--eval_env_kwargs={size: 3}"])
    assert run.script.arguments() == {"size": 2, "colours": ["red"]}
    assert run.script.arguments(evaluation=True) == {"size": 3, "colours": ["red"]}
    assert not parse_run("ppo", recipe(tmp_path)).acts


@pytest.mark.parametrize("name", ACTORS)
def test_the_resolved_settings_of_an_agent_repeat_the_run_and_leave_its_length_open(
    name: str, tmp_path: Path
):
    run = parse_run(name, recipe(tmp_path, env=GRID, env_kwargs={"size": 3}, total_timesteps=4096))
    run.save(tmp_path / "config.yaml")
    written = ["--config", str(tmp_path / "config.yaml")]
    for command in (name, "evaluate", "check"):
        assert parse_run(command, written).resolved() == run.resolved()
    longer = parse_run(name, [*written, "--total_timesteps", "8192"]).training
    assert longer.max_steps > run.training.max_steps > 0


@pytest.mark.parametrize(
    ("command", "settings", "message"),
    [
        ("dqn", {}, r"`env` is missing: `mmft dqn` acts in .*mmft/FindObject-v0, mmft/Rows-v0, mmft/SceneQ"),
        ("check", {"algorithm": "dqn"}, "`env` is missing: `mmft dqn` acts in an environment"),
        ("rwl", {"env": GRID}, "in no environment. Leave it out, or run `mmft ppo`, `mmft a2c` or `mmft d"),
        ("sft", {"env": GRID}, "`env` is 'mmft/FindObject-v0', but `mmft sft` acts in no environment"),
        ("reward-model", {"env": GRID}, "but `mmft reward-model` acts in no environment"),
        ("evaluate", {"algorithm": "rwl", "env": GRID}, "but `mmft rwl` acts in no environment"),
        ("generate", {"env": GRID}, "this recipe is for an agent in an environment. Use `mmft evaluate`"),
        ("generate", {"algorithm": "dqn"}, "this recipe is for an agent in an environment"),
        ("dqn", {"env": [GRID]}, r"`env` must be the name of an environment; got \['mmft/FindObject-v0'\]"),
        ("dqn", {"env": GRID, "env_kwargs": "size"}, "`env_kwargs` must be a mapping of the environment's"),
        ("dqn", {"env": GRID, "eval_env_kwargs": [1]}, "`eval_env_kwargs` must be a mapping of the environ"),
        ("dqn", {"env": GRID, "num_samples": -1}, "`num_samples` must be >= 0; got -1"),
        ("ppo", {"algorithm": "dqn", "env": GRID}, "`algorithm` is dqn: this recipe is for `mmft dqn`"),
    ],
)  # fmt: skip
def test_what_does_not_fit_an_environment_is_refused(
    command: str, settings: dict[str, object], message: str, tmp_path: Path
):
    with pytest.raises(ConfigError, match=message):
        parse_run(command, recipe(tmp_path, **settings))


@pytest.mark.parametrize(
    ("command", "settings", "message"),
    [
        ("dqn", {"env": GRID, "cliprange": 0.1}, "`cliprange` is a field of `mmft ppo`, and this rec"),
        ("ppo", {"env": GRID, "tau": 0.1}, "is a field of `mmft dqn`, and this recipe is for `mmft ppo`"),
        ("check", {"env": GRID, "tau": 0.1}, "If it is for `mmft dqn`, write `algorithm: dqn`"),
        ("ppo", {"env": GRID, "num_generations": 4}, "`num_generations` is a field of recipes without `env`"),
        ("dqn", {"env": GRID, "dataset_name": "x"}, "`dataset_name` is a field of recipes without `env`"),
        ("ppo", {"num_envs": 4}, "`num_envs` is a field of recipes with `env`.*such as `env: mmft/Find"),
        ("a2c", {"env_kwargs": {"size": 2}}, "`env_kwargs` is a field of recipes with `env`"),
        ("dqn", {"env": GRID, "bufer_size": 4}, "is no field of this command. Did you mean `buffer_size`"),
    ],
)  # fmt: skip
def test_a_field_of_another_kind_of_recipe_is_refused_with_its_owner(
    command: str, settings: dict[str, object], message: str, tmp_path: Path
):
    with pytest.raises(ConfigError, match=message):
        parse_run(command, recipe(tmp_path, **settings))
