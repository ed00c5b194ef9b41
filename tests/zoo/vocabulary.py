"""One small vocabulary for every family of the zoo: special tokens first, then the 256 bytes.

Each family names its placeholders differently; they all live in one table so that a processor's tokenizer and
a model's config agree by construction.
"""

from __future__ import annotations

SPECIAL_TOKENS: tuple[str, ...] = (
    "<pad>",
    "<s>",
    "</s>",
    "<unk>",
    "<image>",
    "<video>",
    "<fake_token_around_image>",
    "<global-img>",
    "<end_of_utterance>",
    *(f"<row_{row}_col_{column}>" for row in (1, 2, 3, 4) for column in (1, 2, 3, 4)),
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<start_of_image>",
    "<end_of_image>",
    "<image_soft_token>",
    "<img>",
    "</img>",
    "<IMG_CONTEXT>",
)
ID: dict[str, int] = {token: index for index, token in enumerate(SPECIAL_TOKENS)}
"""Token id of every special token."""
FIRST_TEXT_ID = len(SPECIAL_TOKENS)
VOCAB_SIZE = FIRST_TEXT_ID + 256

PAD_ID, BOS_ID, EOS_ID = ID["<pad>"], ID["<s>"], ID["</s>"]
SPECIAL_TEXT_IDS: dict[str, int] = {"pad_token_id": PAD_ID, "bos_token_id": BOS_ID, "eos_token_id": EOS_ID}
