"""What the engine's tests share: models of the zoo behind the engine, ragged batches, and the slow truth.

Shapes: N completions, R completion tokens, V vocabulary, D width.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor
from transformers import PreTrainedModel

from mmft.engine.actor_critic import VLMActorCritic
from mmft.engine.packing import Completions
from mmft.engine.scoring import Scores
from mmft.models.backbone import Backbone, make_backbone
from mmft.models.prompts import PromptInputs
from tests import zoo
from tests.zoo.vocabulary import EOS_ID, FIRST_TEXT_ID, PAD_ID, VOCAB_SIZE

EVERY_FAMILY = (*zoo.FAMILIES, *zoo.EXTRA_FAMILIES)
TEXT_ATTENTION = r".*\.(language_model|text_model)\.layers\..*\.(q|k|v|o)_proj"
"""The attention projections of the text model; vision towers have projections of the same names."""
RAGGED_PROMPTS = ((1, 9), (2, 5), (0, 12))
"""(images, text tokens) of each prompt."""
RAGGED_LENGTHS = ((6, 1, 4), (1, 1), (5, 2, 6, 3))
"""Tokens of each completion, prompt by prompt."""


def stub_processor(**tokenizer: Any) -> Any:
    """All that a backbone wants from a processor where nothing is processed."""
    names = {"eos_token_id": EOS_ID, "pad_token_id": PAD_ID, "convert_tokens_to_ids": lambda token: None}
    return SimpleNamespace(
        tokenizer=SimpleNamespace(**names | tokenizer), save_pretrained=lambda folder: None
    )


def lora(**settings: Any) -> LoraConfig:
    """Adapters on the text model that say something from the start: B is not zero."""
    return LoraConfig(
        **{"r": 4, "lora_alpha": 8, "target_modules": TEXT_ATTENTION, "init_lora_weights": False} | settings
    )


def make_actor_critic(
    family: str | PreTrainedModel, seed: int = 0, *, reference: bool = False, **settings: Any
) -> VLMActorCritic:
    """A model of the zoo with a critic that has an opinion; frozen where `settings` name nothing."""
    model = zoo.build_model(family, seed) if isinstance(family, str) else family
    if "peft_config" in settings:
        torch.manual_seed(seed)  # PEFT draws from the global generator
    backbone = make_backbone(model, stub_processor(), **{"trainable": ()} | settings)
    actor_critic = VLMActorCritic(backbone, reference=reference)
    perturb_critic(actor_critic, seed)
    return actor_critic.eval()


@torch.no_grad()
def perturb_critic(actor_critic: VLMActorCritic, seed: int = 0) -> None:
    """Values of about unit size; a critic that starts at zero would hide every fault."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in actor_critic.value_head.parameters():
        parameter.normal_(std=parameter.shape[-1] ** -0.5, generator=generator)


@functools.cache
def frozen_actor_critic(family: str) -> VLMActorCritic:
    """One per family and process, for tests that change nothing in it."""
    return make_actor_critic(family)


@dataclass(frozen=True)
class Case:
    """A batch: rows before the processor's dataclass, the same as prompts, and completions."""

    rows: list[zoo.Row]
    completions: Completions

    @property
    def prompts(self) -> list[PromptInputs]:
        return [PromptInputs(row) for row in self.rows]

    def encodings(self, backbone: Backbone) -> list[Any]:
        return [backbone.encode(prompt) for prompt in self.prompts]

    def only(self, prompt: int) -> Case:
        """The batch of one prompt and its completions; the width stays."""
        take = self.completions.prompt_index == prompt
        ids, mask = self.completions.ids[take], self.completions.mask[take]
        return Case([self.rows[prompt]], Completions(ids, mask, torch.zeros(len(ids), dtype=torch.long)))


def random_completions(lengths: Sequence[Sequence[int]], seed: int = 0) -> Completions:
    """Random text; every other completion says the end token, the others were cut."""
    generator = torch.Generator().manual_seed(seed)
    flat = torch.tensor([length for group in lengths for length in group])
    index = torch.tensor([prompt for prompt, group in enumerate(lengths) for _ in group])
    ids = torch.randint(FIRST_TEXT_ID, VOCAB_SIZE, (len(flat), int(flat.max())), generator=generator)
    mask = torch.arange(ids.shape[1]) < flat[:, None]
    ids[torch.arange(0, len(flat), 2), flat[::2] - 1] = EOS_ID
    return Completions(ids.masked_fill(~mask, PAD_ID), mask, index)


def ragged_case(family: str, seed: int = 0) -> Case:
    """Prompts with 0, 1 and 2 images and of different lengths; completions of 1 to 6 tokens."""
    rows = [
        zoo.build_row(family, seed=seed + number, num_images=images, text_length=length)
        for number, (images, length) in enumerate(RAGGED_PROMPTS)
    ]
    return Case(rows, random_completions(RAGGED_LENGTHS, seed))


def slow_states(model: PreTrainedModel, row: zoo.Row, ids: Tensor) -> tuple[Tensor, Tensor]:
    """(R, V) logits and (R, D) inputs of the language head, in the model's own whole forward."""
    seen: list[Tensor] = []
    handle = model.get_output_embeddings().register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    logits = zoo.plain_logits(model, row, ids)
    handle.remove()
    first = row["input_ids"].shape[1] - 1
    return logits, seen[0][0, first : first + len(ids)]


def slow_scores(
    actor_critic: VLMActorCritic, case: Case, temperature: float = 1.0, *, entropy_gradients: bool = False
) -> Scores:
    """The definitions, one completion at a time, without any code of the engine's."""
    backbone, critic = actor_critic.backbone, actor_critic.value_head
    shape = case.completions.ids.shape
    rows: list[list[Tensor]] = [[], [], []]
    for ids, mask, index in zip(*_fields(case.completions), strict=True):
        chosen = ids[mask]
        logits, hidden = slow_states(backbone.base, case.rows[int(index)], chosen)
        logits[:, sorted(backbone.forbidden_ids)] = float("-inf")
        log_probs = (logits / temperature).log_softmax(-1)
        logps = log_probs.gather(-1, chosen[:, None])[:, 0]
        entropies = -(log_probs.exp() * log_probs.masked_fill(log_probs.isinf(), 0)).sum(-1)
        values = hidden @ critic.weight[0] + critic.bias[0]
        entropies = entropies if entropy_gradients else entropies.detach()
        for row, tensor in zip(rows, (logps, entropies, values), strict=True):
            row.append(torch.nn.functional.pad(tensor, (0, shape[1] - len(chosen))))
    logps, entropies, values = (torch.stack(row) for row in rows)
    return Scores(logps, entropies, values)


def _fields(completions: Completions) -> tuple[Tensor, Tensor, Tensor]:
    return completions.ids, completions.mask, completions.prompt_index


def assert_same_scores(actual: Scores, expected: Scores, atol: float = 1e-5) -> None:
    for name in ("logps", "entropies", "values"):
        torch.testing.assert_close(
            getattr(actual, name),
            getattr(expected, name),
            atol=atol,
            rtol=0,
            msg=lambda m, n=name: f"{n}: {m}",
        )
