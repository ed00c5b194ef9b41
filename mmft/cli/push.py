"""`mmft push`: a finished run goes to the hub; what is sent and what is not is `mmft.hub`'s to say."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mmft.cli.console import say
from mmft.cli.run_arguments import RunParser
from mmft.hub import push

DESCRIPTION = """\
Upload a finished run to the Hugging Face hub in one commit: weights (an adapter as PEFT loads it), critic,
processor, config.yaml, results, curves and the card. What the repository has already is not sent again.

Never sent: optimizer states, trackers' logs, and anything that is not on mmft's list. Rows of the data (the
report, samples, pictures, prompts) are sent only where mmft drew them itself: a data set may be private, or
its licence may not allow it. --samples sends them, --no-samples leaves them out. Files that hold a token or
an API key are refused. --dry-run says what would be sent, without network and token.
"""


def parser() -> RunParser:
    """The words behind `mmft push`."""
    words = RunParser("mmft push", DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("run", metavar="RUN", help="folder of a finished run, or of a merged model")
    words.add_argument("repo", metavar="REPO", help="user/name, or a name under your own user")
    words.add_argument("--private", action="store_true", help="only you see it; a public one is refused")
    words.add_argument("--revision", help="branch to write to, made if there is none; the main one if unset")
    words.add_argument("--commit-message", help="of the commit")
    words.add_argument(
        "--include-checkpoints",
        action="store_true",
        help="also the weights of checkpoints, without optimizer states",
    )
    words.add_argument(
        "--samples",
        action=argparse.BooleanOptionalAction,
        help="also what shows rows of the data; by default only if mmft drew them",
    )
    words.add_argument(
        "--base-model",
        metavar="NAME",
        help="the hub's name of the pretrained model, if the run knows it by a folder",
    )
    words.add_argument("--license", help="goes into the card's metadata, such as apache-2.0")
    words.add_argument("--dry-run", action="store_true", help="say what would be sent, and send nothing")
    return words


def main(argv: Sequence[str]) -> int:
    """Pushes, or says what would be pushed."""
    told = parser().parse_args(argv)
    plan = push(
        told.run,
        told.repo,
        private=told.private,
        revision=told.revision,
        commit_message=told.commit_message,
        include_checkpoints=told.include_checkpoints,
        samples=told.samples,
        base=told.base_model,
        license=told.license,
        dry_run=told.dry_run,
    )
    say(plan.describe())
    if plan.url is not None:
        say(f"{'pushed to' if plan.changed else 'nothing has changed at'} {plan.url}")
    return 0
