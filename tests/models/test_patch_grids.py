"""Where image rows look: pixels are changed in one place, and the rows that change must be of that place.

Towers attend over the whole picture. Without their attention every row depends on its own pixels alone, so
that what a layout says can be seen, whatever the family does between pixels and rows.
"""

from __future__ import annotations

import functools
import logging
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mmft.engine.prompt_encoder import process_row
from mmft.evaluation.importance import WHOLE, patch_map
from mmft.models import patch_grids
from mmft.models.backbone import Backbone, make_backbone
from mmft.models.patch_grids import PicturePlaces, picture_places
from mmft.models.prompts import PromptInputs
from mmft.types import PromptRow
from tests import zoo
from tests.engine.support import EVERY_FAMILY
from tests.engine.test_prompt_encoder import make_row

# numpy 2 warns about the processors' own `np.array(tensor)`.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
TOWER_ATTENTION = re.compile(r"(vision|visual).*(attn|attention)\.(out_proj|o_proj|proj|projection_layer)\.")
SHAPES = [(40, 60), (60, 40), (64, 64), (24, 96)]
"""Heights and widths; one of each kind is not square, and would show rows taken for columns."""
GRIDS = {
    # 4 x 4 patches of a square cut from the middle
    "llava": [(4, 6), (6, 4), (4, 4), (4, 16)],
    # tiles of 2 x 2 patches, without their padding
    "llava_onevision": [(2, 4), (4, 2), (4, 4), (2, 4)],
    "smolvlm": [(4, 4), (4, 4), (4, 4), (2, 4)],
    "idefics3": [(4, 4), (4, 4), (4, 4), (2, 4)],
    # as many merged patches as fit
    "qwen2_vl": [(2, 3), (3, 2), (3, 3), (1, 6)],
    "qwen2_5_vl": [(2, 3), (3, 2), (3, 3), (1, 6)],
    "qwen3_vl": [(2, 3), (3, 2), (3, 3), (1, 6)],
    # the whole picture becomes a square
    "gemma3": [(3, 3)] * 4,
    "paligemma": [(3, 3)] * 4,
    "paligemma2": [(3, 3)] * 4,
    # up to four crops, of as near a shape as there is
    "internvl": [(4, 4), (4, 2), (4, 4), (2, 8)],
}


@functools.cache
def near_sighted(family: str) -> Backbone:
    """The family's model behind its real processor, with towers whose patches do not see each other."""
    backbone = make_backbone(zoo.build_model(family), zoo.build_processor(family), trainable=())
    blinded = [p for name, p in backbone.base.named_parameters() if TOWER_ATTENTION.search(name)]
    assert len(blinded) >= 4
    with torch.no_grad():
        for parameter in blinded:
            parameter.zero_()
    return backbone


def grey(shape: tuple[int, int]) -> np.ndarray[Any, Any]:
    return np.full((*shape, 3), 90, np.uint8)


def with_spot(shape: tuple[int, int], row: float, column: float, rows: int, columns: int) -> Any:
    """A grey picture with a bright spot in the middle half of one cell of a grid."""
    pixels = grey(shape)
    top, bottom = (round((row + part) * shape[0] / rows) for part in (0.3, 0.7))
    left, right = (round((column + part) * shape[1] / columns) for part in (0.3, 0.7))
    pixels[top : max(bottom, top + 1), left : max(right, left + 1)] = 255
    return pixels


def row_of(*pictures: np.ndarray[Any, Any]) -> PromptRow:
    return make_row("row", "What?", *(Image.fromarray(each) for each in pictures))


def look(backbone: Backbone, *pictures: np.ndarray[Any, Any]) -> tuple[Tensor, list[PicturePlaces]]:
    """(P, D) rows at the seam, and where they are said to look."""
    inputs = process_row(backbone.processor, row_of(*pictures))
    with torch.no_grad():
        seam = backbone.encode(inputs).embeds
    return seam, picture_places(backbone, inputs, [each.shape[:2] for each in pictures])


