"""Environments by name, as a config or the command line writes them."""

from __future__ import annotations

import difflib
import importlib
import inspect
import logging
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import gymnasium

from mmft._importing import import_named
from mmft.environments.minigrid import MINIGRID_PREFIXES, import_minigrid, wrap_minigrid
from mmft.environments.registration import ENVIRONMENTS, register_environments
from mmft.errors import ConfigError

logger = logging.getLogger(__name__)

Environment = gymnasium.Env[Any, Any]

UNEXPECTED = re.compile(r"unexpected keyword argument '(\w+)'")
"""How Python names an argument that a function does not take."""
COLOUR_CODE = re.compile(r"\x1b\[[0-9;]*m")
_OWN = f"mmft's own are {', '.join(ENVIRONMENTS)}."


def make_environment(
    name: str, kwargs: Mapping[str, Any] | None = None, *, render: bool = False
) -> Environment:
    """One environment from its name and arguments, with the time limit that its id is registered with.

    - An id of gymnasium's registry, `mmft/FindObject-v0` among them.
    - `MiniGrid-...` and `BabyAI-...`: with pictures (`wrap_minigrid`), whose `tile_size` and `partial` may be
      among the arguments.
    - `my_module:my_make`: your own, from the current folder or an installed package: a class, or a function
      that returns an environment.
    - `my_module:MyId-v0`: an id that importing the module registers.

    Args:
        name: which one.
        kwargs: its arguments.
        render: make it draw what `render()` returns (`rgb_array`).

    Raises:
        ConfigError: nothing of that name, arguments it does not take, or no environment came of it.

    Example:
        >>> from mmft import make_environment
        >>> env = make_environment("mmft/FindObject-v0", {"size": 3, "num_objects": 2})
        >>> observation, info = env.reset(seed=0)
        >>> observation["mission"], observation["image"].shape, int(env.action_space.n)
        ('go to the purple square', (64, 64, 3), 4)
        >>> make_environment("mmft/FindObject-v0", {"sise": 3})
        Traceback (most recent call last):
            ...
        mmft.errors.ConfigError: environment 'mmft/FindObject-v0' has no argument 'sise'. Did you mean ...
    """
    register_environments()
    arguments = dict(kwargs or {})
    module_name, _, own_name = name.strip().rpartition(":")
    if own_name.startswith(MINIGRID_PREFIXES):
        import_minigrid()
        wrapping = {key: arguments.pop(key) for key in ("tile_size", "partial") if key in arguments}
        return wrap_minigrid(_registered(own_name, arguments, render), **wrapping)
    if module_name:
        module = import_named(module_name, f"environment {name!r}")
        if own_name not in gymnasium.registry:
            return _own(_attribute(module, own_name, name), name, arguments, render)
    return _registered(own_name, arguments, render)


def _registered(name: str, arguments: dict[str, Any], render: bool) -> Environment:
    known = gymnasium.registry
    # An id without its version means the newest one.
    if name not in known and not any(key.startswith(f"{name}-v") for key in known):
        raise ConfigError(
            f"no environment is registered as {name!r}. {_suggestion(name, known) or _OWN} Your own is "
            "written `my_module:my_make` or `my_module:MyId-v0`."
        )
    if name in known:
        _check_arguments(_creator(known[name]), name, arguments)
    if render:
        arguments["render_mode"] = "rgb_array"
    # gymnasium would check the first steps of each; whoever reads them checks what is used, and every step.
    return _constructed(lambda: gymnasium.make(name, disable_env_checker=True, **arguments), name, arguments)


def _own(found: Any, name: str, arguments: dict[str, Any], render: bool) -> Environment:
    if not callable(found):
        raise ConfigError(f"environment {name!r} is {found!r}, which cannot be called.")
    _check_arguments(found, name, arguments)
    if render and _takes(found, "render_mode"):
        arguments["render_mode"] = "rgb_array"
    return _constructed(lambda: found(**arguments), name, arguments)


def _constructed(make: Callable[[], Any], name: str, arguments: dict[str, Any]) -> Environment:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            env = make()
        except TypeError as error:
            unexpected = UNEXPECTED.search(str(error))
            if unexpected is not None and unexpected[1] in arguments:
                raise ConfigError(f"environment {name!r} has no argument {unexpected[1]!r}.") from error
            raise ConfigError(f"environment {name!r} cannot be made from {arguments}: {error}") from error
        except (gymnasium.error.Error, ImportError, AttributeError) as error:
            raise ConfigError(f"environment {name!r} cannot be made from {arguments}: {error}") from error
    for warning in caught:  # of outdated ids and render modes; a log is where they are read
        logger.warning("environment %r: %s", name, COLOUR_CODE.sub("", str(warning.message)))
    if not isinstance(env, gymnasium.Env):
        raise ConfigError(
            f"environment {name!r} is of type {type(env).__name__}; it must be a `gymnasium.Env`."
        )
    return env


def _creator(spec: gymnasium.envs.registration.EnvSpec) -> Any:
    """What an id stands for; None where it cannot be imported, which making it will say better."""
    if not isinstance(spec.entry_point, str):
        return spec.entry_point
    module_name, _, attribute = spec.entry_point.partition(":")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError):
        return None


def _attribute(module: Any, attribute: str, name: str) -> Any:
    if not hasattr(module, attribute):
        offered = {key for key in dir(module) if not key.startswith("_")} | set(gymnasium.registry)
        raise ConfigError(
            f"environment {name!r}: {module.__name__} ({getattr(module, '__file__', 'a package')}) has no "
            f"{attribute!r} and registers no such id. {_suggestion(attribute, offered)}"
        )
    return getattr(module, attribute)


def _check_arguments(found: Any, name: str, arguments: Mapping[str, Any]) -> None:
    """Names an argument that is not taken; those that a function hands on show when it is called."""
    for argument in arguments:
        if not _takes(found, argument):
            takes = [key for key in inspect.signature(found).parameters if key not in ("self", "render_mode")]
            raise ConfigError(
                f"environment {name!r} has no argument {argument!r}. {_suggestion(argument, takes)}"
            )


def _takes(found: Any, argument: str) -> bool:
    try:
        parameters = inspect.signature(found).parameters.values()
    except (TypeError, ValueError):  # written in C, or nothing to call
        return True
    return any(each.kind is each.VAR_KEYWORD or each.name == argument for each in parameters)


def _suggestion(wrong: str, offered: Iterable[str]) -> str:
    near = difflib.get_close_matches(wrong, offered, n=1)
    return f"Did you mean {near[0]!r}?" if near else ""
