"""Rewards by name, as a config or the command line writes them.

This is the only place where mmft meets the `rewards` package, and it does so by name: the library itself
takes callables.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmft._importing import import_named
from mmft.engine.reward_calls import IsolatedReward, reward_names
from mmft.errors import ConfigError
from mmft.types import RewardFunction

RewardSpec = str | Mapping[str, Any]
"""`captioning` or `{name: captioning, alpha: 1.0}`; names may also be `trl:NAME` or `my_module:my_reward`."""

SHORT_NAMES = {
    "composite": "rewards:CompositeReward",
    "potential_shaping": "rewards:PotentialShaping",
    "shaped": "rewards:ShapedReward",
    "bleu": "rewards:BleuReward",
    "captioning": "rewards:CaptioningReward",
    "cider_d": "rewards:CiderReward",
    "clip_score": "rewards:ClipScore",
    "ref_clip_score": "rewards:RefClipScore",
    "detail": "rewards:detail_reward",
    "exact_match": "rewards:ExactMatch",
    "format": "rewards:FormatReward",
    "keyword_coverage": "rewards:KeywordCoverage",
    "length": "rewards:LengthReward",
    "judge": "rewards:JudgeReward",
    "length_penalty": "rewards:length_penalty",
    "multiple_choice": "rewards:MultipleChoice",
    "numeric_answer": "rewards:NumericAnswer",
    "regex": "rewards:RegexReward",
    "repetition": "rewards:RepetitionPenalty",
    "reward_model": "mmft.engine.learned_reward:LearnedReward",
    "rouge_l": "rewards:RougeLReward",
}
ISOLATION = ("time_limit", "on_error", "on_none")
"""Keys beside a reward's arguments, which say how its calls are kept apart from the run."""
NESTED = ("reward", "potential")
"""Arguments that are rewards themselves; `parts` is a mapping of them, each with a `weight`."""
SHIPPED = ("rewards", "mmft.tiny")
"""Modules whose rewards come with this library, by the name before the colon."""
SENDING = ("judge",)
"""Rewards that send pictures and texts to an address among their arguments."""
_TRL_PREFIXES = ("trl:", "trl.rewards.", "trl.rewards:")


def resolve_rewards(specs: Sequence[RewardSpec] | RewardSpec) -> tuple[list[RewardFunction], list[str]]:
    """A config's list of rewards as callables, and their names for metrics, made unique."""
    specs = [specs] if isinstance(specs, (str, Mapping)) else list(specs)
    rewards = [resolve_reward(spec) for spec in specs]
    return rewards, list(reward_names(rewards))


def resolve_reward(spec: RewardSpec) -> RewardFunction:
    """One reward from its name and arguments.

    - A short name, as `SHORT_NAMES` lists them.
    - `trl:NAME` or `trl.rewards.NAME`: a reward that ships with TRL. Names that start with `get_` make a
      reward from the arguments. TRL's rewards read messages; they are wrapped so that text prompts work too.
    - `my_module:my_reward`: your own, from the current folder or an installed package. A class is made with
      the arguments; a function gets them at each call.

    Beside the arguments, `time_limit` (seconds), `on_error` (raise, mask) and `on_none` (zero, mask) isolate
    its calls. Rewards made of others take specs where they take rewards:
    `{name: shaped, reward: bleu, potential: {name: ...}}`,
    `{name: composite, parts: {text: {name: bleu, weight: 2.0}}}`.

    Raises:
        ConfigError: Nothing of that name, not callable, or arguments it does not take.
    """
    name, arguments = _name_and_arguments(spec)
    isolation = {key: arguments.pop(key) for key in ISOLATION if key in arguments}
    arguments = _with_rewards_inside(arguments)
    if name.startswith(_TRL_PREFIXES):
        reward = _trl_reward(name, arguments)
    else:
        reward = _made(_imported(SHORT_NAMES.get(name, name), name), name, arguments)
    return IsolatedReward(reward, **isolation) if isolation else reward


def names_of_others(specs: Sequence[RewardSpec]) -> list[str]:
    """Of the rewards that a config names, nested ones too, those that are not this library's or TRL's own, or
    that send what they read to an address: what a config of somebody else should not run unasked."""
    found = []
    for spec in specs:
        name, arguments = _name_and_arguments(spec)
        own = name in SHORT_NAMES or name.partition(":")[0] in SHIPPED or name.startswith(_TRL_PREFIXES)
        if not own or name in SENDING:
            found.append(name)
        parts = arguments.get("parts")
        inner = [arguments[key] for key in NESTED if isinstance(arguments.get(key), (str, Mapping))]
        inner += list(parts.values()) if isinstance(parts, Mapping) else []
        found += names_of_others(inner)
    return found


