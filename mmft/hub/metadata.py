"""What stands between the rulers at the top of a card, by the hub's own classes, which also write the YAML.

What the hub checks against its own lists (base model, data set) is given only where it can be there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mmft.models.packaged import model_path

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

LOADERS = frozenset(
    {"arrow", "audiofolder", "csv", "imagefolder", "json", "pandas", "parquet", "text", "webdataset"}
)
"""Names of `datasets` for files of a kind: no data set is called so."""
BUILT_IN = "mmft/"
"""Begins the names of what mmft ships or draws, which is not on the hub."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """Results on held-out rows, which this run measured itself."""

    dataset: str
    split: str
    task: str
    """A task of the hub, such as `image-text-to-text`."""
    results: Mapping[str, float]
    """By the measure's name; what is not finite is left out."""
    before: Mapping[str, float] = field(default_factory=dict)
    """The same before training, told beside the name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CardMetadata:
    """What the hub's search and widgets read."""

    name: str
    library: str
    tags: Sequence[str] = ()
    pipeline_tag: str | None = None
    base: str | None = None
    relation: str | None = None
    """Of the model to its base: `adapter`, `finetune`, `merge`."""
    dataset: str | None = None
    license: str | None = None
    measured: Measured | None = field(default=None)

    def to_yaml(self) -> str:
        """The lines between the rulers, the last one ended."""
        from huggingface_hub import ModelCardData

        base = self.base if is_hub_id(self.base) else None
        data = ModelCardData(
            library_name=self.library,
            license=self.license,
            base_model=base,
            base_model_relation=self.relation if base else None,
            pipeline_tag=self.pipeline_tag,
            tags=list(self.tags),
            datasets=[self.dataset] if self.dataset and is_hub_id(self.dataset) else None,
        )
        if self.measured is not None:
            data.model_name, data.eval_results = self.name, _results(self.measured)
        return data.to_yaml() + "\n"


def _results(measured: Measured) -> list[EvalResult] | None:
    from huggingface_hub import EvalResult

    found = [
        EvalResult(
            task_type=measured.task,
            dataset_type=measured.dataset if is_hub_id(measured.dataset) else slug(measured.dataset),
            dataset_name=one_line(measured.dataset),
            dataset_split=one_line(measured.split),
            metric_type=slug(name),
            metric_name=_told(name, measured.before.get(name)),
            metric_value=round(float(value), 6),
        )
        for name, value in measured.results.items()
        if math.isfinite(value)
    ]
    return found or None


def _told(name: str, before: float | None) -> str:
    finite = before is not None and math.isfinite(before)
    return one_line(name) + (f" (before training: {before:.3f})" if finite else "")


def is_hub_id(name: str | None) -> bool:
    """Whether a model or data set of that name can be on the hub: no folder, no file, nothing of mmft's."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    if not name or name in LOADERS or name.startswith((BUILT_IN, ".", "~")) or model_path(name) != name:
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1 and not Path(name).exists()


def slug(text: str) -> str:
    """A name of letters, digits, `_`, `.` and `-`."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", text).strip("-") or "unnamed"


def one_line(text: str, length: int = 120) -> str:
    """A text without line ends and other control characters, cut where it is long."""
    plain = " ".join("".join(each if each.isprintable() else " " for each in text).split())
    return plain if len(plain) <= length else f"{plain[: length - 3]}..."
