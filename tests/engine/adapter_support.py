"""Models of the zoo with adapters of every method that say something from the start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from mmft.engine.actor_critic import VLMActorCritic
from mmft.models.adapter_settings import ADAPTABLE
from mmft.models.adapters import adapter_config
from mmft.models.freezing import is_adapter
from tests import zoo
from tests.engine.support import make_actor_critic

SIZES: dict[str, Any] = {"r": 4, "alpha": 8, "bottleneck_size": 4}


def adapted(
    family: str, method: str, parts: Sequence[str] = ADAPTABLE, *, perturbed: bool = True, **settings: Any
) -> VLMActorCritic:
    """Adapters of a method on parts of a model; `settings` as in `make_actor_critic`."""
    model = zoo.build_model(family)
    config = adapter_config(model, method=method, parts=parts, **SIZES)
    actor_critic = make_actor_critic(model, peft_config=config, **settings)
    if perturbed:
        perturb_adapters(actor_critic.backbone.model)
    return actor_critic


@torch.no_grad()
def perturb_adapters(model: nn.Module, seed: int = 0) -> None:
    """Adds N(0, 0.1^2) to every adapter weight; as they start they change nothing and would hide faults."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if is_adapter(name) and parameter.requires_grad:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
