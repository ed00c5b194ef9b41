"""Gradient importance: the equations by hand, against slow loops, and what must not change them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mmft.evaluation.importance import (
    PatchGrid,
    PatchView,
    gradient_importance,
    gradient_times_input,
    modality_importance,
    modality_shares,
    patch_map,
    relative_importance,
)

EVERYWHERE = torch.ones(1, 2, dtype=torch.bool)
GRADIENTS = torch.tensor([[[3.0, 4.0], [1.0, -2.0]]])
EMBEDDINGS = torch.tensor([[[0.0, 2.0], [2.0, 1.5]]])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_importance_hand_computed():
    # ||(3, 4)|| = 5, ||(1, -2)|| = sqrt 5
    expected = torch.tensor([[5.0, math.sqrt(5)]])
    torch.testing.assert_close(gradient_importance(GRADIENTS, EVERYWHERE), expected)
    # ||(0, 2)|| = 2, ||(2, 1.5)|| = 2.5
    expected = torch.tensor([[10.0, 2.5 * math.sqrt(5)]])
    torch.testing.assert_close(relative_importance(GRADIENTS, EMBEDDINGS, EVERYWHERE), expected)
    # |3 * 0 + 4 * 2| = 8, |1 * 2 - 2 * 1.5| = 1
    expected = torch.tensor([[8.0, 1.0]])
    torch.testing.assert_close(gradient_times_input(GRADIENTS, EMBEDDINGS, EVERYWHERE), expected)


def test_a_negative_product_counts_as_much_as_a_positive_one():
    product = gradient_times_input(-GRADIENTS, EMBEDDINGS, EVERYWHERE)
    torch.testing.assert_close(product, gradient_times_input(GRADIENTS, EMBEDDINGS, EVERYWHERE))


def test_importance_is_a_slow_loop():
    gradients, embeddings = random(3, 4, 5), random(3, 4, 5, seed=1)
    mask = random(3, 4, seed=2) > 0
    plain, relative, product = (
        gradient_importance(gradients, mask),
        relative_importance(gradients, embeddings, mask),
        gradient_times_input(gradients, embeddings, mask),
    )
    for b in range(3):
        for t in range(4):
            seen = float(mask[b, t])
            norm = math.sqrt(sum(float(g) ** 2 for g in gradients[b, t]))
            size = math.sqrt(sum(float(e) ** 2 for e in embeddings[b, t]))
            inner = sum(float(g) * float(e) for g, e in zip(gradients[b, t], embeddings[b, t], strict=True))
            assert float(plain[b, t]) == pytest.approx(seen * norm)
            assert float(relative[b, t]) == pytest.approx(seen * norm * size)
            assert float(product[b, t]) == pytest.approx(seen * abs(inner), abs=1e-6)
    assert (product <= relative * (1 + 1e-6)).all()


def test_padding_counts_nothing_whatever_it_holds():
    gradients, mask = GRADIENTS.clone(), torch.tensor([[True, False]])
    gradients[0, 1] = torch.nan
    embeddings = EMBEDDINGS.clone()
    embeddings[0, 1] = torch.inf
    assert gradient_importance(gradients, mask).tolist() == [[5, 0]]
    assert relative_importance(gradients, embeddings, mask).tolist() == [[10, 0]]
    assert gradient_times_input(gradients, embeddings, mask).tolist() == [[8, 0]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype):
    # 300^2 * 4 = 360,000 is beyond float16.
    gradients = torch.full((1, 1, 4), 300.0, dtype=dtype)
    found = gradient_importance(gradients, torch.ones(1, 1, dtype=torch.bool))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.tensor([[600.0]]))
    assert gradient_times_input(gradients, gradients, torch.ones(1, 1)).dtype == torch.float32


def test_scaling_l_scales_importance_and_leaves_shares():
    gradients, embeddings, mask = random(2, 6, 3), random(2, 6, 3, seed=1), torch.ones(2, 6)
    parts = {"image": torch.arange(6).expand(2, 6) < 2, "text": torch.arange(6).expand(2, 6) >= 2}
    once, thrice = gradient_importance(gradients, mask), gradient_importance(-3 * gradients, mask)
    torch.testing.assert_close(thrice, 3 * once)
    before, after = (modality_shares(modality_importance(each, parts)) for each in (once, thrice))
    torch.testing.assert_close(before, after)
    # Embeddings ten times as large, read by weights of a tenth: only the plain gradient takes notice.
    for equation in (relative_importance, gradient_times_input):
        torch.testing.assert_close(
            equation(gradients / 10, 10 * embeddings, mask), equation(gradients, embeddings, mask)
        )


def test_an_embedding_that_is_zero_has_a_gradient_and_nothing_to_take_away():
    nothing = torch.zeros_like(EMBEDDINGS)
    assert (gradient_importance(GRADIENTS, EVERYWHERE) > 1).all()
    assert (relative_importance(GRADIENTS, nothing, EVERYWHERE) == 0).all()
    assert (gradient_times_input(GRADIENTS, nothing, EVERYWHERE) == 0).all()


def test_modalities_hand_computed():
    importance = torch.tensor([[1.0, 2.0, 4.0], [3.0, 0.0, 1.0]])
    parts = {
        "image": torch.tensor([[True, True, False], [False, False, False]]),
        "text": torch.tensor([[False, False, True], [True, True, True]]),
    }
    sums = modality_importance(importance, parts)
    assert {name: each.tolist() for name, each in sums.items()} == {"image": [3, 0], "text": [4, 4]}
    shares = modality_shares(sums)
    torch.testing.assert_close(shares["image"], torch.tensor([3 / 7, 0.0]))
    torch.testing.assert_close(shares["text"], torch.tensor([4 / 7, 1.0]))


def test_what_is_in_no_modality_counts_in_none():
    sums = modality_importance(torch.tensor([[1.0, torch.nan]]), {"text": torch.tensor([[True, False]])})
    assert sums["text"].tolist() == [1]


def test_shares_of_parts_add_up_to_the_share_of_the_whole():
    importance, first = random(4, 9).abs(), (torch.arange(9) < 4).expand(4, 9)
    second = (torch.arange(9) < 6).expand(4, 9) & ~first
    rest = ~(first | second)
    fine = modality_shares(modality_importance(importance, {"a": first, "b": second, "c": rest}))
    coarse = modality_shares(modality_importance(importance, {"ab": first | second, "c": rest}))
    torch.testing.assert_close(fine["a"] + fine["b"], coarse["ab"])
    torch.testing.assert_close(sum(fine.values()), torch.ones(4))


def test_where_nothing_counts_every_share_is_zero():
    shares = modality_shares({"image": torch.tensor([0.0, 1.0]), "text": torch.tensor([0.0, 3.0])})
    assert {name: each.tolist() for name, each in shares.items()} == {"image": [0, 0.25], "text": [0, 0.75]}
    assert modality_shares({}) == {}


def test_tiny_gradients_have_shares():
    shares = modality_shares({"image": torch.tensor([1e-42]), "text": torch.tensor([3e-42])})
    assert float(shares["image"]) == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_what_is_not_finite_is_no_share_of_its_row_and_leaves_others(broken: float):
    shares = modality_shares({"image": torch.tensor([broken, 1.0]), "text": torch.tensor([1.0, 1.0])})
    assert shares["image"].isnan().tolist() == [True, False]
    assert shares["text"].isnan().tolist() == [True, False]


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="`mask` has T=3"):
        gradient_importance(GRADIENTS, torch.ones(1, 3))
    with pytest.raises(ValueError, match="`embeddings` has D=3"):
        relative_importance(GRADIENTS, torch.ones(1, 2, 3), EVERYWHERE)
    with pytest.raises(ValueError, match="`embeddings` has T=1"):
        gradient_times_input(GRADIENTS, torch.ones(1, 1, 2), EVERYWHERE)
    with pytest.raises(ValueError, match="`text` has T=3"):
        modality_importance(torch.ones(1, 2), {"text": torch.ones(1, 3)})
    with pytest.raises(ValueError, match="`text` has B=2"):
        modality_shares({"image": torch.ones(1), "text": torch.ones(2)})
    with pytest.raises(ValueError, match="`importance` must have dims T"):
        patch_map(torch.ones(1, 4), PatchGrid.over([PatchView(0, 2, 2, 2)]))


# Maps


def test_one_view_of_the_whole_picture_is_its_own_map():
    values = torch.arange(6.0)
    grid = PatchGrid.over([PatchView(0, 2, 3, 3)])
    assert (grid.rows, grid.columns) == (2, 3)
    torch.testing.assert_close(patch_map(values, grid), torch.tensor([[0.0, 1, 2], [3, 4, 5]]))


def test_tokens_that_end_rows_or_stand_in_front_are_passed_over():
    # one in front, rows of two with an end each
    values = torch.tensor([100.0, 1, 2, 100, 3, 4, 100])
    found = patch_map(values, PatchGrid.over([PatchView(1, 2, 2, 3)]))
    torch.testing.assert_close(found, torch.tensor([[1.0, 2], [3, 4]]))


def test_tiles_lie_where_their_boxes_are_and_the_whole_is_spread_over_them():
    left, right, whole = (
        PatchView(0, 2, 1, 1, (0, 0, 1, 0.5)),
        PatchView(2, 2, 1, 1, (0, 0.5, 1, 1)),
        PatchView(4, 1, 1, 1),
    )
    grid = PatchGrid.over([left, right, whole])
    assert (grid.rows, grid.columns) == (2, 2)
    # Each of the four cells gets a quarter of the whole's 8.
    found = patch_map(torch.tensor([1.0, 2, 3, 4, 8]), grid)
    torch.testing.assert_close(found, torch.tensor([[3.0, 5], [4, 6]]))


def test_a_cropped_picture_has_a_map_that_is_zero_at_its_sides():
    # A square cut out of the middle of a picture twice as wide as high.
    grid = PatchGrid.over([PatchView(0, 2, 2, 2, (0, 0.25, 1, 0.75))])
    assert (grid.rows, grid.columns) == (2, 4)
    found = patch_map(torch.tensor([1.0, 2, 3, 4]), grid)
    torch.testing.assert_close(found, torch.tensor([[0.0, 1, 2, 0], [0, 3, 4, 0]]))


def test_padding_beyond_the_edge_takes_nothing_from_the_picture():
    # 4 x 4 patches over a square around a picture twice as wide as high: the outer rows see padding alone.
    grid = PatchGrid.over([PatchView(0, 4, 4, 4, (-0.5, 0, 1.5, 1))])
    assert (grid.rows, grid.columns) == (2, 4)
    found = patch_map(torch.arange(16.0), grid)
    torch.testing.assert_close(found, torch.arange(4.0, 12.0).view(2, 4))
    # A patch of which half is padding counts wholly in the half that is picture.
    grid = PatchGrid.over([PatchView(0, 1, 1, 1, (-1, 0, 1, 1))])
    torch.testing.assert_close(patch_map(torch.tensor([5.0]), grid), torch.tensor([[5.0]]))


def test_a_map_is_a_slow_loop_over_overlaps_and_keeps_the_sum():
    views = [PatchView(2, 3, 2, 4, (0.1, 0.2, 0.85, 0.7)), PatchView(14, 2, 5, 5)]
    grid, values = PatchGrid.over(views), random(30).abs()
    expected = torch.zeros(grid.rows, grid.columns)
    for view in views:
        top, left, bottom, right = view.box
        height, width = (bottom - top) / view.rows, (right - left) / view.columns
        for i in range(view.rows):
            for j in range(view.columns):
                y, x = top + i * height, left + j * width
                token = float(values[view.first + i * view.stride + j])
                for r in range(grid.rows):
                    for c in range(grid.columns):
                        high = min(y + height, (r + 1) / grid.rows) - max(y, r / grid.rows)
                        wide = min(x + width, (c + 1) / grid.columns) - max(x, c / grid.columns)
                        expected[r, c] += token * max(high, 0) * max(wide, 0) / (height * width)
    torch.testing.assert_close(patch_map(values, grid), expected)
    read = torch.cat([view.places().flatten() for view in views])
    torch.testing.assert_close(patch_map(values, grid).sum(), values[read].sum())


def test_a_map_of_a_slice_reads_the_slice():
    grid, values = PatchGrid.over([PatchView(0, 2, 2, 2)]), random(9)
    torch.testing.assert_close(patch_map(values[3:7], grid), values[3:7].view(2, 2))


def test_a_grid_that_reads_more_tokens_than_there_are_is_refused():
    with pytest.raises(ValueError, match="`importance` has 5 tokens, but `grid` reads 6"):
        patch_map(torch.ones(5), PatchGrid.over([PatchView(0, 2, 3, 3)]))
