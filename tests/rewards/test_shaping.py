"""Shaping: the potential form pays back every hint and moves no decision; any other bonus may."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest

from rewards import CompositeReward, PotentialShaping, ShapedReward, potential_differences, shaped_reward
from rewards.shaping import complete_words

DISCOUNTS = [1.0, 0.9, 0.5, 0.0]


def count_a(prompts: Any, completions: list[Any], **columns: Any) -> list[float | None]:
    """How many a; None for a text with a question mark."""
    texts = [text if isinstance(text, str) else text[-1]["content"] for text in completions]
    return [None if "?" in text else float(text.count("a")) for text in texts]


async def count_a_slowly(prompts: Any, completions: list[Any], **columns: Any) -> list[float | None]:
    await asyncio.sleep(0)
    return count_a(prompts, completions)


def by_letter(*words: str) -> list[list[str]]:
    """Prefixes of texts that are said letter by letter."""
    return [[word[:count] for count in range(len(word) + 1)] for word in words]


def discounted(numbers: list[float], discount: float) -> float:
    return sum(discount**t * number for t, number in enumerate(numbers))


def test_shaped_reward_hand_computed():
    assert shaped_reward(2.0, 3.0, beta=0.5) == 3.5


def test_potential_differences_hand_computed():
    # 0.5*4 - 1, 0.5*6 - 4, 0.5*0 - 6: the potential of the last state, 8, counts as 0
    assert potential_differences([1.0, 4.0, 6.0, 8.0], discount=0.5) == [1.0, -1.0, -6.0]
    assert potential_differences([3.0, 5.0], discount=0.9) == [-3.0]
    assert potential_differences([3.0], discount=0.9) == []


@pytest.mark.parametrize("discount", DISCOUNTS)
@pytest.mark.parametrize("length", [1, 2, 7])
def test_an_episode_pays_back_all_but_the_first_potential(discount: float, length: int):
    generator = random.Random(length)
    potentials = [generator.gauss(0, 3) for _ in range(length + 1)]
    total = discounted(potential_differences(potentials, discount=discount), discount)
    assert total == pytest.approx(-potentials[0])


def test_the_return_from_any_state_on_is_minus_its_potential():
    potentials = [0.3, -2.0, 5.0, 1.0, 9.0]
    differences = potential_differences(potentials, discount=0.8)
    for t in range(4):
        assert discounted(differences[t:], 0.8) == pytest.approx(-potentials[t])


def test_a_constant_potential_hints_at_nothing_before_the_end():
    assert potential_differences([2.0] * 4, discount=1.0) == [0.0, 0.0, -2.0]


def test_wrong_arguments_of_potential_differences_are_named():
    with pytest.raises(ValueError, match="`potentials` is empty"):
        potential_differences([], discount=1.0)
    with pytest.raises(ValueError, match=r"`discount` must be between 0 and 1; got 1\.5"):
        potential_differences([1.0, 2.0], discount=1.5)


# A world small enough to be solved: at most three letters of which "." ends, a reward for the whole.

LETTERS = "ab."
MOST = 3
States = dict[str, float]
Bonus = Callable[[list[str]], list[float]]
"""Rewards for the steps of an episode, given its states."""


def is_over(state: str) -> bool:
    return state.endswith(".") or len(state) == MOST


def episodes() -> list[str]:
    words = ["".join(word) for n in range(1, MOST + 1) for word in itertools.product(LETTERS, repeat=n)]
    return [word for word in words if is_over(word) and not any(map(is_over, by_letter(word)[0][:-1]))]


def step_rewards(scores: States, bonus: Bonus) -> dict[tuple[str, str], float]:
    """The reward of each transition; a bonus that is no function of the transition is an error."""
    rewards: dict[tuple[str, str], float] = {}
    for word, score in scores.items():
        states = by_letter(word)[0]
        numbers = [0.0] * (len(word) - 1) + [score]
        for t, extra in enumerate(bonus(states)):
            transition = states[t], states[t + 1]
            reward = numbers[t] + extra
            assert rewards.setdefault(transition, reward) == pytest.approx(reward)
    return rewards


def best_values(rewards: dict[tuple[str, str], float], discount: float) -> dict[tuple[str, str], float]:
    """Q*(s, s') of every transition, by going backwards."""
    values: dict[tuple[str, str], float] = {}
    for state, following in sorted(rewards, key=lambda pair: -len(pair[0])):
        later = (
            [values[following, following + letter] for letter in LETTERS] if not is_over(following) else [0.0]
        )
        values[state, following] = rewards[state, following] + discount * max(later)
    return values


def ranking(values: dict[tuple[str, str], float]) -> dict[str, list[str]]:
    """For every state its actions, the best one first."""
    states = {state for state, _ in values}
    return {s: sorted(LETTERS, key=lambda letter, s=s: -values[s, s + letter]) for s in states}


def random_scores(generator: random.Random) -> States:
    return {word: generator.uniform(0, 1) for word in episodes()}


def random_potential(generator: random.Random) -> States:
    """Large beside the scores, and not 0 anywhere, the last states included."""
    return {state: generator.gauss(0, 5) for word in episodes() for state in by_letter(word)[0]}


def no_bonus(states: list[str]) -> list[float]:
    return [0.0] * (len(states) - 1)


def test_the_small_world_is_whole():
    words = episodes()
    assert len(words) == 1 + 2 + 4 * 3  # ".", "a." "b.", and three ends of each of aa ab ba bb
    assert len(set(words)) == len(words)


@pytest.mark.parametrize("discount", [1.0, 0.9, 0.5])
@pytest.mark.parametrize("seed", range(5))
def test_potential_shaping_keeps_every_ranking_of_actions(discount: float, seed: int):
    generator = random.Random(seed)
    scores, potential = random_scores(generator), random_potential(generator)

    def shaping(states: list[str]) -> list[float]:
        return potential_differences([potential[state] for state in states], discount=discount)

    plain = best_values(step_rewards(scores, no_bonus), discount)
    shaped = best_values(step_rewards(scores, shaping), discount)
    assert ranking(shaped) == ranking(plain)
    for (state, following), value in plain.items():
        assert shaped[state, following] == pytest.approx(value - potential[state])


@pytest.mark.parametrize("discount", [1.0, 0.9, 0.5])
def test_other_bonuses_move_the_best_policy(discount: float):
    """So the test before this one can fail: half of the form is not enough."""
    generator = random.Random(0)
    scores, potential = random_scores(generator), random_potential(generator)

    def gained(states: list[str]) -> list[float]:  # Phi itself, never paid back
        return [potential[state] for state in states[1:]]

    def kept_at_the_end(states: list[str]) -> list[float]:  # the last state has a potential
        return [discount * potential[b] - potential[a] for a, b in itertools.pairwise(states)]

    def of_another_discount(states: list[str]) -> list[float]:
        return potential_differences([potential[state] for state in states], discount=0.3)

    plain = ranking(best_values(step_rewards(scores, no_bonus), discount))
    for bonus in (gained, kept_at_the_end, of_another_discount):
        assert ranking(best_values(step_rewards(scores, bonus), discount)) != plain


def test_the_reward_class_hands_out_the_same_shaping():
    """End to end: texts in, token rewards out, best policy unmoved."""
    generator = random.Random(3)
    scores, potential = random_scores(generator), random_potential(generator)
    reward = PotentialShaping(
        lambda completions, **_: [potential[text] for text in completions], weight=2.0, complete_words=False
    )

    def shaping(states: list[str]) -> list[float]:
        (tokens,) = reward.token_rewards(["p"], [states[-1]], [states], discount=0.9)
        return tokens

    plain = best_values(step_rewards(scores, no_bonus), 0.9)
    assert ranking(best_values(step_rewards(scores, shaping), 0.9)) == ranking(plain)


# PotentialShaping


def test_token_rewards_hand_computed():
    reward = PotentialShaping(count_a, weight=0.5, complete_words=False)
    (tokens,) = reward.token_rewards(["p"], ["bab"], by_letter("bab"), discount=0.5)
    assert tokens == [0.0, 0.25, -0.5]  # Phi is 0, 0, 0.5, then over: 0.5*0 - 0, 0.5*0.5 - 0, 0 - 0.5


def test_one_reward_per_token_whatever_a_token_is():
    reward = PotentialShaping(count_a)
    prefixes = [["", "a ", "a ", "a b"], [""], ["", ""]]  # a special token says nothing; a silent completion
    tokens = reward.token_rewards(["p"] * 3, ["a b", "", ""], prefixes, discount=1.0)
    assert tokens == [[1.0, 0.0, -1.0], [], [0.0]]


def test_half_words_change_nothing_until_they_are_said():
    words = by_letter("a bad day")[0]
    smooth = PotentialShaping(lambda completions, **_: [float(len(text)) for text in completions])
    states = smooth.potentials(["p"], ["a bad day"], [words], {})[0]
    #                  ""  a  " "  b  ba bad " "  d  da  day: the whole counts in full
    assert states == [0.0, 0, 2.0, 2, 2, 2, 6.0, 6, 6, 9.0]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("", ""), ("a", ""), ("a red cir", "a red "), ("a red ", "a red "),
        ("a red circle.", "a red circle."),
        ("it isn't", "it "), ("well-known", ""), ("a, b", "a, "), ("ein schön", "ein "),
    ],
)  # fmt: skip
def test_complete_words(text: str, kept: str):
    assert complete_words(text) == kept


