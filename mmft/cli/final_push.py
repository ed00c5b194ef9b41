"""The push at the end of a training command (`push_to_hub: true`), which is no danger to the run."""

from __future__ import annotations

import shlex
import sys
from typing import Any

from mmft.cli.console import is_main_process, say
from mmft.errors import ConfigError, HubError
from mmft.hub import prepare_push, push_trained, repo_of


def announce_push(args: Any, repo_id: str | None = None) -> None:
    """Says where a run will go, if the settings say so, or a repository was made."""
    if args.push_to_hub or repo_id is not None:
        secrecy = "private" if args.hub_private_repo else "public, unless your organization makes it private"
        say(f"when it is finished, this run goes to {repo_id or repo_of(args)} on the hub ({secrecy})")


def take_over_push(args: Any) -> str | None:
    """Makes the repository, and keeps a trainer of TRL from pushing on its own, all that there is.

    Returns:
        The repository's name, on the first process, if `push_to_hub` asks for one.
    """
    pushes, args.push_to_hub = args.push_to_hub, False
    if not pushes or not is_main_process():
        return None
    repository = prepare_push(args)
    announce_push(args, repository)
    return repository


def push_finished(args: Any, repo_id: str | None = None, *, wanted: bool | None = None) -> int:
    """Pushes the run folder where the settings ask for it.

    Args:
        args: of the training.
        repo_id: as it was made at the start; what `args` name by default.
        wanted: whether to push, where `args` no longer say it.

    Returns:
        0; 1 if the push failed: the run is in its folder, and the message says how to push it by hand.
    """
    if not (args.push_to_hub if wanted is None else wanted) or not is_main_process():
        return 0
    name = repo_id or repo_of(args)
    try:
        plan = push_trained(args, name)
    except (HubError, ConfigError) as error:
        words = [
            "mmft",
            "push",
            str(args.output_dir),
            name,
            *(["--private"] if args.hub_private_repo else []),
        ]
        words += ["--revision", args.hub_revision] if args.hub_revision else []
        print(
            f"mmft: error: the run is finished, all of it is in {args.output_dir}/, but it was not pushed: "
            f"{' '.join(str(error).split())} By hand: `{shlex.join(words)}`.",
            file=sys.stderr,
        )
        return 1
    stays = f"; {len(plan.left_out)} not sent (`mmft push --dry-run` says why)" if plan.left_out else ""
    say(f"pushed to {plan.url}: {len(plan.shared)} files{stays}")
    return 0
