"""The README.md of an agent's run folder: what it does, how well, and how to let it act."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmft.hub.metadata import CardMetadata, Measured, one_line
from mmft.hub.portable import ROWS_BEGIN, ROWS_END
from mmft.report.card_parts import code, made_with, sentence

CARD = """\
---
{metadata}---

# {title}

{base} as an agent in {environment}, trained by mmft with {method}. {trained}

## Results

{results}
{warnings}{pictures}
## Settings

{settings}

The whole configuration is in `config.yaml`; `mmft {algorithm} --config config.yaml` repeats the run, and
`mmft evaluate --config config.yaml` plays the evaluation again.

## Use

```python
{usage}
```

`mmft.Run.from_pretrained({folder!r}).load_agent()` opens it too, from the hub as well.

## Limits

- It was evaluated in this environment, in episodes like those it was trained in; nothing else was tried.
- It chooses among the actions of this environment; whatever it drives needs limits of its own.

## Made with

{versions}
"""
USAGE = """\
from mmft import load_agent, make_environment
from mmft.engine.observations import ObservationReader

agent = load_agent({folder!r})
env = make_environment({environment!r}, {arguments!r})
reader = ObservationReader(
    env.observation_space, env.action_space, environment={environment!r}, **agent.spec.reading
)
seen = reader.read(*env.reset(seed=0))
{scores}
env.step(reader.to_action(int(scores.argmax())))"""
SCORES = {
    "q": "scores = agent([seen]).q[0]  # the value of each action; illegal ones (`seen.legal`) do not count",
    "actor_critic": "scores = agent([seen], None if seen.legal is None else seen.legal[None]).logits[0]",
}
"""By the kind of agent, what says which action is best."""
EPISODE_FILE, MOVING_FILE, CURVES_FILE = "episode.png", "episode.gif", "curves.png"
CAPTIONS = {
    MOVING_FILE: "The agent at work",
    EPISODE_FILE: "Episodes: what the agent sees, and what it thinks of each action",
    CURVES_FILE: "Return, exploration and loss over the steps in environments",
}
SHOWN_SETTINGS = (
    "env_kwargs", "eval_env_kwargs", "instruction", "total_timesteps", "num_envs", "fusion", "modalities",
    "fusion_size", "feature_scaling", "pca_components", "hidden_sizes", "dropout", "learning_rate",
    "head_learning_rate", "lr_scheduler_type", "per_device_train_batch_size", "gradient_accumulation_steps",
    "gamma", "buffer_size", "learning_starts", "train_freq", "target_update_interval", "tau", "n_steps",
    "double_q", "dueling", "huber_delta", "exploration", "exploration_fraction", "num_mini_batches",
    "num_ppo_epochs", "advantage_estimator", "lam", "whiten_advantages", "entropy_coef", "vf_coef",
    "early_stop_kl", "critic_learning_rate", "trainable", "use_peft", "peft_method", "adapt", "lora_r",
    "lora_alpha", "l2_pretrained_coef", "l2_adapter_coef", "seed",
)  # fmt: skip
OF_ADAPTERS = ("peft_method", "adapt", "lora_r", "lora_alpha", "l2_adapter_coef")


@dataclass(frozen=True, slots=True)
class AgentFacts:
    """What a card says."""

    algorithm: str
    """The command that trained."""
    method: str
    """The algorithm in words."""
    folder: str
    base: str
    environment: str
    arguments: Mapping[str, Any]
    """Of the environment that the agent is evaluated in."""
    kind: str
    """Of agent, as its spec says."""
    trained: str
    """What of the pretrained model trained, in a sentence."""
    table: tuple[Sequence[str], Sequence[Sequence[str]]]
    """Header and rows of the results."""
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    warnings: Sequence[str] = ()
    pictures: Sequence[str] = field(default_factory=tuple)
    """Files that were drawn."""
    means: Mapping[str, float] = field(default_factory=dict)
    """Of the measures, after training."""
    summary: Mapping[str, Any] = field(default_factory=dict)
    """What summary.json says, of which machine and time are told."""


def agent_card(facts: AgentFacts) -> str:
    """The card as Markdown."""
    hidden = () if facts.settings.get("use_peft") else OF_ADAPTERS
    shown = [
        name for name in SHOWN_SETTINGS if facts.settings.get(name) not in (None, {}) and name not in hidden
    ]
    return CARD.format(
        metadata=_metadata(facts),
        algorithm=facts.algorithm,
        folder=facts.folder,
        title=_title(facts),
        base=code(facts.base),
        environment=code(facts.environment),
        method=facts.method,
        trained=facts.trained,
        results=_results(facts),
        warnings=_section("Warnings", facts.warnings),
        pictures=_pictures(facts.pictures),
        settings="\n".join(f"- {name}: {facts.settings[name]}" for name in shown),
        usage=USAGE.format(
            folder=facts.folder,
            environment=facts.environment,
            arguments=dict(facts.arguments),
            scores=SCORES[facts.kind],
        ),
        versions=made_with(facts.versions, facts.summary),
    )


def _title(facts: AgentFacts) -> str:
    return one_line(facts.folder.rstrip("/").rsplit("/", 1)[-1])


def _metadata(facts: AgentFacts) -> str:
    measured = Measured(
        dataset=facts.environment, split="evaluation", task="reinforcement-learning", results=facts.means
    )
    return CardMetadata(
        name=_title(facts),
        library="transformers",
        tags=["mmft", facts.algorithm, "reinforcement-learning", "agent"],
        pipeline_tag="reinforcement-learning",
        base=facts.base,
        relation="finetune",
        measured=measured if facts.means else None,
    ).to_yaml()


def _pictures(names: Sequence[str]) -> str:
    """What was drawn; what shows an episode stands between the marks of rows of the data."""
    shown = {name: f"\n![{caption}]({name})\n" for name, caption in CAPTIONS.items() if name in names}
    curves = shown.pop(CURVES_FILE, "")
    episodes = "".join(shown.values())
    return (f"\n{ROWS_BEGIN}\n{episodes}\n{ROWS_END}\n" if episodes else "") + curves


def _results(facts: AgentFacts) -> str:
    header, rows = facts.table
    lines = [f"| {' | '.join(header)} |", f"|---|{'---:|' * (len(header) - 1)}"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    told = (
        "Greedy actions in episodes that training did not see, with 95 % bootstrap intervals over episodes."
    )
    return "\n".join([told, "", *lines])


def _section(title: str, lines: Sequence[str]) -> str:
    return "\n".join([f"\n## {title}\n", *(f"- {sentence(text)}" for text in lines), ""]) if lines else ""
