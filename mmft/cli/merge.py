"""`mmft merge`: a policy as one plain model, which transformers and what serves its models load."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmft.cli.console import say
from mmft.cli.run_arguments import RunParser
from mmft.errors import ConfigError
from mmft.hub.metadata import CardMetadata, one_line
from mmft.models.adapters import can_merge
from mmft.models.backbone import Backbone
from mmft.runs import Run

DTYPES = ("float32", "bfloat16", "float16")
TASK = "image-text-to-text"
CARD = """\
---
{metadata}---

# {title}

The policy of a run of mmft as one model: the adapters are part of its weights. The run's own card, with its
results, is where the run is.

```python
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained({folder!r})
processor = AutoProcessor.from_pretrained({folder!r})
```
"""


def parser() -> RunParser:
    """The words behind `mmft merge`."""
    words = RunParser(
        "mmft merge",
        "Write the policy of a run as one plain model: adapters become part of the weights, pretrained "
        "weights that trained beside them are in place. transformers and vLLM load it without mmft.",
    )
    words.add_argument("run", metavar="RUN", help="folder of a finished run, or its hub id")
    words.add_argument(
        "output", metavar="OUTPUT", help="folder to write, which must be empty or not there yet"
    )
    words.add_argument(
        "--dtype",
        choices=DTYPES,
        help="of the weights, in which the adapters are added to them; by default that of the base model",
    )
    words.add_argument(
        "--base-model",
        metavar="NAME",
        help="the pretrained model under the adapter, if it is no longer where it was",
    )
    words.add_argument("--revision", help="of the run's repository on the hub")
    return words


def main(argv: Sequence[str]) -> int:
    """Merges and writes."""
    told = parser().parse_args(argv)
    output = Path(told.output)
    check_output(output)
    run = Run.from_pretrained(told.run, revision=told.revision, base=told.base_model)
    check_precision(run)
    backbone = run.load_policy(dtype=told.dtype or "auto").backbone
    merged = merge(backbone, told.run)
    write(merged, backbone.processor, output, base=backbone.source)
    size = sum(each.stat().st_size for each in output.iterdir()) / 1e6
    dtype = str(merged.dtype).removeprefix("torch.")
    say(f"{output}/ holds {type(merged).__name__} in {dtype}, {size:,.0f} MB")
    return 0


def check_output(folder: Path) -> None:
    """Refuses to write among other files.

    Raises:
        ConfigError: there are some, or the folder is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"OUTPUT {folder} is a file; give a folder that is empty or not there yet.")
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"OUTPUT {folder} is not empty; give another folder, or empty it.")


def check_precision(run: Run) -> None:
    """Refuses an adapter that was trained on rounded weights, unless somebody says what it is to be put on.

    Raises:
        ConfigError: it was, and nobody does.
    """
    bits = {name: run.settings.get(name) for name in ("load_in_4bit", "load_in_8bit")}
    rounded = [name for name, value in bits.items() if value]
    if rounded and run.base is None:
        raise ConfigError(
            f"{run.folder} was trained on a quantised model (`{rounded[0]}`), which adapters cannot be added "
            "to. Name the model that was quantised (`--base-model`); the merged one will answer a little "
            "otherwise."
        )


def merge(backbone: Backbone, name: str) -> Any:
    """The model with its adapters in the weights; used up by it.

    Raises:
        ConfigError: these adapters or weights cannot be added up.
    """
    model: Any = backbone.model
    if getattr(backbone.base, "quantization_method", None) is not None:
        raise ConfigError(
            f"the base model of {name} is quantised, and nothing can be added to rounded weights. Name the "
            "model that was quantised (`--base-model`)."
        )
    if not backbone.has_adapters:
        return model
    if not can_merge(model):
        raise ConfigError(
            f"{name} holds bottleneck adapters, which act between layers and cannot become part of the "
            "weights. Load the run with mmft (`mmft.Run`) instead."
        )
    return model.merge_and_unload(safe_merge=True)


def write(model: Any, processor: Any, folder: Path, *, base: str | None) -> None:
    """Writes the model as transformers does, its processor and a short card."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    metadata = CardMetadata(
        name=folder.name,
        library="transformers",
        tags=["mmft", "reinforcement-learning"],
        pipeline_tag=TASK,
        base=base,
        relation="finetune",
    )
    card = CARD.format(metadata=metadata.to_yaml(), title=one_line(folder.name), folder=str(folder))
    (folder / "README.md").write_text(card, encoding="utf-8")
