"""Pooled states: pictures and words each in their half, for every family of models."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mmft.engine.prompt_encoder import PromptEncoder
from mmft.engine.prompt_states import combined_states, pooled
from mmft.errors import UnsupportedModelError
from mmft.models.backbone import Backbone, make_backbone
from mmft.models.prompts import PromptInputs
from mmft.types import PromptRow
from tests import zoo
from tests.engine.test_prompt_encoder import make_row, picture

# numpy 2 warns about the processors' own `np.array(tensor)`.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def backbone(family: str) -> Backbone:
    made = make_backbone(zoo.build_model(family), zoo.build_processor(family), trainable=())
    made.model.eval()
    return made


@pytest.mark.parametrize("family", ["llava", "smolvlm", "qwen2_5_vl", "gemma3", "paligemma"])
def test_a_picture_moves_its_half_and_a_word_the_other(family: str):
    model = backbone(family)
    rows = [
        make_row("one", "What is this?", picture(0)),
        make_row("other picture", "What is this?", picture(1)),
        make_row("other words", "Say anything at all.", picture(0)),
    ]
    states = combined_states(PromptEncoder(model, 2**20), rows)
    assert states.shape == (3, 2 * model.hidden_size)
    images, texts = states.chunk(2, dim=1)
    assert not torch.allclose(images[0], images[1], atol=1e-4)
    torch.testing.assert_close(texts[0], texts[1], atol=1e-6, rtol=0)
    assert not torch.allclose(texts[0], texts[2], atol=1e-4)
    torch.testing.assert_close(images[0], images[2], atol=1e-5, rtol=0)


def test_a_row_without_a_picture_has_no_image_state():
    states = combined_states(PromptEncoder(backbone("llava"), 0), [make_row("none", "Say anything.")])
    images, texts = states.chunk(2, dim=1)
    assert images.isnan().all()
    assert texts.isfinite().all()


def test_pooling_is_the_mean_of_what_is_chosen():
    embeds = torch.tensor([[1.0, 2.0], [3.0, 4.0], [10.0, 0.0]])
    torch.testing.assert_close(pooled(embeds, torch.tensor([True, True, False])), torch.tensor([2.0, 3.0]))


def test_a_model_that_adds_embeddings_of_its_own_is_refused():
    whole = PromptEncoder(backbone("llava"), 0)

    def shorter_inputs(row: PromptRow) -> PromptInputs:
        tensors = whole.inputs(row).tensors
        return PromptInputs(tensors | {"input_ids": tensors["input_ids"][:, 1:]})

    encoder: Any = SimpleNamespace(inputs=shorter_inputs, encode=whole.encode, backbone=whole.backbone)
    with pytest.raises(UnsupportedModelError, match=r"row one: .* Leave `correlate_state` out"):
        combined_states(encoder, [make_row("one", "What?", picture(0))])
