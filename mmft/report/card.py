"""The README.md of a run folder: a short model card that Hugging Face's hub can show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmft.models.adapter_settings import BOTTLENECK
from mmft.report.record import Change

CARD = """\
---
{metadata}---

# {title}

{base} trained by mmft with {method} on `{dataset}`, to raise: {rewards}.

{results}{warnings}
## Settings

{settings}

The whole configuration is in `config.yaml`; `mmft {algorithm} --config config.yaml` repeats the run.

## Use

```python
{usage}
```

## Made with

{versions}
"""
ADAPTER_USAGE = """\
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor

base = AutoModelForImageTextToText.from_pretrained({base!r})
model = PeftModel.from_pretrained(base, {folder!r})
processor = AutoProcessor.from_pretrained({folder!r})"""
MODEL_USAGE = """\
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained({folder!r})
processor = AutoProcessor.from_pretrained({folder!r})"""
BESIDE_USAGE = """\
from mmft.models.adapters import load_adapter  # puts back the pretrained weights that trained as well
from transformers import AutoModelForImageTextToText, AutoProcessor

base = AutoModelForImageTextToText.from_pretrained({base!r})
model = load_adapter(base, {folder!r})
processor = AutoProcessor.from_pretrained({folder!r})"""
BOTTLENECK_USAGE = "import mmft.models.bottleneck  # makes PEFT know these adapters\n"
PACKAGED_USAGE = "from mmft.tiny import captioner_path  # the base model ships with mmft\n"
SHOWN_SETTINGS = (
    "learning_rate", "lr_scheduler_type", "max_steps", "num_train_epochs", "per_device_train_batch_size",
    "gradient_accumulation_steps", "num_mini_batches", "num_ppo_epochs", "num_generations",
    "max_completion_length", "temperature", "eval_temperature", "offline", "weighting", "baseline",
    "tau", "top_fraction", "advantage_estimator", "scale_rewards", "whiten_advantages", "kl_coef",
    "kl_estimator", "kl_target", "early_stop_kl", "entropy_coef", "vf_coef", "critic_learning_rate",
    "gamma", "lam", "trainable", "use_peft", "peft_method", "adapt", "lora_r", "lora_alpha",
    "l2_pretrained_coef", "l2_adapter_coef", "seed",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What a card says."""

    algorithm: str
    """The command that trained."""
    method: str
    """The algorithm in words."""
    folder: str
    base: str
    dataset: str
    rewards: Sequence[str]
    """What was optimised."""
    settings: Mapping[str, Any]
    changes: Sequence[Change]
    num_rows: int
    versions: Mapping[str, str]
    adapter: bool
    packaged_base: bool = False
    warnings: Sequence[str] = ()
    """Signs that the reward was exploited."""


def model_card(facts: CardFacts) -> str:
    """The card as Markdown."""
    return CARD.format(
        metadata=_metadata(facts),
        title=facts.folder.rstrip("/").rsplit("/", 1)[-1],
        base=f"`{facts.base}`",
        dataset=facts.dataset,
        algorithm=facts.algorithm,
        method=facts.method,
        rewards=", ".join(f"`{name}`" for name in facts.rewards),
        results=_results(facts),
        warnings=_warnings(facts),
        settings="\n".join(f"- {name}: {value}" for name, value in _settings(facts)),
        usage=_usage(facts),
        versions="\n".join(f"- {name} {version}" for name, version in facts.versions.items()),
    )


def _settings(facts: CardFacts) -> list[tuple[str, Any]]:
    """Those that matter, in order, without what was left unset."""
    told = [(name, facts.settings.get(name)) for name in SHOWN_SETTINGS]
    return [(name, value) for name, value in told if value is not None]


def _metadata(facts: CardFacts) -> str:
    lines = ["library_name: peft" if facts.adapter else "library_name: transformers"]
    # The hub checks this field against its own models, so a folder must not stand in it.
    if facts.base.count("/") == 1 and not facts.packaged_base and not facts.base.startswith((".", "/")):
        lines.append(f"base_model: {facts.base}")
    tags = f"tags: [mmft, {facts.algorithm}, reinforcement-learning]"
    return "\n".join([*lines, "pipeline_tag: image-text-to-text", tags, ""])


def _results(facts: CardFacts) -> str:
    if not facts.changes:
        return ""
    rows = [f"| {change.label} | {change.before:.3f} | {change.after:.3f} |" for change in facts.changes]
    temperature = facts.settings.get("eval_temperature", 0)
    decoded = f"sampled at temperature {temperature:g}" if temperature else "decoded greedily"
    head = ["## Results", "", f"Means over {facts.num_rows} held-out rows, {decoded}.", ""]
    return "\n".join([*head, "| measure | before | after |", "|---|---|---|", *rows, ""])


def _warnings(facts: CardFacts) -> str:
    if not facts.warnings:
        return ""
    return "\n".join(["\n## Warnings\n", *(f"- {text}" for text in facts.warnings), ""])


def _usage(facts: CardFacts) -> str:
    beside = facts.settings.get("trainable")
    template = (BESIDE_USAGE if beside else ADAPTER_USAGE) if facts.adapter else MODEL_USAGE
    text = template.format(base=facts.base, folder=facts.folder)
    if facts.adapter and facts.packaged_base:
        text = PACKAGED_USAGE + text.replace(repr(facts.base), "captioner_path()")
    if facts.adapter and not beside and facts.settings.get("peft_method") == BOTTLENECK:
        text = BOTTLENECK_USAGE + text
    return text