def test_a_different_prefix_of_a_row_is_asked_about_once_and_all_together():
    calls: list[tuple[list[str], list[str]]] = []

    def look(prompts: list[str], completions: list[str], answer: list[str], **columns: Any) -> list[float]:
        calls.append((completions, answer))
        return [float(text.startswith(word)) for text, word in zip(completions, answer, strict=True)]

    reward = PotentialShaping(look, complete_words=False)
    prompts, answers = ["left", "left", "right"], ["ab", "ab", "b"]
    tokens = reward.token_rewards(
        prompts, ["ab", "aa", "ab"], by_letter("ab", "aa", "ab"), discount=1.0, answer=answers
    )
    assert calls == [(["", "a", "ab", "aa", "", "a", "ab"], ["ab"] * 4 + ["b"] * 3)]
    assert tokens == [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]


def test_each_prefix_is_judged_by_the_columns_of_its_row():
    def is_start(completions: list[str], image: list[Any], **columns: Any) -> list[float]:
        pairs = zip(completions, image, strict=True)
        return [float(text != "" and word[0].startswith(text)) for text, word in pairs]

    reward = PotentialShaping(is_start, complete_words=False)
    pictures = [
        ["abc"],
        ["abc"],
        ["bcd"],
    ]  # equal, but different objects: pictures are told apart by identity
    tokens = reward.token_rewards(
        [None] * 3, ["ab", "bc", "bc"], by_letter("ab", "bc", "bc"), discount=1.0, image=pictures
    )
    assert tokens == [[1.0, -1.0], [0.0, 0.0], [1.0, -1.0]]


