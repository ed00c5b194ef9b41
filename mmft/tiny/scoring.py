"""Scores a captioner on held-out scenes: are its captions right, and how much do they say?"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration

from mmft.tiny.captions import reference_captions, terse_captions
from mmft.tiny.facts import share_true, stated_facts
from mmft.tiny.lessons import IGNORED, CaptionTeacher, caption, pixels
from mmft.tiny.lexicon import DIAMETERS
from mmft.tiny.scenes import Scene, make_scene

SPLIT = "validation"
EOS = "</s>"


@dataclass(frozen=True, slots=True)
class CaptionScores:
    """Means over held-out scenes."""

    exact_share: float
    """Captions that are, word for word, one that the scene's grammar calls complete or terse."""
    true_fact_share: float
    """True facts among the facts stated, each caption weighing the same; one that states none counts as 0."""
    detailed_share: float
    """Captions that state more than the colour and shape of one object."""
    mean_words: float
    ended_share: float
    """Captions that ended with eos within the allowed length."""


@torch.no_grad()
def write_captions(
    model: Any,
    teacher: CaptionTeacher,
    scenes: Sequence[Scene],
    *,
    opening: str = "",
    temperature: float = 0.0,
) -> list[str]:
    """Captions of the scenes, greedy at temperature 0, each beginning with `opening`."""
    ids = teacher.prompt_ids + teacher.tokenizer(opening, add_special_tokens=False)["input_ids"]
    prompt = torch.tensor(ids).expand(len(scenes), -1)
    sampling: dict[str, Any] = (
        {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {}
    )
    inputs = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt), "pixel_values": pixels(scenes)}
    written = model.generate(**inputs, max_new_tokens=32, **sampling)
    return teacher.tokenizer.batch_decode(written[:, len(teacher.prompt_ids) :])


def score_captions(pairs: Sequence[tuple[str, Scene]]) -> CaptionScores:
    """Scores captions, which still carry their `</s>` if they ended, by the scenes they are about."""
    captions, scenes = zip(*pairs, strict=True)
    ended = [text.split(EOS)[0] for text in captions]
    num = len(captions)
    shares = [share_true(text, scene.objects) or 0.0 for text, scene in zip(ended, scenes, strict=True)]
    exact = [
        text in {*reference_captions(scene.objects), *terse_captions(scene.objects)}
        for text, scene in zip(ended, scenes, strict=True)
    ]
    return CaptionScores(
        exact_share=round(sum(exact) / num, 4),
        true_fact_share=round(sum(shares) / num, 4),
        detailed_share=round(sum(map(is_detailed, ended)) / num, 4),
        mean_words=round(sum(len(text.split()) for text in ended) / num, 4),
        ended_share=round(sum(EOS in text for text in captions) / num, 4),
    )


def is_detailed(text: str) -> bool:
    """Whether a caption states more than the colour and shape of one object."""
    facts = stated_facts(text.split(EOS)[0])
    return len(facts) > 1 or any(fact.subject.size is not None for fact in facts)


@torch.no_grad()
def held_out_loss(
    model: LlavaForConditionalGeneration, teacher: CaptionTeacher, scenes: Sequence[Scene], terse_share: float
) -> float:
    """Mean negative log-likelihood per token of captions like those of the lessons."""
    stream = random.Random(0)
    batch = teacher.batch(scenes, [caption(scene.objects, terse_share, stream) for scene in scenes])
    logits = model(input_ids=batch.input_ids, pixel_values=batch.pixel_values).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), batch.labels[:, 1:].flatten(), ignore_index=IGNORED).item()


def score_captioner(folder: Path | str, num_scenes: int = 512) -> dict[str, Any]:
    """The held-out table of a saved captioner.

    Rows: `greedy`; `sampled` at temperature 1; `sampled_detailed`, those of the samples that go into detail;
    `led_into_detail`, greedy after `a large` or `a small`, whichever is true of the leftmost object.
    """
    model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    teacher = CaptionTeacher(AutoProcessor.from_pretrained(folder))
    scenes = [make_scene(SPLIT, index) for index in range(num_scenes)]
    torch.manual_seed(0)
    greedy = list(zip(write_captions(model, teacher, scenes), scenes, strict=True))
    sampled = list(zip(write_captions(model, teacher, scenes, temperature=1.0), scenes, strict=True))
    led: list[tuple[str, Scene]] = []
    for size in DIAMETERS:
        fitting = [scene for scene in scenes if scene.objects[0].size == size]
        led += zip(write_captions(model, teacher, fitting, opening=f"a {size}"), fitting, strict=True)
    rows = {
        "greedy": greedy,
        "sampled": sampled,
        "sampled_detailed": [pair for pair in sampled if is_detailed(pair[0])],
        "led_into_detail": led,
    }
    return {
        "split": SPLIT,
        "scenes": num_scenes,
        "captions": {name: asdict(score_captions(row)) for name, row in rows.items() if row},
        "loss_terse": round(held_out_loss(model, teacher, scenes, terse_share=1.0), 4),
        "loss_detailed": round(held_out_loss(model, teacher, scenes, terse_share=0.0), 4),
    }
