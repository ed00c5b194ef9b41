"""The packaged default: a small captioner, the endless scenes it was taught on, a check of what it states.

Names are imported when they are first used, so that importing this package costs neither torch nor datasets.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mmft.models.packaged import CAPTIONER_NAME, model_path

if TYPE_CHECKING:
    from mmft.tiny.facts import true_fact_share
    from mmft.tiny.preferences import load_preferences, load_ratings
    from mmft.tiny.rated_captions import load_rated_captions
    from mmft.tiny.scenes import PROMPT, load_scenes

SCENES_NAME = "mmft/scenes"
"""What a config's `dataset_name` says to mean the packaged scenes."""
PREFERENCES_NAME = "mmft/scenes-preferences"
"""The same for pictures with a true and a false caption."""
RATINGS_NAME = "mmft/scenes-ratings"
"""The same for pictures with one caption and the share of it that is true."""
RATED_CAPTIONS_NAME = "mmft/scenes-rated-captions"
"""The same for pictures with several captions, terse or full, true or not, and their rewards."""

# Public name -> the module that defines it.
_HOMES = {
    "PROMPT": "mmft.tiny.scenes",
    "load_preferences": "mmft.tiny.preferences",
    "load_rated_captions": "mmft.tiny.rated_captions",
    "load_ratings": "mmft.tiny.preferences",
    "load_scenes": "mmft.tiny.scenes",
    "true_fact_share": "mmft.tiny.facts",
}

__all__ = [
    "CAPTIONER_NAME",
    "PREFERENCES_NAME",
    "PROMPT",
    "RATED_CAPTIONS_NAME",
    "RATINGS_NAME",
    "SCENES_NAME",
    "captioner_path",
    "load_preferences",
    "load_rated_captions",
    "load_ratings",
    "load_scenes",
    "true_fact_share",
]


def captioner_path() -> str:
    """The folder of the packaged captioner, for the `from_pretrained` of any Auto class.

    Example:
        >>> from transformers import AutoModelForImageTextToText
        >>> from mmft.tiny import captioner_path
        >>> model = AutoModelForImageTextToText.from_pretrained(captioner_path())
        >>> round(model.num_parameters() / 1e6)  # millions
        2
    """
    return model_path(CAPTIONER_NAME)


def __getattr__(name: str) -> Any:
    """Imports a public name on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
