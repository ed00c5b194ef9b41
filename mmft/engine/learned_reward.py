"""A learned reward model as a reward function: in TRL's protocol, by the path of its run.

Shapes: M completions of one call.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from mmft.data.content import content_key
from mmft.data.images import load_image
from mmft.data.messages import to_messages
from mmft.engine.completion_batch import CompletionTokenizer, completion_text, group_completions
from mmft.engine.reward_inputs import RewardInputs
from mmft.engine.reward_model import VLMRewardModel, load_reward_model
from mmft.errors import ConfigError
from mmft.models.reward_model import RewardEstimate, RewardModelSpec
from mmft.models.snapshots import local_folder
from mmft.types import Prompt, PromptRow

VARIANCES = ("total", "epistemic", "aleatoric")


class LearnedReward:
    """What a reward model gives, less a penalty for what it does not know.

        R = mean - penalty * std

    `std` is the root of the `uncertainty` variance. Each picture is encoded once, however many
    completions it has, and its encoding is kept between calls while the cache has room; a prompt is read once
    per batch that holds completions of it. Completions are judged as text that
    ended. The model is loaded when the first completion comes; its weights never train.

    Example:
        >>> from mmft import LearnedReward, RewardModelConfig, RewardModelTrainer, load_backbone
        >>> from mmft.tiny import load_preferences
        >>> settings = {"max_steps": 2, "dropout": 0.1, "dataloader_pin_memory": False}
        >>> args = RewardModelConfig(output_dir="runs/judge", **settings)
        >>> rows = load_preferences("train", 16)
        >>> trainer = RewardModelTrainer(load_backbone("mmft/tiny-captioner", trainable=()), args, rows)
        >>> _ = trainer.train()
        {'train_runtime': ...}
        >>> trainer.save_model()
        >>> reward = LearnedReward("runs/judge", penalty=1.0)  # a trainer takes it as any other
        >>> prompts, pictures = rows[:2]["prompt"], rows[:2]["image"]
        >>> len(reward(prompts, ["a red circle.", "a dog."], image=pictures))
        2
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        penalty: float = 0.0,
        uncertainty: str = "total",
        mc_samples: int = 16,
        seed: int = 0,
        batch_size: int = 32,
        device: str = "auto",
        feature_cache_mb: int = 512,
    ) -> None:
        """Checks the settings; the weights are read later.

        Args:
            path: output folder of a reward-model run, or its hub id.
            penalty: k of mean - k * std; 0 reports the uncertainty and leaves the reward alone.
            uncertainty: the variance of the penalty: `total`, `epistemic` (dropout) or `aleatoric` (as the
                model states it).
            mc_samples: networks drawn by dropout; 0 predicts once, without epistemic variance.
            seed: of these networks, the same at every call.
            batch_size: completions per forward.
            device: `auto` is the process's GPU if it has one.
            feature_cache_mb: memory for encoded prompts.

        Raises:
            ConfigError: the folder is no reward model, or the penalty has no variance to act on.
        """
        self.__name__ = "reward_model"
        self.path = local_folder(path)
        self.penalty = penalty
        self.uncertainty = uncertainty
        self.mc_samples = mc_samples
        self.seed = seed
        self.batch_size = batch_size
        self.device = device
        self.feature_cache_mb = feature_cache_mb
        self._inputs: RewardInputs | None = None
        self._tokenize: CompletionTokenizer | None = None
        self._check(RewardModelSpec.load(self.path))

    def _check(self, spec: RewardModelSpec) -> None:
        for name, least in (("penalty", 0), ("mc_samples", 0), ("feature_cache_mb", 0), ("batch_size", 1)):
            if not getattr(self, name) >= least:  # NaN is no number either
                raise ConfigError(f"`{name}` must be >= {least}; got {getattr(self, name)}.")
        if self.uncertainty not in VARIANCES:
            raise ConfigError(
                f"`uncertainty` must be one of {', '.join(VARIANCES)}; got {self.uncertainty!r}."
            )
        by_dropout = self.mc_samples > 1 and spec.dropout > 0
        stated = spec.loss_type == "heteroscedastic"
        known = {"total": by_dropout or stated, "epistemic": by_dropout, "aleatoric": stated}
        if self.penalty and not known[self.uncertainty]:
            raise ConfigError(
                f"`penalty={self.penalty}` needs {self.uncertainty} variance, and there is none: mc_samples="
                f"{self.mc_samples}, and {self.path} was trained with dropout={spec.dropout}, loss_type="
                f"{spec.loss_type!r}. Epistemic variance needs dropout and at least 2 samples, aleatoric "
                "variance `loss_type: heteroscedastic`."
            )

    @property
    def model(self) -> VLMRewardModel:
        """The reward model, loaded on first use."""
        return self._loaded().model

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        """One reward per completion; logs mean, std and its parts where the caller offers `log_extra`."""
        if not completions:
            return []
        estimate = self.estimate(prompts, completions, **columns)
        std = estimate.variance(self.uncertainty).sqrt()
        log_extra = columns.get("log_extra")
        if log_extra is not None:
            for name, values in {
                "mean": estimate.mean,
                "std": std,
                "epistemic_std": estimate.epistemic.sqrt(),
                "aleatoric_std": estimate.aleatoric.sqrt(),
            }.items():
                log_extra(name, values.tolist())
        rewards: list[float | None] = [*(estimate.mean - self.penalty * std).tolist()]
        return rewards

    def estimate(
        self, prompts: Sequence[Prompt], completions: Sequence[Any], **columns: Any
    ) -> RewardEstimate:
        """(M,) means and variances of the completions, on the CPU."""
        inputs = self._loaded()
        rows = _rows(prompts, columns)
        ids = [self._tokens(completion) for completion in completions]
        order, parts = _by_prompt(rows), []
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            batch = group_completions(
                [rows[i] for i in chosen], [ids[i] for i in chosen], inputs.model.backbone.pad_id
            )
            parts.append(inputs.estimate(batch, self.mc_samples, seed=self.seed))
        back = torch.tensor(order).argsort()

        def joined(tensors: list[Tensor]) -> Tensor:
            return torch.cat(tensors).cpu()[back]

        return RewardEstimate(
            joined([part.mean for part in parts]),
            joined([part.epistemic for part in parts]),
            joined([part.aleatoric for part in parts]),
        )

    def _tokens(self, completion: Any) -> list[int]:
        tokenize = self._tokenize
        if tokenize is None:
            raise RuntimeError("the reward model is not loaded")
        return tokenize(completion_text(completion))

    def _loaded(self) -> RewardInputs:
        if self._inputs is None:
            model = load_reward_model(self.path, device=_device(self.device))
            self._tokenize = CompletionTokenizer(model.backbone, model.max_completion_length)
            self._inputs = RewardInputs(model, self.feature_cache_mb * 2**20)
        return self._inputs


