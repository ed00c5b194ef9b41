"""Models that ship inside the package, by the name that a config or a script writes."""

from __future__ import annotations

from pathlib import Path

CAPTIONER_NAME = "mmft/tiny-captioner"
"""The small captioner of `mmft.tiny`."""

_FOLDERS = {CAPTIONER_NAME: "tiny/captioner"}  # inside the package


def model_path(name: str) -> str:
    """Where `from_pretrained` finds a model: packaged names become folders, every other name stays."""
    folder = _FOLDERS.get(name)
    return name if folder is None else str(Path(__file__).parents[1] / folder)


def packaged_name(path: str) -> str:
    """The name of a packaged model whose folder this is; every other path stays."""
    return next((name for name in _FOLDERS if model_path(name) == path), path)
