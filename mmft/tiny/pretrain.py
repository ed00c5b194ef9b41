"""Makes the packaged captioner from nothing: `python -m mmft.tiny.pretrain --output_dir runs/pretrain`.

Five lessons of supervised likelihood on endless scenes, on the CPU, a checkpoint after each; the product is
`<output_dir>/captioner`. On a busy machine two processes with one thread each are faster than one with two:
`OMP_NUM_THREADS=1 torchrun --nproc_per_node 2 -m mmft.tiny.pretrain`.

    patches  the vision tower alone says for every patch which colour, shape and size it shows
    details  the whole model captions every object with sizes and relations
    places   the tower alone again: every patch says as well how its object lies to the others
    polish   the captions again, while the learning rate falls
    habit    mostly terse captions of one object, at a low learning rate: knowledge stays, manners change
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import LlavaForConditionalGeneration, ProcessorMixin

from mmft.tiny.building import WIDTH, build_model, build_processor
from mmft.tiny.lessons import IGNORED, LOOKS, PATCH_CLASSES, CaptionTeacher, caption, patch_labels, pixels
from mmft.tiny.scenes import Scene, make_scene
from mmft.tiny.scoring import score_captioner

logger = logging.getLogger(__name__)

# Rows of `load_scenes` at its default seed 0 are never seen in pretraining.
SCENES_SEED = 1
PATCH_LOSS_WEIGHT = 0.1
LOG_EVERY = 100
OUTPUT_LAYER = "model.lm_head.weight"
TOKEN_EMBEDDING = "model.model.language_model.embed_tokens.weight"


@dataclass(frozen=True, slots=True)
class Lesson:
    """One stage of the training; the learning rate moves from `first_lr` to `last_lr` along a half cosine."""

    name: str
    steps: int
    first_lr: float
    last_lr: float
    terse_share: float = 0.0
    """Share of the captions that name one object and nothing else; the others are detailed."""
    tower_only: bool = False
    """No captions: the vision tower alone learns what the probes ask."""
    probes: tuple[str, ...] = tuple(LOOKS)
    """The patch classes that are asked; beside captions they weigh `PATCH_LOSS_WEIGHT`."""


# `places` came of a failure: after 2,500 steps of captions colours, shapes and sizes were right, but whether
# left or right was a coin flip. After 500 steps of it 96 % of the patches on an object know their relations.
LESSONS = (
    Lesson("patches", 1000, 3e-3, 1e-3, tower_only=True),
    Lesson("details", 2500, 2e-3, 2e-3),
    Lesson("places", 500, 2e-3, 1e-3, tower_only=True, probes=tuple(PATCH_CLASSES)),
    Lesson("polish", 800, 2e-3, 1e-4, probes=tuple(PATCH_CLASSES)),
    Lesson("habit", 250, 5e-4, 3e-5, terse_share=0.8, probes=tuple(PATCH_CLASSES)),
)


class Pupil(nn.Module):
    """The captioner with linear patch probes on its vision tower; the probes are not part of the product."""

    model: LlavaForConditionalGeneration

    def __init__(self, model: LlavaForConditionalGeneration, width: int) -> None:
        super().__init__()
        self.model = model
        self.probes = nn.ModuleDict(
            {kind: nn.Linear(width, len(words) + 1) for kind, words in PATCH_CLASSES.items()}
        )
        self._features: Tensor | None = None
        model.model.vision_tower.register_forward_hook(self._keep)

    def _keep(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        self._features = output.last_hidden_state[:, 1:]  # without the class token: (B, P, D)

    def patch_loss(self, scenes: list[Scene], probes: Sequence[str], *, run_tower: bool) -> Tensor:
        """Sum over the probes of the mean cross-entropy over all patches."""
        if run_tower:
            self.model.model.vision_tower(pixels(scenes))
        labels = patch_labels(scenes)
        losses = [
            F.cross_entropy(self.probes[kind](self._features).flatten(0, 1), labels[kind].flatten())
            for kind in probes
        ]
        return torch.stack(losses).sum()

    def caption_loss(self, scenes: list[Scene], captions: list[str], teacher: CaptionTeacher) -> Tensor:
        """Mean negative log-likelihood of the caption tokens."""
        batch = teacher.batch(scenes, captions)
        kept = batch.input_ids.shape[1] - len(teacher.prompt_ids)
        # The logits one position ahead of each caption token; padding follows it and is never attended to.
        logits = self.model(
            input_ids=batch.input_ids, pixel_values=batch.pixel_values, logits_to_keep=kept + 1
        ).logits[:, :-1]
        return F.cross_entropy(logits.flatten(0, 1), batch.labels[:, -kept:].flatten(), ignore_index=IGNORED)


def learning_rate(lesson: Lesson, step: int, warmup: int = 50) -> float:
    """Half a cosine from `first_lr` to `last_lr` after a linear warm-up."""
    blend = 0.5 * (1 + math.cos(math.pi * step / lesson.steps))
    return min(1.0, (step + 1) / warmup) * (lesson.last_lr + (lesson.first_lr - lesson.last_lr) * blend)


def make_optimizers(modules: Iterable[nn.Module]) -> list[Optimizer]:
    """Muon for the weight matrices inside the transformers, AdamW for everything else.

    With AdamW for all, the loss of `patches` after 400 steps was 0.52 (at 2e-3) in place of 0.30.
    """
    named = {name: weight for module in modules for name, weight in module.named_parameters()}
    inner = [weight for name, weight in named.items() if weight.ndim == 2 and "layers" in name]
    chosen = set(map(id, inner))
    outer = [weight for weight in named.values() if id(weight) not in chosen]
    return [
        torch.optim.AdamW(outer, betas=(0.9, 0.98), weight_decay=0.02),
        torch.optim.Muon(inner, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
    ]


def share_gradients(weights: Iterable[Tensor]) -> None:
    """Averages the gradients over the processes, as one long vector."""
    if not dist.is_initialized():
        return
    grads = [weight.grad for weight in weights if weight.grad is not None]
    flat = torch.cat([grad.flatten() for grad in grads])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for grad, mean in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(mean.view_as(grad))


class School:
    """Gives the lessons: draws the scenes, takes the steps, logs and keeps checkpoints."""

    def __init__(self, batch_size: int, work_dir: Path) -> None:
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.batch_size, self.work_dir = batch_size // self.world, work_dir
        self.processor = build_processor()
        self.teacher = CaptionTeacher(self.processor)
        torch.manual_seed(0)
        model = build_model(self.processor.tokenizer)
        self.pupil = Pupil(model, WIDTH)
        self.num_seen = 0
        self.records: list[dict[str, Any]] = []

    def teach(self, lesson: Lesson) -> None:
        """One lesson from its first to its last step; its weights go to `<work_dir>/<name>.safetensors`.

        Adds the lesson's settings, its seconds, and the mean loss of its last steps to `records`.
        """
        tower = [self.pupil.model.model.vision_tower, self.pupil.probes]
        modules = tower if lesson.tower_only else [self.pupil]
        optimizers = make_optimizers(modules)
        weights = [weight for group in optimizers for item in group.param_groups for weight in item["params"]]
        started, losses = time.perf_counter(), []
        for step in range(1, lesson.steps + 1):
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(lesson, step - 1)
            losses.append(self._take_step(lesson, optimizers, weights))
            if step % LOG_EVERY == 0 or step == lesson.steps:
                mean, seconds = fmean(losses[-LOG_EVERY:]), time.perf_counter() - started
                logger.info("%s step %d: loss %.4f, %.3f s/step", lesson.name, step, mean, seconds / step)
                record = {
                    **asdict(lesson),
                    "probes": list(lesson.probes),
                    "steps": step,
                    "seconds": round(seconds),
                    "loss": round(mean, 4),
                }
                self._save(lesson.name, [*self.records, record])
        self.records.append(record)

    def _take_step(self, lesson: Lesson, optimizers: list[Optimizer], weights: list[Tensor]) -> float:
        loss = self._loss(lesson, self._scenes())
        loss.backward()
        share_gradients(weights)
        nn.utils.clip_grad_norm_(weights, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return loss.item()

    def _scenes(self) -> list[Scene]:
        first = self.num_seen + self.rank * self.batch_size
        self.num_seen += self.world * self.batch_size
        return [make_scene("train", index, SCENES_SEED) for index in range(first, first + self.batch_size)]

    def _loss(self, lesson: Lesson, scenes: list[Scene]) -> Tensor:
        if lesson.tower_only:
            return self.pupil.patch_loss(scenes, lesson.probes, run_tower=True)
        stream = random.Random(self.num_seen * self.world + self.rank)
        captions = [caption(scene.objects, lesson.terse_share, stream) for scene in scenes]
        loss = self.pupil.caption_loss(scenes, captions, self.teacher)
        return loss + PATCH_LOSS_WEIGHT * self.pupil.patch_loss(scenes, lesson.probes, run_tower=False)

    def _save(self, name: str, records: list[dict[str, Any]]) -> None:
        if self.rank == 0:
            # The output layer is the token embedding; safetensors refuses to store one memory twice.
            state = {key: value for key, value in self.pupil.state_dict().items() if key != OUTPUT_LAYER}
            place = {"num_seen": str(self.num_seen), "records": json.dumps(records)}
            save_file(state, self.work_dir / f"{name}.safetensors", metadata=place)

    def resume(self, checkpoint: Path) -> None:
        """Takes weights, probes included, records, and the place in the stream of scenes from a lesson."""
        state = load_file(checkpoint)
        self.pupil.load_state_dict({**state, OUTPUT_LAYER: state[TOKEN_EMBEDDING]})
        with safe_open(checkpoint, framework="pt") as file:
            place = file.metadata()
        self.num_seen, self.records = int(place["num_seen"]), json.loads(place["records"])


def save_captioner(model: LlavaForConditionalGeneration, processor: ProcessorMixin, folder: Path) -> None:
    """Writes weights in half precision; the config still says single, so that plain loading gives that."""
    processor.save_pretrained(folder)
    halves = {name: weight.half() for name, weight in model.state_dict().items() if name != "lm_head.weight"}
    model.save_pretrained(folder, state_dict=halves)


def main() -> None:
    """Teaches the lessons, writes the captioner, and its record as `pretraining.json` beside the weights."""
    parser = argparse.ArgumentParser(description="Pretrain the packaged captioner.")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/pretrain"))
    parser.add_argument("--batch_size", type=int, default=32, help="over all processes")
    parser.add_argument("--lessons", nargs="+", default=[lesson.name for lesson in LESSONS])
    parser.add_argument("--checkpoint", type=Path, help="weights of the lesson before the first of --lessons")
    options = parser.parse_args()
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("gloo")
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    options.output_dir.mkdir(parents=True, exist_ok=True)
    school = School(options.batch_size, options.output_dir)
    logger.setLevel(logging.INFO if school.rank == 0 else logging.WARNING)
    if options.checkpoint is not None:
        school.resume(options.checkpoint)
    for lesson in LESSONS:
        if lesson.name in options.lessons:
            school.teach(lesson)
    if school.rank == 0:
        folder = options.output_dir / "captioner"
        save_captioner(school.pupil.model, school.processor, folder)
        record = {
            "batch_size": options.batch_size,
            "processes": school.world,
            "scenes_seen": school.num_seen,
            "lessons": school.records,
            "held_out": score_captioner(folder),
        }
        (folder / "pretraining.json").write_text(json.dumps(record, indent=2) + "\n")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