def _rows(prompts: Sequence[Prompt], columns: dict[str, Any]) -> list[PromptRow]:
    """The prompts with their pictures; equal ones get equal keys."""
    known: dict[int, bytes] = {}
    pictures = _pictures(len(prompts), columns)
    rows = []
    for number, (prompt, images) in enumerate(zip(prompts, pictures, strict=True)):
        messages = to_messages(_without_pictures(prompt), len(images))
        row = PromptRow(number, prompt, messages, images)
        rows.append(dataclasses.replace(row, key=content_key(row, known)))
    return rows


def _pictures(count: int, columns: dict[str, Any]) -> list[list[Image]]:
    """The pictures of each sample, each decoded once."""
    given = columns.get("images")
    if given is None:
        given = columns.get("image")
    images = [_listed(each) for each in given] if given is not None else [[]] * count
    decoded: dict[int, Image] = {}

    def load(value: Any) -> Image:
        if id(value) not in decoded:
            decoded[id(value)] = load_image(value)
        return decoded[id(value)]

    return [[load(value) for value in each] for each in images]


def _listed(value: Any) -> list[Any]:
    """Either column may hold a picture or a list of them, as those of rows may."""
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def _without_pictures(prompt: Prompt) -> Prompt:
    """Image blocks as bare places: TRL's trainers put the pictures themselves into them."""
    if isinstance(prompt, str):
        return prompt
    return [message | {"content": _bare(message["content"])} for message in prompt]


def _bare(content: Any) -> Any:
    if not isinstance(content, list):
        return content
    return [{"type": "image"} if block.get("type") == "image" else block for block in content]


def _by_prompt(rows: Sequence[PromptRow]) -> list[int]:
    """Indices with the completions of each prompt next to each other, prompts in order of first use."""
    first: dict[Any, int] = {}
    for number, row in enumerate(rows):
        first.setdefault(row.key, number)
    return sorted(range(len(rows)), key=lambda number: first[rows[number].key])


def _device(name: str) -> torch.device:
    if name != "auto":
        return torch.device(name)
    return (
        torch.device("cuda", torch.cuda.current_device())
        if torch.cuda.is_available()
        else torch.device("cpu")
    )
