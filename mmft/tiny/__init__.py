"""The packaged default: a small captioner, the endless scenes it was taught on, a check of what it states.

Names are imported when they are first used, so that importing this package costs neither torch nor datasets.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmft.tiny.facts import true_fact_share
    from mmft.tiny.scenes import PROMPT, load_scenes

CAPTIONER_NAME = "mmft/tiny-captioner"
"""What a config's `model_name_or_path` says to mean the packaged captioner."""
SCENES_NAME = "mmft/scenes"
"""What a config's `dataset_name` says to mean the packaged scenes."""

# Public name -> the module that defines it.
_HOMES = {
    "PROMPT": "mmft.tiny.scenes",
    "load_scenes": "mmft.tiny.scenes",
    "true_fact_share": "mmft.tiny.facts",
}

__all__ = ["CAPTIONER_NAME", "PROMPT", "SCENES_NAME", "captioner_path", "load_scenes", "true_fact_share"]


def captioner_path() -> str:
    """The folder of the packaged captioner, for the `from_pretrained` of any Auto class."""
    return str(Path(__file__).parent / "captioner")


def __getattr__(name: str) -> Any:
    """Imports a public name on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
