"""The words behind commands on finished runs, such as `mmft report RUN`: plain arguments, no config file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from mmft.errors import ConfigError

TRUST = "run rewards and environments that a run from the hub names and that are no part of mmft"


class RunParser(argparse.ArgumentParser):
    """An argument parser whose mistakes are `ConfigError`s and whose options cannot be abbreviated.

    Options are written with hyphens, and taken with underscores too, as fields of a config are spelled."""

    def __init__(self, prog: str, description: str, **options: Any) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False, **options)

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        """As in argparse, options spelled with hyphens."""
        return super().add_argument(*map(_hyphenated, names), **options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As in argparse; `--base_model` is `--base-model`."""
        words: Sequence[str] | None = None if args is None else [_hyphenated(word) for word in args]
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        """Called by argparse for words it does not take."""
        raise ConfigError(f"{message}. See `{self.prog} --help`.")


def _hyphenated(word: str) -> str:
    """An option with hyphens; its value and other words stay as they are."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value
