"""A finished run, by its folder or hub id: what it trained, what it was told, and what it answers.

Nothing here trains or writes; commands that open a run (`generate --image`, `explain`, `demo`, `merge`) and
notebooks build on it.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import yaml

from mmft.data.content import content_key
from mmft.data.messages import to_messages
from mmft.data.rows import as_prompts
from mmft.engine.actor_critic import VLMActorCritic
from mmft.engine.agent import VLMAgent, load_agent
from mmft.engine.backbone_module import load_named
from mmft.engine.judging import RewardSuite
from mmft.engine.prompt_encoder import PromptEncoder
from mmft.engine.reward_calls import Isolation, no_reward
from mmft.engine.sampling import SamplingParams, sample_noise
from mmft.engine.saved_policy import base_name, load_policy
from mmft.engine.token_texts import token_texts
from mmft.errors import ConfigError
from mmft.models import agent_spec, reward_model
from mmft.models.adapters import ADAPTER_FILE, load_adapter
from mmft.models.backbone import Backbone
from mmft.models.snapshots import local_folder
from mmft.report.run_kind import Kind, run_kind
from mmft.resolve import names_of_others, resolve_rewards
from mmft.tiny import CAPTIONER_NAME, PROMPT
from mmft.trainers.collector import Collector, Judged
from mmft.trainers.metric_log import MetricLog
from mmft.trainers.reward_state import load_reward_state
from mmft.types import Prompt, PromptRow

if TYPE_CHECKING:
    from PIL.Image import Image

CONFIG_FILE = "config.yaml"
SUMMARY_FILE = "summary.json"
SAMPLES_FILE = "samples.jsonl"
CACHE_BYTES = 2**28
"""For encoded prompts of an answerer."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One completion, and what is known of it."""

    text: str
    ids: list[int]
    """Its tokens, the end token included."""
    token_texts: list[str]
    """What each token adds to it, the end token included."""
    logps: list[float]
    """Log-probs of the tokens."""
    values: list[float] | None
    """What the critic expected before each token; None without one."""
    ended: bool
    """False where the completion was cut."""
    reward: float | None
    """The weighted total; None where nothing judged."""
    rewards: dict[str, float | None]
    """Per reward; None where it could not judge."""


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run.

    Attributes:
        folder: where its files are on this machine.
        name: what it is called: the last part of the folder's or the repository's name.
        settings: its config.yaml; empty where there is none.
        summary: its summary.json; empty where there is none.
        base: the name of the pretrained model, where it is no longer where it was.
        trusts_code: whether code that its settings name may be run.

    Example:
        >>> from peft import LoraConfig
        >>> from mmft import PPOConfig, PPOTrainer, Run
        >>> from mmft.tiny import load_scenes
        >>> from rewards import bleu_reward
        >>> rows = load_scenes("train", 8).add_column("prompt", ["Describe the picture."] * 8)
        >>> args = PPOConfig(output_dir="runs/example", max_steps=1)
        >>> lora = LoraConfig(r=4, target_modules=r".*language_model.*_proj")
        >>> trainer = PPOTrainer("mmft/tiny-captioner", bleu_reward, args, rows, peft_config=lora)
        >>> _ = trainer.train()
        >>> trainer.save_model()
        >>> run = Run.from_pretrained("runs/example")
        >>> run.kind, run.name
        ('policy', 'example')
        >>> policy, before = run.load_policy(), run.load_base()  # with the adapters, and without
        >>> policy.value_head is not None, before.value_head is not None
        (True, False)
    """

    folder: Path
    name: str
    settings: dict[str, Any] = field(default_factory=dict, repr=False)
    summary: dict[str, Any] = field(default_factory=dict, repr=False)
    base: str | None = None
    trusts_code: bool = True

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        revision: str | None = None,
        base: str | None = None,
        trust_code: bool = False,
    ) -> Run:
        """Opens a run's folder, or downloads it from the hub.

        Args:
            name: folder or hub id.
            revision: of the hub's repository.
            base: the pretrained model, if it is no longer where it was.
            trust_code: of a run from the hub: rewards and environments that it names and that are no part of
                this library may be imported and called. Those of a folder are yours.

        Raises:
            ConfigError: there is no such folder or repository, or it holds no run.
        """
        folder = local_folder(name, revision=revision)
        run = cls(
            folder,
            Path(name).resolve().name if Path(name).is_dir() else str(name).rsplit("/", 1)[-1],
            _read(folder / CONFIG_FILE, yaml.safe_load),
            _read(folder / SUMMARY_FILE, json.loads),
            base,
            trust_code or Path(name).is_dir(),
        )
        saved = (agent_spec.SPEC_FILE, reward_model.SPEC_FILE, ADAPTER_FILE, "config.json")
        if not run.settings and not any((folder / each).is_file() for each in saved):
            raise ConfigError(
                f"{folder} holds no run: neither {CONFIG_FILE} nor a model. Give the `output_dir` of a run."
            )
        return run

    @property
    def kind(self) -> Kind:
        """What it trained."""
        return run_kind(self.folder, self.settings, self.summary)

    def load_policy(self, **options: Any) -> VLMActorCritic:
        """The policy with its critic; options as in `engine.saved_policy.load_policy`.

        Raises:
            ConfigError: the run trained something else.
        """
        self._check_writes()
        base_revision = self.settings.get("model_revision") if self.base is None else None
        given = self._precision() | {"base_revision": base_revision} | options
        return load_policy(self.folder, **self._options(given))

    def load_base(self, **options: Any) -> VLMActorCritic:
        """The model that training started from; options as in `mmft.load_backbone`.

        Raises:
            ConfigError: the run trained something else, or does not say what it started from.
        """
        self._check_writes()
        name = self.base
        if name is None and (self.folder / ADAPTER_FILE).is_file():
            name = base_name(self.folder)
        name = name or self.settings.get("model_name_or_path")
        if name is None:
            raise ConfigError(f"{self.folder} does not say which model it started from. Name it (`base=`).")
        options = self._precision() | options
        if self.base is None and self.settings.get("model_revision") is not None:
            options = {"revision": self.settings["model_revision"]} | options
        backbone = load_named(name, what=f"of the run {str(self.folder)!r}", **options)
        backbone = self._with_first_adapter(backbone)
        return VLMActorCritic(backbone, critic=False, reference=False).requires_grad_(False).eval()

    def load_agent(self, **options: Any) -> VLMAgent:
        """The agent; options as in `mmft.load_agent`.

        Raises:
            ConfigError: the run trained something else.
        """
        return load_agent(self.folder, **self._options(options))

    def load_rewards(self, *, reported: bool = True) -> RewardSuite:
        """The rewards of the run as it used them: arguments, weights, and the state that was saved with it.

        Args:
            reported: also those that were reported and never optimised, with weight 0.

        Raises:
            ConfigError: the run names no reward, one that cannot be made here, or, from the hub, one that is
                somebody's own code and not trusted.
        """
        self.check_code()
        optimised = resolve_rewards(self.settings.get("reward_funcs") or [])[0]
        others = resolve_rewards(self.settings.get("eval_funcs") or [])[0] if reported else []
        if not optimised and not others:
            raise ConfigError(f"the run {str(self.folder)!r} names no reward in its {CONFIG_FILE}.")
        given = self.settings.get("reward_weights") or [1.0] * len(optimised)
        limit = self.settings.get("reward_time_limit")
        isolation = Isolation(limit, self.settings.get("reward_on_error", "raise"))
        weights = [*given, *(0.0 for _ in others)]
        suite = RewardSuite([*optimised, *others], weights, isolation=isolation)
        load_reward_state(suite, self.folder)
        return suite

    @property
    def prompt(self) -> Prompt:
        """What the run asked about each picture: its `instruction`, or the prompt of its first held-out row.

        Raises:
            ConfigError: neither is known.
        """
        if self.settings.get("instruction"):
            return str(self.settings["instruction"])
        samples = self.folder / SAMPLES_FILE
        if samples.is_file():
            with samples.open(encoding="utf-8") as lines:
                first = next(lines, None)
            if first is not None:
                return cast(Prompt, json.loads(first)["prompt"])
        if self.settings.get("model_name_or_path") == CAPTIONER_NAME:
            return PROMPT
        raise ConfigError(f"the run {str(self.folder)!r} does not say what it asked. Give a prompt.")

    def make_row(self, image: Image | None, prompt: Prompt | None = None, **columns: Any) -> PromptRow:
        """One row as the run's policy and rewards take it.

        Args:
            image: the picture, if there is one.
            prompt: what is asked; `prompt` of the run if None.
            **columns: what rewards read, such as `references`.
        """
        row: dict[str, Any] = {"prompt": self.prompt if prompt is None else prompt} | columns
        if image is not None:
            row["image"] = image
        rows: Any = as_prompts([row], "given")
        return with_system_prompt(rows[0], self.settings.get("system_prompt"))

    def check_code(self) -> None:
        """Refuses a run from the hub whose settings name code, unless it is trusted.

        Raises:
            ConfigError: it names rewards or an environment that are no part of this library.
        """
        if self.trusts_code:
            return
        specs = [*(self.settings.get("reward_funcs") or []), *(self.settings.get("eval_funcs") or [])]
        found, env = names_of_others(specs), str(self.settings.get("env") or "")
        found += [env] if ":" in env else []
        if found:
            raise ConfigError(
                f"the run {self.name!r} comes from the hub and names code of its own, {found[0]!r}, which "
                "would be imported and called. Look at its config.yaml; if you trust it, pass "
                "`trust_code=True` (`--trust-code`)."
            )

    def _check_writes(self) -> None:
        if self.kind in ("agent", "reward_model"):
            what = "an agent in an environment" if self.kind == "agent" else "a reward model"
            raise ConfigError(
                f"the run {str(self.folder)!r} trained {what}, which writes nothing. Give the folder of a "
                "run of `mmft ppo`, `a2c`, `rwl` or `sft`."
            )

    def _options(self, options: dict[str, Any]) -> dict[str, Any]:
        return ({} if self.base is None else {"base": self.base}) | options

    def _precision(self) -> dict[str, Any]:
        return {"dtype": self.settings.get("dtype") or "auto"}

    def _with_first_adapter(self, backbone: Backbone) -> Backbone:
        """The model with the adapter that training of its own weights began with, if there was one."""
        first = self.settings.get("adapter_path")
        if first is None or self.base is not None or (self.folder / ADAPTER_FILE).is_file():
            return backbone
        if not (Path(first) / ADAPTER_FILE).is_file():
            raise ConfigError(
                f"the run {str(self.folder)!r} started from the adapter {first!r}, which is not there. Name "
                "the model that it started from (`base=`, `--base-model`)."
            )
        adapted: Any = load_adapter(backbone.base, first)
        return Backbone(adapted.merge_and_unload(), backbone.processor)


def with_system_prompt(row: PromptRow, system_prompt: str | None) -> PromptRow:
    """The row behind a system message, unless it has one or there is none."""
    if system_prompt is None:
        return row
    return dataclasses.replace(row, messages=to_messages(row.prompt, len(row.images), system_prompt))


class Answerer:
    """A policy that answers rows, and the rewards that judge it.

    Attributes:
        policy: who answers.
        suite: who judges; None judges nothing.

    Example:
        >>> from mmft import Answerer, load_policy
        >>> from mmft.data.rows import as_prompts
        >>> from mmft.tiny import captioner_path, load_scenes
        >>> rows = load_scenes("validation", 2).add_column("prompt", ["Describe the picture."] * 2)
        >>> answerer = Answerer(load_policy(captioner_path()))
        >>> answers = answerer.answer(as_prompts(rows, "validation"))
        >>> [answer.text for answer in answers]
        ['a blue star.', 'a purple cross.']
        >>> len(answers[0].token_texts) == len(answers[0].logps), answers[0].reward  # no reward was given
        (True, None)
    """

    def __init__(
        self, policy: VLMActorCritic, suite: RewardSuite | None = None, settings: dict[str, Any] | None = None
    ) -> None:
        """Takes the parts; `settings` are a run's, of which `max_completion_length` and `seed` count."""
        settings = settings or {}
        self.policy, self.suite = policy, suite
        self.max_completion_length = int(settings.get("max_completion_length") or 64)
        self.seed = int(settings.get("seed") or 0)
        self._collector = Collector(
            policy,
            PromptEncoder(policy.backbone, CACHE_BYTES),
            suite or RewardSuite([no_reward], None, isolation=Isolation(None, "raise")),
            MetricLog(),
            anyone=lambda flag: flag,
            anyone_open=lambda is_open: is_open,
        )

    def answer(self, rows: Sequence[PromptRow], *, temperature: float = 0.0) -> list[Answer]:
        """One completion per row: the likeliest tokens, or drawn at a temperature with the seed's noise."""
        length = self.max_completion_length
        params = SamplingParams(num_generations=1, max_completion_length=length, temperature=temperature)
        noise = sample_noise(self.seed, 0, range(len(rows)), length) if temperature else None
        # Encoded prompts are kept by their key, and rows from anywhere may share one.
        known: dict[int, bytes] = {}
        named = [dataclasses.replace(row, key=content_key(row, known)) for row in rows]
        with torch.no_grad():
            judged = self._collector.judge(named, params, noise, training=False)
        return [self._answer(judged, index) for index in range(len(rows))]

    def _answer(self, judged: Judged, index: int) -> Answer:
        samples, judgement = judged.samples, judged.judgement
        length = int(samples.completions.lengths[index])
        ids = samples.completions.ids[index, :length].tolist()
        values = None if samples.values is None else samples.values[index, :length].tolist()
        has_rewards = self.suite is not None
        return Answer(
            text=judged.texts[index][0],
            ids=ids,
            token_texts=token_texts(self.policy.backbone.processor, ids),
            logps=samples.logps[index, :length].tolist(),
            values=values if self.policy.value_head is not None else None,
            ended=bool(samples.ended[index]),
            reward=_known(judgement.total[index].item()) if has_rewards else None,
            rewards={name: _known(each[index]) for name, each in judgement.components.items()}
            if has_rewards
            else {},
        )


def _known(value: float | None) -> float | None:
    """None for NaN, which stands for "could not be judged"."""
    return value if value is not None and value == value else None


def _read(path: Path, parse: Any) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = parse(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {error}. Restore it, or remove it.") from error
    return dict(found or {})
