"""The words behind commands on finished runs, such as `mmft report RUN`: plain arguments, no config file."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from mmft.errors import ConfigError


class RunParser(argparse.ArgumentParser):
    """An argument parser whose mistakes are `ConfigError`s and whose options cannot be abbreviated."""

    def __init__(self, prog: str, description: str, **options: Any) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Called by argparse for words it does not take."""
        raise ConfigError(f"{message}. See `{self.prog} --help`.")
