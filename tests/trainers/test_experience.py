"""A rollout cut into parts, joined from parts, and kept through a file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmft.engine.packing import Completions
from mmft.engine.rollout import Samples
from mmft.errors import ConfigError
from mmft.trainers.collector import join_samples
from mmft.trainers.experience import (
    PROGRESS_FILE,
    TENSORS,
    Experience,
    check_saved_rollouts,
    given,
    load_experience,
    load_progress,
    save_progress,
)
from tests.trainers.support import LENGTH, random_experience

CPU = torch.device("cpu")


def full_experience() -> Experience:
    experience = random_experience(dense=True)
    return experience.with_tensors(advantages=experience.old_logps + 1, returns=experience.values * 2)


def test_taken_groups_keep_their_samples_side_by_side():
    whole = full_experience()
    part = whole.take([2, 0])
    samples = [4, 5, 0, 1]  # two per group
    assert part.rows == [12, 10]
    assert part.prompts == ["prompt 2", "prompt 0"]
    assert part.number == whole.number
    assert part.completions.prompt_index.tolist() == [0, 0, 1, 1]
    assert torch.equal(part.scores, whole.scores[samples])
    assert torch.equal(part.ended, whole.ended[samples])
    assert torch.equal(part.completions.ids, whole.completions.ids[samples])  # sample 0 is as long as any
    for name in TENSORS:
        assert torch.equal(getattr(part, name), getattr(whole, name)[samples]), name


def test_taken_groups_are_trimmed_to_their_longest_completion():
    whole = full_experience()
    lengths = whole.completions.lengths
    part = whole.take([1])
    width = int(lengths[2:4].max())
    assert width < LENGTH
    assert part.completions.ids.shape == (2, width)
    assert {getattr(part, name).shape for name in TENSORS} == {(2, width)}
    assert part.completions.lengths.tolist() == lengths[2:4].tolist()


def test_groups_of_different_sizes_are_taken_whole():
    whole = full_experience()
    index = torch.tensor([0, 1, 1, 1, 2, 2])  # one, three and two completions
    completions = dataclasses.replace(whole.completions, prompt_index=index)
    ragged = dataclasses.replace(whole, completions=completions, weights=torch.arange(6.0))
    part = ragged.take([1, 0])
    assert part.rows == [11, 10]
    assert part.completions.prompt_index.tolist() == [0, 0, 0, 1]
    assert part.weights.tolist() == [1, 2, 3, 0]
    assert torch.equal(part.completions.ids, whole.completions.ids[[1, 2, 3, 0]])


def test_fields_that_an_algorithm_leaves_out_stay_out():
    whole = dataclasses.replace(random_experience(), ref_logps=None)
    part = whole.take([0])
    assert part.ref_logps is None
    assert part.advantages is None


@pytest.mark.parametrize("experience", [random_experience(), full_experience()])
def test_a_saved_rollout_comes_back_bit_by_bit(experience: Experience, tmp_path: Path):
    scores = experience.scores.clone()
    scores[1] = torch.nan  # unjudged
    experience = dataclasses.replace(experience, scores=scores)
    experience.save(tmp_path / "rollout.safetensors", {"num_rows": 5})
    loaded = load_experience(tmp_path / "rollout.safetensors", CPU)
    again = Experience(prompts=experience.prompts, **loaded)
    for field in dataclasses.fields(Experience):
        assert_same(getattr(again, field.name), getattr(experience, field.name))


def assert_same(actual: object, expected: object) -> None:
    if isinstance(expected, Tensor):
        assert isinstance(actual, Tensor)
        assert actual.dtype == expected.dtype
        torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
    elif isinstance(expected, Completions):
        for field in dataclasses.fields(Completions):
            assert_same(getattr(actual, field.name), getattr(expected, field.name))
    else:
        assert actual == expected


def test_a_saved_rollout_fits_its_own_plan_and_no_other(tmp_path: Path):
    check_saved_rollouts(tmp_path, {"num_processes": 1})  # nothing saved, nothing to say
    for process in range(2):
        random_experience().save(tmp_path / f"rollout_{process}.safetensors", {"num_processes": 2, "seed": 7})
    check_saved_rollouts(tmp_path, {"num_processes": 2, "seed": 7})
    with pytest.raises(ConfigError, match=r"middle of a rollout with num_processes=2 \(now 1\)\. Resume"):
        check_saved_rollouts(tmp_path, {"num_processes": 1, "seed": 7})


def test_a_missing_field_is_named():
    with pytest.raises(ConfigError, match=r"`values` is missing from this rollout"):
        given(None, "values")


def samples_of(experience: Experience, *, values: bool = True) -> Samples:
    completions = experience.completions
    return Samples(completions, experience.old_logps, experience.values if values else None, experience.ended)


def test_joined_samples_are_the_samples_that_were_cut():
    whole = random_experience(num_prompts=4)
    parts = [samples_of(whole.take(groups)) for groups in ([0, 1], [2], [3])]
    joined = join_samples(parts, pad_id=0)
    mask = whole.completions.mask
    assert torch.equal(joined.completions.mask, mask)
    assert torch.equal(joined.completions.ids[mask], whole.completions.ids[mask])
    assert torch.equal(joined.completions.prompt_index, whole.completions.prompt_index)
    assert torch.equal(joined.logps, whole.old_logps)
    assert torch.equal(joined.values, whole.values)
    assert torch.equal(joined.ended, whole.ended)


def test_joined_samples_are_padded_with_the_padding_token():
    whole = random_experience(num_prompts=2)
    short, long = samples_of(whole.take([1])), samples_of(whole.take([0]))
    joined = join_samples([short, long], pad_id=99)
    assert joined.completions.ids.shape == (4, LENGTH)
    width = short.completions.ids.shape[1]
    assert width < LENGTH
    assert (joined.completions.ids[:2, width:] == 99).all()


def test_joined_samples_have_no_values_where_the_parts_have_none():
    part = samples_of(random_experience(), values=False)
    assert join_samples([part, part], pad_id=0).values is None


def test_progress_comes_back(tmp_path: Path):
    save_progress(tmp_path, {"rollout": 3, "kl_coef": 0.1 + 0.2})
    assert load_progress(tmp_path) == {"rollout": 3, "kl_coef": 0.1 + 0.2}


def test_a_checkpoint_without_progress_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=rf"{PROGRESS_FILE} is missing in {tmp_path}"):
        load_progress(tmp_path)
