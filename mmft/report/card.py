"""The README.md of a run folder: a short model card that Hugging Face's hub can show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmft.evaluation.bootstrap import Estimate
from mmft.hub.metadata import CardMetadata, Measured, one_line
from mmft.models.adapter_settings import BOTTLENECK
from mmft.report.card_parts import (
    CardSample,
    code,
    data_section,
    limits_of_a_policy,
    limits_section,
    made_with,
    results_table,
    rewards_section,
    samples_section,
    sentence,
)
from mmft.report.record import Change

TASK = "image-text-to-text"

CARD = """\
---
{metadata}---

# {title}

{base} trained by mmft with {method} on {dataset}, {aim}.

{results}{warnings}{samples}{data}{rewards}{limits}## Settings

{settings}

The whole configuration is in `config.yaml`; `mmft {algorithm} --config config.yaml` repeats the run.

## Use

```python
{usage}
```

{again}## Made with

{versions}
"""
AGAIN = """\
With mmft, which knows the critic, the rewards and the prompt of the run as well:

```python
from mmft import Run

run = Run.from_pretrained({folder!r})
policy = run.load_policy()
```

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
    differences: Mapping[str, Estimate] = field(default_factory=dict)
    """Per measure the change with its interval, where it was drawn."""
    samples: Sequence[CardSample] = ()
    summary: Mapping[str, Any] = field(default_factory=dict)
    """What summary.json says, of which machine and time are told."""


def model_card(facts: CardFacts) -> str:
    """The card as Markdown."""
    return CARD.format(
        metadata=_metadata(facts),
        title=_title(facts),
        base=code(facts.base),
        dataset=code(facts.dataset),
        algorithm=facts.algorithm,
        method=facts.method,
        aim=f"to raise: {', '.join(map(code, facts.rewards))}" if facts.rewards else "to write its captions",
        results=_results(facts),
        warnings=_warnings(facts),
        samples=samples_section(facts.samples),
        data=data_section(_with_data(facts), facts.num_rows),
        rewards=rewards_section(facts.settings),
        limits=limits_section(limits_of_a_policy(_with_data(facts), facts.num_rows)),
        settings="\n".join(f"- {name}: {value}" for name, value in _settings(facts)),
        usage=_usage(facts),
        again=AGAIN.format(folder=facts.folder),
        versions=made_with(facts.versions, facts.summary),
    )


def _with_data(facts: CardFacts) -> dict[str, Any]:
    return {**facts.settings, "dataset_name": facts.dataset}


def _title(facts: CardFacts) -> str:
    return one_line(facts.folder.rstrip("/").rsplit("/", 1)[-1])


def _settings(facts: CardFacts) -> list[tuple[str, Any]]:
    """Those that matter, in order, without what was left unset."""
    told = [(name, facts.settings.get(name)) for name in SHOWN_SETTINGS]
    return [(name, value) for name, value in told if value is not None]


def _metadata(facts: CardFacts) -> str:
    measured = Measured(
        dataset=facts.dataset,
        split=str(facts.settings.get("eval_split") or "held out"),
        task=TASK,
        results={change.label: change.after for change in facts.changes},
        before={change.label: change.before for change in facts.changes},
    )
    return CardMetadata(
        name=_title(facts),
        library="peft" if facts.adapter else "transformers",
        tags=["mmft", facts.algorithm, *([] if facts.algorithm == "sft" else ["reinforcement-learning"])],
        pipeline_tag=TASK,
        base=None if facts.packaged_base else facts.base,
        relation="adapter" if facts.adapter else "finetune",
        dataset=facts.dataset,
        measured=measured if facts.changes else None,
    ).to_yaml()


def _results(facts: CardFacts) -> str:
    if not facts.changes:
        return ""
    temperature = facts.settings.get("eval_temperature", 0)
    decoded = f"sampled at temperature {temperature:g}" if temperature else "decoded greedily"
    head = ["## Results", "", f"Means over {facts.num_rows} held-out rows, {decoded}.", ""]
    level = facts.settings.get("confidence_level") or 0.95
    return "\n".join([*head, results_table(facts.changes, facts.differences, level), "", ""])


def _warnings(facts: CardFacts) -> str:
    if not facts.warnings:
        return ""
    return "\n".join(["## Warnings\n", *(f"- {sentence(text)}" for text in facts.warnings), "", ""])


def _usage(facts: CardFacts) -> str:
    beside = facts.settings.get("trainable")
    template = (BESIDE_USAGE if beside else ADAPTER_USAGE) if facts.adapter else MODEL_USAGE
    text = template.format(base=facts.base, folder=facts.folder)
    if facts.adapter and facts.packaged_base:
        text = PACKAGED_USAGE + text.replace(repr(facts.base), "captioner_path()")
    if facts.adapter and not beside and facts.settings.get("peft_method") == BOTTLENECK:
        text = BOTTLENECK_USAGE + text
    return text
