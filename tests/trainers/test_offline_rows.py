"""Rows that were judged beforehand: which share a prompt, how passes visit them, what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from mmft.data.rows import PromptDataset
from mmft.engine.completion_batch import CompletionTokenizer
from mmft.errors import ConfigError, DataError
from mmft.models.backbone import Backbone
from mmft.trainers.offline_rows import OfflinePlan, OfflineRows
from tests import zoo
from tests.trainers.support import make_rows
from tests.zoo.vocabulary import EOS_ID, FIRST_TEXT_ID


def offline_rows(rows: list[dict[str, Any]], max_length: int = 6) -> OfflineRows:
    backbone = Backbone(zoo.build_model("llava"), zoo.build_processor("llava"))
    return OfflineRows(PromptDataset(rows), CompletionTokenizer(backbone, max_length))


def judged_rows(counts: list[int]) -> list[dict[str, Any]]:
    """Prompts with so many answers each, answers of one prompt far apart."""
    rows = [(row, number) for row, count in zip(make_rows(len(counts)), counts, strict=True)
            for number in range(count)]  # fmt: skip
    rows.sort(key=lambda pair: pair[1])
    return [row | {"completion": "ab"[: 1 + n % 2], "reward": n / 4} for row, n in rows]


def test_rows_of_one_prompt_stand_together_in_even_chunks():
    rows = offline_rows(judged_rows([5, 1, 2]))
    assert rows.groups.tolist() == [0, 1, 2, 0, 2, 0, 0, 0]
    everything = torch.ones(8, dtype=torch.bool)
    assert rows.chunks(everything, 8) == [[0, 3, 5, 6, 7], [1], [2, 4]]
    assert rows.chunks(everything, 4) == [[0, 3, 5], [6, 7], [1], [2, 4]]
    assert rows.chunks(everything, 1) == [[row] for row in (0, 3, 5, 6, 7, 1, 2, 4)]
    assert rows.chunks(torch.arange(8) > 2, 8) == [[3, 5, 6, 7], [4]]


def test_chunks_of_one_prompt_have_one_key():
    rows = offline_rows(judged_rows([5, 1]))
    keys = [rows.prompt(chunk).key for chunk in rows.chunks(torch.ones(6, dtype=torch.bool), 2)]
    assert keys == [("train", 0), ("train", 0), ("train", 0), ("train", 1)]
    assert [rows.prompt_number([5]), rows.prompt_number([1])] == [0, 1]


def test_completions_of_chunks_are_the_rows_own():
    rows = offline_rows(judged_rows([3, 1]))
    completions = rows.completions([[1], [0, 2, 3]], pad_id=0)
    a, b = FIRST_TEXT_ID + ord("a"), FIRST_TEXT_ID + ord("b")
    assert completions.ids.tolist() == [[a, EOS_ID, 0], [a, EOS_ID, 0], [a, b, EOS_ID], [a, EOS_ID, 0]]
    assert completions.lengths.tolist() == [2, 2, 3, 2]
    assert completions.prompt_index.tolist() == [0, 1, 1, 1]
    assert rows.rewards.tolist() == [0.0, 0.0, 0.25, 0.5]


def test_completions_are_cut_where_sampling_would_cut():
    answers = ["abc", [{"role": "assistant", "content": "a"}]]
    rows = [row | {"completion": text, "reward": 1} for row, text in zip(make_rows(2), answers, strict=True)]
    read = offline_rows(rows, max_length=2)
    assert read.cut.tolist() == [True, False]
    assert read.ids == [
        [FIRST_TEXT_ID + ord("a"), FIRST_TEXT_ID + ord("b")],
        [FIRST_TEXT_ID + ord("a"), EOS_ID],
    ]


@pytest.mark.parametrize("missing", ["completion", "reward"])
def test_a_missing_column_is_named_with_the_remedy(missing: str):
    rows = [{key: value for key, value in row.items() if key != missing} for row in judged_rows([2])]
    with pytest.raises(ConfigError, match=f"no `{missing}` column; offline training needs .*offline: false"):
        offline_rows(rows)


@pytest.mark.parametrize("reward", [math.nan, math.inf, None, "good", True])
def test_a_reward_that_is_no_finite_number_names_its_row(reward: Any):
    rows = judged_rows([1, 1, 1])
    rows[1]["reward"] = reward
    with pytest.raises(DataError, match=r"row 1 of 'train': `reward` must be a finite number; got"):
        offline_rows(rows)


@pytest.mark.parametrize("completion", [3, None, ["a"]])
def test_a_completion_of_another_kind_names_its_row(completion: Any):
    rows = judged_rows([1, 1, 1])
    rows[2]["completion"] = completion
    with pytest.raises(DataError, match=r"row 2 of 'train': `completion`: a completion is text or a list"):
        offline_rows(rows)


def plan(num_rows: int, **changes: int) -> OfflinePlan:
    settings = {
        "num_rows": num_rows,
        "groups_per_micro_batch": 2,
        "num_micro_batches": 1,
        "num_mini_batches": 2,
        "num_epochs": 1,
        "num_processes": 2,
        "seed": 0,
    }
    return OfflinePlan(**(settings | changes))


def fresh(plan: OfflinePlan, rollout: int) -> list[int]:
    return [
        row
        for process in range(plan.num_processes)
        for row in plan.rows(rollout, process)[: plan.num_fresh(rollout, process)]
    ]


@pytest.mark.parametrize("num_rows", [1, 3, 8, 9, 13, 16, 17])
def test_every_pass_sees_every_chunk_exactly_once(num_rows: int):
    each = plan(num_rows)  # batches of 8
    passes = []
    for epoch in range(3):
        first = epoch * each.rollouts_per_epoch
        seen = [row for number in range(each.rollouts_per_epoch) for row in fresh(each, first + number)]
        assert sorted(seen) == list(range(num_rows))
        passes.append(tuple(seen))
    assert len(set(passes)) == (3 if num_rows > 3 else len(set(passes)))  # shuffled anew


def test_every_process_has_as_many_chunks_as_the_others():
    each = plan(3)
    assert each.rollouts_per_epoch == 1
    assert [len(each.rows(0, process)) for process in (0, 1)] == [4, 4]
    assert [each.num_fresh(0, process) for process in (0, 1)] == [3, 0]


@pytest.mark.parametrize("num_rows", [2, 3, 5, 8])
def test_every_optimizer_step_gets_its_share_of_the_last_batch(num_rows: int):
    for seed in range(10):
        each = plan(num_rows, num_processes=1, groups_per_micro_batch=4, seed=seed)
        for epoch in range(2):
            batches = each.mini_batches(0, epoch, 0)
            assert sorted(group for batch in batches for group in batch) == list(range(8))
            shares = [sum(group < each.num_fresh(0, 0) for group in batch) for batch in batches]
            assert shares == [-(-num_rows // 2), num_rows // 2]


def test_what_fills_a_batch_up_is_of_the_same_pass():
    each = plan(9, num_processes=1)  # batches of 4
    assert [each.num_fresh(number, 0) for number in range(4)] == [4, 4, 1, 4]
    order = [row for number in range(2) for row in each.rows(number, 0)]
    assert each.rows(2, 0)[1:] == order[:3]
