"""The checker for rewards: what keeps the protocol passes, and everything that breaks it is told at once."""

from __future__ import annotations

import asyncio
import random
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from trl.rewards import think_format_reward

from rewards import CaptioningReward, check
from rewards.text import completion_text
from tests.rewards.checking import PLAIN, problems

MESSAGES = [[{"role": "assistant", "content": text}] for text in PLAIN["completions"]]


def fixed(answer: Any) -> Any:
    def my_reward(prompts: list[Any], completions: list[Any], **columns: Any) -> Any:
        return answer if len(completions) == 2 else answer[:1]

    return my_reward


def test_the_rewards_come_back():
    assert check(CaptioningReward(), **PLAIN, references=[["x"], None]) == [1.5, None]
    assert check(CaptioningReward(), prompts=["p", "q"], completions=MESSAGES, references=["x", None]) == [
        1.5,
        None,
    ]


def test_rated_data_has_a_column_called_reward():
    assert check(CaptioningReward(), **PLAIN, references=["x", "y"], reward=[0.1, 0.2]) == [1.5, 0.0]


@pytest.mark.parametrize("answer", [[1, None], (1.0, None), [True, None], [torch.tensor(1.0), None]])
def test_numbers_of_every_kind_come_back_as_floats(answer: Any):
    values = check(fixed(answer), compares_within_batch=True, **PLAIN)
    assert values == [1.0, None]
    assert type(values[0]) is float


def test_tensors_and_arrays_are_answers():
    assert check(fixed(torch.ones(2)), **PLAIN) == check(fixed(np.ones(2)), **PLAIN) == [1.0, 1.0]


async def slow(completions: list[Any], **columns: Any) -> list[float]:
    await asyncio.sleep(0)
    return [float(len(completion_text(text))) for text in completions]


def test_an_asynchronous_reward_is_awaited():
    assert check(slow, **PLAIN) == [1.0, 2.0]


def test_an_asynchronous_reward_is_awaited_where_a_loop_runs_already():
    async def notebook() -> list[float | None]:
        return check(slow, **PLAIN)

    assert asyncio.run(notebook()) == [1.0, 2.0]


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ([1.0], "returned 1 rewards for 2 completions"),
        ([1.0, float("nan")], "returned nan for row 1; return a finite number or None"),
        ([float("-inf"), 1.0], "returned -inf for row 0; return a finite number or None"),
        ([1e39, 1.0], "returned 1e+39 for row 0; return a finite number or None"),
        ([1.0, "good"], "returned 'good' for row 1; return a finite number or None"),
        ([1.0, [2.0]], "returned [2.0] for row 1; return a finite number or None"),
    ],
)
def test_a_broken_answer_is_named(answer: Any, problem: str):
    assert problems(fixed(answer))[0] == f"as given: {problem}"
    with pytest.raises(ValueError, match=r"^my_reward breaks"):
        check(partial(fixed(answer)), **PLAIN)


@pytest.mark.parametrize("answer", [1.0, "ab", None, {"a": 1.0, "b": 2.0}, torch.tensor(1.0)])
def test_an_answer_that_is_no_list_is_named(answer: Any):
    def my_reward(**columns: Any) -> Any:
        return answer

    assert problems(my_reward) == [
        f"as given: returned {answer!r}; return a list with one number or None per completion"
    ]


def test_all_problems_are_told_together_and_each_once():
    def bad(prompts: list[Any], completions: list[Any], references: list[Any]) -> list[float]:
        references.append("more")
        return [float("nan"), *[float("inf")] * (len(completions) - 1)]

    assert problems(bad, references=["a", "b"]) == [
        "signature: must accept `**columns`: trainers pass every column of the data and more",
        "as given: changed its argument `references`; work on a copy",
        "as given: returned nan for row 0; return a finite number or None",
        "as given: returned inf for row 1; return a finite number or None",
    ]


def test_an_exception_is_a_problem_like_others():
    def needs_score(completions: list[Any], score: list[float], **columns: Any) -> list[float]:
        return score

    (problem,) = problems(needs_score)
    assert problem.startswith("as given: raised TypeError: ")
    assert "missing 1 required positional argument: 'score'" in problem


