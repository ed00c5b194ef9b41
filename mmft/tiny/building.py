"""The packaged captioner before training: tokenizer, processor and an untrained LLaVA model.

Everything is made from config classes and from text that every Python installation has: no downloads.
"""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mmft.tiny.captions import reference_captions, terse_captions
from mmft.tiny.lexicon import CANVAS
from mmft.tiny.scenes import PROMPT, make_scene

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast, ProcessorMixin

PATCH = 8
WIDTH = 128
IMAGE_TOKEN = "<image>"
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", IMAGE_TOKEN, "<|system|>", "<|user|>", "<|assistant|>")
VOCABULARY = 1536
# Modules whose docstrings stand in for ordinary English when the tokenizer is trained.
PROSE_MODULES = (
    "argparse asyncio collections datetime email logging pathlib random statistics subprocess tarfile "
    "textwrap threading typing unittest zipfile"
).split()

# A turn is a role token and its content; only the assistant's turn ends with eos, so that eos means "the
# caption is complete". The generation block marks what the model writes, for losses on assistant tokens only.
CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|' + message['role'] + '|>' }}
    {%- set turn = namespace(text='') %}
    {%- if message['content'] is string %}
        {%- set turn.text = message['content'] %}
    {%- else %}
        {%- for block in message['content'] %}
            {%- if block['type'] == 'image' %}
                {%- set turn.text = turn.text + '<image>' %}
            {%- elif block['type'] == 'text' %}
                {%- set turn.text = turn.text + block['text'] %}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}{{- turn.text + eos_token }}{%- endgeneration %}
    {%- else %}
        {{- turn.text }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>' }}
{%- endif %}"""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: the scenes' words are single tokens, any other text can be written."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(_tokenizer_texts(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": IMAGE_TOKEN},
        padding_side="left",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )


def build_processor() -> ProcessorMixin:
    """LLaVA's processor with CLIP's PIL image processor at 64 pixels."""
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": CANVAS},
        crop_size={"height": CANVAS, "width": CANVAS},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=build_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE_TOKEN,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """An untrained LLaVA model of two million parameters: a CLIP tower and a Llama, four layers each."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    token_ids: dict[str, Any] = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision = CLIPVisionConfig(
        image_size=CANVAS, patch_size=PATCH, hidden_size=WIDTH, intermediate_size=512, projection_dim=WIDTH,
        num_hidden_layers=4, num_attention_heads=4, hidden_act="gelu",
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=384, max_position_embeddings=1024,
        num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4,
        tie_word_embeddings=True, **token_ids,
    )  # fmt: skip
    # The tower's last layer feeds the projector; LLaVA's default, the last but one, would idle a quarter.
    config = LlavaConfig(
        vision_config=vision, text_config=text, tie_word_embeddings=True,
        image_token_index=tokenizer.get_vocab()[IMAGE_TOKEN],
        image_seq_length=(CANVAS // PATCH) ** 2,
        vision_feature_layer=-1, vision_feature_select_strategy="default",
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    if model.generation_config is not None:
        model.generation_config.update(**token_ids, max_new_tokens=48)
    return model


def _tokenizer_texts() -> Iterator[str]:
    """Scene captions, many of them so that their words win the merges, and the standard library's docs."""
    for index in range(500):
        objects = make_scene("train", index).objects
        for caption in [*terse_captions(objects), *reference_captions(objects)]:
            yield caption
            yield f"{PROMPT} {caption}"
    with warnings.catch_warnings():
        # Some modules warn when their deprecated members are looked at.
        warnings.simplefilter("ignore", DeprecationWarning)
        for name in PROSE_MODULES:
            yield from _docstrings(importlib.import_module(name))


def _docstrings(module: Any) -> Iterator[str]:
    for owner in [module, *(value for _, value in inspect.getmembers(module) if inspect.isclass(value))]:
        yield inspect.getdoc(owner) or ""
        for _, function in inspect.getmembers(owner, inspect.isroutine):
            yield inspect.getdoc(function) or ""
