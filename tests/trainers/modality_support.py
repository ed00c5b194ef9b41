"""Policies for the tests of modality use: the captioner as it is, blinded, and made to say one thing."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence

import torch

from mmft.data.rows import PromptDataset
from mmft.engine.actor_critic import VLMActorCritic
from mmft.engine.completion_batch import CompletionTokenizer, right_padded
from mmft.engine.packing import Completions
from mmft.engine.prompt_encoder import process_row
from mmft.models.backbone import load_backbone
from mmft.runs import Answerer
from mmft.tiny import CAPTIONER_NAME, PROMPT, load_scenes
from mmft.trainers.modality_use import ModalityUse, measure_modality_use
from mmft.types import PromptRow

ONE_ANSWER = "a red circle."


@functools.cache
def scene_rows(count: int = 12) -> list[PromptRow]:
    rows = PromptDataset(load_scenes("validation", count), name="validation", instruction=PROMPT)
    return [rows[index] for index in range(count)]


def captioner(*, train: bool = False) -> VLMActorCritic:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        backbone = load_backbone(CAPTIONER_NAME, trainable=("language",) if train else ())
    return VLMActorCritic(backbone, critic=False, reference=False)


def blinded() -> VLMActorCritic:
    """Its projector gives zeros for every picture."""
    policy = captioner()
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "projector" in name:
                parameter.zero_()
    return policy


def with_one_answer(steps: int = 15) -> VLMActorCritic:
    """Has learned to say one thing to every picture, by likelihood."""
    policy = captioner(train=True)
    prompts = [process_row(policy.backbone.processor, row) for row in scene_rows()]
    ids = [CompletionTokenizer(policy.backbone, 40)(ONE_ANSWER)] * len(prompts)
    completions = Completions(*right_padded(ids, policy.backbone.pad_id), torch.arange(len(prompts)))
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(steps):
        loss = -policy(prompts, completions, entropies=False).logps.sum() / len(prompts)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return policy.requires_grad_(False)


def use_of(policy: VLMActorCritic, rows: Sequence[PromptRow] | None = None) -> ModalityUse | None:
    """Of its own greedy answers."""
    rows = scene_rows() if rows is None else rows
    answers = Answerer(policy.eval(), None, {"max_completion_length": 24}).answer(rows)
    return measure_modality_use(
        policy, rows, [each.text for each in answers], [each.ended for each in answers]
    )
