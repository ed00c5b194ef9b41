"""Streaming scalers: hand numbers, scikit-learn, any split of the rows, constant features, saved states."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import sklearn.preprocessing
import torch
from torch import Tensor, nn

from mmft.data.normalize import (
    SCALERS,
    FeatureTransform,
    MinMaxScaler,
    StandardScaler,
    Unscaled,
    make_scaler,
)
from mmft.errors import ConfigError, DataError

CHUNKS = [1, 2, 7, 40]


def column(*numbers: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(numbers, dtype=dtype).unsqueeze(1)


def random_rows(num_rows: int = 40, size: int = 5) -> Tensor:
    """Features of different places and widths."""
    return torch.randn(num_rows, size, dtype=torch.float64) * torch.arange(1, size + 1) + torch.arange(size)


def fed(transform: Any, rows: Tensor, chunk: int = 40) -> Any:
    for part in rows.split(chunk):
        transform.update(part)
    return transform


@pytest.fixture(params=[StandardScaler, MinMaxScaler])
def scaler_class(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_standard_scaler_hand_computed():
    # 1, 3, 5, 7: mean 4, variance (9 + 1 + 1 + 9) / 4 = 5; (9 - 4) / sqrt 5 = sqrt 5
    scaler = fed(StandardScaler(1), column(1, 3, 5, 7), chunk=3)
    assert (scaler.mean.item(), scaler.num_seen.item()) == (4, 4)
    torch.testing.assert_close(scaler.std, torch.tensor([5.0]).double().sqrt())
    torch.testing.assert_close(scaler(column(9, 4)), column(5**0.5, 0))


def test_min_max_scaler_hand_computed():
    # 2 to 6 fill -1 to 1: 3 is a quarter of the way, -1 + 2 / 4; 8 is half the way beyond, 1 + 2 / 2
    scaler = fed(MinMaxScaler(1, -1, 1), column(4, 2, 6), chunk=1)
    assert scaler(column(2, 3, 6, 8)).tolist() == [[-1], [-0.5], [1], [2]]


def test_clipped_values_stay_in_the_range_that_was_asked_for():
    scaler = fed(MinMaxScaler(1, -1, 1, clip=True), column(4, 2, 6))
    assert scaler(column(-9, 3, 8)).tolist() == [[-1], [-0.5], [1]]


@pytest.mark.parametrize("chunk", CHUNKS)
def test_standard_scaler_is_that_of_scikit_learn(chunk: int):
    rows, more = random_rows(), random_rows()
    peer = sklearn.preprocessing.StandardScaler().fit(rows.numpy())
    scaler = fed(StandardScaler(5), rows, chunk)
    torch.testing.assert_close(scaler.mean, torch.from_numpy(peer.mean_))
    torch.testing.assert_close(scaler.std, torch.from_numpy(peer.scale_))
    torch.testing.assert_close(scaler(more), torch.from_numpy(peer.transform(more.numpy())))


@pytest.mark.parametrize("chunk", CHUNKS)
def test_min_max_scaler_is_that_of_scikit_learn(chunk: int):
    rows, more = random_rows(), random_rows()
    peer = sklearn.preprocessing.MinMaxScaler((-2, 3), clip=True).fit(rows.numpy())
    scaler = fed(MinMaxScaler(5, -2, 3, clip=True), rows, chunk)
    torch.testing.assert_close(scaler(more), torch.from_numpy(peer.transform(more.numpy())))


def test_the_order_of_the_rows_does_not_matter(scaler_class: Any):
    rows, more = random_rows(), random_rows()
    expected = fed(scaler_class(5), rows)(more)
    torch.testing.assert_close(fed(scaler_class(5), rows[torch.randperm(40)], chunk=3)(more), expected)


@pytest.mark.parametrize("num_mine", [0, 1, 13, 40])
def test_what_two_processes_saw_is_put_together(scaler_class: Any, num_mine: int):
    rows, more = random_rows(), random_rows()
    mine, other = fed(scaler_class(5), rows[:num_mine]), fed(scaler_class(5), rows[num_mine:])
    before = copy.deepcopy(other.state_dict())
    mine.merge_(other)
    assert mine.num_seen == 40
    torch.testing.assert_close(mine(more), fed(scaler_class(5), rows)(more))
    assert all(torch.equal(before[name], buffer) for name, buffer in other.state_dict().items())


def test_two_processes_that_saw_nothing_saw_nothing(scaler_class: Any):
    mine = scaler_class(5)
    mine.merge_(scaler_class(5))
    assert mine.num_seen == 0


def test_statistics_do_not_depend_on_leading_dims(scaler_class: Any):
    rows = random_rows()
    expected = fed(scaler_class(5), rows)
    folded = scaler_class(5)
    folded.update(rows.reshape(2, 4, 5, 5))
    torch.testing.assert_close(folded(rows.reshape(8, 5, 5)), expected(rows).reshape(8, 5, 5))
    single = scaler_class(5)
    for row in rows:
        single.update(row)
    torch.testing.assert_close(single(rows[0]), expected(rows)[0])


@pytest.mark.parametrize("filling", [torch.nan, torch.inf])
def test_rows_outside_the_mask_do_not_count(scaler_class: Any, filling: float):
    rows, mask = random_rows(), torch.rand(8, 5) < 0.5
    expected = fed(scaler_class(5), rows[mask.flatten()])
    scaler = scaler_class(5)
    padded = torch.where(mask[..., None], rows.reshape(8, 5, 5), filling)
    scaler.update(padded, mask)
    assert scaler.num_seen == mask.sum()
    assert torch.equal(scaler(rows), expected(rows))
    scaler.update(padded[~mask], torch.zeros((~mask).sum(), dtype=torch.bool))
    scaler.update(rows[:0])
    assert torch.equal(scaler(rows), expected(rows))


def test_inverse_undoes_the_scaling(scaler_class: Any):
    rows = random_rows()
    rows[:, 2] = 7
    scaler = fed(scaler_class(5), rows)
    torch.testing.assert_close(scaler.inverse(scaler(rows)), rows)


def test_min_max_inverse_hand_computed():
    # 0.5 lies three quarters from -1 to 1, and 5 so between 2 and 6
    assert fed(MinMaxScaler(1, -1, 1), column(2, 6)).inverse(column(0.5)).item() == 5


def test_scaled_features_have_mean_zero_and_variance_one():
    rows = random_rows()
    scaled = fed(StandardScaler(5), rows, chunk=7)(rows)
    torch.testing.assert_close(scaled.mean(dim=0), torch.zeros(5).double())
    torch.testing.assert_close(scaled.var(dim=0, correction=0), torch.ones(5).double())


def test_other_units_of_the_features_change_nothing(scaler_class: Any):
    rows, more = random_rows(), random_rows()
    units, zeros = torch.tensor([0.1, 3, 1e4, 7, 1]), torch.tensor([5.0, -3, 0, 1e3, 2])
    expected = fed(scaler_class(5), rows)(more)
    torch.testing.assert_close(fed(scaler_class(5), rows * units + zeros)(more * units + zeros), expected)


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, 1e6, -1e6, 1e-30])
def test_constant_features_become_exactly_zero(value: float, dtype: torch.dtype, chunk: int):
    rows = torch.full((40, 1), value, dtype=dtype)
    standard, min_max = fed(StandardScaler(1), rows, chunk), fed(MinMaxScaler(1, 2, 3), rows, chunk)
    other = column(value, value + 1, dtype=dtype)
    assert standard(other).tolist() == [[0], [0]]
    assert min_max(other).tolist() == [[2], [2]]
    torch.testing.assert_close(standard.inverse(other), rows[:2])
    torch.testing.assert_close(min_max.inverse(other), rows[:2])


@pytest.mark.parametrize("value", [0.1, 1e6, 1.9e6])
def test_a_feature_that_varies_by_its_rounding_is_constant(scaler_class: Any, value: float):
    rows = column(*[value] * 9, dtype=torch.float32)
    rows[4] = torch.nextafter(rows[4], torch.tensor(torch.inf))
    assert rows.unique().numel() == 2
    assert fed(scaler_class(1), rows, chunk=2)(rows).eq(0).all()


def test_the_coarsest_dtype_seen_decides_what_is_rounding(scaler_class: Any):
    # one step of bfloat16 above 1 is 2^-7, which is no rounding of float32
    near = column(1, 1 + 2**-7, dtype=torch.float32)
    assert not fed(scaler_class(1), near).constant.any()
    assert fed(scaler_class(1), near.bfloat16()).constant.all()
    for parts in ((near, near[:1].bfloat16()), (near[:1].bfloat16(), near)):
        mixed = fed(scaler_class(1), parts[0])
        mixed.merge_(fed(scaler_class(1), parts[1]))
        assert mixed.constant.all()


def test_a_small_variation_and_a_rare_event_are_not_constant(scaler_class: Any):
    # sixteen steps of float32 at 1e6 are one unit; a single 0 among 1000 ones has variance 0.001
    rows = column(1e6, 1e6 + 1, dtype=torch.float32)
    scaled = fed(scaler_class(1), rows)(rows)
    assert scaled[0] < scaled[1]
    rare = torch.ones(1000, 1, dtype=torch.bfloat16)
    rare[17] = 0
    assert not fed(scaler_class(1), rare, chunk=100).constant.any()


def test_a_variance_that_underflows_is_no_division_by_zero():
    assert fed(StandardScaler(1), column(1e-200, 3e-200))(column(2e-200, 1)).eq(0).all()


@pytest.mark.parametrize("chunk", CHUNKS)
def test_features_far_from_zero_keep_their_digits(chunk: int):
    # integers, exact in float32 also at 1e6: the statistics are those of the integers without the offset
    small = torch.randint(-8, 9, (40, 3)).float()
    far = small + 1e6
    scaler = fed(StandardScaler(3), far, chunk)
    expected = (small - small.double().mean(0)) / small.double().std(0, correction=0)
    torch.testing.assert_close(scaler(far), expected.float())
    torch.testing.assert_close(scaler.inverse(scaler(far)), far)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_output_has_the_dtype_of_the_input(scaler_class: Any, dtype: torch.dtype):
    rows = random_rows().to(dtype)
    scaler = fed(scaler_class(5), rows)
    exact = fed(scaler_class(5), rows.double())(rows.double())
    assert scaler(rows).dtype == scaler.inverse(rows).dtype == dtype
    assert torch.equal(scaler(rows), exact.to(dtype))


def test_gradients_are_those_of_a_linear_map_and_zero_at_constant_features():
    rows = torch.stack([torch.arange(4.0), torch.full((4,), 3.0)], dim=1)
    leaves = [rows.clone().requires_grad_() for _ in range(2)]
    # std of 0, 1, 2, 3 is sqrt(5/4); the range is 3
    fed(StandardScaler(2), rows)(leaves[0]).sum().backward()
    fed(MinMaxScaler(2, -1, 1), rows)(leaves[1]).sum().backward()
    torch.testing.assert_close(leaves[0].grad, torch.tensor([1.25**-0.5, 0]).expand(4, 2))
    torch.testing.assert_close(leaves[1].grad, torch.tensor([2 / 3, 0]).expand(4, 2))


def test_there_is_nothing_to_train_and_updates_keep_no_graph(scaler_class: Any):
    scaler = scaler_class(5)
    scaler.update(random_rows().requires_grad_())
    assert list(scaler.parameters()) == []
    assert not any(buffer.requires_grad for buffer in scaler.buffers())


def test_a_loaded_scaler_is_the_saved_one(scaler_class: Any):
    rows, more = random_rows(), random_rows()
    saved = fed(scaler_class(5), rows, chunk=3)
    loaded = fed(scaler_class(5), 9 * more)
    loaded(more)
    loaded.load_state_dict(saved.state_dict())
    assert torch.equal(loaded(more), saved(more))
    assert torch.equal(fed(loaded, more)(rows), fed(saved, more)(rows))


def test_loading_an_empty_state_is_noticed(scaler_class: Any):
    scaler = fed(scaler_class(5), random_rows())
    scaler(random_rows())
    nn.Sequential(scaler).load_state_dict(nn.Sequential(scaler_class(5)).state_dict())
    with pytest.raises(ValueError, match="has seen no features"):
        scaler(random_rows())


def test_casting_the_model_does_not_round_the_statistics(scaler_class: Any):
    rows = random_rows()
    scaler = fed(scaler_class(5), rows)
    expected = scaler(rows)
    nn.Sequential(scaler).to(torch.bfloat16).half()
    assert torch.equal(scaler(rows), expected)
    assert {buffer.dtype for buffer in scaler.buffers()} == {torch.float64, torch.int64}


def test_statistics_move_with_the_model(scaler_class: Any):
    moved = fed(scaler_class(5), random_rows()).to("meta", torch.bfloat16)
    assert {buffer.device.type for buffer in moved.buffers()} == {"meta"}


def test_a_scaler_that_saw_nothing_is_not_applied(scaler_class: Any):
    scaler = scaler_class(5)
    scaler.update(random_rows(), torch.zeros(40, dtype=torch.bool))
    for use in (scaler, scaler.inverse, lambda _: scaler.constant):
        with pytest.raises(ValueError, match=f"{scaler_class.__name__} has seen no features. Call `update`"):
            use(random_rows())


@pytest.mark.parametrize("filling", [torch.nan, torch.inf, -torch.inf])
def test_a_broken_row_is_named_and_changes_nothing(scaler_class: Any, filling: float):
    rows = random_rows()
    scaler = fed(scaler_class(5), rows)
    expected = scaler(rows)
    broken = rows.clone().reshape(8, 5, 5)
    broken[3, 2, 4] = filling
    with pytest.raises(DataError, match="`features` has a NaN or infinity in row 17; nothing was updated"):
        scaler.update(broken)
    assert torch.equal(scaler(rows), expected)
    assert scaler.num_seen == 40


@pytest.mark.parametrize("shape", [(40, 4), (5, 1), (5, 40), ()])
def test_another_width_is_refused(scaler_class: Any, shape: tuple[int, ...]):
    scaler = fed(scaler_class(5), random_rows())
    message = rf"must have 5 numbers per row; got shape \({', '.join(map(str, shape))}\)"
    for name, use in (("features", scaler.update), ("features", scaler), ("outputs", scaler.inverse)):
        with pytest.raises(ValueError, match=f"`{name}` {message}"):
            use(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(40, 1), (1,), (40, 5)])
def test_a_mask_of_another_shape_is_refused(scaler_class: Any, shape: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"`mask` must have one entry per row, shape \(40,\); got \("):
        scaler_class(5).update(random_rows(), torch.ones(shape, dtype=torch.bool))


def test_whole_numbers_are_refused(scaler_class: Any):
    with pytest.raises(ValueError, match=r"`features` must be floating point; got torch.int64. .*float"):
        scaler_class(5).update(torch.ones(3, 5, dtype=torch.long))


@pytest.mark.parametrize("other", [StandardScaler(4), MinMaxScaler(5), nn.Identity()])
def test_only_the_same_transform_is_merged_in(other: nn.Module):
    found = rf"{type(other).__name__} of [45\?] features; only another StandardScaler of 5"
    with pytest.raises(ValueError, match=f"`other` is {found}"):
        StandardScaler(5).merge_(other)


def test_no_features_are_refused(scaler_class: Any):
    with pytest.raises(ConfigError, match="`size` must be >= 1; got 0"):
        scaler_class(0)


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (2.0, -2.0), (0.0, torch.nan)])
def test_an_empty_range_is_refused(low: float, high: float):
    with pytest.raises(ConfigError, match=f"`low` must be less than `high`; got {low} and {high}"):
        MinMaxScaler(5, low, high)


def test_scalers_are_made_by_name():
    made = {name: type(make_scaler(name, 5)) for name in SCALERS}
    assert made == {"none": Unscaled, "standard": StandardScaler, "min_max": MinMaxScaler}


def test_every_named_scaler_keeps_to_the_interface():
    rows = random_rows()
    for name in SCALERS:
        scaler = make_scaler(name, 5)
        assert isinstance(scaler, FeatureTransform)
        scaler.update(rows, torch.ones(40))
        scaler.merge_(copy.deepcopy(scaler))
        assert (scaler.size, scaler.output_size) == (5, 5)
        torch.testing.assert_close(scaler.inverse(scaler(rows)), rows)


def test_no_scaling_is_no_change():
    rows = random_rows()
    scaler = make_scaler("none", 5)
    assert scaler(rows) is rows
    assert scaler.inverse(rows) is rows
    assert scaler.state_dict() == {}


@pytest.mark.parametrize(("name", "hint"), [("standart", " Did you mean 'standard'[?]"), ("zzz", "$")])
def test_an_unknown_scaler_is_refused_with_the_nearest(name: str, hint: str):
    with pytest.raises(ConfigError, match=f"`scaler` is '{name}', .* one of none, standard, min_max.{hint}"):
        make_scaler(name, 5)


def test_every_way_to_cut_six_rows_gives_the_same_statistics():
    rows = random_rows(6, 2).numpy()
    for cuts in itertools.chain.from_iterable(itertools.combinations(range(1, 6), k) for k in range(6)):
        scaler = StandardScaler(2)
        for part in np.split(rows, list(cuts)):
            scaler.update(torch.from_numpy(part))
        np.testing.assert_allclose(scaler.mean.numpy(), rows.mean(0), rtol=1e-13)
        np.testing.assert_allclose(scaler.std.numpy(), rows.std(0), rtol=1e-13)
