"""Several rewards as one: a weighted sum, an entry per modality or aspect, on one scale if asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rewards.nested import Gather, MadeOfParts, Parts, Reward, Values, alone, is_two_phase
from rewards.statistics import RunningScale

Part = Reward | tuple[Reward, float]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the parts said on one process, and where the rest is logged."""

    values: dict[str, Values]
    logs: dict[str, Any]


def weighted_sum(values: Mapping[str, float | None], weights: Mapping[str, float]) -> float | None:
    """The multimodal reward of one sample.

        R = sum_m w_m R_m(s^m, a^m)   over the parts m that judged;   None if no part of non-zero weight did

    A part that cannot judge thus adds 0, as a reward in a trainer's list does: a row without references, say,
    keeps its image-text score. What 0 means is the part's scale: the mean of its rewards under "z-score",
    their worst under "min-max". A row that must not train unless every part judged belongs in a filter of the
    data, not here.
    """
    judged = {name: value for name, value in values.items() if value is not None}
    if not any(weights[name] for name in judged):
        return None
    return math.fsum(weights[name] * value for name, value in judged.items())


class CompositeReward(MadeOfParts):
    """R = sum_m w_m R_m(s^m, a^m): one reward per modality or aspect, weighed, and scaled if asked for.

        reward = CompositeReward({"text": (bleu_reward, 1.0), "image": (clip_score, 0.5)}, scaling="z-score")

    See `weighted_sum` for what a part that says None adds. With `scaling` each R_m is replaced by

        "min-max"   (R_m - min) / (max - min)
        "z-score"   (R_m - mean) / (std + 1e-8)

    with running statistics over all samples of all processes so far, the present batch among them; held-out
    samples have their own, frozen after the first evaluation (`rewards.statistics.RunningScale` says exactly
    when). They are part of `state_dict`, with the states of the parts. Called as a plain function it takes
    the batch for training samples of the only process; a trainer that knows `evidence` and `settle` gets the
    statistics of all.

    Logged, where the trainer offers it: every part as it came (`text`), and scaled (`text/scaled`), per
    completion and as means (`composite/text`); what a part logs itself appears below its name.

    With an asynchronous part the object is an `AsyncCompositeReward`, whose calls are awaited.

    Example:
        >>> from rewards import CompositeReward, LengthReward, bleu_reward
        >>> reward = CompositeReward({"text": (bleu_reward, 1.0), "short": (LengthReward(max_length=3), 0.5)})
        >>> captions = ["a red circle", "a red circle a a"]
        >>> [round(score, 2) for score in reward(None, captions, references=["a red circle"] * 2)]
        [1.0, 0.3]
    """

    evidence: Callable[..., Any]
    """With `scaling` only: what the parts say, on this process."""
    settle: Callable[..., Values]
    """With `scaling` only: `(evidence, *, gather, training)` to rewards; calls `gather` once."""

    def __init__(
        self,
        parts: Mapping[str, Part],
        weights: Mapping[str, float] | None = None,
        scaling: str | Mapping[str, str | None] | None = None,
    ) -> None:
        """Name the parts.

        Args:
            parts: A reward, or a reward and its weight, by name of modality or aspect.
            weights: Numbers by name of part; 1 where neither says one. A negative one is a penalty.
            scaling: "min-max", "z-score" or None for all parts, or one of them by name of part.
        """
        if not parts:
            raise ValueError("`parts` is empty. Give at least one reward by name.")
        rewards, given = _split(parts)
        _check_names("weights", weights or {}, rewards)
        if twice := given.keys() & (weights or {}).keys():
            raise ValueError(f"the weight of {sorted(twice)} is said twice, in `parts` and in `weights`.")
        self.weights = {name: float((given | dict(weights or {})).get(name, 1.0)) for name in rewards}
        if not all(map(math.isfinite, self.weights.values())) or not any(self.weights.values()):
            raise ValueError(f"`weights` must be finite and not all 0; got {self.weights}.")
        self.parts = Parts("composite", rewards)
        for name, reward in rewards.items():
            if is_two_phase(reward):
                raise ValueError(
                    f"part {name!r} keeps statistics over all processes itself. List its parts here instead, "
                    "and scale them by `scaling`."
                )
        self.scales = _scales(scaling, rewards)
        self.__name__ = "composite"  # what trainers call it in their metrics
        if self.parts.is_async:
            self.__class__ = AsyncCompositeReward  # trainers ask the type whether a call is awaited
        if self.scales:  # without, one phase will do, and a trainer can ask again sample by sample
            self.evidence, self.settle = self._evidence, self._settle

    def __repr__(self) -> str:
        scaling = {name: scale.kind for name, scale in self.scales.items()}
        return f"{type(self).__name__}(weights={self.weights}, scaling={scaling or None})"

    def __call__(self, prompts: Any, completions: Sequence[Any], **columns: Any) -> Values:
        """One reward per completion; None where no part of non-zero weight judged."""
        return self._settle(self._evidence(prompts, completions, **columns), gather=alone, training=True)

    def state_dict(self) -> dict[str, Any]:
        """The statistics and what the parts keep; JSON-able."""
        scales = {name: scale.state_dict() for name, scale in self.scales.items()}
        return {"scales": scales, "parts": self.parts.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what was saved; a part that is scaled only now starts with empty statistics."""
        self.parts.load_state_dict(state["parts"])
        for name, saved in state["scales"].items():
            if name in self.scales:
                self.scales[name].load_state_dict(saved)

    def _evidence(self, prompts: Any, completions: Sequence[Any], **columns: Any) -> Any:
        return self._logged(self.parts.ask(prompts, completions, columns), columns)

    def _logged(self, values: dict[str, Values], columns: dict[str, Any]) -> Evidence:
        for name, found in values.items():
            self.parts.log(name, found, columns)
        return Evidence(values, {name: columns.get(name) for name in ("log_extra", "log_metric")})

    def _settle(self, evidence: Evidence, *, gather: Gather, training: bool) -> Values:
        shares = gather({name: scale.share(evidence.values[name]) for name, scale in self.scales.items()})
        values = dict(evidence.values)
        for name, scale in self.scales.items():
            scale.take_in([share[name] for share in shares], training=training)
            values[name] = scale.scaled(values[name], training=training)
            self.parts.log(f"{name}/scaled", values[name], evidence.logs)
        rows = zip(*values.values(), strict=True)
        return [weighted_sum(dict(zip(values, row, strict=True)), self.weights) for row in rows]


class AsyncCompositeReward(CompositeReward):
    """A `CompositeReward` with a part that is awaited; made by `CompositeReward`, never by hand."""

    async def __call__(  # type: ignore[override]
        self, prompts: Any, completions: Sequence[Any], **columns: Any
    ) -> Values:
        """As without waiting; parts that wait do so at the same time."""
        evidence = await self._evidence(prompts, completions, **columns)
        return self._settle(evidence, gather=alone, training=True)

    async def _evidence(self, prompts: Any, completions: Sequence[Any], **columns: Any) -> Any:
        return self._logged(await self.parts.ask_async(prompts, completions, columns), columns)


def _split(parts: Mapping[str, Part]) -> tuple[dict[str, Reward], dict[str, float]]:
    """Rewards, and the weights that were written beside them."""
    rewards: dict[str, Reward] = {}
    weights: dict[str, float] = {}
    for name, part in parts.items():
        if isinstance(part, tuple):
            rewards[name], weights[name] = part
        else:
            rewards[name] = part
    return rewards, weights


def _scales(
    scaling: str | Mapping[str, str | None] | None, names: Mapping[str, Any]
) -> dict[str, RunningScale]:
    if not isinstance(scaling, Mapping):
        scaling = dict.fromkeys(names, scaling)
    _check_names("scaling", scaling, names)
    return {name: RunningScale(kind) for name, kind in scaling.items() if kind is not None}


def _check_names(argument: str, given: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    for name in given:
        if name not in known:
            raise ValueError(f"`{argument}` names {name!r}, which is no part. Parts are {', '.join(known)}.")
