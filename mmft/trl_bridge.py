"""What mmft takes from TRL, in one place and by public names; TRL's rewards by name are `mmft.resolve`'s.

Names are imported when they are first used: the trainers of TRL cost seconds that most commands do not need.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # TRL re-exports these without saying so to type checkers.
    from trl import (  # type: ignore[attr-defined]
        ModelConfig,
        SFTConfig,
        SFTTrainer,
        TrlParser,
        get_quantization_config,
    )

__all__ = [
    "ModelConfig",
    "SFTConfig",
    "SFTTrainer",
    "TrlParser",
    "get_quantization_config",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(
            f"module {__name__!r} has no attribute {name!r}; it passes on {', '.join(__all__)}"
        )
    import trl

    return getattr(trl, name)
