"""What trains by adapters, as a part of the flat settings of `mmft.config`; imports nothing heavy."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mmft.errors import ConfigError

ADAPTER_FILE = "adapter_config.json"
PRETRAINED_FILE = "pretrained_weights.safetensors"
"""Beside a saved adapter: pretrained weights that trained with it, for which PEFT's files have no room."""
BOTTLENECK = "bottleneck"
LORA_KINDS = ("lora", "dora", "rslora")
METHODS = (*LORA_KINDS, "ia3", BOTTLENECK)
ADAPTABLE = ("language", "vision", "projector")
"""Parts that can carry adapters; `language` is the text model without its head."""
DEFAULT_PARTS = ("language",)


@dataclass
class AdapterSettings:
    """Which adapters `use_peft` adds, and where; ranks and dropout are TRL's `lora_*`."""

    peft_method: str = field(
        default="lora", metadata={"help": "With `use_peft`: lora, dora, rslora, ia3 or bottleneck."}
    )
    adapt: list[str] | None = field(
        default=None,
        metadata={"help": "Parts that get adapters: language, vision, projector. Unset: language."},
    )
    bottleneck_size: int = field(default=64, metadata={"help": "Width of `peft_method: bottleneck`."})

    def __post_init__(self) -> None:
        self.adapt = [self.adapt] if isinstance(self.adapt, str) else self.adapt
        check_names([self.peft_method], METHODS, "peft_method")
        check_names(self.adapt or (), ADAPTABLE, "adapt")
        if self.adapt is not None and not self.adapt:
            raise ConfigError("`adapt` is empty; name parts, leave it out, or set `use_peft: false`.")
        if self.bottleneck_size < 1:
            raise ConfigError(f"`bottleneck_size` must be >= 1; got {self.bottleneck_size}.")


def check_names(names: Sequence[str], known: Sequence[str], setting: str) -> None:
    """Refuses names that are not known.

    Raises:
        ConfigError: with the nearest known name.
    """
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"`{setting}` names {name!r}, which is not one of {', '.join(known)}.{hint}")


def check_adapters(settings: AdapterSettings, model: Any) -> None:
    """Refuses settings of adapters that contradict TRL's `ModelConfig`.

    Raises:
        ConfigError: with the two settings and what to do.
    """
    method = settings.peft_method
    if not model.use_peft:
        for name, given in (("peft_method", method != "lora"), ("adapt", settings.adapt is not None)):
            if given:
                value = getattr(settings, name)
                raise ConfigError(f"`{name}` is {value!r} without `use_peft: true`; set it, or leave it out.")
        return
    for name in ("lora_target_modules", "lora_target_parameters"):
        if settings.adapt is not None and getattr(model, name) is not None:
            raise ConfigError(
                f"`adapt` {settings.adapt} and `{name}` {getattr(model, name)!r} both say where adapters go; "
                "give either."
            )
    for name in () if method in LORA_KINDS else ("use_dora", "use_rslora", "lora_target_parameters"):
        if getattr(model, name):
            raise ConfigError(
                f"`{name}` is for LoRA, but `peft_method` is {method!r}; leave one of the two out."
            )
