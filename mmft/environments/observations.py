"""What the drawn environments show: a picture, a sentence, and either of them blanked for an ablation."""

from __future__ import annotations

import string

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from PIL.Image import Image

from mmft.errors import ConfigError
from mmft.tiny.lexicon import CANVAS

Picture = NDArray[np.uint8]
"""(H, W, 3)"""

BLANKS = ("none", "image", "text")
"""What an ablation takes away."""
GREY = 127
"""Every pixel of a blanked picture."""
CHARACTERS = frozenset(string.ascii_lowercase + " ?")
"""What sentences about scenes are written with."""


def picture_space() -> spaces.Box:
    """The space of a scene's picture."""
    return spaces.Box(0, 255, (CANVAS, CANVAS, 3), np.uint8)


def sentence_space(max_length: int = 80) -> spaces.Text:
    """The space of a sentence about a scene."""
    return spaces.Text(max_length, charset=CHARACTERS)


def shown(image: Image, blank: str) -> Picture:
    """A picture's pixels, all of them `GREY` where pictures are blanked."""
    pixels = np.array(image, dtype=np.uint8)  # a copy: what is handed out is the receiver's to keep
    return np.full_like(pixels, GREY) if blank == "image" else pixels


def check_blank(blank: str) -> str:
    """Hands `blank` on.

    Raises:
        ConfigError: it is none of `BLANKS`.
    """
    if blank not in BLANKS:
        raise ConfigError(f"`blank` must be one of {', '.join(BLANKS)}; got {blank!r}.")
    return blank
