"""Scaling and PCA of modalities against scikit-learn; statistics in parts, of numbers, of what is masked."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA as SklearnPCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler as SklearnMinMax
from sklearn.preprocessing import StandardScaler as SklearnStandard
from torch import Tensor

from mmft.data.normalize import SCALERS, FeatureTransform, Unscaled
from mmft.data.pca import PCA
from mmft.errors import ConfigError
from mmft.models.feature_transforms import FeatureTransforms
from mmft.models.modalities import Modalities

WIDTHS = {"text": 6, "image": 5, "numbers": 2}
SIZES = {"text": 4, "image": 3, "numbers": 1}
"""Tokens of the longest row."""


def states(num_rows: int = 40, seed: int = 0) -> Modalities:
    """Features of different scale and place, correlated; padding holds NaN; some rows lack the image."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.Generator().manual_seed(99)  # of all chunks alike
    embeddings, masks = {}, {}
    for name, width in WIDTHS.items():
        mixed = torch.randn(width, width, generator=mixing)
        place = 10 * torch.randn(width, generator=mixing)
        x = torch.randn(num_rows, SIZES[name], width, generator=generator) @ mixed + place
        least = 0 if name == "image" else 1
        lengths = torch.randint(least, SIZES[name] + 1, (num_rows,), generator=generator)
        masks[name] = torch.arange(SIZES[name]) < lengths[:, None]
        embeddings[name] = torch.where(masks[name][..., None], x, torch.nan)
    return Modalities(embeddings, masks)


def rows_of(states: Modalities, name: str) -> NDArray[np.float64]:
    """(N, D) the real tokens."""
    rows: NDArray[np.float64] = states.embeddings[name][states.masks[name]].double().numpy()
    return rows


def part(states: Modalities, first: int, end: int) -> Modalities:
    return Modalities(
        {name: x[first:end] for name, x in states.embeddings.items()},
        {name: mask[first:end] for name, mask in states.masks.items()},
    )


def fitted(chunks: Sequence[Modalities], **settings: object) -> FeatureTransforms:
    transforms = FeatureTransforms(WIDTHS, **settings)
    transforms.fit(chunks)
    return transforms


def same_up_to_rounding(one: FeatureTransforms, other: FeatureTransforms) -> None:
    expected = other.state_dict()
    assert one.state_dict().keys() == expected.keys()
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-8, rtol=1e-8)


# What comes out


def test_scaled_and_projected_hand_computed():
    # four rows (x, y, x), the corners of a rectangle: x in {0, 4} and y in {1, 3} have mean 2, std 2 and 1
    corners = torch.tensor([[0.0, 1.0], [0.0, 3.0], [4.0, 1.0], [4.0, 3.0]])
    doubled = torch.cat([corners, corners[:, :1]], dim=1)[:, None]
    given = Modalities({"text": doubled}, {"text": torch.ones(4, 1, dtype=torch.bool)})
    transforms = FeatureTransforms({"text": 3}, pca_components=1)
    transforms.fit([given])
    # scaled they are (+-1, +-1, +-1); x counts twice: the first axis is (1, 0, 1) / sqrt 2, z = +-2 / sqrt 2
    expected = torch.tensor([-1.0, -1.0, 1.0, 1.0]) * 2 / math.sqrt(2)
    torch.testing.assert_close(transforms(given).embeddings["text"].flatten(), expected)


@pytest.mark.parametrize(
    ("scaling", "scaler"), [("standard", SklearnStandard), ("min_max", SklearnMinMax), ("none", None)]
)
def test_it_is_the_pipeline_of_scikit_learn(scaling: str, scaler: Callable[[], object] | None):
    given, others = states(), states(30, seed=1)
    transforms = fitted([given], scaling=scaling, pca_components=3)
    for name in ("text", "image"):
        pca = SklearnPCA(3, svd_solver="full")
        pipeline = make_pipeline(*([scaler()] if scaler is not None else []), pca).fit(rows_of(given, name))
        # of the largest loading, which scikit-learn leaves as the solver gives it
        signs = np.sign(pca.components_[np.arange(3), np.abs(pca.components_).argmax(1)])
        for each in (given, others):
            actual = rows_of(transforms(each), name)
            np.testing.assert_allclose(actual, pipeline.transform(rows_of(each, name)) * signs, atol=2e-4)
        assert actual.std(0).min() > 0.05


