"""The README.md of a reward model's run folder: what it learned, how far to trust it, how to use it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmft.hub.metadata import CardMetadata, Measured, one_line
from mmft.report.card_parts import PIPE, code, data_section, made_with
from mmft.report.record import Change

CARD = """\
---
{metadata}---

# {title}

A reward model on {base}, trained by mmft on {learned} of {dataset}.

{results}{groups}{data}## Settings

{settings}

The whole configuration is in `config.yaml`; `mmft reward-model --config config.yaml` repeats the run.

## Use

In the config of `mmft ppo` or `mmft evaluate`:

```yaml
reward_funcs:
  - {entry}
```

In Python, in the reward protocol of TRL's trainers too:

```python
from mmft.engine.learned_reward import LearnedReward

reward = LearnedReward({folder!r})
reward(prompts=[prompt], completions=[text], images=[[picture]])
```

## Limits

It knows completions like those it was trained on. A policy that is trained on it for long leaves them: look
at the completions, report a measure that is not optimised (`eval_funcs`){penalty}.

## Made with

{versions}
"""
SHOWN_SETTINGS = (
    "loss_type", "reads_likelihood", "learning_rate", "lr_scheduler_type", "max_steps", "num_train_epochs",
    "per_device_train_batch_size", "gradient_accumulation_steps", "dropout", "head_width", "mc_samples",
    "center_rewards_coefficient", "normalize_ratings", "trainable", "use_peft", "peft_method", "adapt",
    "lora_r", "lora_alpha", "seed",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class GroupChange:
    """A measure before and after on the rows of one group."""

    name: str
    num_rows: int
    before: float
    after: float


@dataclass(frozen=True, slots=True)
class RewardModelFacts:
    """What a card says."""

    folder: str
    base: str
    dataset: str
    learned: str
    """`preferences` or `ratings`."""
    settings: Mapping[str, Any]
    changes: Sequence[Change]
    groups: Sequence[GroupChange]
    group_measure: str
    group_column: str | None
    num_rows: int
    versions: Mapping[str, str]
    summary: Mapping[str, Any] = field(default_factory=dict)
    """What summary.json says, of which machine and time are told."""


def reward_model_card(facts: RewardModelFacts) -> str:
    """The card as Markdown."""
    shown = [name for name in SHOWN_SETTINGS if facts.settings.get(name) is not None]
    return CARD.format(
        metadata=_metadata(facts),
        title=_title(facts),
        base=code(facts.base),
        dataset=code(facts.dataset),
        data=data_section({**facts.settings, "dataset_name": facts.dataset}, facts.num_rows),
        learned=facts.learned,
        folder=facts.folder,
        entry=reward_entry(facts.folder, facts.settings),
        penalty=", and use `penalty` (mean - k * standard deviation)" if is_unsure(facts.settings) else "",
        results=_results(facts),
        groups=_groups(facts),
        settings="\n".join(f"- {name}: {facts.settings[name]}" for name in shown),
        versions=made_with(facts.versions, facts.summary),
    )


def _title(facts: RewardModelFacts) -> str:
    return one_line(facts.folder.rstrip("/").rsplit("/", 1)[-1])


def _metadata(facts: RewardModelFacts) -> str:
    measured = Measured(
        dataset=facts.dataset,
        split=str(facts.settings.get("eval_split") or "held out"),
        task="text-classification",
        results={change.label: change.after for change in facts.changes},
        before={change.label: change.before for change in facts.changes},
    )
    return CardMetadata(
        name=_title(facts),
        library="transformers",
        tags=["mmft", "reward-model"],
        base=facts.base,
        relation="finetune",
        dataset=facts.dataset,
        measured=measured if facts.changes else None,
    ).to_yaml()


def reward_entry(folder: str, settings: Mapping[str, Any]) -> str:
    """The model as one of `reward_funcs`; with a penalty where it has a variance to act on."""
    return f"{{name: reward_model, path: {folder}{', penalty: 1.0' * is_unsure(settings)}}}"


def is_unsure(settings: Mapping[str, Any]) -> bool:
    """Whether such a model has a variance, by dropout or stated."""
    return bool(settings.get("dropout")) or settings.get("loss_type") == "heteroscedastic"


def _results(facts: RewardModelFacts) -> str:
    if not facts.changes:
        return ""
    rows = [f"| {change.label} | {change.before:.3f} | {change.after:.3f} |" for change in facts.changes]
    head = ["## Results", "", f"On {facts.num_rows} held-out rows.", "", "| measure | before | after |"]
    return "\n".join([*head, "|---|---|---|", *rows, "", ""])


def _named(value: str) -> str:
    """A value of the data in a table; a strange one as code."""
    return value if re.fullmatch(r"[\w .-]+", value) else code(value).replace("|", PIPE)


def _groups(facts: RewardModelFacts) -> str:
    if not facts.groups:
        return ""
    head = f"| {_named(str(facts.group_column))} | rows | {facts.group_measure} before | after |"
    rows = [
        f"| {_named(each.name)} | {each.num_rows} | {each.before:.3f} | {each.after:.3f} |"
        for each in facts.groups
    ]
    return "\n".join([head, "|---|---|---|---|", *rows, "", ""])
