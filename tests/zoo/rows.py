"""One prompt of each family as its processor would hand it to the model: ids, masks, pixels, grids.

Shape legend: P prompt tokens, N images (or tiles of images), S side of a tile in pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tests.zoo.vocabulary import BOS_ID, FIRST_TEXT_ID, ID, VOCAB_SIZE

NEWLINE_ID = FIRST_TEXT_ID + ord("\n")
Row = dict[str, Tensor]
ImageBlock = tuple[list[int], Row]
"""The ids that stand for all images of a prompt, and the image inputs that go with them."""


def _pixels(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator)


def _llava(count: int, generator: torch.Generator) -> ImageBlock:
    return [ID["<image>"]] * 16 * count, {"pixel_values": _pixels(generator, count, 3, 32, 32)}


def _llava_onevision(count: int, generator: torch.Generator) -> ImageBlock:
    # One image of 16x32 pixels is a thumbnail (2x2 features) and two tiles (2x4 features, a newline ends each
    # row); several images are one thumbnail each and a newline.
    tiles, tokens = (3, 4 + 2 * (4 + 1)) if count == 1 else (1, 4 + 1)
    inputs = {
        "pixel_values": _pixels(generator, count, tiles, 3, 16, 16),
        "image_sizes": torch.tensor([[16, 32]] * count),
        "batch_num_images": torch.tensor([count]),
    }
    return [ID["<image>"]] * tokens * count, inputs


def _idefics3(count: int, generator: torch.Generator) -> ImageBlock:
    # The first image is split into a row of two tiles and a global view; the others are a global view alone.
    fake, tile = ID["<fake_token_around_image>"], [ID["<image>"]] * 4
    split = [fake, ID["<row_1_col_1>"], *tile, fake, ID["<row_1_col_2>"], *tile, NEWLINE_ID, NEWLINE_ID]
    whole = [fake, ID["<global-img>"], *tile, fake]
    num_tiles = 2 + count
    pixels = _pixels(generator, 1, num_tiles, 3, 32, 32)
    mask = torch.ones(1, num_tiles, 32, 32, dtype=torch.long)
    # The last view is narrower than the tile: its right column of patches is padding.
    mask[:, -1, :, 24:] = 0
    pixels = pixels * mask[:, :, None]
    return split + whole * count, {"pixel_values": pixels, "pixel_attention_mask": mask}


def _qwen_vl(count: int, generator: torch.Generator) -> ImageBlock:
    # Grids differ between the images and are not square, so that the three position axes differ.
    grids = torch.tensor([[1, 4, 6], [1, 4, 4]])[:count]
    ids = []
    for num_patches in grids.prod(-1).tolist():
        ids += [ID["<|vision_start|>"], *[ID["<|image_pad|>"]] * (num_patches // 4), ID["<|vision_end|>"]]
    pixels = _pixels(generator, int(grids.prod(-1).sum()), 3 * 2 * 4 * 4)
    return ids, {"pixel_values": pixels, "image_grid_thw": grids}


def _gemma3(count: int, generator: torch.Generator) -> ImageBlock:
    around = [NEWLINE_ID, NEWLINE_ID]
    image = [ID["<start_of_image>"], *[ID["<image_soft_token>"]] * 9, ID["<end_of_image>"]]
    return (around + image + around) * count, {"pixel_values": _pixels(generator, count, 3, 24, 24)}


def _paligemma(count: int, generator: torch.Generator) -> ImageBlock:
    return [ID["<image>"]] * 9 * count, {"pixel_values": _pixels(generator, count, 3, 24, 24)}


def _internvl(count: int, generator: torch.Generator) -> ImageBlock:
    # The first image is two crops and a thumbnail, the others a single tile of 4 tokens.
    ids = []
    tiles_per_image = [3, *[1] * (count - 1)]
    for num_tiles in tiles_per_image:
        ids += [ID["<img>"], *[ID["<IMG_CONTEXT>"]] * (4 * num_tiles), ID["</img>"]]
    return ids, {"pixel_values": _pixels(generator, sum(tiles_per_image), 3, 16, 16)}


IMAGE_BLOCKS: dict[str, Callable[[int, torch.Generator], ImageBlock]] = {
    "llava": _llava,
    "llava_onevision": _llava_onevision,
    "smolvlm": _idefics3,
    "idefics3": _idefics3,
    "qwen2_vl": _qwen_vl,
    "qwen2_5_vl": _qwen_vl,
    "qwen3_vl": _qwen_vl,
    "gemma3": _gemma3,
    "paligemma": _paligemma,
    "internvl": _internvl,
    "paligemma2": _paligemma,
}
# What a processor adds per token, and its value on a completion token. PaliGemma's prompt is a bidirectional
# prefix (type 0) and what follows a causal suffix (type 1); for the others 1 marks an image token, 0 is text.
TOKEN_TYPES: dict[str, tuple[str, int]] = {
    "qwen2_vl": ("mm_token_type_ids", 0),
    "qwen2_5_vl": ("mm_token_type_ids", 0),
    "qwen3_vl": ("mm_token_type_ids", 0),
    "gemma3": ("token_type_ids", 0),
    "paligemma": ("token_type_ids", 1),
    "paligemma2": ("token_type_ids", 1),
}


def text_ids(count: int, generator: torch.Generator) -> list[int]:
    """Random byte tokens."""
    return torch.randint(FIRST_TEXT_ID, VOCAB_SIZE, (count,), generator=generator).tolist()


def make_row(family: str, placeholders: set[int], num_images: int, text_length: int, seed: int) -> Row:
    """Lay out `[bos] text [images] text`, or `[images] [bos] text [newline]` for PaliGemma, as one row."""
    generator = torch.Generator().manual_seed(seed)
    block, inputs = IMAGE_BLOCKS[family](num_images, generator) if num_images else ([], {})
    text = text_ids(text_length, generator)
    is_prefix_lm = family.startswith("paligemma")
    if is_prefix_lm:
        ids = [*block, BOS_ID, *text, NEWLINE_ID]
    else:
        head = text_length // 3
        ids = [BOS_ID, *text[:head], *block, *text[head:]]
    input_ids = torch.tensor([ids])
    row = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), **inputs}
    if family in TOKEN_TYPES:
        name, _ = TOKEN_TYPES[family]
        is_image = torch.isin(input_ids, torch.tensor(sorted(placeholders)))
        row[name] = torch.zeros_like(input_ids) if is_prefix_lm else is_image.long()
    return row