@pytest.mark.parametrize(("scaling", "scaler"), [("standard", SklearnStandard), ("min_max", SklearnMinMax)])
def test_without_components_it_scales(scaling: str, scaler: Callable[[], SklearnStandard]):
    given = states()
    transforms = fitted([given], scaling=scaling)
    for name in WIDTHS:
        rows = rows_of(given, name)
        expected = scaler().fit(rows).transform(rows)
        np.testing.assert_allclose(rows_of(transforms(given), name), expected, atol=1e-4)
    assert transforms.widths == WIDTHS


def test_numbers_are_scaled_and_never_projected():
    given = states()
    transforms = fitted([given], pca_components=2)
    assert set(transforms.projections) == {"text", "image"}
    assert transforms.widths == {"text": 2, "image": 2, "numbers": 2}
    assert transforms(given).widths == transforms.widths
    rows = rows_of(given, "numbers")
    np.testing.assert_allclose(
        rows_of(transforms(given), "numbers"), (rows - rows.mean(0)) / rows.std(0), atol=1e-4
    )


def test_numbers_may_be_fewer_than_the_components():
    assert FeatureTransforms({"text": 6, "numbers": 1}, pca_components=4).widths == {"text": 4, "numbers": 1}


def test_masks_and_other_modalities_are_left_as_they_are():
    given = states()
    more = Modalities(
        given.embeddings | {"fused": torch.randn(40, 1, 7)},
        given.masks | {"fused": torch.ones(40, 1, dtype=torch.bool)},
    )
    transforms = fitted([given], pca_components=3)
    found = transforms(more)
    assert found.names == more.names
    assert torch.equal(found.embeddings["fused"], more.embeddings["fused"])
    assert all(torch.equal(found.masks[name], more.masks[name]) for name in more.names)


def test_scaled_only_where_asked_for():
    given = states()
    transforms = fitted([given], scaling="none")
    found = transforms(given)
    for name, x in given.embeddings.items():
        torch.testing.assert_close(found.embeddings[name], x, atol=0, rtol=0, equal_nan=True)


def test_gradients_pass_and_statistics_do_not_train():
    given = states()
    transforms = fitted([given], pca_components=3)
    assert list(transforms.parameters()) == []
    x = given.embeddings["text"].nan_to_num().requires_grad_()
    found = transforms(Modalities({"text": x}, {"text": given.masks["text"]}))
    weights = torch.randn(3)
    (found.embeddings["text"] @ weights).sum().backward()
    # z = W (x - mean) / std, whose derivative is W / std for every token
    scaler, projection = transforms.scalers["text"], transforms.projections["text"]
    expected = (weights.double() @ projection.components / scaler.std).float().expand_as(x)
    torch.testing.assert_close(x.grad, expected)


# Statistics


@pytest.mark.parametrize("scaling", SCALERS)
@pytest.mark.parametrize("pca_components", [None, 3])
def test_statistics_of_chunks_are_those_of_all_at_once(scaling: str, pca_components: int | None):
    given, settings = states(), {"scaling": scaling, "pca_components": pca_components}
    chunks = [part(given, 0, 1), part(given, 1, 17), part(given, 17, 40)]
    same_up_to_rounding(fitted(chunks, **settings), fitted([given], **settings))


def test_what_is_masked_counts_for_nothing():
    given = states()
    filled = Modalities({name: x.nan_to_num(77.0) for name, x in given.embeddings.items()}, given.masks)
    same_up_to_rounding(fitted([given], pca_components=3), fitted([filled], pca_components=3))


def test_statistics_of_two_processes_are_those_of_one():
    """Each sees half of the rows, and the scaled ones only once the scalers of both agree."""
    given = states()
    halves = [part(given, 0, 15), part(given, 15, 40)]
    expected = fitted([given], pca_components=3)
    mine, theirs = (FeatureTransforms(WIDTHS, pca_components=3) for _ in range(2))
    # the other process's statistics at each exchange: of the scalers first, then of what all rows scaled give
    for transform, (name, scaler) in zip(theirs.scalers.values(), expected.scalers.items(), strict=True):
        transform.update(halves[1].embeddings[name], halves[1].masks[name])
        assert type(transform) is type(scaler)
    for name, projection in theirs.projections.items():
        scaled = expected.scalers[name](halves[1].embeddings[name])
        projection.update(scaled, halves[1].masks[name])
    of_theirs = dict(zip(ordered(mine), ordered(theirs), strict=True))
    mine.fit(halves[:1], lambda transform: transform.merge_(of_theirs[transform]))
    same_up_to_rounding(mine, expected)


def ordered(transforms: FeatureTransforms) -> list[FeatureTransform]:
    return [*transforms.scalers.values(), *transforms.projections.values()]