@pytest.mark.parametrize("number", range(len(SHAPES)))
@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_rows_that_a_spot_changes_look_at_the_spot(family: str, number: int) -> None:
    backbone, shape = near_sighted(family), SHAPES[number]
    before, (picture,) = look(backbone, grey(shape))
    grid = picture.grid
    assert grid is not None
    assert (grid.rows, grid.columns) == GRIDS[family][number]
    cells = {(0, 0), (0, grid.columns - 1), (grid.rows - 1, 0), (grid.rows - 1, grid.columns - 1)}
    cells |= {(0, grid.columns // 2), (grid.rows // 2, grid.columns // 2 - 1)}
    top, left, bottom, right = grid.views[0].box if family == "llava" else WHOLE
    for row, column in sorted(cell for cell in cells if min(cell) >= 0):
        after, _ = look(backbone, with_spot(shape, row, column, grid.rows, grid.columns))
        moved = (after - before).norm(dim=1)
        found = patch_map(moved[picture.places], grid)
        seen = top <= (row + 0.5) / grid.rows <= bottom and left <= (column + 0.5) / grid.columns <= right
        if not seen:  # it was cut off
            assert moved.max() == 0
            continue
        # All that changed is on the map; a coarser view of the same place may lead in neighbours too.
        torch.testing.assert_close(found.sum(), moved.sum())
        assert divmod(int(found.argmax()), grid.columns) == (row, column), (row, column)


def test_a_picture_that_is_one_crop_has_no_thumbnail() -> None:
    before, (picture,) = look(near_sighted("internvl"), grey((12, 12)))
    assert picture.grid is not None
    assert (picture.grid.rows, picture.grid.columns, len(picture.grid.views)) == (2, 2, 1)
    after, _ = look(near_sighted("internvl"), with_spot((12, 12), 0, 1, 2, 2))
    moved = patch_map((after - before).norm(dim=1)[picture.places], picture.grid)
    assert int(moved.argmax()) == 1


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_each_of_two_pictures_has_its_own_rows(family: str) -> None:
    backbone, shapes = near_sighted(family), ((40, 60), (64, 48))
    before, pictures = look(backbone, *(grey(shape) for shape in shapes))
    assert len(pictures) == 2
    places = torch.cat([picture.places for picture in pictures])
    assert places.tolist() == sorted(set(places.tolist()))
    for number, (shape, picture) in enumerate(zip(shapes, pictures, strict=True)):
        grid = picture.grid
        assert grid is not None
        rows, columns = grid.rows, grid.columns
        cell = (max(rows - 2, 0), columns // 2)
        changed = [grey(each) for each in shapes]
        changed[number] = with_spot(shape, *cell, rows, columns)
        moved = (look(backbone, *changed)[0] - before).norm(dim=1)
        found = patch_map(moved[picture.places], grid)
        assert divmod(int(found.argmax()), columns) == cell
        assert moved[pictures[1 - number].places].max() == 0


def test_a_prompt_without_pictures_has_none() -> None:
    backbone = near_sighted("llava")
    inputs = process_row(backbone.processor, row_of())
    assert picture_places(backbone, inputs, []) == []


def test_a_model_without_pictures_has_none() -> None:
    base = SimpleNamespace(config=SimpleNamespace(model_type="text"))
    backbone: Any = SimpleNamespace(base=base, processor=None)
    assert picture_places(backbone, PromptInputs({"input_ids": torch.tensor([[1, 2]])}), [(4, 4)]) == []


@pytest.fixture
def _nothing_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patch_grids, "_unknown", set())


@pytest.mark.usefixtures("_nothing_logged")
def test_an_unknown_layout_is_said_once_and_rows_keep_their_picture(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delitem(patch_grids.READERS, "gemma3")
    backbone = near_sighted("gemma3")
    with caplog.at_level(logging.WARNING):
        _, one = look(backbone, grey((40, 60)))
        _, two = look(backbone, grey((40, 60)), grey((50, 50)))
    assert [(len(each.places), each.grid) for each in (*one, *two)] == [(9, None)] * 3
    assert len(caplog.records) == 1
    assert "where the image rows of 'gemma3' models look" in caplog.text


@pytest.mark.usefixtures("_nothing_logged")
def test_pictures_that_nothing_tells_apart_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(patch_grids.READERS, "paligemma")
    assert look(near_sighted("paligemma"), grey((40, 60)), grey((50, 50)))[1] == []


@pytest.mark.usefixtures("_nothing_logged")
@pytest.mark.parametrize("family", [f for f in EVERY_FAMILY if f not in ("smolvlm", "idefics3")])
def test_a_layout_that_leaves_rows_over_is_not_used(family: str, caplog: pytest.LogCaptureFixture) -> None:
    backbone = near_sighted(family)
    inputs = process_row(backbone.processor, row_of(grey((40, 60))))
    image_id = int(inputs.input_ids[0][picture_places(backbone, inputs, [(40, 60)])[0].places[0]])
    ids = torch.cat([torch.tensor([[image_id]]), inputs.input_ids], dim=1)
    longer = PromptInputs(inputs.tensors | {"input_ids": ids})
    (picture,) = picture_places(backbone, longer, [(40, 60)])
    assert picture.grid is None
    assert len(picture.places) == int((ids == image_id).sum())
    assert "does not know" in caplog.text


@pytest.mark.usefixtures("_nothing_logged")
@pytest.mark.parametrize("family", ["smolvlm", "idefics3"])
def test_tiles_that_are_no_square_are_no_layout(family: str) -> None:
    backbone = near_sighted(family)
    inputs = process_row(backbone.processor, row_of(grey((40, 60))))
    last = int(picture_places(backbone, inputs, [(40, 60)])[0].places[-1])
    ids = torch.cat([inputs.input_ids[:, : last + 1], inputs.input_ids[:, last:]], dim=1)
    (picture,) = picture_places(backbone, PromptInputs(inputs.tensors | {"input_ids": ids}), [(40, 60)])
    assert picture.grid is None
    assert len(picture.places) == 21  # five views of 2 x 2, and one


@pytest.mark.usefixtures("_nothing_logged")
def test_tiles_without_names_are_no_layout() -> None:
    backbone = near_sighted("smolvlm")
    inputs = process_row(backbone.processor, row_of(grey((40, 60))))
    name = backbone.processor.tokenizer.convert_tokens_to_ids("<row_1_col_2>")
    ids = inputs.input_ids.masked_fill(inputs.input_ids == name, 100)
    (picture,) = picture_places(backbone, PromptInputs(inputs.tensors | {"input_ids": ids}), [(40, 60)])
    assert picture.grid is None


@pytest.mark.usefixtures("_nothing_logged")
def test_pictures_that_the_size_of_another_would_arrange_are_no_layout() -> None:
    backbone = near_sighted("internvl")
    inputs = process_row(backbone.processor, row_of(grey((40, 60))))
    assert picture_places(backbone, inputs, [(40, 60)])[0].grid is not None
    assert picture_places(backbone, inputs, [(60, 20)])[0].grid is None


@pytest.mark.usefixtures("_nothing_logged")
def test_frames_of_a_video_are_no_picture() -> None:
    backbone = near_sighted("qwen2_vl")
    inputs = process_row(backbone.processor, row_of(grey((40, 60))))
    frames = {"image_grid_thw": torch.tensor([[6, 2, 2]])}
    (picture,) = picture_places(backbone, PromptInputs(inputs.tensors | frames), [(40, 60)])
    assert picture.grid is None


@pytest.mark.usefixtures("_nothing_logged")
def test_pictures_of_any_shape_in_a_model_of_squares_are_no_layout() -> None:
    backbone = near_sighted("llava")
    inputs = process_row(backbone.processor, row_of(grey((40, 60))))
    sizes = {"image_sizes": torch.tensor([[32, 32]])}
    (picture,) = picture_places(backbone, PromptInputs(inputs.tensors | sizes), [(40, 60)])
    assert picture.grid is None


def test_a_row_for_the_whole_in_front_of_the_patches_looks_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = near_sighted("llava")
    monkeypatch.setattr(backbone.base.config, "vision_feature_select_strategy", "full")
    inputs = process_row(backbone.processor, row_of(grey((64, 64))))
    first = int((inputs.input_ids[0] == backbone.base.config.image_token_index).nonzero()[0, 0])
    ids = torch.cat([inputs.input_ids[:, : first + 1], inputs.input_ids[:, first:]], dim=1)
    (picture,) = picture_places(backbone, PromptInputs(inputs.tensors | {"input_ids": ids}), [(64, 64)])
    assert picture.grid is not None
    assert [view.first for view in picture.grid.views] == [1]


def test_a_picture_among_several_lies_in_the_middle_of_a_square() -> None:
    # 60 - 40 = 20 pixels of padding, 10 at each side: a quarter of 40
    assert patch_grids._padded_to_square((40, 60)) == (-0.25, 0, 1.25, 1)
    assert patch_grids._padded_to_square((60, 40)) == (0, -0.25, 1, 1.25)


def test_many_tiles_are_shrunk_before_they_become_rows() -> None:
    config = zoo.build_model("llava_onevision").config
    shrunk = patch_grids._joined_tiles(config, (32, 32), side=2)
    assert shrunk == (4, 4)
    config.vision_aspect_ratio = "anyres_max_1"
    # 4 x 4 of at most 1 * 2^2 rows: both edges by sqrt(16 / 4) = 2
    assert patch_grids._joined_tiles(config, (32, 32), side=2) == (2, 2)
