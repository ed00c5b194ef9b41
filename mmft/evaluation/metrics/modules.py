"""The measures as `evaluate.Metric` modules, for `add_batch`, `compute` and `evaluate.combine`.

They are classes of this package, not scripts of the hub, so nothing is downloaded. Rows are kept in memory;
evaluate's cache folder is used only by who asks for it. Result names differ between modules, so `combine`
adds no prefix to any.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import datasets
import evaluate

from mmft.evaluation.metrics.clip import clip_score, clip_scorer
from mmft.evaluation.metrics.measures import MeasureResult, bleu, cider_d, rouge_l
from rewards.cider import DocumentFrequencies

_TEXT = datasets.Value("string")
_TEXTS = {"predictions": _TEXT, "references": datasets.List(_TEXT)}
_LISTS = ("references", "images")
_INPUTS = """
Inputs:
    predictions: a caption per row.
    references: the texts that each caption is compared with, a list of any length per row (or one text).
"""
_PAPERS = {
    "bleu": "Papineni et al. 2002, doi:10.3115/1073083.1073135",
    "rouge_l": "Lin 2004, W04-1013",
    "cider_d": "Vedantam et al. 2015, arXiv:1411.5726",
    "clip_score": "Hessel et al. 2021, arXiv:2104.08718",
}


class _CaptionMetric(evaluate.Metric):
    """What the four share: rows in memory, one text as a list of one, and the signature among the results."""

    measure: str

    def __init__(
        self,
        compute: Callable[..., MeasureResult],
        features: dict[str, Any],
        keep_in_memory: bool | None = None,
        cache_dir: str | None = None,
        num_process: int = 1,
        **module: Any,
    ) -> None:
        self._compute_measure, self._features = compute, features
        in_memory = num_process == 1 if keep_in_memory is None else keep_in_memory
        common = {"keep_in_memory": in_memory, "num_process": num_process, **module}
        if in_memory and cache_dir is None:
            # evaluate makes a folder even for rows in memory, and never looks at it again.
            with tempfile.TemporaryDirectory() as folder:
                super().__init__(cache_dir=folder, **common)
        else:
            super().__init__(cache_dir=cache_dir, **common)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=type(self).__doc__ or "",
            citation=_PAPERS[self.measure],
            inputs_description=_INPUTS,
            features=datasets.Features(self._features),
        )

    def add_batch(self, *, predictions: Any = None, references: Any = None, **columns: Any) -> None:
        """Add rows."""
        if references is not None:
            references = [_listed(texts) for texts in references]
        if columns.get("images") is not None:
            columns["images"] = [_listed(pictures) for pictures in columns["images"]]
        super().add_batch(predictions=predictions, references=references, **columns)

    def add(self, *, prediction: Any = None, reference: Any = None, **columns: Any) -> None:
        """Add one row."""
        # evaluate's `combine` says `references` for the one row too.
        columns = {name: _listed(value) if name in _LISTS else value for name, value in columns.items()}
        super().add(prediction=prediction, reference=_listed(reference), **columns)

    def _compute(
        self, *, predictions: Any, references: Any = None, images: Any = None, **others: Any
    ) -> dict[str, Any]:
        if others:
            raise ValueError(f"`compute` takes no {', '.join(others)}. Settings go to the constructor.")
        if not len(predictions):
            raise ValueError(f"`{self.measure}` has no row to judge; give `predictions`.")
        # `combine` hands every module every input; a module on texts passes over the images.
        columns = [references] if "images" not in self._features else [references, images]
        found = self._compute_measure(predictions, *columns)
        return {**found.scores, f"{self.measure}_signature": found.signature}


def _listed(value: Any) -> Any:
    return value if value is None or isinstance(value, (list, tuple)) else [value]


class Bleu(_CaptionMetric):
    """Corpus BLEU-1 to BLEU-4 in [0, 1]: `bleu_1` to `bleu_4`, `bleu_signature`.

    Example:
        >>> from mmft.evaluation.metrics import Bleu
        >>> found = Bleu().compute(predictions=["a red circle"], references=[["a red circle", "a circle"]])
        >>> found["bleu_1"]
        1.0
    """

    measure = "bleu"

    def __init__(self, *, tokenize: str = "13a", smoothing: str = "none", **module: Any) -> None:
        """Choose how rows are read; see `corpus_metrics`.

        Args:
            tokenize: "13a" or "none" (pre-tokenised).
            smoothing: "none", "exp" (sacrebleu's default) or "coco" (the coco-caption tools').
            module: Goes to `evaluate.Metric`.
        """
        super().__init__(partial(bleu, tokenize=tokenize, smoothing=smoothing), _TEXTS, **module)


class RougeL(_CaptionMetric):
    """ROUGE-L in [0, 1]: `rouge_l`, `rouge_l_signature`.

    Example:
        >>> from mmft.evaluation.metrics import RougeL
        >>> metric = RougeL()
        >>> metric.add(prediction="a red circle", reference="a red circle")
        >>> metric.add(prediction="a dog", reference="one cat")
        >>> metric.compute()["rouge_l"]
        0.5
    """

    measure = "rouge_l"

    def __init__(self, *, tokenize: str = "13a", **module: Any) -> None:
        """Choose "13a" or "none" (pre-tokenised); `module` goes to `evaluate.Metric`."""
        super().__init__(partial(rouge_l, tokenize=tokenize), _TEXTS, **module)


class CiderD(_CaptionMetric):
    """CIDEr-D in [0, 10]: `cider_d`, `cider_d_signature`.

    Example:
        >>> from mmft.evaluation.metrics import CiderD
        >>> captions = ["a red circle", "a blue square"]
        >>> round(CiderD().compute(predictions=captions, references=captions)["cider_d"], 1)
        7.5
    """

    measure = "cider_d"

    def __init__(
        self,
        *,
        tokenize: str | None = None,
        document_frequencies: DocumentFrequencies | str | None = None,
        **module: Any,
    ) -> None:
        """Give document frequencies, or None for those of the references to come.

        Args:
            tokenize: "13a" or "none" (pre-tokenised).
            document_frequencies: Fitted ones, or the path of a file with them.
            module: Goes to `evaluate.Metric`.
        """
        compute = partial(cider_d, tokenize=tokenize, document_frequencies=document_frequencies)
        super().__init__(compute, _TEXTS, **module)


class ClipScore(_CaptionMetric):
    """CLIPScore: `clip_score`, `clip_score_signature`, with `reference=True` also `ref_clip_score`.

    `images` hold a picture per row, or a list of them, as PIL images or paths of files.

    Example:
        >>> from PIL import Image
        >>> from mmft.evaluation.metrics import ClipScore
        >>> metric = ClipScore("openai/clip-vit-base-patch32")
        >>> red = Image.new("RGB", (64, 64), "red")
        >>> found = metric.compute(predictions=["a red square"], images=[red])
        >>> 0 <= found["clip_score"] <= 2.5
        True
    """

    measure = "clip_score"

    def __init__(self, model: Any = None, *, reference: bool = False, **settings: Any) -> None:
        """Name the model.

        Args:
            model: Hub id or folder of a contrastive model, or a `rewards.ClipScore` made before.
            reference: Whether to give RefCLIPScore too.
            settings: `keep_in_memory`, `cache_dir` and the like of `evaluate.Metric`; all others go to
                `rewards.ClipScore`.
        """
        module = {name: settings.pop(name) for name in _MODULE_SETTINGS if name in settings}
        scorer = clip_scorer(model, reference, settings)
        features = {"predictions": _TEXT, "images": datasets.List(datasets.Image())}
        if scorer.reference:
            features["references"] = datasets.List(_TEXT)
        super().__init__(partial(clip_score, model=scorer), features, **module)


_MODULE_SETTINGS = (
    "config_name", "keep_in_memory", "cache_dir", "num_process", "process_id", "seed", "experiment_id",
    "max_concurrent_cache_files", "timeout",
)  # fmt: skip
