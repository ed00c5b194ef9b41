"""What an agent is, beside its weights: the file by which a saved one is built again."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mmft.errors import ConfigError

SPEC_FILE = "agent.json"
Q, ACTOR_CRITIC = "q", "actor_critic"
KINDS = (Q, ACTOR_CRITIC)


@dataclass(frozen=True, kw_only=True, slots=True)
class AgentSpec:
    """How states are read, fused and judged."""

    kind: str
    """`q`: action values. `actor_critic`: a policy and the value of the state."""
    num_actions: int
    modalities: tuple[str, ...]
    """What the model is asked for; numbers come on top."""
    num_numbers: int = 0
    fusion: str = "vlm"
    fusion_size: int | None = None
    """Width of the fused state; None: that of the model's hidden states."""
    fusion_options: Mapping[str, Any] = field(default_factory=dict)
    """Of the fusion's class."""
    pooled: bool = True
    """Whether sequences are kept as their mean."""
    hidden_sizes: tuple[int, ...] = ()
    """Of the heads."""
    dropout: float = 0.0
    """Of the heads."""
    dueling: bool = False
    feature_scaling: str = "standard"
    pca_components: int | None = None
    reading: Mapping[str, Any] = field(default_factory=dict)
    """Keys and instruction, for `ObservationReader`."""
    backbone: Literal["frozen", "adapter", "full"] = "frozen"
    """What is saved of the backbone: nothing, its adapter, or all of it."""
    base: str | None = None
    """Where a backbone that is not saved, or that was adapted, comes from."""
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"`kind` of an agent must be {' or '.join(KINDS)}; got {self.kind!r}.")
        if self.num_actions < 1:
            raise ConfigError(f"`num_actions` must be >= 1; got {self.num_actions}.")

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes `agent.json`."""
        text = json.dumps(dataclasses.asdict(self), indent=1)
        (Path(folder) / SPEC_FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> AgentSpec:
        """Reads what `save` wrote.

        Raises:
            ConfigError: the folder holds no agent, or one of another version.
        """
        path = Path(folder) / SPEC_FILE
        if not path.is_file():
            raise ConfigError(
                f"{folder} holds no {SPEC_FILE}; give the folder of a run of `mmft dqn`, or of `mmft ppo` or "
                "`mmft a2c` with `env`."
            )
        values = json.loads(path.read_text(encoding="utf-8"))
        known = {each.name for each in dataclasses.fields(cls)}
        if set(values) != known:
            raise ConfigError(
                f"{path} has the fields {sorted(set(values) ^ known)} too many or too few; it was written by "
                "another version of mmft."
            )
        for name in ("modalities", "hidden_sizes"):
            values[name] = tuple(values[name])
        return cls(**values)

    def differences(self, other: AgentSpec) -> list[str]:
        """Fields in which another spec has another value, in words; where the base lies does not count."""
        mine, theirs = (json.loads(json.dumps(dataclasses.asdict(each))) for each in (self, other))
        return [
            f"{name}={theirs[name]!r} (now {mine[name]!r})"
            for name in mine
            if name not in ("base", "dtype") and mine[name] != theirs[name]
        ]
