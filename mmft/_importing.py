"""Modules that a config names: of the user's own, or of an installed package."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from mmft.errors import ConfigError


def import_named(module_name: str, complaint: str) -> Any:
    """The module, from the current folder too.

    `complaint` begins the error, and says where the name stands.

    Raises:
        ConfigError: there is no such module, or its own imports fail.
    """
    # The `mmft` command does not put the current folder on the path, as `python -m mmft` does. Last, so that
    # a file of the user's hides no installed package.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return importlib.import_module(module_name)
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and module_name.startswith(error.name or "")
        remedy = (
            f"Run from the folder that holds {module_name.partition('.')[0]}, or install it."
            if missing
            else "It is there, but its own imports fail."
        )
        raise ConfigError(f"{complaint}: {error}. {remedy}") from error
