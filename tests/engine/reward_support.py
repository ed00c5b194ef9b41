"""What the tests of reward models share: small ones that have an opinion, and pictures to judge."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mmft.engine.completion_batch import CompletionBatch, CompletionTokenizer, group_completions
from mmft.engine.reward_model import VLMRewardModel
from mmft.models.backbone import make_backbone
from mmft.models.bottleneck import BottleneckConfig
from mmft.types import PromptRow
from tests import zoo
from tests.engine.support import lora, stub_processor
from tests.learning.tasks import colour_rows

TRAININGS: dict[str, dict[str, Any]] = {
    "frozen": {"trainable": ()},
    "lora": {"peft_config": lora()},
    "bottleneck": {"peft_config": BottleneckConfig(bottleneck_size=4, init_weights=False)},
    "language": {"trainable": ("language",)},
    "vision": {"trainable": ("vision", "projector")},
    "lora_and_projector": {"peft_config": lora(), "trainable": ("projector",)},
}


def make_reward_model(
    family: str,
    training: str = "frozen",
    *,
    loss_type: str = "heteroscedastic",
    processor: Any = None,
    reads_likelihood: bool = False,
) -> VLMRewardModel:
    """A model of the zoo whose head has an opinion."""
    torch.manual_seed(0)  # PEFT draws from the global generator
    backbone = make_backbone(
        zoo.build_model(family), processor or stub_processor(), **{"trainable": ()} | TRAININGS[training]
    )
    model = VLMRewardModel(
        backbone, loss_type=loss_type, head_width=8, dropout=0.3, reads_likelihood=reads_likelihood
    )
    perturb(model.reward_head)
    return model.eval()


@torch.no_grad()
def perturb(module: nn.Module, seed: int = 0, scale: float = 1.0) -> None:
    """Every weight becomes another one."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.add_(scale * noise * parameter.shape[-1] ** -0.5)


def real_reward_model(training: str = "frozen") -> VLMRewardModel:
    return make_reward_model("llava", training, processor=zoo.build_processor("llava"))


def picture_batch(model: VLMRewardModel, seed: int = 0) -> CompletionBatch:
    """Two prompts with a picture each and two completions each."""
    rows = []
    for number, row in enumerate(colour_rows(2, seed)):
        content = [{"type": "image"}, {"type": "text", "text": "?"}]
        messages = [{"role": "user", "content": content}]
        rows.append(PromptRow((seed, number), "?", messages, [row["image"]]))
    tokenize = CompletionTokenizer(model.backbone, 16)
    ids = [tokenize(text) for text in ("red", "blue", "green", "no")]
    return group_completions([rows[0], rows[1], rows[0], rows[1]], ids, model.backbone.pad_id)
