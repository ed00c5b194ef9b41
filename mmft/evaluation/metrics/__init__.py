"""How good a corpus of captions is: BLEU, ROUGE-L, CIDEr-D and CLIPScore, each with a signature.

`corpus_metrics` is the plain function, `METRICS` its measures by short name; `Bleu`, `RougeL`, `CiderD` and
`ClipScore` are the same measures as `evaluate.Metric` modules, for `evaluate.combine`. Names load on first
use. METEOR is left out: every Python implementation needs Java (pycocoevalcap) or a WordNet download (nltk).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmft.evaluation.metrics.corpus import METRICS, CorpusResult, corpus_metrics
    from mmft.evaluation.metrics.modules import Bleu, CiderD, ClipScore, RougeL

__all__ = ["METRICS", "Bleu", "CiderD", "ClipScore", "CorpusResult", "RougeL", "corpus_metrics"]

_HOMES = {
    "METRICS": "mmft.evaluation.metrics.corpus",
    "Bleu": "mmft.evaluation.metrics.modules",
    "CiderD": "mmft.evaluation.metrics.modules",
    "ClipScore": "mmft.evaluation.metrics.modules",
    "CorpusResult": "mmft.evaluation.metrics.corpus",
    "RougeL": "mmft.evaluation.metrics.modules",
    "corpus_metrics": "mmft.evaluation.metrics.corpus",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
