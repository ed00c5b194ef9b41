"""From the words of a command line to settings: one flat YAML file and `--field value` overrides.

TRL's parser does the work. Which trainer's fields a recipe may hold is decided before: by the command, for
`evaluate`, `generate` and `check` by the recipe's `algorithm`, and by whether it has an `env`. Unknown fields
are errors that name the nearest one, or the command that knows them.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from mmft.config import AgentScriptConfig, RewardModelScriptConfig, RunConfig, ScriptConfig, SFTScriptConfig
from mmft.environments.registration import ENVIRONMENTS
from mmft.errors import ConfigError
from mmft.models.adapter_settings import check_adapters
from mmft.trainers.registry import ALGORITHMS, DEFAULT_ALGORITHM
from mmft.trl_bridge import ModelConfig, TrlParser

OTHER_TRAINING = ("sft", "reward-model")
"""Commands that train something else than a policy on rewards."""
AGENTS = tuple(name for name, each in ALGORITHMS.items() if each.acts)
"""Commands that may train an agent in an environment."""


class ConfigParser(TrlParser):
    """TRL's parser whose mistakes are `ConfigError`s and whose fields cannot be abbreviated."""

    def __init__(self, dataclass_types: Iterable[Any]) -> None:
        super().__init__(dataclass_types, allow_abbrev=False, add_help=False)

    def error(self, message: str) -> NoReturn:
        """Called by argparse where a value does not fit its field."""
        raise ConfigError(f"{message}. See `--help` for the fields.")


def script_types(command: str, algorithm: str = DEFAULT_ALGORITHM, *, acts: bool = False) -> tuple[Any, ...]:
    """The dataclasses that hold the settings of a command; `algorithm` decides where the command does not.

    Args:
        command: whose.
        algorithm: for commands that serve several.
        acts: the settings are of an agent in an environment.
    """
    if command == "sft":
        from mmft.trl_bridge import SFTConfig

        return SFTScriptConfig, ModelConfig, SFTConfig
    if command == "reward-model":
        from mmft.trainers.reward_model import RewardModelConfig

        return RewardModelScriptConfig, ModelConfig, RewardModelConfig
    chosen = ALGORITHMS.get(command, ALGORITHMS[algorithm])
    if acts:
        return AgentScriptConfig, ModelConfig, chosen.load_agent_config()
    return ScriptConfig, ModelConfig, chosen.load_config()


def parse_run(command: str, argv: Sequence[str]) -> RunConfig:
    """The settings from `--config FILE` and overrides.

    Raises:
        ConfigError: unknown field, wrong value, settings at odds with each other, or no such file.
    """
    path, rest = split_config(argv)
    settings = {} if path is None else read_settings(path)
    algorithm = choose_algorithm(command, rest, settings)
    acts = has_environment(command, algorithm, rest, settings)
    types = script_types(command, algorithm, acts=acts)
    _check_fields(Purpose(command, algorithm, acts), _field_names(types), rest, settings, path)
    parser = ConfigParser(types)
    if command not in OTHER_TRAINING:
        settings = settings | {"algorithm": algorithm}
    # As text, so that the parser gives numbers their field's type: YAML reads 1e-5 as text, 8.0 as float.
    parser.set_defaults_with_config(**{name: _as_text(value) for name, value in settings.items()})
    try:
        script, model, training = parser.parse_args_into_dataclasses(
            [_as_json(word) for word in rest], look_for_args_file=False
        )
    except ConfigError:
        raise
    except (ValueError, TypeError) as error:  # raised by the checks of transformers' and TRL's own classes
        raise ConfigError(" ".join(str(error).split())) from error
    if training.output_dir == "trainer_output":
        raise ConfigError(
            "`output_dir` is missing; give the folder of the run, such as `output_dir: runs/mine`."
        )
    check_adapters(script, model)
    return RunConfig(script, model, training)


def choose_algorithm(command: str, words: Sequence[str], settings: Mapping[str, Any]) -> str:
    """Whose fields the settings may hold: what `--algorithm` or the recipe says, else the command's own.

    Raises:
        ConfigError: it is none, or the recipe is for another command.
    """
    said = _value_of("--algorithm", words) or settings.get("algorithm")
    if said is None:
        return command if command in ALGORITHMS else DEFAULT_ALGORITHM
    if said not in tuple(ALGORITHMS):
        raise ConfigError(f"`algorithm` must be one of {', '.join(ALGORITHMS)}; got {said!r}.")
    if said != command and command in (*ALGORITHMS, *OTHER_TRAINING):
        raise ConfigError(f"`algorithm` is {said}: this recipe is for `mmft {said}`.")
    return str(said)


