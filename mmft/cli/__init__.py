"""The command line: `mmft COMMAND --config FILE [--field value]`.

Only what `mmft --help` needs is imported here; each command imports its own libraries.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from mmft.trainers.registry import ALGORITHMS

COMMANDS = {
    "ppo": "train with PPO: on rewards for completions, or as an agent in an environment (`env`)",
    "a2c": "train with advantage actor-critic: on rewards for completions, or as an agent (`env`)",
    "dqn": "train an agent in an environment (`env`) with deep Q-learning",
    "rwl": "train on rewards with reward-weighted likelihood: own samples, or a dataset of rated completions",
    "sft": "warm start: learn to write the captions of a dataset (TRL's SFTTrainer)",
    "reward-model": "learn a reward from preferences or ratings, for the commands above",
    "evaluate": "score a model on held-out rows with any rewards, or an agent in its environment",
    "generate": "write completions for the rows of a split",
    "check": "try a config on one prompt or a few steps, show what would train, and report every problem",
}
MODULES = {name: name.replace("-", "_") for name in COMMANDS} | dict.fromkeys(ALGORITHMS, "online")
"""The module in `mmft.cli` that runs a command."""
AGENT_MODULES = {"evaluate": "agent_evaluate", "check": "agent_check"}
"""The same where the recipe is for an agent in an environment; what trains one is in `agent`."""

USAGE = """\
Reinforcement-learning fine-tuning of pretrained vision-language models.

usage: mmft COMMAND --config FILE [--field value ...]

commands:
{commands}

examples:
  mmft ppo --config configs/quickstart.yaml
  mmft ppo --config configs/quickstart.yaml --learning_rate 3e-4 --output_dir runs/slower
  mmft check --config configs/caption_ppo.yaml
  mmft dqn --config configs/grid_dqn.yaml
  accelerate launch --config_file configs/accelerate/ddp.yaml -m mmft ppo --config configs/caption_ppo.yaml

A recipe of another algorithm than PPO says so (`algorithm: a2c`) to evaluate, generate and check; one with
`env: ID` is for an agent that acts in an environment.
`mmft COMMAND --help` lists the fields of a command, `mmft --version` says which mmft this is.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        0; 1 if `check` found problems; 2 for a mistake of the user; 130 if interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments[0] if arguments else "--help"
    if command in ("-h", "--help", "help"):
        print(usage())
        return 0
    if command == "--version":
        from mmft import __version__

        print(f"mmft {__version__}")
        return 0
    if command not in COMMANDS:
        return _refuse(command)
    if {"-h", "--help", "--help-all"} & set(arguments[1:]):
        return _help(command, arguments[1:])
    return _run(command, arguments[1:])


def usage() -> str:
    """What `mmft --help` prints."""
    width = max(map(len, COMMANDS))
    return USAGE.format(commands="\n".join(f"  {name:{width}}  {text}" for name, text in COMMANDS.items()))


def _help(command: str, arguments: Sequence[str]) -> int:
    from mmft.cli.arguments import choose_algorithm, has_environment
    from mmft.cli.help import command_help
    from mmft.errors import ConfigError

    try:
        algorithm = choose_algorithm(command, arguments, {})
        acts = True  # whatever the environment is, the fields are the same
        if ALGORITHMS[algorithm].writes or command == "generate":
            acts = has_environment(command, algorithm, arguments, {})
    except ConfigError as error:
        return _mistake(command, error)
    print(command_help(command, algorithm, acts=acts, every_field="--help-all" in arguments))
    return 0


def _mistake(command: str, error: Exception) -> int:
    print(f"mmft {command}: error: {' '.join(str(error).split())}", file=sys.stderr)
    return 2


def _refuse(command: str) -> int:
    import difflib

    near = difflib.get_close_matches(command, COMMANDS, n=1)
    hint = f"Did you mean `mmft {near[0]}`?" if near else f"Commands are {', '.join(COMMANDS)}."
    print(f"mmft: error: there is no command {command!r}. {hint}", file=sys.stderr)
    return 2


def _run(command: str, arguments: Sequence[str]) -> int:
    from mmft.errors import (
        ConfigError,
        DataError,
        EnvError,
        NonFiniteError,
        RewardError,
        UnsupportedModelError,
    )

    try:
        # Inside the guard: it imports torch for seconds, and a user may well press ctrl-C by then.
        from mmft.cli.arguments import parse_run
        from mmft.cli.console import quiet_libraries

        quiet_libraries()
        run = parse_run(command, arguments)
        module = AGENT_MODULES.get(command, "agent") if run.acts else MODULES[command]
        return int(importlib.import_module(f"mmft.cli.{module}").run(run))
    except (ConfigError, DataError, EnvError, NonFiniteError, RewardError, UnsupportedModelError) as error:
        return _mistake(command, error)
    except KeyboardInterrupt:
        print(
            f"\nmmft {command}: interrupted; `--resume_from_checkpoint true` continues a run.",
            file=sys.stderr,
        )
        return 130
