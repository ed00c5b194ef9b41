"""Environments that ship with mmft, and how any environment is made by its name.

Importing this package registers the ids with gymnasium; the classes are imported when they are first used, so
that it costs neither torch nor datasets.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mmft.environments.registration import register_environments

if TYPE_CHECKING:
    from mmft.environments.find_object import FindObject
    from mmft.environments.making import make_environment
    from mmft.environments.minigrid import wrap_minigrid
    from mmft.environments.rows import RowsEnvironment
    from mmft.environments.scene_questions import SceneQuestions

# Public name -> the module that defines it.
_HOMES = {
    "FindObject": "mmft.environments.find_object",
    "RowsEnvironment": "mmft.environments.rows",
    "SceneQuestions": "mmft.environments.scene_questions",
    "make_environment": "mmft.environments.making",
    "wrap_minigrid": "mmft.environments.minigrid",
}

__all__ = [
    "FindObject",
    "RowsEnvironment",
    "SceneQuestions",
    "make_environment",
    "register_environments",
    "wrap_minigrid",
]

register_environments()


def __getattr__(name: str) -> Any:
    """Imports a public name on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
