"""The help of one command: its own fields in full, and where to read about the libraries' ones."""

from __future__ import annotations

import dataclasses
import textwrap
from typing import Any

from mmft.cli import COMMANDS
from mmft.cli.arguments import OTHER_TRAINING, script_types
from mmft.config import ALWAYS_RECORDED
from mmft.trainers.registry import ALGORITHMS

WIDTH = 110
NAMES = {
    "DataConfig": "data and model parts",
    "AdapterSettings": "adapters",
    "EvaluationSettings": "evaluation",
    "ScriptConfig": "rewards and output",
    "AgentScriptConfig": "environment, model parts and output",
    "SFTScriptConfig": "what to learn",
    "RewardModelScriptConfig": "what to learn, and what to show",
    "ModelConfig": "model (TRL's ModelConfig)",
    "OnlineConfig": "rollouts",
    "ImportanceSettings": "what answers and decisions hang on",
    "RegularizationConfig": "staying near the pretrained weights",
    "AdvantageConfig": "advantages and the price of KL",
    "AgentConfig": "environments, what is read of them, and heads",
    "ActorCriticSettings": "advantages and the critic",
    "AgentRolloutConfig": "rollouts in environments",
    "PPOSettings": "PPO",
    "PPOConfig": "PPO",
    "AgentPPOConfig": "PPO",
    "A2CConfig": "A2C",
    "AgentA2CConfig": "A2C",
    "DQNConfig": "deep Q-learning",
    "RewardWeightedConfig": "reward-weighted likelihood",
    "RewardModelConfig": "reward model",
    "_BaseConfig": "TRL's defaults",
    "SFTConfig": "supervised training (TRL's SFTConfig)",
}
COMMON = (
    *ALWAYS_RECORDED, "warmup_steps", "max_grad_norm", "logging_steps",
    "save_steps", "save_total_limit", "eval_strategy", "eval_steps", "resume_from_checkpoint", "report_to",
)  # fmt: skip


def command_help(command: str, algorithm: str, *, acts: bool = False, every_field: bool = False) -> str:
    """Fields in groups, each with its default and one line of help.

    Args:
        command: whose help this is.
        algorithm: whose fields, where the command serves several.
        acts: list the fields of an agent in an environment.
        every_field: list transformers' fields too.
    """
    lines = [
        f"mmft {command}: {COMMANDS[command]}",
        "",
        f"usage: mmft {command} --config FILE [--field value ...]",
        "",
        "FILE is a flat YAML mapping of the fields below; `--field value` overrides it.",
    ]
    if command not in (*ALGORITHMS, *OTHER_TRAINING):
        served = [name for name, each in ALGORITHMS.items() if each.writes or command != "generate"]
        others = f"`mmft {command} --algorithm NAME --help` lists those of {', '.join(served)}."
        lines.append(f"They are those of a recipe with `algorithm: {algorithm}`;\n{others}")
    if ALGORITHMS[algorithm].acts and not acts and command not in OTHER_TRAINING and command != "generate":
        asked = command if command in ALGORITHMS else f"{command} --algorithm {algorithm}"
        lines.append(f"`mmft {asked} --env ID --help` lists those of an agent in an environment.")
    shown: set[str] = set()
    for kind in script_types(command, algorithm, acts=acts):
        for owner in reversed(kind.__mro__):
            fields = [each for each in _own_fields(owner) if each.name not in shown]
            if owner.__name__ == "TrainingArguments" and not every_field:
                continue
            shown |= {each.name for each in fields}
            fields = [each for each in fields if _defined(kind, each.name)]
            if fields:
                title = NAMES.get(owner.__name__, f"training (transformers' {owner.__name__})")
                lines += ["", f"{title}:", *(_described(_defined(kind, each.name)) for each in fields)]
    if not every_field:
        common = ", ".join(name for name in COMMON if name not in shown)
        text = f"and every field of transformers.TrainingArguments, such as {common}. --help-all lists them."
        lines += ["", textwrap.fill(text, WIDTH)]
    return "\n".join(lines)


def _own_fields(owner: type[Any]) -> list[dataclasses.Field[Any]]:
    """Fields that a class in the inheritance line declares itself."""
    if not dataclasses.is_dataclass(owner):
        return []
    declared = vars(owner).get("__annotations__", {})
    return [each for each in dataclasses.fields(owner) if each.name in declared and each.init]


def _defined(kind: type[Any], name: str) -> Any:
    return next(each for each in dataclasses.fields(kind) if each.name == name)


def _described(each: dataclasses.Field[Any]) -> str:
    default = each.default
    if each.default_factory is not dataclasses.MISSING:
        default = each.default_factory()
    value = (
        ""
        if default in (None, dataclasses.MISSING) or default == []
        else f" [{getattr(default, 'value', default)}]"
    )
    text = " ".join(str(each.metadata.get("help", "")).replace("%%", "%").split())
    head = f"  {each.name:28}"
    gap = "" if len(each.name) <= 27 else "\n" + " " * 30
    return textwrap.fill(
        f"{text}{value}",
        WIDTH,
        initial_indent=head + gap,
        subsequent_indent=" " * 30,
        break_on_hyphens=False,
    )