def test_columns_of_whole_completions_do_not_reach_the_potential():
    seen: dict[str, Any] = {}

    def look(prompts: Any, completions: list[str], **columns: Any) -> list[float]:
        seen.update(columns)
        return [0.0] * len(completions)

    logged: list[Any] = []
    PotentialShaping(look).token_rewards(
        ["p"], ["a"], [["", "a"]], discount=1.0, completion_ids=[[7]], trainer_state="state", number=[3],
        log_extra=lambda *args: logged.append(args), log_metric=lambda *args: logged.append(args),
    )  # fmt: skip
    assert seen == {"trainer_state": "state", "number": [3, 3]}
    assert logged == [("potential", [0.0]), ("potential_shaping/potential", 0.0)]


def test_messages_stay_messages():
    chat = [{"role": "user", "content": "?"}]
    seen: list[Any] = []

    def look(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float | None]:
        seen.extend(zip(prompts, completions, strict=True))
        return count_a(prompts, completions)

    reward = PotentialShaping(look, complete_words=False)
    said = [{"role": "assistant", "content": "ab"}]
    assert reward.token_rewards([chat], [said], by_letter("ab"), discount=1.0) == [[1.0, -1.0]]
    assert seen == [(chat, [{"role": "assistant", "content": text}]) for text in ("", "a", "ab")]
    assert reward([chat], [said]) == [0.0]


def test_a_prefix_that_cannot_be_judged_leaves_its_completion_unshaped():
    reward = PotentialShaping(count_a, complete_words=False)
    tokens = reward.token_rewards(["p"] * 3, ["a?", "ab", "?"], by_letter("a?", "ab", "?"), discount=1.0)
    assert tokens == [None, [1.0, -1.0], None]


def test_what_the_hints_came_to_is_logged_for_whole_completions():
    logged: dict[str, Any] = {}
    helpers = {"log_extra": logged.__setitem__, "log_metric": logged.__setitem__}
    reward = PotentialShaping(count_a, weight=2.0)
    reward.token_rewards(["p"] * 3, ["aa", "?", "b"], by_letter("aa", "?", "b"), discount=1.0, **helpers)
    assert logged == {"potential": [4.0, None, 0.0], "potential_shaping/potential": 2.0}


