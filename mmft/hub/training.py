"""Pushing as a training run is told (`push_to_hub: true`): prepared first, done once at the end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmft.errors import ConfigError
from mmft.hub.plan import PushPlan
from mmft.hub.pushing import prepare_repo, push

if TYPE_CHECKING:
    from transformers import TrainingArguments

AT_THE_END = ("end", "every_save")
"""Of transformers' `hub_strategy`: what is wanted, and the default, which nobody has to have chosen."""


def repo_of(args: TrainingArguments) -> str:
    """The repository that the arguments name: by default the name of `output_dir`, under the token's user."""
    return args.hub_model_id or Path(str(args.output_dir)).resolve().name


def prepare_push(args: TrainingArguments, *, token: str | None = None, private: bool | None = None) -> str:
    """Makes the repository before anything is trained, so that a run does not end at a closed door.

    Raises:
        ConfigError: `hub_strategy` asks for more than one push.
        HubError: the hub refuses.
    """
    strategy = str(getattr(args.hub_strategy, "value", args.hub_strategy))
    if strategy not in AT_THE_END:
        raise ConfigError(
            f"`hub_strategy` is {strategy!r}, but a run is pushed once, when it is finished. Leave it out; "
            "`mmft push RUN REPO --include-checkpoints` sends checkpoints too."
        )
    return prepare_repo(
        repo_of(args),
        private=bool(args.hub_private_repo if private is None else private),
        revision=args.hub_revision,
        token=token or args.hub_token,
    )


def push_trained(args: TrainingArguments, repo_id: str | None = None, **given: Any) -> PushPlan:
    """Pushes `output_dir` as `push` does; what is given goes before what the arguments say.

    Raises:
        ConfigError: nobody else could load it.
        HubError: something may not be sent, or the hub refused or broke off.
    """
    told: dict[str, Any] = {
        "private": bool(args.hub_private_repo),
        "revision": args.hub_revision,
        "token": args.hub_token,
    }
    told |= {name: value for name, value in given.items() if value is not None}
    return push(str(args.output_dir), repo_id or repo_of(args), **told)
