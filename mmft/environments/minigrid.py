"""MiniGrid and BabyAI with pictures: their own `image` holds codes of cells, not pixels."""

from __future__ import annotations

from typing import Any

import gymnasium

from mmft.errors import ConfigError

MINIGRID_PREFIXES = ("MiniGrid-", "BabyAI-")
"""How the ids of its environments begin."""


def import_minigrid() -> None:
    """Makes its ids known to gymnasium.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import minigrid  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"MiniGrid and BabyAI need the package minigrid ({error}): pip install 'mmft[env]'."
        ) from error


def wrap_minigrid(
    env: gymnasium.Env[Any, Any], *, tile_size: int = 8, partial: bool = False
) -> gymnasium.Env[Any, Any]:
    """The environment with `image` as RGB pixels; `mission` and `direction` stay.

    Args:
        env: an environment of MiniGrid or BabyAI.
        tile_size: pixels per side of a cell.
        partial: show what the agent sees instead of the whole grid.
    """
    import_minigrid()
    from minigrid.wrappers import RGBImgObsWrapper, RGBImgPartialObsWrapper

    if tile_size < 1:
        raise ConfigError(f"`tile_size` must be at least 1 pixel per cell; got {tile_size}.")
    wrapped: gymnasium.Env[Any, Any] = (RGBImgPartialObsWrapper if partial else RGBImgObsWrapper)(
        env, tile_size=tile_size
    )
    return wrapped
