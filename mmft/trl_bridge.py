"""Everything that mmft takes from TRL, in one place, by public names only (rewards by name are `mmft.resolve`'s).

Names are imported when they are first used: the trainers of TRL cost seconds that most commands do not need.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trl import ModelConfig, SFTConfig, SFTTrainer, TrlParser, get_peft_config, get_quantization_config

__all__ = [
    "ModelConfig",
    "SFTConfig",
    "SFTTrainer",
    "TrlParser",
    "get_peft_config",
    "get_quantization_config",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it passes on {', '.join(__all__)}")
    import trl

    return getattr(trl, name)
