"""Reward shaping: hints on the way to a sparse reward, with and without a promise that they mislead nobody.

Shaping by a potential over states leaves the best policy as it is; any other bonus may move it. Here a state
is a prompt with what has been said so far, and a potential is any reward, asked about captions cut short.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Sequence
from itertools import pairwise
from typing import Any

from rewards.nested import Gather, MadeOfParts, Parts, Reward, Values, alone, is_two_phase

# Columns that mean nothing for a completion that is cut short.
_OF_WHOLE_COMPLETIONS = ("completion_ids", "prefixes", "log_extra", "log_metric")
_HALF_WORD = re.compile(r"\w+(?:['\u2019\-]\w*)*$")


def shaped_reward(reward: float, potential: float, *, beta: float) -> float:
    """The plainly shaped reward.

        R'(s, a) = R(s, a) + beta * Phi(s, a)

    Phi counts for itself: a policy that earns more of it at the price of R may become the best one.

    Example:
        >>> from rewards import shaped_reward
        >>> shaped_reward(1.0, 0.5, beta=0.5)
        1.25
    """
    return reward + beta * potential


def potential_differences(potentials: Sequence[float], *, discount: float) -> list[float]:
    """Potential-based shaping along one episode of T actions (Ng, Harada and Russell 1999, ICML, theorem 1).

        F_t = discount * Phi(s_{t+1}) - Phi(s_t),   t = 0 .. T-1,   with Phi(s_T) := 0

    A sum over a whole episode telescopes: sum_t discount^t F_t = -Phi(s_0), whatever was done on the way. So
    with rewards r_t + F_t every action value is Q'(s, a) = Q(s, a) - Phi(s): actions keep their ranking in
    every state, and the best policy stays the best. On finite episodes this holds only if the state in which
    they end has no potential, or ending early or late, here or there, would be paid for by itself (Grzes
    2017, AAMAS, "Reward shaping in episodic reinforcement learning"): the last entry is taken as 0.

    What changes is when credit arrives: at once, as if the critic had started from Phi (Wiewiora 2003, JAIR
    19). It pays off with a `lam` or `discount` well below 1, which looks at a few tokens at a time.

    Args:
        potentials: Phi of the T + 1 states before the first token, after the first, ..., after the last.
        discount: gamma of the returns that the rewards are summed to; with another one nothing telescopes.

    Example:
        >>> from rewards import potential_differences
        >>> hints = potential_differences([0.25, 0.5, 1.0], discount=1.0)
        >>> hints, sum(hints)  # the sum is -Phi(s_0), whatever was said on the way
        ([0.25, -0.5], -0.25)
    """
    if not potentials:
        raise ValueError("`potentials` is empty; give those of all T + 1 states, the first one included.")
    if not 0 <= discount <= 1:
        raise ValueError(f"`discount` must be between 0 and 1; got {discount}.")
    return [
        discount * (after if t + 2 < len(potentials) else 0.0) - before
        for t, (before, after) in enumerate(pairwise(potentials))
    ]


def complete_words(text: str) -> str:
    """The text without the word that it stops in: "a red cir" becomes "a red ", "a red circle." stays.

    Whether a word is complete shows only in what follows it, so the last word of a prefix always goes.
    """
    return _HALF_WORD.sub("", text)


class ShapedReward(MadeOfParts):
    """R'(s, a) = R(s, a) + beta * Phi(s, a) for whole completions; see `shaped_reward` for what it risks.

    None where R cannot judge; R alone where Phi cannot. Logged apart: `reward`, `potential`. If R keeps
    statistics over processes (`evidence`, `settle`), so does this one; if a part is asynchronous, the object
    is an `AsyncShapedReward`.

    Example:
        >>> from rewards import ExactMatch, KeywordCoverage, ShapedReward
        >>> reward = ShapedReward(ExactMatch(), KeywordCoverage(), beta=0.5)
        >>> answers, keywords = ["a red circle"] * 2, [["red", "circle"]] * 2
        >>> reward(None, ["a red circle", "a circle"], answer=answers, keywords=keywords)
        [1.5, 0.25]
    """

    evidence: Callable[..., Any]
    """Where R has it only: what R and Phi say, on this process."""
    settle: Callable[..., Values]
    """Where R has it only."""

    def __init__(self, reward: Reward, potential: Reward, beta: float = 1.0) -> None:
        """Shape `reward` by `beta` times `potential`; both are rewards."""
        if not math.isfinite(beta):
            raise ValueError(f"`beta` must be a finite number; got {beta}.")
        self.beta = beta
        self.parts = Parts("shaped", {"reward": reward, "potential": _fixed(potential)})
        self.__name__ = "shaped"
        if self.parts.is_async:
            self.__class__ = AsyncShapedReward  # trainers ask the type whether a call is awaited
        if is_two_phase(reward):
            self.evidence, self.settle = self._evidence, self._settle

    def __repr__(self) -> str:
        return f"{type(self).__name__}(beta={self.beta}, {self.parts.rewards})"

    def __call__(self, prompts: Any, completions: Sequence[Any], **columns: Any) -> Values:
        """One shaped reward per completion."""
        return self._settle(self._evidence(prompts, completions, **columns), gather=alone, training=True)

    def _evidence(self, prompts: Any, completions: Sequence[Any], **columns: Any) -> Any:
        return self.parts.ask(prompts, completions, columns), columns

    def _settle(
        self, evidence: tuple[dict[str, Any], dict[str, Any]], *, gather: Gather, training: bool
    ) -> Values:
        found, columns = evidence
        reward: Any = self.parts.rewards["reward"]
        if is_two_phase(reward):
            found = found | {"reward": reward.settle(found["reward"], gather=gather, training=training)}
        for name, values in found.items():
            self.parts.log(name, values, columns)
        return [
            value if value is None or hint is None else shaped_reward(value, hint, beta=self.beta)
            for value, hint in zip(found["reward"], found["potential"], strict=True)
        ]


class AsyncShapedReward(ShapedReward):
    """A `ShapedReward` with a part that is awaited; made by `ShapedReward`, never by hand."""

    async def __call__(  # type: ignore[override]
        self, prompts: Any, completions: Sequence[Any], **columns: Any
    ) -> Values:
        """As without waiting; both parts are asked at the same time."""
        evidence = await self._evidence(prompts, completions, **columns)
        return self._settle(evidence, gather=alone, training=True)

    async def _evidence(self, prompts: Any, completions: Sequence[Any], **columns: Any) -> Any:
        return await self.parts.ask_async(prompts, completions, columns), columns


class PotentialShaping(MadeOfParts):
    """A reward for every token that leaves the best policy as it is: discount * Phi(s_{t+1}) - Phi(s_t).

        trainer = PPOTrainer(..., reward_funcs=[exact_match, PotentialShaping(keyword_coverage)])

    Phi(s_t) is `weight` times the potential of the first t tokens as text; it is 0 after the last token. See
    `potential_differences` for why. The potential is any reward that judges text, asked in one call about
    every different prefix of every row; it gets the row's columns, but nothing that belongs to whole
    completions (token ids, logs). A completion with a prefix that it cannot judge (None) is not shaped.

    Logged: `potential`, that of the whole completions, to see whether the hints are followed. The sum of the
    token rewards cannot show it: undiscounted it is -Phi(s_0).

    A trainer without rewards per token gets that sum. It depends on the prompt alone, so it moves no
    comparison between completions of one prompt and leaves their policy gradient as it is.

    Example:
        >>> from rewards import KeywordCoverage, PotentialShaping
        >>> reward = PotentialShaping(KeywordCoverage())
        >>> prefixes = [["", "a", "a red", "a red circle", "a red circle."]]  # after each token
        >>> texts = ["a red circle."]
        >>> reward.token_rewards(None, texts, prefixes, discount=1.0, keywords=[["red", "circle"]])
        [[0.0, 0.0, 0.5, -0.5]]
    """

    def __init__(self, potential: Reward, weight: float = 1.0, *, complete_words: bool = True) -> None:
        """Shape by a potential.

        Args:
            potential: A reward, better the nearer a caption is to what will be rewarded in the end.
            weight: Its size beside the other rewards; any size leaves the best policy alone.
            complete_words: Ask about prefixes up to their last complete word, so that half a word changes
                nothing; only the whole completion counts to its last letter. For languages that part words
                by spaces: switch it off for others.
        """
        if not math.isfinite(weight):
            raise ValueError(f"`weight` must be a finite number; got {weight}.")
        self.parts = Parts("potential_shaping", {"potential": _fixed(potential)})
        if self.parts.is_async:
            raise ValueError(
                f"`potential` {potential!r} is asynchronous. It would be asked about every prefix of every "
                "completion; use one that needs no service."
            )
        self.weight = weight
        self.complete_words = complete_words
        self.__name__ = "potential_shaping"

    def __repr__(self) -> str:
        return f"PotentialShaping({self.parts.rewards['potential']}, weight={self.weight})"

    def __call__(self, prompts: Any, completions: Sequence[Any], **columns: Any) -> Values:
        """Per completion the undiscounted sum of its token rewards, -weight * Phi(s_0)."""
        states = self.potentials(prompts, completions, [[""]] * len(completions), columns)
        return [None if state is None else 0.0 - state[0] for state in states]

    def token_rewards(
        self,
        prompts: Any,
        completions: Sequence[Any],
        prefixes: Sequence[Sequence[str]],
        *,
        discount: float,
        **columns: Any,
    ) -> list[list[float] | None]:
        """One reward per token of each completion.

        Args:
            prompts: One per completion.
            completions: Strings, or messages.
            prefixes: Per completion of T tokens the texts of its first 0, 1, ..., T tokens.
            discount: gamma of the returns.
            **columns: Of the rows; lists with an entry per completion.
        """
        states = self.potentials(prompts, completions, prefixes, columns)
        self.parts.log("potential", [None if state is None else state[-1] for state in states], columns)
        return [
            None if state is None else potential_differences(state, discount=discount) for state in states
        ]

    def potentials(
        self,
        prompts: Any,
        completions: Sequence[Any],
        prefixes: Sequence[Sequence[str]],
        columns: dict[str, Any],
    ) -> list[list[float] | None]:
        """weight * Phi of every prefix, a list per completion; None if a prefix of it is not judged."""
        texts = [self._asked_about(row) for row in prefixes]
        columns = {name: values for name, values in columns.items() if name not in _OF_WHOLE_COMPLETIONS}
        firsts, places = _distinct(_row_keys(prompts, len(completions), columns), texts)
        values: Values = []
        if firsts:
            indices = [index for index, _ in firsts]
            values = self.parts.ask(
                None if prompts is None else [prompts[index] for index in indices],
                [_in_form(completions[index], text) for index, text in firsts],
                {
                    name: [column[index] for index in indices]
                    if _is_per_row(column, len(completions))
                    else column
                    for name, column in columns.items()
                },
            )["potential"]
        return [_weighed([values[place] for place in row], self.weight) for row in places]

    def _asked_about(self, prefixes: Sequence[str]) -> list[str]:
        if not self.complete_words:
            return list(prefixes)
        return [*map(complete_words, prefixes[:-1]), *prefixes[-1:]]


def _fixed(potential: Reward) -> Reward:
    if is_two_phase(potential):
        raise ValueError(
            f"`potential` {potential!r} is scaled by running statistics, so the same state would be worth "
            "something else tomorrow. Give one that stays what it is, such as a composite without `scaling`."
        )
    return potential


def _row_keys(prompts: Any, count: int, columns: dict[str, Any]) -> list[Hashable]:
    """What tells rows apart: prompts and column entries, by identity, for pictures have no other.

    The completions of a prompt group share these objects; where they do not, a prefix is asked about twice.
    """
    per_row = [column for column in (prompts, *columns.values()) if _is_per_row(column, count)]
    return [tuple(id(column[index]) for column in per_row) for index in range(count)]


def _distinct(
    keys: Sequence[Hashable], texts: Sequence[Sequence[str]]
) -> tuple[list[tuple[int, str]], list[list[int]]]:
    """The different (row, text) pairs, each as (first completion it belongs to, text), and per completion
    the places of its texts among them."""
    found: dict[tuple[Hashable, str], int] = {}
    firsts: list[tuple[int, str]] = []
    places = []
    for index, (key, row) in enumerate(zip(keys, texts, strict=True)):
        for text in row:
            if (key, text) not in found:
                found[key, text] = len(firsts)
                firsts.append((index, text))
        places.append([found[key, text] for text in row])
    return firsts, places


def _is_per_row(column: Any, count: int) -> bool:
    return isinstance(column, (list, tuple)) and len(column) == count


def _in_form(completion: Any, text: str) -> Any:
    return text if isinstance(completion, str) else [{"role": "assistant", "content": text}]


def _weighed(values: Values, weight: float) -> list[float] | None:
    judged = [weight * value for value in values if value is not None]
    return judged if len(judged) == len(values) else None
