"""Gradients at the seam of every family are what finite differences say."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmft.engine.attribution import explain_completions
from mmft.engine.prompt_encoder import process_row
from mmft.engine.seam_gradients import watched_seam
from mmft.errors import UnsupportedModelError
from mmft.types import PromptRow
from tests import zoo
from tests.engine.support import EVERY_FAMILY
from tests.engine.test_attribution import ANSWERS, METHODS, frozen, rows

# numpy 2 warns about the processors' own `np.array(tensor)`.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
STEP = 5e-3
"""Norms and softmax are computed in float32 whatever the weights: smaller steps drown in rounding."""


class Nudged:
    """The family's model in double precision, whose rows at the seam can be changed before the text model."""

    def __init__(self, family: str, row: PromptRow, answer: str) -> None:
        actor_critic = frozen(family)
        self.model = zoo.build_model(family).double()
        self.forbidden = sorted(actor_critic.backbone.forbidden_ids)
        inputs = process_row(actor_critic.backbone.processor, row).tensors
        self.row = {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}
        tokenizer = actor_critic.backbone.processor.tokenizer
        self.answer = torch.tensor([*tokenizer(answer, add_special_tokens=False)["input_ids"], 2])
        self.prompt = inputs["input_ids"][0]

    @torch.no_grad()
    def log_prob(self, change: Callable[[Tensor, list[Tensor]], None]) -> float:
        """L after `change` was made to the (L, D) rows and to what deepstack adds to the image rows."""

        def hook(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            seam = kwargs["inputs_embeds"].clone()
            deepstack = [each.clone() for each in kwargs.get("deepstack_visual_embeds") or ()]
            change(seam[0], deepstack)
            extra = {"deepstack_visual_embeds": deepstack} if deepstack else {}
            return args, kwargs | {"inputs_embeds": seam} | extra

        handle = self.model.get_decoder().register_forward_pre_hook(hook, with_kwargs=True)
        logits = zoo.plain_logits(self.model, self.row, self.answer)
        handle.remove()
        logits[:, self.forbidden] = -1e30
        return float(logits.log_softmax(-1).gather(1, self.answer[:, None]).sum())

    def slope(self, change: Callable[[float, Tensor, list[Tensor]], None]) -> float:
        """dL/dh at h = 0 of a change by h."""
        up, down = (self.log_prob(functools.partial(change, sign * STEP)) for sign in (1, -1))
        return (up - down) / (2 * STEP)


def stretch(place: int, index: int | None, h: float, seam: Tensor, deepstack: list[Tensor]) -> None:
    seam[place] *= 1 + h
    for each in deepstack if index is not None else ():
        each[index] *= 1 + h


def push(place: int, index: int | None, axis: int, h: float, seam: Tensor, deepstack: list[Tensor]) -> None:
    width = seam.shape[1]
    layer, coordinate = divmod(axis, width)
    if layer == 0:
        seam[place, coordinate] += h
    else:
        deepstack[layer - 1][index, coordinate] += h


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_importance_is_what_finite_differences_say(family: str) -> None:
    row, answer = rows(family)[0], ANSWERS[0]
    nudged = Nudged(family, row, answer)
    found = {
        method: explain_completions(frozen(family), [row], [answer], method=method)[0] for method in METHODS
    }
    (shown,) = found["gradient"].pictures
    assert found["gradient"].value == pytest.approx(nudged.log_prob(lambda seam, deepstack: None), abs=1e-4)

    image_id = found_image_id(family)
    is_image = (nudged.prompt == image_id).tolist()
    text_places = [place for place, image in enumerate(is_image) if not image]
    text_places += range(len(is_image), len(is_image) + len(nudged.answer))
    chosen = {0: text_places[0], 5: text_places[5], len(text_places) - 3: text_places[-3]}
    for number, place in chosen.items():
        product = abs(nudged.slope(functools.partial(stretch, place, None)))
        assert found["gradient_x_input"].tokens[number].importance == pytest.approx(
            product, rel=1e-2, abs=2e-4
        )
    number, place = 5, text_places[5]
    slopes = [nudged.slope(functools.partial(push, place, None, axis)) for axis in range(32)]
    assert found["gradient"].tokens[number].importance == pytest.approx(np.linalg.norm(slopes), rel=5e-3)

    sizes: list[float] = []
    nudged.log_prob(lambda seam, deepstack: sizes.append(float(seam[place].norm())))
    product = sizes[0] * found["gradient"].tokens[number].importance
    assert found["relative"].tokens[number].importance == pytest.approx(product, rel=1e-4)

    # Of the image: all its rows at once, by what they are together.
    places = [place for place, image in enumerate(is_image) if image]
    products = [abs(nudged.slope(functools.partial(stretch, place, i))) for i, place in enumerate(places)]
    assert found["gradient_x_input"].importance["image"] == pytest.approx(sum(products), rel=5e-3)
    assert shown.importance == pytest.approx(found["gradient"].importance["image"], rel=1e-5)


def found_image_id(family: str) -> int:
    config = frozen(family).backbone.base.config
    return int(getattr(config, "image_token_id", None) or config.image_token_index)


def test_the_norm_of_an_image_row_counts_its_deepstack_features() -> None:
    row = rows("qwen3_vl")[0]
    nudged = Nudged("qwen3_vl", row, "No")
    places = (nudged.prompt == found_image_id("qwen3_vl")).nonzero()[:, 0].tolist()
    index, place = 2, places[2]
    slopes = [nudged.slope(functools.partial(push, place, index, axis)) for axis in range(3 * 32)]
    (found,) = explain_completions(frozen("qwen3_vl"), [row], ["No"])
    assert found.pictures[0].patches[index] == pytest.approx(np.linalg.norm(slopes), rel=5e-3)


def test_a_text_model_that_is_called_without_embeddings_is_refused() -> None:
    backbone = frozen("llava").backbone
    with (
        watched_seam(backbone),
        pytest.raises(UnsupportedModelError, match="did not pass `inputs_embeds` to LlamaModel"),
    ):
        backbone.text_model(input_ids=torch.tensor([[90, 91]]))