def test_statistics_are_exchanged_once_for_each_transform_and_before_they_are_used():
    given, seen = states(), []
    transforms = FeatureTransforms(WIDTHS, pca_components=3)

    def exchange(transform: FeatureTransform) -> None:
        seen.append(transform)
        assert int(transform.num_seen) > 0
        if isinstance(transform, PCA):
            assert seen[:3] == list(transforms.scalers.values())
            assert int(transform.num_fitted) == 0  # components only of all rows

    transforms.fit([part(given, 0, 20), part(given, 20, 40)], exchange)
    assert seen == ordered(transforms)


def test_components_are_those_of_what_the_exchanged_scalers_give():
    given = states()

    def shift(transform: FeatureTransform) -> None:
        if not isinstance(transform, PCA):
            transform.update(states(60, seed=3).embeddings[names[transform]].nan_to_num())

    transforms = FeatureTransforms(WIDTHS, pca_components=2)
    names = {scaler: name for name, scaler in transforms.scalers.items()}
    transforms.fit([given], shift)
    for name in ("text", "image"):
        scaled = transforms.scalers[name](given.embeddings[name])[given.masks[name]]
        torch.testing.assert_close(transforms.projections[name].mean, scaled.double().mean(0))


@pytest.mark.parametrize("scaling", ["standard", "min_max"])
def test_unfitted_transforms_say_so(scaling: str):
    given = states()
    transforms = FeatureTransforms(WIDTHS, scaling=scaling, pca_components=3)
    assert not transforms.is_fitted
    with pytest.raises(ValueError, match=r"Scaler has seen no features\. Call `update` first"):
        transforms(given)
    transforms.fit([given])
    assert transforms.is_fitted
    transforms(given)


def test_without_scaling_there_is_nothing_to_fit():
    transforms = FeatureTransforms(WIDTHS, scaling="none")
    assert transforms.is_fitted
    assert all(isinstance(scaler, Unscaled) for scaler in transforms.scalers.values())
    assert transforms(states()).widths == WIDTHS
    assert not FeatureTransforms(WIDTHS, scaling="none", pca_components=3).is_fitted


def test_one_modality_without_statistics_is_enough_to_be_unfitted():
    given = states()
    lacking = Modalities(given.embeddings, given.masks | {"image": torch.zeros_like(given.masks["image"])})
    transforms = FeatureTransforms(WIDTHS)
    transforms.fit([lacking])
    assert not transforms.is_fitted


def test_statistics_are_saved_and_loaded():
    given = states()
    transforms, loaded = fitted([given], pca_components=3), FeatureTransforms(WIDTHS, pca_components=3)
    loaded.load_state_dict(copy.deepcopy(transforms.state_dict()))
    assert loaded.is_fitted
    for name, expected in transforms(given).embeddings.items():
        torch.testing.assert_close(loaded(given).embeddings[name], expected, atol=0, rtol=0, equal_nan=True)


def test_a_model_in_half_precision_keeps_exact_statistics():
    given = states()
    transforms = fitted([given], pca_components=3)
    before = {name: tensor.clone() for name, tensor in transforms.state_dict().items()}
    transforms.to(torch.bfloat16)
    assert all(torch.equal(tensor, before[name]) for name, tensor in transforms.state_dict().items())
    half = {name: x.bfloat16() for name, x in given.embeddings.items()}
    found: dict[str, Tensor] = transforms(Modalities(half, given.masks)).embeddings
    assert {x.dtype for x in found.values()} == {torch.bfloat16}


# Refusals


def test_fewer_rows_than_components_need_are_refused():
    with pytest.raises(ValueError, match="PCA has seen 3 rows, and `num_components` 3 needs at least 4"):
        FeatureTransforms({"numbers": 2, "fused": 6}, pca_components=3).fit([few(3)])
    FeatureTransforms({"numbers": 2, "fused": 6}, pca_components=3).fit([few(4)])


def few(num_rows: int) -> Modalities:
    mask = torch.ones(num_rows, 1, dtype=torch.bool)
    embeddings = {"fused": torch.randn(num_rows, 1, 6), "numbers": torch.randn(num_rows, 1, 2)}
    return Modalities(embeddings, {"fused": mask, "numbers": mask})


@pytest.mark.parametrize("components", [0, -1, 6])
def test_components_that_no_modality_has_are_refused(components: int):
    message = f"`pca_components` must be between 1 and 5, the width of the image features; got {components}"
    with pytest.raises(ConfigError, match=message):
        FeatureTransforms({"image": 5, "text": 6}, pca_components=components)


def test_an_unknown_scaling_is_named():
    with pytest.raises(ConfigError, match=r"`scaler` is 'standrad', .* Did you mean 'standard'"):
        FeatureTransforms(WIDTHS, scaling="standrad")
