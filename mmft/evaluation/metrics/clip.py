"""CLIPScore over rows of captions and pictures; loads torch and transformers when it is first asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmft import __version__
from mmft.evaluation.metrics.measures import MeasureResult, signature


def clip_score(
    predictions: Sequence[str],
    references: Sequence[Sequence[str] | None] | None,
    images: Sequence[Any],
    *,
    model: Any = None,
    reference: bool = False,
    **settings: Any,
) -> MeasureResult:
    """`clip_score`, with `reference=True` also `ref_clip_score`: the means of `rewards.ClipScore`.

    Args:
        predictions: N captions.
        references: N lists of texts or None; read with `reference=True` only.
        images: N pictures, or lists of pictures.
        model: Hub id or folder of a contrastive model, a model object, or a `rewards.ClipScore` made before,
            so that its model and the pictures it knows are used again (its settings then count).
        reference: Whether to give RefCLIPScore too.
        settings: Further arguments of `rewards.ClipScore`.
    """
    scorer = clip_scorer(model, reference, settings)
    texts = references if scorer.reference else None
    parts = scorer.parts(images, predictions, texts)
    names = ("clip_score", "ref_clip_score") if scorer.reference else ("clip_score",)
    source = scorer.embedder.source
    described = {
        "model": source if isinstance(source, str) else type(source).__name__,
        "w": scorer.weight,
        "prompt": scorer.prompt.strip().replace(" ", "_"),
        "images": scorer.several_images,
        "version": f"mmft-{__version__}",
    }
    counted = None if texts is None else [row for row in texts if row is not None]
    return MeasureResult(
        scores={name: float(np.mean([x for x in parts[name] if x is not None])) for name in names},
        per_sample={name: parts[name] for name in names},
        signature=signature("clip_score", counted, **described),
    )


def clip_scorer(model: Any, reference: bool, settings: Mapping[str, Any]) -> Any:
    """A `rewards.ClipScore`, made unless `model` is one."""
    from rewards.clip_score import ClipScore

    if isinstance(model, ClipScore):
        return model
    given = {} if model is None else {"model": model}
    return ClipScore(**given, reference=reference, **settings)