def has_environment(command: str, algorithm: str, words: Sequence[str], settings: Mapping[str, Any]) -> bool:
    """Whether the settings are of an agent in an environment: they have an `env`.

    Raises:
        ConfigError: the command or the algorithm wants one and there is none, or the other way round.
    """
    env = _value_of("--env", words) or settings.get("env")
    chosen, writes_only = ALGORITHMS[algorithm], command in OTHER_TRAINING
    if env is None and (chosen.writes or writes_only):
        return False
    if command == "generate":
        raise ConfigError(
            "`mmft generate` shows what a model writes, and this recipe is for an agent in an environment. "
            "Use `mmft evaluate`."
        )
    if env is None:
        raise ConfigError(
            f"`env` is missing: `mmft {algorithm}` acts in an environment. Name one of mmft's own "
            f"({', '.join(ENVIRONMENTS)}), an id of gymnasium's registry, or your own as `my_module:my_make`."
        )
    if writes_only or not chosen.acts:
        agents = f"{', '.join(f'`mmft {name}`' for name in AGENTS[:-1])} or `mmft {AGENTS[-1]}`"
        raise ConfigError(
            f"`env` is {env!r}, but `mmft {command if writes_only else algorithm}` acts in no environment. "
            f"Leave it out, or run {agents}."
        )
    if not isinstance(env, str):
        raise ConfigError(f"`env` must be the name of an environment; got {env!r}.")
    return True


def split_config(argv: Sequence[str]) -> tuple[Path | None, list[str]]:
    """Takes `--config FILE` or `--config=FILE` out of the arguments."""
    rest = [
        part for word in argv for part in (word.split("=", 1) if word.startswith("--config=") else [word])
    ]
    if "--config" not in rest:
        return None, rest
    place = rest.index("--config")
    if place + 1 == len(rest):
        raise ConfigError("`--config` needs a file, such as `--config configs/quickstart.yaml`.")
    path = Path(rest[place + 1])
    del rest[place : place + 2]
    return path, rest


def read_settings(path: Path) -> dict[str, Any]:
    """A flat YAML mapping.

    Raises:
        ConfigError: no such file, no YAML, or no mapping.
    """
    if not path.is_file():
        raise ConfigError(f"`--config` {path} is no file. Recipes to start from are in configs/.")
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"`--config` {path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"`--config` {path} must hold a mapping of fields to values.")
    return settings


@dataclass(frozen=True, slots=True)
class Purpose:
    """What settings are for."""

    command: str
    algorithm: str
    acts: bool
    """They are of an agent in an environment."""


def _check_fields(
    purpose: Purpose, known: set[str], words: Sequence[str], settings: Mapping[str, Any], path: Path | None
) -> None:
    """Refuses the first field, on the command line or in the recipe, that is none."""
    negated = {f"no_{name}" for name in known}
    flags = [word[2:].partition("=")[0].replace("-", "_") for word in words if word.startswith("--")]
    wrong = [(name, f"`--{name}`") for name in flags if name not in known | negated]
    wrong += [(name, f"{path}: `{name}`") for name in settings if name not in known]
    if wrong:
        name, where = wrong[0]
        raise ConfigError(f"{where} {_what_is_wrong(purpose, name, known)}")


def _what_is_wrong(purpose: Purpose, name: str, known: set[str]) -> str:
    if purpose.command not in OTHER_TRAINING:
        owners = _owners(name, acts=purpose.acts)
        if owners:
            there = " and ".join(f"`mmft {each}`" for each in owners)
            remedy = f"Leave it out, or run `mmft {owners[0]}`."
            if purpose.command not in ALGORITHMS:
                remedy = f"If it is for `mmft {owners[0]}`, write `algorithm: {owners[0]}`."
            return f"is a field of {there}, and this recipe is for `mmft {purpose.algorithm}`. {remedy}"
        if _owners(name, acts=not purpose.acts):
            return _of_the_other_kind(purpose)
    near = difflib.get_close_matches(name, sorted(known), n=1)
    hint = f"Did you mean `{near[0]}`?" if near else "`--help` lists the fields."
    return f"is no field of this command. {hint}"


def _of_the_other_kind(purpose: Purpose) -> str:
    if purpose.acts:
        return "is a field of recipes without `env`, and this one is for an agent in an environment."
    return (
        "is a field of recipes with `env`, whose agents act in an environment. Leave it out, or name the "
        "environment, such as `env: mmft/FindObject-v0`."
    )


def _owners(name: str, *, acts: bool) -> list[str]:
    """The algorithms whose settings have that field, with an environment or without."""
    able = [each.name for each in ALGORITHMS.values() if (each.acts if acts else each.writes)]
    return [each for each in able if name in _field_names(script_types(each, each, acts=acts))]


def _field_names(types: Iterable[Any]) -> set[str]:
    return {each.name for kind in types for each in dataclasses.fields(kind) if each.init}


def _value_of(flag: str, words: Sequence[str]) -> str | None:
    """What follows the flag, as a word of its own or behind `=`."""
    for place, word in enumerate(words):
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
        if word == flag and place + 1 < len(words):
            return words[place + 1]
    return None


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _as_json(word: str) -> str:
    """A mapping in YAML's flow style as JSON, which is all that transformers' own fields read."""
    if not word.startswith("{"):
        return word
    try:
        value = yaml.safe_load(word)
    except yaml.YAMLError:
        return word  # the field it belongs to says what is wrong
    return json.dumps(value) if isinstance(value, dict) else word
