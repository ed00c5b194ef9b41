"""Real processors of the families, built from their classes: no hub, no torchvision, pictures through PIL.

The tokenizer is byte-level over the zoo's one vocabulary: any text works and every id fits the tiny models.
Videos are out of scope: a base video processor fills the slot where a processor insists on one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from unittest import mock

from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import (
    CLIPImageProcessorPil,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    GotOcr2ImageProcessorPil,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    InternVLProcessor,
    LlavaOnevisionImageProcessorPil,
    LlavaOnevisionProcessor,
    LlavaProcessor,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
    Qwen3VLProcessor,
    SiglipImageProcessorPil,
    SmolVLMImageProcessorPil,
    SmolVLMProcessor,
)
from transformers.models.smolvlm import processing_smolvlm
from transformers.video_processing_utils import BaseVideoProcessor

from tests.zoo.vocabulary import FIRST_TEXT_ID, ID, SPECIAL_TOKENS

CHAT_TEMPLATE = """\
{{ bos_token }}{% for message in messages %}{{ message['role'] }}: \
{% if message['content'] is string %}{{ message['content'] }}{% else %}\
{% for part in message['content'] %}\
{% if part['type'] == 'image' %}IMAGE{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}\
{% endfor %}{% endif %}\
{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}\
{% if add_generation_prompt %}assistant: {% endif %}"""
# PaliGemma is no chat model: images, then the task. Its processor adds <bos> between them and a newline.
PALIGEMMA_TEMPLATE = """\
{% for message in messages %}{% if message['content'] is string %}{{ message['content'] }}{% else %}\
{% for part in message['content'] if part['type'] == 'image' %}<image>{% endfor %}\
{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}\
{% endif %}{% endfor %}"""
QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
SQUARE_TILES = {16: {"height": 16, "width": 16}, 24: {"height": 24, "width": 24}}


@contextlib.contextmanager
def no_video_stack() -> Iterator[None]:
    """Let processors be built where the packages that only videos need are missing.

    Without torchvision a processor with a slot for videos refuses every object in it, even if only images are
    asked for (huggingface/transformers issue 48558); SmolVLM's wants num2words to spell a number of frames.
    """
    num2words = processing_smolvlm.num2words or str
    with (
        mock.patch.object(ProcessorMixin, "check_argument_for_proper_class"),
        mock.patch.object(processing_smolvlm, "num2words", num2words),
    ):
        yield


def chat_template(image: str) -> str:
    """Chat messages as `role: content` lines; `image` is what stands for an image block."""
    return CHAT_TEMPLATE.replace("IMAGE", image)


def build_tokenizer(**named_tokens: str) -> PreTrainedTokenizerFast:
    """Byte-level tokenizer; `named_tokens` (image_token="<image>") become attributes of it, as on the hub."""
    vocabulary = ID | {f"<0x{byte:02X}>": FIRST_TEXT_ID + byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>"))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="left",
        extra_special_tokens=named_tokens,
    )


def _llava() -> ProcessorMixin:
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return LlavaProcessor(
        images,
        build_tokenizer(image_token="<image>"),
        patch_size=8,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
        chat_template=chat_template("<image>"),
    )


def _llava_onevision() -> ProcessorMixin:
    grid = [[16, 16], [16, 32], [32, 16], [32, 32]]
    return LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessorPil(size=SQUARE_TILES[16], image_grid_pinpoints=grid),
        build_tokenizer(image_token="<image>", video_token="<video>"),
        BaseVideoProcessor(),
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        chat_template=chat_template("<image>"),
    )


def _smolvlm() -> ProcessorMixin:
    images = SmolVLMImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    return SmolVLMProcessor(
        images,
        build_tokenizer(image_token="<image>"),
        BaseVideoProcessor(num_frames=1, fps=1),
        image_seq_len=4,
        chat_template=chat_template("<image>"),
    )


def _idefics3() -> ProcessorMixin:
    images = Idefics3ImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    tokenizer = build_tokenizer(image_token="<image>")
    return Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=chat_template("<image>"))


def _qwen_vl(processor_class: type[ProcessorMixin]) -> ProcessorMixin:
    images = Qwen2VLImageProcessorPil(
        patch_size=4,
        temporal_patch_size=2,
        merge_size=2,
        size={"shortest_edge": 16 * 16, "longest_edge": 24 * 24},
    )
    return processor_class(
        images, build_tokenizer(), BaseVideoProcessor(), chat_template=chat_template(QWEN_IMAGE)
    )


def _gemma3() -> ProcessorMixin:
    tokenizer = build_tokenizer(
        boi_token="<start_of_image>", eoi_token="<end_of_image>", image_token="<image_soft_token>"
    )
    images = Gemma3ImageProcessorPil(size=SQUARE_TILES[24])
    return Gemma3Processor(
        images, tokenizer, image_seq_length=9, chat_template=chat_template("<start_of_image>")
    )


def _paligemma() -> ProcessorMixin:
    images = SiglipImageProcessorPil(size=SQUARE_TILES[24])
    images.image_seq_length = 9
    tokenizer = build_tokenizer(image_token="<image>")
    return PaliGemmaProcessor(images, tokenizer, chat_template=PALIGEMMA_TEMPLATE)


def _internvl() -> ProcessorMixin:
    tokenizer = build_tokenizer(
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    images = GotOcr2ImageProcessorPil(
        size=SQUARE_TILES[16], min_patches=1, max_patches=4, crop_to_patches=True
    )
    template = chat_template("<IMG_CONTEXT>")
    return InternVLProcessor(
        images, tokenizer, BaseVideoProcessor(), image_seq_length=4, chat_template=template
    )


PROCESSORS: dict[str, Callable[[], ProcessorMixin]] = {
    "llava": _llava,
    "llava_onevision": _llava_onevision,
    "smolvlm": _smolvlm,
    "idefics3": _idefics3,
    "qwen2_vl": lambda: _qwen_vl(Qwen2VLProcessor),
    "qwen2_5_vl": lambda: _qwen_vl(Qwen2_5_VLProcessor),
    "qwen3_vl": lambda: _qwen_vl(Qwen3VLProcessor),
    "gemma3": _gemma3,
    "paligemma": _paligemma,
    "internvl": _internvl,
    "paligemma2": _paligemma,
}


def build_processor(family: str) -> ProcessorMixin:
    """Build the family's processor; its outputs run through `build_model(family)`."""
    with no_video_stack():
        return PROCESSORS[family]()
