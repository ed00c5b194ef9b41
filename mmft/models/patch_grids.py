"""Which part of its picture each image row at the seam looks at, as far as a model's layout is known.

Read off the processor's output and the model's config; a layout that does not account for every image row is
not used. Left out: videos, and models that resample their patches into rows without a place.

Shapes: P prompt tokens, T image rows of one picture.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmft.evaluation.importance import WHOLE, Box, PatchGrid, PatchView
from mmft.models.embedding import placeholder_id
from mmft.models.prompts import PromptInputs

if TYPE_CHECKING:
    from mmft.models.backbone import Backbone

logger = logging.getLogger(__name__)
Size = tuple[int, int]
"""Height and width of a picture, in pixels."""
TILE_NAME = re.compile(r"<row_(\d+)_col_(\d+)>")
_unknown: set[str] = set()
"""Model types that were logged as unknown."""


@dataclass(frozen=True, slots=True)
class PicturePlaces:
    """The image rows of one picture."""

    places: Tensor
    """(T,) where in the prompt they are."""
    grid: PatchGrid | None
    """Where they look, if that is known."""


@dataclass(frozen=True, slots=True)
class _Prompt:
    """What a layout is read from."""

    config: Any
    processor: Any
    ids: Tensor
    """(P,)"""
    places: Tensor
    """Of all image rows."""
    tensors: dict[str, Tensor]
    sizes: Sequence[Size]

    @property
    def runs(self) -> list[Tensor]:
        """Places of image rows that follow one another."""
        breaks = (self.places.diff() > 1).nonzero()[:, 0] + 1
        return list(self.places.tensor_split(breaks.cpu())) if len(self.places) else []

    @property
    def image_processor(self) -> Any:
        return getattr(self.processor, "image_processor", None)


Layout = list[tuple[int, list[PatchView]]]
"""Of each picture how many rows it has, and its views."""


def picture_places(backbone: Backbone, inputs: PromptInputs, sizes: Sequence[Size]) -> list[PicturePlaces]:
    """The image rows of each picture of one prompt, in order.

    Where the layout is unknown, pictures whose rows stand apart have no grid, and where nothing tells the
    pictures apart the list is empty. Either is logged once for each type of model.

    Args:
        backbone: the model and its processor.
        inputs: one prompt, without padding.
        sizes: of its pictures, as they were given to the processor.
    """
    config, ids = backbone.base.config, inputs.input_ids[0].cpu()
    image_id = placeholder_id(backbone, "image")
    places = torch.tensor([place for place, token in enumerate(ids.tolist()) if token == image_id])
    if not sizes or not len(places):
        return []
    prompt = _Prompt(config, backbone.processor, ids, places, inputs.tensors, sizes)
    reader = _grids if "image_grid_thw" in inputs.tensors else READERS.get(config.model_type)
    layout = None if reader is None else reader(prompt)
    if layout is not None and _fits(layout, prompt):
        parts = places.split([count for count, _ in layout])
        grids = [PatchGrid.over(views) for _, views in layout]
        return [PicturePlaces(part, grid) for part, grid in zip(parts, grids, strict=True)]
    _log_unknown(config.model_type)
    parts = (places,) if len(sizes) == 1 else tuple(prompt.runs)
    return [PicturePlaces(part, None) for part in parts] if len(parts) == len(sizes) else []


def _fits(layout: Layout, prompt: _Prompt) -> bool:
    """Whether it speaks of these pictures and of all their rows."""
    total = sum(count for count, _ in layout)
    return len(layout) == len(prompt.sizes) and total == len(prompt.places)


def _log_unknown(model_type: str) -> None:
    if model_type not in _unknown:
        _unknown.add(model_type)
        logger.warning(
            "mmft does not know where the image rows of %r models look: their importance is told for each "
            "token, and not drawn over the picture.",
            model_type,
        )


def _whole(rows: int, columns: int, *, first: int = 0, box: Box = WHOLE) -> PatchView:
    return PatchView(first, rows, columns, columns, box)


def _vision_side(config: Any) -> int:
    """Patches along one edge of what the vision tower takes."""
    size, patch = config.vision_config.image_size, config.vision_config.patch_size
    first = [each if isinstance(each, int) else each[0] for each in (size, patch)]
    return int(first[0] // first[1])


def _grids(prompt: _Prompt) -> Layout | None:
    """Pictures of any size, whose patches are merged in squares; the processor says how many there are."""
    merge = getattr(prompt.config.vision_config, "spatial_merge_size", None)
    grids = prompt.tensors["image_grid_thw"].tolist()
    if merge is None:
        return None
    shapes = [(height // merge, width // merge) for _, height, width in grids]
    return [(rows * columns, [_whole(rows, columns)]) for rows, columns in shapes]


def _squares(prompt: _Prompt) -> Layout | None:
    """Every picture becomes one square of patches, perhaps behind a row for its whole (CLS)."""
    pooled = getattr(prompt.config, "mm_tokens_per_image", None)
    side = _vision_side(prompt.config) if pooled is None else math.isqrt(pooled)
    count, rest = divmod(len(prompt.places), len(prompt.sizes))
    first = count - side**2
    keeps_whole = getattr(prompt.config, "vision_feature_select_strategy", None) == "full"
    # Towers that take pictures of any shape (Pixtral) say their sizes.
    if rest or first not in (0, int(keeps_whole)) or "image_sizes" in prompt.tensors:
        return None
    boxes = [_cropped(prompt.image_processor, size) for size in prompt.sizes]
    return [(count, [_whole(side, side, first=first, box=box)]) for box in boxes]


def _cropped(image_processor: Any, size: Size) -> Box:
    """What of a picture is left where its shorter edge is fitted and the middle is cut out."""
    if not getattr(image_processor, "do_center_crop", False):
        return WHOLE
    shortest = image_processor.size.get("shortest_edge")
    crop = (image_processor.crop_size["height"], image_processor.crop_size["width"])
    if shortest is None:
        resized = (image_processor.size["height"], image_processor.size["width"])
    else:
        resized = (int(shortest * size[0] / min(size)), int(shortest * size[1] / min(size)))
    starts = [(whole - part) // 2 for whole, part in zip(resized, crop, strict=True)]
    top, left = (start / whole for start, whole in zip(starts, resized, strict=True))
    return top, left, top + crop[0] / resized[0], left + crop[1] / resized[1]


def _tile(row: int, column: int, rows: int, columns: int) -> Box:
    return row / rows, column / columns, (row + 1) / rows, (column + 1) / columns


def _named_tiles(prompt: _Prompt) -> Layout | None:
    """Tiles that a token in front names by row and column, then a view of the whole picture."""
    tokenizer = getattr(prompt.processor, "tokenizer", prompt.processor)
    layout: Layout = []
    tiles: list[tuple[int, int]] = []
    for run in prompt.runs:
        side = math.isqrt(len(run))
        name = str(tokenizer.convert_ids_to_tokens(int(prompt.ids[int(run[0]) - 1])))
        place = TILE_NAME.fullmatch(name)
        if side**2 != len(run):
            return None
        if place:
            tiles.append((int(place[1]) - 1, int(place[2]) - 1))
            continue
        shape = tiles[-1] if tiles else (0, 0)
        boxes = [*(_tile(*tile, shape[0] + 1, shape[1] + 1) for tile in tiles), WHOLE]
        views = [_whole(side, side, first=len(run) * number, box=box) for number, box in enumerate(boxes)]
        layout.append((len(run) * len(boxes), views))
        tiles = []
    return layout


def _crops(prompt: _Prompt) -> Layout | None:
    """Crops row by row and, where there are several, a thumbnail; their arrangement follows from the size."""
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

    processor, length = prompt.image_processor, prompt.config.image_seq_length
    side = math.isqrt(length)
    if side**2 != length or len(prompt.runs) != len(prompt.sizes):
        return None
    layout: Layout = []
    for run, size in zip(prompt.runs, prompt.sizes, strict=True):
        boxes = [WHOLE]
        if len(run) > length:
            tile = (processor.size["height"], processor.size["width"])
            limits = (processor.min_patches, processor.max_patches)
            columns, rows = get_optimal_tiled_canvas(tuple(size), tile, *limits)
            crops = [_tile(row, column, rows, columns) for row in range(rows) for column in range(columns)]
            boxes = [*crops, WHOLE]
        views = [_whole(side, side, first=length * number, box=box) for number, box in enumerate(boxes)]
        layout.append((length * len(boxes), views))
    return layout


def _any_resolution(prompt: _Prompt) -> Layout | None:
    """One picture: a thumbnail, then tiles that are joined, freed of their padding and perhaps shrunk, each
    row with an end of its own. Several pictures: one view each, padded to a square, with one end."""
    side = _vision_side(prompt.config)
    base = _whole(side, side)
    if len(prompt.sizes) > 1:
        boxes = [_padded_to_square(size) for size in prompt.sizes]
        return [(side**2 + 1, [_whole(side, side, box=box)]) for box in boxes]
    rows, columns = _joined_tiles(prompt.config, prompt.tensors["image_sizes"][0].tolist(), side)
    fine = PatchView(side**2, rows, columns, columns + 1)
    return [(side**2 + rows * (columns + 1), [base, fine])]


def _joined_tiles(config: Any, size: Sequence[int], side: int) -> tuple[int, int]:
    """Rows and columns that are left of the tiles of one picture."""
    from transformers.models.llava_onevision.modeling_llava_onevision import (
        get_anyres_image_grid_shape,
        unpad_image,
    )

    tiles = get_anyres_image_grid_shape(
        tuple(size), config.image_grid_pinpoints, config.vision_config.image_size
    )
    joined = torch.empty(1, tiles[0] * side, tiles[1] * side, device="meta")
    _, rows, columns = unpad_image(joined, tuple(size)).shape
    most = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
    ratio = math.sqrt(rows * columns / (most * side**2))
    return (int(rows // ratio), int(columns // ratio)) if ratio > 1.1 else (rows, columns)


def _padded_to_square(size: Size) -> Box:
    """A square around the picture, in the picture's own measure."""
    longest = max(size)
    starts = [(longest - edge) // 2 for edge in size]
    top, left = (-start / edge for start, edge in zip(starts, size, strict=True))
    return top, left, top + longest / size[0], left + longest / size[1]


READERS: dict[str, Callable[[_Prompt], Layout | None]] = {
    "gemma3": _squares,
    "idefics3": _named_tiles,
    "internvl": _crops,
    "llava": _squares,
    "llava_onevision": _any_resolution,
    "paligemma": _squares,
    "smolvlm": _named_tiles,
}
"""By model type; models whose processor gives `image_grid_thw` need none."""