def test_an_exception_keeps_to_its_class():
    def interrupted(**columns: Any) -> list[float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check(interrupted, **PLAIN)


def test_a_random_reward_is_told_so():
    chance = random.Random(0)

    def dice(completions: list[Any], **columns: Any) -> list[float]:
        return [chance.random() for _ in completions]

    (problem,) = problems(dice)
    assert problem.startswith("called again: gave 0.")
    assert problem.endswith("Fix its seed; what it learns goes in `state_dict`.")


def by_place(completions: list[Any], **columns: Any) -> list[float]:
    return [float(place) for place in range(len(completions))]


def by_rank(completions: list[Any], **columns: Any) -> list[float]:
    lengths = [len(completion_text(text)) for text in completions]
    return [sum(other < own for other in lengths) / len(lengths) for own in lengths]


def test_a_reward_that_depends_on_the_order_is_told_so():
    problem = problems(by_place)[0]
    assert problem == (
        "rows in reverse: gave 1.0 for a completion that it gave 0.0 before. If it compares the completions "
        "of a call, pass `compares_within_batch=True`."
    )


def test_a_reward_that_depends_on_the_other_rows_is_told_so_unless_it_is_meant():
    rows = {"prompts": ["p", "q"], "completions": ["yy", "x"], "references": ["a", "b"]}
    (problem,) = problems(by_rank, **rows)
    assert problem.startswith("first row alone: gave 0.0 for a completion that it gave 0.5 before.")
    assert check(by_rank, compares_within_batch=True, **rows) == [0.5, 0.0]


def test_rounding_is_no_difference():
    def drifting(completions: list[Any], **columns: Any) -> list[float]:
        return [100.0 + 1e-3 * len(completions)] * len(completions)

    assert check(drifting, **PLAIN) == [100.002, 100.002]
    with pytest.raises(ValueError, match="first row alone"):
        check(drifting, tolerance=1e-6, **PLAIN)


def test_both_forms_of_completions_are_tried():
    def strings_only(completions: list[Any], **columns: Any) -> list[float]:
        return [float(text.upper() == "X") for text in completions]

    (problem,) = problems(strings_only)
    assert problem.startswith(
        "completions as messages: raised AttributeError: 'list' object has no attribute"
    )
    (problem,) = problems(think_format_reward, prompts=["p"], completions=MESSAGES[:1])
    assert problem.startswith("completions as strings: raised TypeError")


def test_both_forms_of_completions_earn_the_same():
    def by_length(completions: list[Any], **columns: Any) -> list[float]:
        return [float(len(text)) for text in completions]

    problem = problems(by_length)[0]
    assert problem == (
        "completions as messages: gave 1.0 for a completion that it gave 2.0 before. Read both with "
        "`rewards.text.completion_text`."
    )


def test_prompts_take_the_form_of_their_completions():
    seen = []

    def note(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        seen.append((prompts[0], completions[0]))
        return [0.0] * len(completions)

    check(note, **PLAIN)
    assert ("p", "x") in seen
    assert ([{"role": "user", "content": "p"}], MESSAGES[0]) in seen
    assert {(isinstance(prompt, str), isinstance(said, str)) for prompt, said in seen} == {
        (True,) * 2,
        (False,) * 2,
    }


def test_an_empty_completion_is_tried():
    def first_letter(completions: list[Any], completion_ids: list[Any], **columns: Any) -> list[float]:
        texts = list(map(completion_text, completions))
        assert all(bool(text) == bool(ids) for text, ids in zip(texts, completion_ids, strict=True))
        return [float(ord(text[0])) for text in texts]

    (problem,) = problems(first_letter, completion_ids=[[1], [2]])
    assert problem == "empty completions: raised IndexError: string index out of range"


def test_each_column_is_none_in_turn():
    def lengths(
        completions: list[Any], references: list[Any], tags: list[Any], **columns: Any
    ) -> list[float]:
        return [len(reference) + len(tag) for reference, tag in zip(references, tags, strict=True)]

    columns = {"references": ["a", "b"], "tags": ["a", "b"]}
    message = "object of type 'NoneType' has no len()"
    assert problems(lengths, **columns) == [f"`references` None in row 0: raised TypeError: {message}"]
    assert problems(lengths, none_columns=["tags"], **columns) == [
        f"`tags` None in row 0: raised TypeError: {message}"
    ]
    assert check(lengths, none_columns=[], **PLAIN, **columns) == [2.0, 2.0]


def test_a_none_may_not_change_other_rows():
    def all_or_nothing(completions: list[Any], score: list[Any], **columns: Any) -> list[float | None]:
        return [None if None in score else 1.0 for _ in completions]

    (problem,) = problems(all_or_nothing, score=[1, 2])
    assert problem == (
        "`score` None in row 0: gave None for a completion that it gave 1.0 before. Only the row whose "
        "`score` is None may change."
    )


def test_none_goes_where_there_was_a_reward():
    rows = []

    def judged(completions: list[Any], score: list[Any], **columns: Any) -> list[float | None]:
        rows.append(score)
        return score

    assert check(judged, **PLAIN, score=[None, 2]) == [None, 2.0]
    assert [None, None] in rows


def test_pictures_and_token_ids_are_never_none():
    def strict(
        completions: list[Any], image: list[Any], completion_ids: list[Any], **columns: Any
    ) -> list[float]:
        return [
            float(picture.width + len(ids) * 0) for picture, ids in zip(image, completion_ids, strict=True)
        ]

    assert check(strict) == [32.0, 32.0]


def test_rows_must_be_whole():
    with pytest.raises(
        ValueError, match="`completions` has 1, `references` has 3 entries for 2 prompts; give one"
    ):
        check(fixed([0.0]), prompts=["p", "q"], completions=["x"], references=["a", "b", "c"])
    for rows in ({"prompts": ["p"]}, {"references": ["a"]}, {"prompts": [], "completions": []}):
        with pytest.raises(ValueError, match="`prompts` and `completions` must hold a row at least"):
            check(fixed([0.0]), **rows)
    with pytest.raises(ValueError, match=r"`none_columns` names \['refs'\], which are no columns here"):
        check(fixed([0.0, 0.0]), **PLAIN, none_columns=["refs"])