def test_called_as_a_plain_reward_it_gives_what_the_tokens_sum_to():
    def phi(prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
        return [None if p == "?" else len(p) + len(c) for p, c in zip(prompts, completions, strict=True)]

    reward = PotentialShaping(phi, weight=0.5)
    prompts, texts = ["ab", "?", "ab"], ["x y", "x", "z"]
    tokens = reward.token_rewards(prompts, texts, by_letter(*texts), discount=1.0)
    sums = [None if row is None else sum(row) for row in tokens]
    assert reward(prompts, texts) == sums == [-1.0, None, -1.0]


def test_no_completions_get_no_rewards():
    reward = PotentialShaping(count_a)
    assert reward.token_rewards([], [], [], discount=1.0) == []
    assert reward([], []) == []


def test_potentials_that_change_or_wait_are_refused():
    with pytest.raises(ValueError, match="is scaled by running statistics"):
        PotentialShaping(CompositeReward({"a": count_a}, scaling="z-score"))
    with pytest.raises(ValueError, match="is asynchronous"):
        PotentialShaping(count_a_slowly)
    with pytest.raises(
        ValueError, match="`potential` of the potential_shaping reward pays for single tokens"
    ):
        PotentialShaping(PotentialShaping(count_a))
    with pytest.raises(ValueError, match="`weight` must be a finite number; got inf"):
        PotentialShaping(count_a, weight=float("inf"))
    assert PotentialShaping(CompositeReward({"a": count_a}))(["p"], ["a"]) == [0.0]


# ShapedReward


def test_the_shaped_reward_adds_the_potential_of_the_whole():
    logged: dict[str, Any] = {}
    helpers = {"log_extra": logged.__setitem__, "log_metric": logged.__setitem__}
    reward = ShapedReward(lambda completions, **_: [float(len(c)) for c in completions], count_a, beta=0.5)
    assert reward(["p"] * 2, ["banana", "xy"], **helpers) == [7.5, 2.0]
    assert logged == {
        "reward": [6.0, 2.0], "potential": [3.0, 0.0], "shaped/reward": 4.0, "shaped/potential": 1.5
    }  # fmt: skip


def test_no_judgement_stays_none_and_no_hint_adds_nothing():
    reward = ShapedReward(count_a, lambda completions, **_: [None, 1.0, 1.0])
    assert reward(["p"] * 3, ["a", "?", "aa"]) == [1.0, None, 3.0]


def test_without_beta_the_reward_is_itself():
    texts = ["a", "banana"]
    assert ShapedReward(count_a, count_a, beta=0.0)(["p"] * 2, texts) == count_a(["p"] * 2, texts)


def test_a_reward_with_statistics_keeps_both_phases():
    assert not hasattr(ShapedReward(count_a, count_a), "evidence")
    reward = ShapedReward(CompositeReward({"a": count_a}, scaling="min-max"), count_a, beta=10.0)
    evidence = reward.evidence(["p"] * 2, ["a", "aaa"])
    shares: list[Any] = []

    def gather(found: Any) -> list[Any]:
        shares.append(found)
        return [found]

    assert reward.settle(evidence, gather=gather, training=True) == [10.0, 31.0]
    assert len(shares) == 1
    resumed = ShapedReward(CompositeReward({"a": count_a}, scaling="min-max"), count_a, beta=0.0)
    resumed.load_state_dict(reward.state_dict())
    assert resumed(["p"], ["aa"]) == [0.5]
    held_out = reward.settle(reward.evidence(["p"], ["aaaaa"]), gather=gather, training=False)
    assert held_out == [50.0]  # a scale of its own, with a single value so far


def test_an_asynchronous_part_makes_it_asynchronous():
    assert not inspect.iscoroutinefunction(type(ShapedReward(count_a, count_a)).__call__)
    for parts in ((count_a_slowly, count_a), (count_a, count_a_slowly)):
        reward = ShapedReward(*parts, beta=2.0)
        assert inspect.iscoroutinefunction(type(reward).__call__)
        assert asyncio.run(reward(["p"], ["aa"])) == [6.0]


def test_wrong_parts_of_a_shaped_reward_are_named():
    with pytest.raises(ValueError, match="`beta` must be a finite number; got nan"):
        ShapedReward(count_a, count_a, beta=float("nan"))
    with pytest.raises(
        ValueError, match="`reward` of the shaped reward pays for single tokens, which would be"
    ):
        ShapedReward(PotentialShaping(count_a), count_a)
    with pytest.raises(ValueError, match="`potential` of the shaped reward must be a reward; got 3"):
        ShapedReward(count_a, 3)


def test_both_classes_pass_on_preparation_and_state():
    class Fitted:
        worth = 0.0

        def prepare(self, column: Callable[[str], Any]) -> None:
            self.worth = column("worth")[0]

        def state_dict(self) -> dict[str, float]:
            return {"worth": self.worth}

        def load_state_dict(self, state: dict[str, float]) -> None:
            self.worth = state["worth"]

        def __call__(self, prompts: Any, completions: list[str], **columns: Any) -> list[float | None]:
            return [self.worth] * len(completions)

    def make() -> list[Any]:
        return [PotentialShaping(Fitted()), ShapedReward(count_a, Fitted())]

    for reward, resumed, expected in zip(make(), make(), [-3.0, 4.0], strict=True):
        reward.prepare({"worth": [3.0]}.get)
        assert reward(["p"], ["a"]) == [expected]
        resumed.load_state_dict(reward.state_dict())
        assert resumed(["p"], ["a"]) == [expected]
