"""Principal components: hand numbers, scikit-learn, what is lost, any split of the rows, saved states."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import sklearn.decomposition
import torch
from torch import Tensor, nn

from mmft.data.pca import MAX_SIZE, PCA
from mmft.errors import ConfigError, DataError

SIZE, ROWS = 6, 60
CHUNKS = [1, 2, 7, ROWS]


def random_rows(num_rows: int = ROWS) -> Tensor:
    """Features with means, correlations and well separated variances, always of the same distribution."""
    basis, _ = torch.linalg.qr(torch.randn(SIZE, SIZE, dtype=torch.float64, generator=seeded()))
    return torch.randn(num_rows, SIZE, dtype=torch.float64) * 2.0 ** torch.arange(SIZE) @ basis + 3


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def fed(pca: PCA, rows: Tensor, chunk: int = ROWS) -> PCA:
    for part in rows.split(chunk):
        pca.update(part)
    return pca


def of_scikit_learn(rows: Tensor, num_components: int, **settings: Any) -> Any:
    return sklearn.decomposition.PCA(num_components, svd_solver="full", **settings).fit(rows.numpy())


def test_components_hand_computed():
    # around the mean (2, 1): (-1, -1), (1, 1), (2, 2), (-2, -2), (1, -1), (-1, 1)
    # scatter [[12, 8], [8, 12]]: 20 along (1, 1) / sqrt 2, 4 along (1, -1) / sqrt 2; over n - 1 = 5: 4, 0.8
    rows = torch.tensor([[1.0, 0], [3, 2], [4, 3], [0, -1], [3, 0], [1, 2]], dtype=torch.float64)
    pca = fed(PCA(2, 2), rows, chunk=4)
    half = 0.5**0.5
    assert pca.mean.tolist() == [2, 1]
    torch.testing.assert_close(pca.components, torch.tensor([[half, half], [half, -half]]).double())
    torch.testing.assert_close(pca.explained_variance, torch.tensor([4, 0.8]).double())
    torch.testing.assert_close(pca.explained_variance_ratio, torch.tensor([5 / 6, 1 / 6]).double())
    # (4, 3) is (2, 2) from the mean: 4 / sqrt 2 along the first axis, nothing along the second
    torch.testing.assert_close(pca(rows[2]), torch.tensor([8**0.5, 0]).double())
    # (3, 0) is (1, -1) from the mean: sqrt 2 along the second axis, whose standard deviation is sqrt 0.8
    torch.testing.assert_close(
        fed(PCA(2, 2, whiten=True), rows)(rows[4]), torch.tensor([0, 2.5**0.5]).double()
    )


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("num_components", [1, 3, SIZE])
@pytest.mark.parametrize("chunk", CHUNKS)
def test_components_are_those_of_scikit_learn_on_all_rows(chunk: int, num_components: int, whiten: bool):
    rows, more = random_rows(), random_rows()
    peer = of_scikit_learn(rows, num_components, whiten=whiten)
    pca = fed(PCA(SIZE, num_components, whiten=whiten), rows, chunk)
    for ours, theirs in (
        (pca.mean, peer.mean_),
        (pca.components, peer.components_),
        (pca.explained_variance, peer.explained_variance_),
        (pca.explained_variance_ratio, peer.explained_variance_ratio_),
        (pca(more), peer.transform(more.numpy())),
        (pca.inverse(pca(more)), peer.inverse_transform(peer.transform(more.numpy()))),
    ):
        torch.testing.assert_close(ours, torch.from_numpy(theirs))


def test_fed_by_chunks_it_is_closer_to_pca_than_incremental_pca():
    rows = random_rows()
    exact = torch.from_numpy(of_scikit_learn(rows, 2).components_)
    incremental = sklearn.decomposition.IncrementalPCA(2, batch_size=10).fit(rows.numpy())
    approximate = torch.from_numpy(incremental.components_)
    approximate = approximate * (approximate * exact).sum(1, keepdim=True).sign()
    ours = fed(PCA(SIZE, 2), rows, chunk=10).components
    # nearly the same axes, but only ours to rounding
    torch.testing.assert_close(approximate, exact, rtol=0, atol=0.1)
    assert (approximate - exact).abs().max() > 1e-6
    torch.testing.assert_close(ours, exact, rtol=0, atol=1e-12)


def test_with_all_components_incremental_pca_agrees():
    rows = random_rows()
    peer = sklearn.decomposition.IncrementalPCA(SIZE, batch_size=10).fit(rows.numpy())
    pca = fed(PCA(SIZE, SIZE), rows, chunk=10)
    torch.testing.assert_close(pca.explained_variance, torch.from_numpy(peer.explained_variance_))
    torch.testing.assert_close(pca(rows).abs(), torch.from_numpy(peer.transform(rows.numpy())).abs())


def test_the_scatter_is_the_loop_over_rows():
    rows = random_rows(9)
    mean = sum(rows) / 9
    expected = sum(torch.outer(row - mean, row - mean) for row in rows)
    for chunk in CHUNKS:
        torch.testing.assert_close(fed(PCA(SIZE, 2), rows, chunk).scatter, expected)


@pytest.mark.parametrize("num_components", [1, 4, SIZE])
def test_the_reconstruction_loses_the_dropped_eigenvalues(num_components: int):
    rows = random_rows()
    pca = fed(PCA(SIZE, num_components), rows, chunk=7)
    lost = (rows - pca.inverse(pca(rows))).square().sum() / (ROWS - 1)
    dropped = fed(PCA(SIZE, SIZE), rows).explained_variance[num_components:].sum()
    torch.testing.assert_close(lost, dropped)


def test_components_are_orthonormal_and_the_scores_uncorrelated():
    rows = random_rows()
    pca = fed(PCA(SIZE, 4), rows, chunk=7)
    torch.testing.assert_close(pca.components @ pca.components.T, torch.eye(4).double())
    torch.testing.assert_close(pca(rows).T.cov(), pca.explained_variance.diag())


def test_whitened_scores_have_unit_covariance():
    rows = random_rows()
    torch.testing.assert_close(fed(PCA(SIZE, 4, whiten=True), rows)(rows).T.cov(), torch.eye(4).double())


def test_the_largest_loading_of_every_component_is_positive():
    rows = random_rows()
    for sign in (1, -1):
        components = fed(PCA(SIZE, SIZE), sign * rows).components
        largest = components.gather(1, components.abs().argmax(dim=1, keepdim=True))
        assert largest.gt(0).all()


@pytest.mark.parametrize("nudge", [0.0, 1e-12, -1e-12])
def test_of_equally_large_loadings_the_first_is_positive(nudge: float):
    # along (1, -1) only, so both loadings are equally large but for rounding, or for the nudge
    line = torch.linspace(-1, 1, 5, dtype=torch.float64)
    pca = fed(PCA(2, 1), torch.stack([line, -line * (1 + nudge)], dim=1))
    torch.testing.assert_close(pca.components, torch.tensor([[1.0, -1.0]]).double() / 2**0.5)


def test_a_shift_of_the_data_moves_only_the_mean():
    rows, shift = random_rows(), torch.arange(SIZE) * 10.0
    here, there = fed(PCA(SIZE, 3), rows), fed(PCA(SIZE, 3), rows + shift, chunk=7)
    torch.testing.assert_close(there.mean, here.mean + shift)
    torch.testing.assert_close(there.components, here.components)
    torch.testing.assert_close(there.explained_variance, here.explained_variance)
    torch.testing.assert_close(there(rows + shift), here(rows))


def test_a_rotation_of_the_data_rotates_the_components():
    rows = random_rows()
    rotation, _ = torch.linalg.qr(torch.randn(SIZE, SIZE, dtype=torch.float64))
    here, there = fed(PCA(SIZE, 3), rows), fed(PCA(SIZE, 3), rows @ rotation)
    torch.testing.assert_close(there.explained_variance, here.explained_variance)
    # up to the sign, which goes by the largest loading
    overlap = there.components @ (here.components @ rotation).T
    torch.testing.assert_close(overlap.abs(), torch.eye(3).double())
    torch.testing.assert_close(there(rows @ rotation), here(rows) * overlap.diag().sign())


@pytest.mark.parametrize("chunk", CHUNKS)
def test_the_order_of_the_rows_does_not_matter(chunk: int):
    rows, more = random_rows(), random_rows()
    shuffled = fed(PCA(SIZE, 3), rows[torch.randperm(ROWS)], chunk)
    torch.testing.assert_close(shuffled(more), fed(PCA(SIZE, 3), rows)(more))


@pytest.mark.parametrize("num_mine", [0, 1, 19, ROWS])
def test_what_two_processes_saw_is_put_together(num_mine: int):
    rows, more = random_rows(), random_rows()
    mine, other = fed(PCA(SIZE, 3), rows[:num_mine]), fed(PCA(SIZE, 3), rows[num_mine:])
    before = copy.deepcopy(other.state_dict())
    mine.merge_(other)
    assert mine.num_seen == ROWS
    torch.testing.assert_close(mine(more), fed(PCA(SIZE, 3), rows)(more))
    assert all(torch.equal(before[name], buffer) for name, buffer in other.state_dict().items())


def test_components_follow_an_update_and_a_merge():
    rows, more = random_rows(), 5 * random_rows()
    expected = fed(PCA(SIZE, 3), torch.cat([rows, more]))
    updated, merged = fed(PCA(SIZE, 3), rows), fed(PCA(SIZE, 3), rows)
    for pca in (updated, merged):
        pca(rows)
    updated.update(more)
    merged.merge_(fed(PCA(SIZE, 3), more))
    for pca in (updated, merged):
        torch.testing.assert_close(pca.components, expected.components)
        torch.testing.assert_close(pca.explained_variance, expected.explained_variance)
        torch.testing.assert_close(pca.explained_variance_ratio, expected.explained_variance_ratio)
        torch.testing.assert_close(pca(rows), expected(rows))


def test_rows_outside_the_mask_do_not_count():
    rows, mask = random_rows(), torch.rand(6, 10) < 0.5
    expected = fed(PCA(SIZE, 3), rows[mask.flatten()])
    pca = PCA(SIZE, 3)
    pca.update(torch.where(mask[..., None], rows.reshape(6, 10, SIZE), torch.nan), mask)
    assert torch.equal(pca(rows), expected(rows))
    assert pca.num_seen == mask.sum()


def test_leading_dims_are_kept():
    rows = random_rows()
    pca = fed(PCA(SIZE, 3), rows)
    torch.testing.assert_close(pca(rows.reshape(3, 20, SIZE)), pca(rows).reshape(3, 20, 3))
    torch.testing.assert_close(pca(rows[0]), pca(rows)[0])


@pytest.mark.parametrize("chunk", CHUNKS)
def test_features_far_from_zero_keep_their_digits(chunk: int):
    # integers, exact in float32 also at 1e6: all is as it were without the offset
    small = (random_rows() * 4).round()
    far = (small + 1e6).float()
    expected = of_scikit_learn(small, 4)
    pca = fed(PCA(SIZE, 4), far, chunk)
    torch.testing.assert_close(pca.explained_variance, torch.from_numpy(expected.explained_variance_))
    torch.testing.assert_close(pca.components, torch.from_numpy(expected.components_))
    torch.testing.assert_close(
        pca(far), torch.from_numpy(expected.transform(small.numpy())).float(), rtol=1e-5, atol=1e-4
    )


@pytest.mark.parametrize("chunk", [1, 7, 60])
def test_whitened_components_without_variance_are_zero(chunk: int):
    # two directions vary, two features copy them, two are constant
    line = torch.randn(ROWS, 2, dtype=torch.float64)
    rows = torch.cat([line, -2 * line, torch.full((ROWS, 2), 0.1)], dim=1)
    pca = fed(PCA(SIZE, 4, whiten=True), rows, chunk)
    leaf = rows.clone().requires_grad_()
    scores = pca(leaf)
    assert scores[:, 2:].eq(0).all()
    torch.testing.assert_close(scores[:, :2].detach().T.cov(), torch.eye(2).double())
    torch.testing.assert_close(pca.inverse(scores).detach(), rows)
    (3 * scores).sum().backward()
    assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("chunk", [1, 7, 60])
@pytest.mark.parametrize("value", [0.0, 0.1, 1e6 / 3])
def test_constant_rows_explain_nothing(value: float, chunk: int):
    rows = torch.full((ROWS, SIZE), value, dtype=torch.float64)
    pca = fed(PCA(SIZE, 2, whiten=True), rows, chunk)
    assert pca.explained_variance.eq(0).all()
    assert pca.explained_variance_ratio.eq(0).all()
    assert pca(rows + 1).eq(0).all()


def test_gradients_are_those_of_the_linear_map():
    pca = fed(PCA(SIZE, 3), random_rows())
    leaf, weights = random_rows(4).requires_grad_(), torch.randn(4, 3, dtype=torch.float64)
    (pca(leaf) * weights).sum().backward()
    torch.testing.assert_close(leaf.grad, weights @ pca.components)
    assert list(pca.parameters()) == []
    pca.update(random_rows().requires_grad_())
    assert not any(buffer.requires_grad for buffer in pca.buffers())


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_output_has_the_dtype_of_the_input_and_is_computed_in_float32(dtype: torch.dtype, whiten: bool):
    rows = random_rows().to(dtype)
    pca = fed(PCA(SIZE, 3, whiten=whiten), rows)
    exact = pca(rows.double())
    # nothing but the output is rounded to half precision
    torch.testing.assert_close(pca(rows), exact.to(dtype), rtol=torch.finfo(dtype).eps, atol=2e-6)
    back = pca.inverse(exact.to(dtype).double())
    torch.testing.assert_close(
        pca.inverse(exact.to(dtype)), back.to(dtype), rtol=torch.finfo(dtype).eps, atol=2e-6
    )


def test_mixed_precision_does_not_round_the_scores():
    rows = random_rows().float()
    pca = fed(PCA(SIZE, 3), rows)
    scores, features = pca(rows), pca.inverse(pca(rows))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(pca(rows), scores)
        assert torch.equal(pca.inverse(scores), features)


@pytest.mark.parametrize("fitted", [False, True])
@pytest.mark.parametrize("whiten", [False, True])
def test_a_loaded_pca_is_the_saved_one(whiten: bool, fitted: bool):
    rows, more = random_rows(), random_rows()
    saved = fed(PCA(SIZE, 3, whiten=whiten), rows, chunk=7)
    if fitted:
        saved.fit_components()
    loaded = fed(PCA(SIZE, 3, whiten=whiten), 9 * more)
    loaded(more)
    loaded.load_state_dict(saved.state_dict())
    assert torch.equal(loaded(more), saved(more))
    assert torch.equal(fed(loaded, more)(rows), fed(saved, more)(rows))
    assert torch.equal(loaded.explained_variance_ratio, saved.explained_variance_ratio)


def test_components_are_computed_once_and_saved(monkeypatch: pytest.MonkeyPatch):
    rows = random_rows()
    pca, loaded = fed(PCA(SIZE, 3), rows), PCA(SIZE, 3)
    expected = pca(rows)
    monkeypatch.delattr(torch.linalg, "eigh")
    loaded.load_state_dict(pca.state_dict())
    assert torch.equal(pca(rows), expected)
    assert torch.equal(loaded(rows), expected)
    loaded.update(rows)
    with pytest.raises(AttributeError, match="eigh"):
        loaded(rows)


def test_casting_the_model_does_not_round_the_statistics():
    rows = random_rows()
    pca = fed(PCA(SIZE, 3), rows)
    expected = pca(rows)
    nn.Sequential(pca).to(torch.bfloat16)
    assert torch.equal(pca(rows), expected)
    assert torch.equal(fed(pca, rows)(rows), fed(fed(PCA(SIZE, 3), rows), rows)(rows))


@pytest.mark.parametrize("num_rows", [1, 2, 3])
def test_too_few_rows_for_the_components_are_refused(num_rows: int):
    pca = fed(PCA(SIZE, 3), random_rows(num_rows))
    message = (
        f"PCA has seen {num_rows} rows, and `num_components` 3 needs at least 4. Call `update` with more"
    )
    for use in (pca.fit_components, lambda: pca(random_rows()), lambda: pca.components):
        with pytest.raises(ValueError, match=message):
            use()


def test_one_row_more_than_components_is_enough():
    rows = random_rows(4)
    pca = fed(PCA(SIZE, 3), rows)
    torch.testing.assert_close(pca.inverse(pca(rows)), rows)


def test_a_pca_that_saw_nothing_is_not_applied():
    pca = PCA(SIZE, 3)
    uses = (pca.fit_components, lambda: pca(random_rows()), lambda: pca.inverse(torch.zeros(1, 3)))
    for use in (*uses, lambda: pca.components, lambda: pca.explained_variance_ratio):
        with pytest.raises(ValueError, match=r"PCA has seen no features. Call `update` first"):
            use()


@pytest.mark.parametrize("num_components", [-1, 0, SIZE + 1])
def test_a_number_of_components_that_cannot_be_is_refused(num_components: int):
    message = f"`num_components` must be between 1 and the width of the features, 6; got {num_components}"
    with pytest.raises(ConfigError, match=message):
        PCA(SIZE, num_components)


def test_features_too_wide_for_a_scatter_matrix_are_refused():
    with pytest.raises(ConfigError, match=r"`size` must be at most 16384 for PCA, .* got 16385"):
        PCA(MAX_SIZE + 1, 2)


def test_a_wrong_width_or_a_broken_row_is_refused():
    pca = fed(PCA(SIZE, 3), random_rows())
    with pytest.raises(ValueError, match=r"`features` must have 6 numbers per row; got shape \(2, 5\)"):
        pca(torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"`outputs` must have 3 numbers per row; got shape \(2, 6\)"):
        pca.inverse(torch.zeros(2, 6))
    with pytest.raises(DataError, match="NaN or infinity in row 1"):
        pca.update(torch.tensor([[0.0] * 6, [torch.nan] * 6]))
