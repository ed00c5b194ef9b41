"""The card of a folder that has none: what it is and how to load it. Commands write one with results."""

from __future__ import annotations

from mmft.hub.files import Kind
from mmft.hub.metadata import CardMetadata

WHAT: dict[Kind, str] = {
    "policy": "A vision-language model",
    "sft": "A vision-language model",
    "model": "A vision-language model",
    "agent": "A vision-language model that acts in an environment",
    "reward_model": "A reward model on a vision-language model",
}
LOADERS: dict[Kind, str] = {
    "policy": "policy = run.load_policy()",
    "sft": "policy = run.load_policy()",
    "model": "policy = run.load_policy()",
    "agent": "agent = run.load_agent()",
    "reward_model": "from mmft import LearnedReward\n\nreward = LearnedReward({repo!r})",
}
CARD = """\
---
{metadata}---

# {title}

{what}, trained with mmft. Its results were not written down here.

```python
from mmft import Run

run = Run.from_pretrained({repo!r})
{load}
```
"""


def short_card(
    kind: Kind, repo_id: str, base: str | None, *, adapter: bool, license: str | None = None
) -> str:
    """The card as Markdown."""
    name = repo_id.rsplit("/", 1)[-1]
    writes = kind in ("policy", "sft", "model")
    metadata = CardMetadata(
        name=name,
        library="peft" if adapter and writes else "transformers",
        tags=["mmft", "reward-model" if kind == "reward_model" else "reinforcement-learning"],
        pipeline_tag="image-text-to-text" if writes else None,
        base=base,
        relation="adapter" if adapter else "finetune",
        license=license,
    )
    load = LOADERS[kind].format(repo=repo_id)
    return CARD.format(metadata=metadata.to_yaml(), title=name, what=WHAT[kind], repo=repo_id, load=load)
