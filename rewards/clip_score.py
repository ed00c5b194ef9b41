"""CLIPScore and RefCLIPScore: does the caption fit the picture, as a contrastive model sees it.

The towers and their caches are `rewards.clip_embedder`; here are the formulas and the reward.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from rewards.clip_embedder import ClipCounters, ClipEmbedder
from rewards.pictures import Pictures, picture_column, picture_rows
from rewards.text import Completion, completion_text, text_column


class ClipScore:
    """Scores a caption c against its picture v, and with `reference=True` against its references R too.

        CLIPScore(c, v)       = w * max(cos(c, v), 0)
        RefCLIPScore(c, R, v) = 2ab / (a + b),   a = CLIPScore(c, v),   b = max(max_{r in R} cos(c, r), 0)

    Hessel et al. 2021 (arXiv:2104.08718), section 3; w = 2.5, and "A photo depicts " goes before captions and
    references. cos is taken between the outputs of the model's two towers. RefCLIPScore is 0 where a or b is.

    The numbers of two models do not compare: w stretches what CLIP ViT-B/32 gives to about [0, 1]; SigLIP's
    cosines are lower. Several pictures: cos is the mean over them, or the largest. A caption without a word
    gets 0 instead of what the prompt alone would earn.

    An instance is a reward in TRL's protocol that reads `images` (or `image`). A row without a picture, or,
    where references count, with references None, cannot be judged and gets None. `log_extra` receives
    `cosine`, with references also `clip_score` and `reference_cosine`; `log_metric` the work of the call:
    `image_tower_calls`, `images_encoded`, `cache_hits`, `truncated_share`.

    Example:
        >>> from PIL import Image
        >>> from rewards import ClipScore
        >>> reward = ClipScore("openai/clip-vit-base-patch32")  # loaded by the first call
        >>> red = Image.new("RGB", (64, 64), "red")
        >>> scores = reward(None, ["a red square", "a blue dog", " ", "a cat"], image=[red, red, red, None])
        >>> scores[2:]  # nothing is said; there is no picture
        [0.0, None]
        >>> reward.counters.images_encoded
        1
    """

    uses_references = False

    def __init__(
        self,
        model: str | nn.Module = "openai/clip-vit-base-patch32",
        processor: Any = None,
        *,
        reference: bool | None = None,
        weight: float = 2.5,
        prompt: str = "A photo depicts ",
        several_images: str = "mean",
        references_column: str = "references",
        batch_size: int = 64,
        device: str = "auto",
        dtype: str | torch.dtype | None = None,
        image_cache_size: int = 50_000,
        text_cache_size: int = 50_000,
        revision: str | None = None,
    ) -> None:
        """Settle what is scored; the model is loaded by the first call, `load` or `prepare`.

        Args:
            model: Hub id or folder of a CLIP, SigLIP or like model, or a model object, which is then moved to
                the device, frozen and put in evaluation mode.
            processor: The processor object of a model given as an object; by default loaded with the model.
            reference: Whether to give RefCLIPScore; by default what the class stands for.
            weight: w.
            prompt: What goes before every caption and reference, its last blank included.
            several_images: "mean" or "max", over the cosines of a row with several pictures.
            references_column: Column with a row's reference captions.
            batch_size: Pictures, or texts, in one run of a tower.
            device: "auto" (the current CUDA device, else the CPU) or a device's name.
            dtype: What the model computes in: "float32" (default), "bfloat16", "float16"; by default a
                model object keeps its own.
            image_cache_size: Pictures whose embeddings are remembered, about 2.5 kB each at width 512.
            text_cache_size: References whose embeddings are remembered.
            revision: Branch, tag or commit of a hub id.
        """
        if not (math.isfinite(weight) and weight > 0):
            raise ValueError(f"`weight` must be a finite number > 0; got {weight}. The paper's is 2.5.")
        if several_images not in ("mean", "max"):
            raise ValueError(f"`several_images` must be 'mean' or 'max'; got {several_images!r}.")
        self.reference = self.uses_references if reference is None else reference
        self.weight, self.prompt, self.several_images = weight, prompt, several_images
        self.references_column = references_column
        self.embedder = ClipEmbedder(
            model,
            processor,
            batch_size=batch_size,
            device=device,
            dtype=dtype,
            image_cache_size=image_cache_size,
            text_cache_size=text_cache_size,
            revision=revision,
        )
        self.__name__ = "ref_clip_score" if self.reference else "clip_score"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.embedder!r}, reference={self.reference}, weight={self.weight})"

    @property
    def counters(self) -> ClipCounters:
        """What the towers did so far."""
        return self.embedder.counters

    def load(self) -> None:
        """Load the model now, so that the first call does not pay for it."""
        self.embedder.load()

    def prepare(self, column: Callable[[str], list[Any] | None]) -> None:
        """Load the model before training starts, and refuse data without the references that are needed."""
        if self.reference and column(self.references_column) is None:
            raise ValueError(_no_references(self.references_column))
        self.load()

    def __call__(
        self,
        prompts: list[Any] | None,
        completions: list[Completion],
        *,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """One score per completion; see the class for None."""
        pictures = picture_column(columns)
        if pictures is None:
            raise ValueError("the reward needs a column `images` or `image` and the data has neither.")
        captions = [completion_text(completion) for completion in completions]
        before = asdict(self.counters)
        parts = self.parts(pictures, captions, columns.get(self.references_column))
        if log_extra is not None:
            for name in ("cosine", "clip_score", "reference_cosine") if self.reference else ("cosine",):
                log_extra(name, parts[name])
        if log_metric is not None:
            self._log_work(before, log_metric)
        return parts[self.__name__]

    def scores(
        self, images: Sequence[Pictures], captions: Sequence[str], references: Sequence[Any] | None = None
    ) -> list[float | None]:
        """CLIPScore of every caption, or RefCLIPScore with `reference=True`; None where it cannot be judged.

        Args:
            images: A picture, a list of pictures, or None for each caption.
            captions: One text each.
            references: A text, a list of texts or None for each caption; not read without `reference`.
        """
        return self.parts(images, captions, references)[self.__name__]

    def parts(
        self, images: Sequence[Pictures], captions: Sequence[str], references: Sequence[Any] | None = None
    ) -> dict[str, list[float | None]]:
        """Everything the scores are made of, per caption: `cosine` and `clip_score`.

        With `reference=True` also `reference_cosine`, the largest, and `ref_clip_score`.
        """
        rows = picture_rows(images, len(captions))
        spoken = [bool(caption.strip()) for caption in captions]
        vectors = self.embedder.embed_texts([self.prompt + caption for caption in captions])
        cosines = self._picture_cosines(vectors, rows)
        scores = [
            None if cosine is None else self.weight * max(cosine, 0.0) * said
            for cosine, said in zip(cosines, spoken, strict=True)
        ]
        parts = {"clip_score": scores, "cosine": cosines}
        if self.reference:
            phrases = _reference_rows(references, self.references_column, len(captions))
            nearest = self._reference_cosines(vectors, phrases)
            parts |= {
                "reference_cosine": nearest,
                "ref_clip_score": [_harmonic_mean(*pair) for pair in zip(scores, nearest, strict=True)],
            }
        return parts

    def _picture_cosines(self, vectors: Tensor, rows: list[list[Image.Image]]) -> list[float | None]:
        pictures = [picture for row in rows for picture in row]
        reduce = max if self.several_images == "max" else _mean
        return _cosines_by_row(vectors, rows, self.embedder.embed_images(pictures), reduce)

    def _reference_cosines(self, vectors: Tensor, rows: list[list[str]]) -> list[float | None]:
        texts = [self.prompt + text for row in rows for text in row]
        return _cosines_by_row(vectors, rows, self.embedder.embed_texts(texts, keep=True), max)

    def _log_work(self, before: dict[str, int], log_metric: Callable[[str, float], None]) -> None:
        work = {name: after - before[name] for name, after in asdict(self.counters).items()}
        for name in ("image_tower_calls", "images_encoded", "cache_hits"):
            log_metric(f"{self.__name__}/{name}", work[name])
        if work["texts_encoded"]:
            share = work["texts_truncated"] / work["texts_encoded"]
            log_metric(f"{self.__name__}/truncated_share", share)


class RefClipScore(ClipScore):
    """`ClipScore` with `reference=True`, under a name of its own for configs.

    Example:
        >>> from PIL import Image
        >>> from rewards import RefClipScore
        >>> reward = RefClipScore("openai/clip-vit-base-patch32")  # loaded by the first call
        >>> red = Image.new("RGB", (64, 64), "red")
        >>> references = [["something red"], None]
        >>> scores = reward(None, ["a red square", "a dog"], image=[red, red], references=references)
        >>> scores[0] >= 0, scores[1] is None  # without references there is nothing to compare with
        (True, True)
    """

    uses_references = True


def _reference_rows(references: Any, column: str, count: int) -> list[list[str]]:
    if references is None:
        raise ValueError(_no_references(column))
    return [list(phrases or ()) for phrases in text_column(references, column, count)]


def _no_references(column: str) -> str:
    return (
        f"RefCLIPScore needs a column `{column}` and the data has none. Name yours with `references_column`, "
        "or take CLIPScore, which needs no references."
    )


def _cosines_by_row(
    vectors: Tensor,
    rows: Sequence[Sequence[Any]],
    others: Tensor,
    reduce: Callable[[list[float]], float],
) -> list[float | None]:
    """For each of N rows the cosines of its vector (N, D) with its own `others`, which lie in row order."""
    if not len(others):
        return [None] * len(rows)
    owners = torch.tensor([index for index, row in enumerate(rows) for _ in row])
    flat = iter((vectors[owners] * others).sum(dim=-1).tolist())
    grouped = [[next(flat) for _ in row] for row in rows]
    return [reduce(row) if row else None for row in grouped]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _harmonic_mean(score: float | None, cosine: float | None) -> float | None:
    if score is None or cosine is None:
        return None
    return 2 * score * cosine / (score + cosine) if score > 0 and cosine > 0 else 0.0
