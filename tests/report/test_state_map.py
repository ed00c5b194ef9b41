"""Maps of states: a plane is found exactly, moved states lie on the same axes, labels become colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from mmft.errors import ConfigError, DataError
from mmft.report import state_map
from mmft.report.state_map import Groups, Scale, draw_state_map, map_states


def plane(count: int = 40, width: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """States in a plane of a wider space, and their places in it."""
    torch.manual_seed(1)
    places = torch.randn(count, 2, dtype=torch.float64) * torch.tensor([3.0, 1.0], dtype=torch.float64)
    axes, _ = torch.linalg.qr(torch.randn(width, 2, dtype=torch.float64))
    return places @ axes.T + 5, places


def test_states_in_a_plane_are_mapped_without_loss():
    states, places = plane()
    found = map_states(states)
    assert sum(found.explained) == pytest.approx(1.0, abs=1e-9)
    torch.testing.assert_close(torch.cdist(found.points, found.points), torch.cdist(places, places))
    # The first axis is the one along which they vary most.
    assert found.points[:, 0].var() > found.points[:, 1].var()


def test_explained_variance_by_hand():
    """Along the axes (+-2, 0, 0), (0, +-1, 0), (0, 0, +-1): sums of squares 8, 2, 2, so 8/12 and 2/12."""
    states = torch.tensor([[2.0, 0, 0], [-2, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]])
    assert map_states(states).explained == pytest.approx((8 / 12, 2 / 12))


def test_the_sign_of_an_axis_does_not_depend_on_the_order_of_the_rows():
    states, _ = plane()
    turned = map_states(states.flip(0)).points.flip(0)
    torch.testing.assert_close(turned, map_states(states).points)


def test_moved_states_lie_on_the_axes_of_the_first():
    states, _ = plane()
    found = map_states(states, states)
    torch.testing.assert_close(found.moved, found.points)
    # A shift along all states moves the picture, which axes of their own would hide.
    shifted = map_states(states, states + 1.0)
    assert shifted.moved is not None
    gap = shifted.moved - shifted.points
    torch.testing.assert_close(gap, gap[:1].expand_as(gap))
    assert gap.abs().max() > 0.1
    torch.testing.assert_close(shifted.points, found.points)


def test_too_few_states_are_refused():
    with pytest.raises(DataError, match="at least 3 rows; there are 2"):
        map_states(torch.randn(2, 4))


def test_states_of_different_shape_are_refused():
    with pytest.raises(ValueError, match="`moved` has N=4"):
        map_states(torch.randn(5, 3), torch.randn(4, 3))


def test_many_numbers_are_a_scale_and_few_whole_ones_groups():
    scale = state_map._colours([0.5, 1, None, 2.5], "x")
    assert isinstance(scale, Scale)
    np.testing.assert_equal(scale.values, [0.5, 1.0, float("nan"), 2.5])
    few = state_map._colours([1, 2.0, 2, None], "x")
    assert few == Groups(["1", "2", "2", "(none)"], ["1", "2", "(none)"])
    assert isinstance(state_map._colours(list(range(20)), "x"), Scale)
    assert state_map._colours([True, False], "x") == Groups(["True", "False"], ["False", "True"])


def test_words_are_groups_in_the_order_of_the_alphabet():
    groups = state_map._colours(["b", "a", None, "b"], "x")
    assert groups == Groups(["b", "a", "(none)", "b"], ["a", "b", "(none)"])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([None, float("nan")], "`map-by` 'x' holds nothing in these rows"),
        ([["a", "b"]], "`map-by` 'x' holds \\['a', 'b'\\], which can be no colour"),
        ([str(number) for number in range(11)], "`map-by` 'x' has 11 different values in 11 rows"),
    ],
)
def test_labels_that_are_no_colours_are_refused(labels: list[object], message: str):
    with pytest.raises(ConfigError, match=message):
        state_map._colours(labels, "x")


@pytest.mark.parametrize("column", [["a", "_b", "$c$", None], [0.1, 0.2, 0.35, None]])
def test_maps_are_drawn_with_one_panel_or_two(column: list[object], tmp_path: Path):
    states, _ = plane()
    widths = []
    for name, moved in {"one": None, "two": states + 0.1}.items():
        labels = [column[number % 4] for number in range(len(states))]
        draw_state_map(map_states(states, moved), labels, "$x_", tmp_path / f"{name}.png")
        with PIL.Image.open(tmp_path / f"{name}.png") as image:
            widths.append(image.width)
            assert len(image.convert("RGB").getcolors(2**24)) > 20
    assert widths[1] > widths[0] + 400


def test_the_points_of_a_group_have_its_colour(tmp_path: Path):
    states, _ = plane()
    found = map_states(states)
    draw_state_map(found, ["a"] * len(states), "x", tmp_path / "one.png", ["states"])
    draw_state_map(found, ["a", "b"] * (len(states) // 2), "x", tmp_path / "two.png", ["states"])
    orange = np.array([255, 127, 14])  # of tab10, seen through to a fifth of white
    amounts = []
    for name in ("one", "two"):
        with PIL.Image.open(tmp_path / f"{name}.png") as image:
            drawn = np.asarray(image.convert("RGB")).astype(int)
        amounts.append(int((np.abs(drawn - (0.8 * orange + 51)).max(-1) < 8).sum()))
    assert amounts[0] == 0
    assert amounts[1] > 200