def _with_rewards_inside(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with the specs among them resolved; the weights of `parts` become `weights`."""
    arguments = dict(arguments)
    for key in NESTED:
        if isinstance(arguments.get(key), (str, Mapping)):
            arguments[key] = _inner(arguments[key], key)
    parts = arguments.get("parts")
    if not isinstance(parts, Mapping):
        return arguments
    specs = {
        part: dict(spec) if isinstance(spec, Mapping) else {"name": spec} for part, spec in parts.items()
    }
    weights = {part: spec.pop("weight") for part, spec in specs.items() if "weight" in spec}
    arguments["parts"] = {part: _inner(spec, f"parts: {part}") for part, spec in specs.items()}
    if weights:
        arguments["weights"] = dict(arguments.get("weights") or {}) | weights
    return arguments


def _inner(spec: RewardSpec, where: str) -> RewardFunction:
    reward = resolve_reward(spec)
    if isinstance(reward, IsolatedReward):
        raise ConfigError(
            f"`{where}` sets one of {', '.join(ISOLATION)}; set it on the outer reward, which is called as a "
            "whole."
        )
    return reward


def reward_checker() -> Callable[..., Any]:
    """The checker of the `rewards` package: what breaks the reward protocol, as a ValueError with a list."""
    checker: Callable[..., Any] = importlib.import_module("rewards").check
    return checker


class MessageForm:
    """A reward that reads messages, made to take plain-text completions too."""

    def __init__(self, reward: RewardFunction) -> None:
        self.reward = reward
        (self.__name__,) = reward_names([reward])

    def __call__(self, prompts: list[Any], completions: list[Any], **columns: Any) -> list[float | None]:
        """Hand everything on, strings turned to `[{"role": "assistant", "content": text}]`."""
        messages = [
            [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion
            for completion in completions
        ]
        return self.reward(prompts=prompts, completions=messages, **columns)


def _name_and_arguments(spec: RewardSpec) -> tuple[str, dict[str, Any]]:
    if isinstance(spec, str):
        return spec.strip(), {}
    arguments = dict(spec) if isinstance(spec, Mapping) else {}
    name = arguments.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(f"a reward is a name, or a mapping with `name` and arguments; got {spec!r}.")
    return name.strip(), arguments


def _trl_reward(name: str, arguments: dict[str, Any]) -> RewardFunction:
    module = importlib.import_module("trl.rewards")
    short = next(name.removeprefix(prefix) for prefix in _TRL_PREFIXES if name.startswith(prefix))
    offered = [known for known in dir(module) if known.endswith(("reward", "punishment"))]
    if short not in offered:
        raise ConfigError(
            f"`reward_funcs` names {name!r}; trl.rewards has no {short!r}. {_suggestion(short, offered)}"
        )
    found = getattr(module, short)
    if short.startswith("get_"):
        _check_arguments(found, name, arguments)
        found, arguments = _constructed(found, name, arguments), {}
    return MessageForm(_made(found, name, arguments))


def _imported(path: str, name: str) -> Any:
    """The object at `module:attribute` (or `module.attribute`)."""
    module_name, colon, attribute = path.partition(":")
    if not colon:
        module_name, _, attribute = path.rpartition(".")
    if not module_name or not attribute:
        raise ConfigError(
            f"`reward_funcs` names {name!r}, which is no known reward. {_suggestion(name, list(SHORT_NAMES))}"
            " Your own is written `my_module:my_reward`, one of TRL's `trl:think_format_reward`."
        )
    module = import_named(module_name, f"`reward_funcs` names {name!r}")
    if not _has(module, attribute, name):
        offered = [known for known in dir(module) if not known.startswith("_")]
        raise ConfigError(
            f"`reward_funcs` names {name!r}; {module_name} ({getattr(module, '__file__', 'a package')}) has "
            f"no {attribute!r}. {_suggestion(attribute, offered)}"
        )
    return getattr(module, attribute)


def _has(module: Any, attribute: str, name: str) -> bool:
    try:
        return hasattr(module, attribute)
    except ImportError as error:  # a package that loads its names on first use, and lacks what one needs
        raise ConfigError(f"`reward_funcs` names {name!r}: {error}") from error


def _made(found: Any, name: str, arguments: dict[str, Any]) -> RewardFunction:
    if not callable(found):
        raise ConfigError(f"`reward_funcs` names {name!r}, which is {found!r} and cannot be called.")
    if inspect.isclass(found):
        _check_arguments(found, name, arguments)
        return _constructed(found, name, arguments)
    if not arguments:
        return found
    _check_arguments(found, name, arguments)
    reward: Any = functools.partial(found, **arguments)
    (reward.__name__,) = reward_names([found])
    return reward


def _constructed(found: Callable[..., Any], name: str, arguments: dict[str, Any]) -> RewardFunction:
    try:
        reward = found(**arguments)
    # An argument of a wrong type shows as AttributeError too, a file that is not there as OSError.
    except (TypeError, ValueError, AttributeError, OSError) as error:
        raise ConfigError(f"reward {name!r} cannot be made from {arguments}: {error}") from error
    if not callable(reward):
        raise ConfigError(
            f"`reward_funcs` names {name!r}; its instances cannot be called. Give it `__call__`."
        )
    return reward


def _check_arguments(found: Callable[..., Any], name: str, arguments: dict[str, Any]) -> None:
    """Unknown arguments would vanish in a reward's `**columns`, so only named parameters count."""
    parameters = inspect.signature(found).parameters.values()
    takes = [each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    for argument in arguments:
        if argument not in takes:
            raise ConfigError(f"reward {name!r} has no argument {argument!r}. {_suggestion(argument, takes)}")


def _suggestion(wrong: str, offered: Sequence[str]) -> str:
    near = difflib.get_close_matches(wrong, offered, n=1)
    return f"Did you mean {near[0]!r}?" if near else f"Known are {', '.join(sorted(offered)) or 'none'}."
