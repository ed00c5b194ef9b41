"""The command line: `mmft COMMAND --config FILE [--field value]`.

Only what `mmft --help` needs is imported here; each command imports its own libraries.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence

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
RUN_COMMANDS = {
    "report": "make the HTML report of a run again, or one that compares several",
    "explain": "show what an answer, a value or a decision depends on: heat maps over picture and text",
    "demo": "open a local page: upload a picture, compare captions before and after",
    "push": "upload a run to the hub: weights, critic, settings, results and a card",
    "merge": "write a policy as one plain model, adapters in its weights",
}
"""Commands on a finished run, whose words are plain arguments: `mmft report RUN`."""
MODULES = {name: name.replace("-", "_") for name in COMMANDS} | dict.fromkeys(ALGORITHMS, "online")
"""The module in `mmft.cli` that runs a command."""
RUN_MODULES = {name: name for name in RUN_COMMANDS} | {"report": "report_command"}
"""The same for commands on a finished run."""
AGENT_MODULES = {"evaluate": "agent_evaluate", "check": "agent_check"}
"""The same where the recipe is for an agent in an environment; what trains one is in `agent`."""

USAGE = """\
Reinforcement-learning fine-tuning of pretrained vision-language models.

usage: mmft COMMAND --config FILE [--field value ...]
       mmft COMMAND RUN [--option value ...]

commands with a config:
{commands}

commands on a finished run (its folder, or a hub id):
{run_commands}

examples:
  mmft ppo --config configs/quickstart.yaml
  mmft ppo --config configs/quickstart.yaml --learning_rate 3e-4 --output_dir runs/slower
  mmft check --config configs/caption_ppo.yaml
  mmft dqn --config configs/grid_dqn.yaml
  mmft generate --model runs/quickstart --image picture.png
  mmft report runs/quickstart runs/slower
  accelerate launch --config_file configs/accelerate/ddp.yaml -m mmft ppo --config configs/caption_ppo.yaml

A recipe of another algorithm than PPO says so (`algorithm: a2c`) to evaluate, generate and check; one with
`env: ID` is for an agent that acts in an environment.
`mmft COMMAND --help` lists the fields of a command, `mmft --version` says which mmft this is.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        0; 1 if `check` found problems or a finished run could not be pushed; 2 for a mistake of the user; 130
        if interrupted.
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
    if command not in COMMANDS and command not in RUN_COMMANDS:
        return _refuse(command)
    module = _run_module(command, arguments[1:])
    if module is not None:
        return _guarded(command, lambda: _on_a_run(module, arguments[1:]))
    if {"-h", "--help", "--help-all"} & set(arguments[1:]):
        return _help(command, arguments[1:])
    return _guarded(command, lambda: _run(command, arguments[1:]))


def usage() -> str:
    """What `mmft --help` prints."""
    return USAGE.format(commands=_listed(COMMANDS), run_commands=_listed(RUN_COMMANDS))


def _listed(commands: Mapping[str, str]) -> str:
    width = max(map(len, COMMANDS))
    return "\n".join(f"  {name:{width}}  {text}" for name, text in commands.items())


def _run_module(command: str, arguments: Sequence[str]) -> str | None:
    """The module of a command whose words are plain arguments; None where they are settings."""
    if command == "generate" and any(word.split("=")[0] == "--image" for word in arguments):
        return "generate_image"
    return RUN_MODULES.get(command)


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

    known = [*COMMANDS, *RUN_COMMANDS]
    near = difflib.get_close_matches(command, known, n=1)
    hint = f"Did you mean `mmft {near[0]}`?" if near else f"Commands are {', '.join(known)}."
    print(f"mmft: error: there is no command {command!r}. {hint}", file=sys.stderr)
    return 2


def _run(command: str, arguments: Sequence[str]) -> int:
    from mmft.cli.arguments import parse_run
    from mmft.cli.console import quiet_libraries

    quiet_libraries()
    run = parse_run(command, arguments)
    module = AGENT_MODULES.get(command, "agent") if run.acts else MODULES[command]
    return int(importlib.import_module(f"mmft.cli.{module}").run(run))


def _on_a_run(module: str, arguments: Sequence[str]) -> int:
    from mmft.cli.console import quiet_libraries

    quiet_libraries()
    return int(importlib.import_module(f"mmft.cli.{module}").main(arguments))


def _guarded(command: str, work: Callable[[], int]) -> int:
    """Turns a user's mistake into one line, and ctrl-C into a short one."""
    from mmft.errors import MISTAKES

    try:
        return work()  # it imports torch for seconds, and a user may well press ctrl-C by then
    except MISTAKES as error:
        return _mistake(command, error)
    except SystemExit as stop:  # argparse has printed the help
        return int(stop.code or 0)
    except KeyboardInterrupt:
        resumes = "`--resume_from_checkpoint true` continues a run." if command in ALGORITHMS else ""
        print(f"\nmmft {command}: interrupted; {resumes}".rstrip("; "), file=sys.stderr)
        return 130
