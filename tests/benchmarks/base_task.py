"""What a trained captioner still knows of its old task: how likely it finds what it used to say."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import torch

from mmft.data.rows import PromptDataset
from mmft.engine.actor_critic import VLMActorCritic
from mmft.engine.packing import Completions
from mmft.engine.prompt_encoder import PromptEncoder
from mmft.engine.sampling import SamplingParams
from mmft.models.backbone import load_backbone
from mmft.tiny import CAPTIONER_NAME, load_scenes

NUM_ROWS = 128
INSTRUCTION = "Describe the picture."


def load(folder: Path | None) -> tuple[VLMActorCritic, list[Any]]:
    """The captioner of a run folder, or the packaged one, and encoded held-out scenes."""
    backbone = load_backbone(CAPTIONER_NAME if folder is None else str(folder), trainable=())
    model = VLMActorCritic(backbone, critic=False, reference=False).eval()
    rows = PromptDataset(load_scenes("validation", NUM_ROWS), instruction=INSTRUCTION)
    return model, PromptEncoder(backbone, 0).encode([rows[index] for index in range(NUM_ROWS)])


@functools.cache
def old_captions() -> Completions:
    """What the packaged captioner says, greedily."""
    model, prompts = load(None)
    return model.sample(
        prompts, SamplingParams(num_generations=1, max_completion_length=40, temperature=0.0), None
    ).completions


@torch.no_grad()
def base_likelihood(folder: Path | None) -> float:
    """Mean log-prob per token of the old captions under the model of a run."""
    model, prompts = load(folder)
    captions = old_captions()
    logps = model(prompts, captions, entropies=False).logps
    return float(logps.sum() / captions.mask.sum())


@torch.no_grad()
def distance_to_base(folder: Path) -> float:
    """||theta - theta_pretrained|| over all weights."""
    trained = dict(load_backbone(str(folder)).base.named_parameters())
    base = load_backbone(CAPTIONER_NAME).base.named_parameters()
    return math.sqrt(sum(float((trained[name] - weight).double().square().sum()) for name, weight in base))
