"""The measures of text over rows of captions: one number per corpus, one per row, and a signature.

Formulas are in `rewards`, where training uses them row by row; here is what a corpus adds: summed statistics
for BLEU, document frequencies of the evaluated references for CIDEr-D. Shape legend: N rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import sacrebleu
from numpy.typing import NDArray
from sacrebleu.metrics.bleu import BLEU

from mmft import __version__
from rewards.bleu import MAX_ORDER, bleu_statistics, coco_bleu, smoothed_bleu
from rewards.cider import SIGMA, DocumentFrequencies
from rewards.cider import CiderD as CiderDScorer
from rewards.ngrams import case
from rewards.rouge import BETA, sentence_rouge_l

Rows: TypeAlias = Callable[[NDArray[np.intp]], float]
"""The corpus score of the rows with these indices; an index may occur several times."""
BLEU_SMOOTHING = ("none", "exp", "coco")


@dataclass(frozen=True, slots=True)
class MeasureResult:
    """What one measure says of N rows."""

    scores: dict[str, float]
    """By result name, over the corpus."""
    per_sample: dict[str, list[float | None]]
    """By result name, N numbers; None where a row cannot be judged."""
    signature: str
    """The settings that the numbers depend on, as "key:value" joined by "|"."""
    of_rows: dict[str, Rows] = field(default_factory=dict)
    """Where the score of a corpus is not the mean over its rows: how to get it for a choice of rows."""


def signature(name: str, references: Sequence[Sequence[str]] | None, **settings: Any) -> str:
    """Settings in the form of sacrebleu's signatures, with the range of the number of references."""
    parts: dict[str, Any] = {"name": name}
    if references is not None:
        counts = sorted({len(texts) for texts in references})
        parts["nrefs"] = f"{counts[0]}-{counts[-1]}" if len(counts) > 1 else counts[0]
    return "|".join(f"{key}:{value}" for key, value in {**parts, **settings}.items())


def bleu(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    tokenize: str = "13a",
    smoothing: str = "none",
) -> MeasureResult:
    """Corpus BLEU-1 to BLEU-4 in [0, 1] by sacrebleu: `bleu_1` to `bleu_4` (Papineni et al. 2002).

    Lengths and matched n-grams are summed over the rows before shares and brevity penalty are taken, each
    row with its closest reference length. A row's own number is `rewards.sentence_bleu`, smoothed by "exp"
    (or "coco"): the corpus number is not their mean. On pre-tokenised text without smoothing the numbers are
    those of the coco-caption tools to 2e-4; a corpus without a single n-gram of some order gets 0 here and a
    small number there. "coco" gives theirs to the last digit.

    Args:
        predictions: N captions.
        references: N lists of texts.
        tokenize: "13a" (lower case) or "none" (pre-tokenised text).
        smoothing: What an order without a match in the corpus does: "none" makes BLEU 0, "exp" is
            sacrebleu's default, "coco" what the coco-caption tools do.
    """
    if smoothing not in BLEU_SMOOTHING:
        raise ValueError(f"`smoothing` must be one of {', '.join(BLEU_SMOOTHING)}; got {smoothing!r}.")
    pairs = list(zip(predictions, references, strict=True))
    found = [bleu_statistics(text, list(texts), tokenize=tokenize) for text, texts in pairs]
    statistics = np.array([[length, closest, *matches] for length, closest, matches in found])

    def score(order: int) -> Rows:
        return lambda rows: _corpus_bleu(statistics[rows], order, smoothing)

    of_rows = {f"bleu_{order}": score(order) for order in range(1, MAX_ORDER + 1)}
    every = np.arange(len(pairs))
    per_sample: dict[str, list[float | None]] = {
        f"bleu_{order}": [
            _row_bleu(length, closest, matches[:order], smoothing) for length, closest, matches in found
        ]
        for order in range(1, MAX_ORDER + 1)
    }
    settings = {"case": case(tokenize), "eff": "no", "tok": tokenize, "smooth": smoothing, "len": "closest"}
    return MeasureResult(
        scores={name: of(every) for name, of in of_rows.items()},
        per_sample=per_sample,
        signature=signature("bleu", references, **settings, version=f"sacrebleu-{sacrebleu.__version__}"),
        of_rows=of_rows,
    )


def _row_bleu(length: int, closest: int, matches: list[int], smoothing: str) -> float:
    if smoothing == "coco":
        return coco_bleu(length, closest, matches, [max(0, length - order) for order in range(len(matches))])
    return smoothed_bleu(length, closest, matches)


def _corpus_bleu(statistics: NDArray[np.int_], order: int, smoothing: str) -> float:
    """From (rows, 2 + 4): caption length, closest reference length, matches per order."""
    lengths = statistics[:, 0]
    totals = [int(np.maximum(0, lengths - longer).sum()) for longer in range(order)]
    matches = [int(count) for count in statistics[:, 2 : 2 + order].sum(axis=0)]
    length, closest = int(lengths.sum()), int(statistics[:, 1].sum())
    if smoothing == "coco":
        return coco_bleu(length, closest, matches, totals)
    found = BLEU.compute_bleu(matches, totals, length, closest, smoothing, max_ngram_order=order)
    return min(1.0, found.score / 100)  # a perfect corpus comes out as 100.00000000000004


def rouge_l(
    predictions: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: str = "13a"
) -> MeasureResult:
    """`rouge_l`: the mean of `rewards.sentence_rouge_l`, as the coco-caption tools take it."""
    pairs = zip(predictions, references, strict=True)
    values = [sentence_rouge_l(text, list(texts), tokenize=tokenize) for text, texts in pairs]
    settings = {"beta": BETA, "case": case(tokenize), "tok": tokenize, "version": f"mmft-{__version__}"}
    return _mean_result("rouge_l", values, signature("rouge_l", references, **settings))


def cider_d(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    tokenize: str | None = None,
    document_frequencies: DocumentFrequencies | str | None = None,
) -> MeasureResult:
    """`cider_d`, in [0, 10]: the mean of `rewards.CiderD`.

    Args:
        predictions: N captions, one per picture.
        references: N lists of texts.
        tokenize: "13a" (lower case) or "none" (pre-tokenised text); by default that of the document
            frequencies, else "13a".
        document_frequencies: Given ones, or the path of a file with them, so that numbers of different
            corpora compare; by default those of these references, as the coco-caption tools have it.
    """
    if isinstance(document_frequencies, str):
        document_frequencies = DocumentFrequencies.load(document_frequencies)
    source = "corpus" if document_frequencies is None else "given"
    frequencies = document_frequencies or DocumentFrequencies.fit(references, tokenize=tokenize or "13a")
    if tokenize not in (None, frequencies.tokenize):
        raise ValueError(
            f"`tokenize` is {tokenize!r}, the document frequencies were counted with "
            f"{frequencies.tokenize!r}. Leave `tokenize` out, or count them again."
        )
    scorer = CiderDScorer(frequencies)
    values = [scorer(text, list(texts)) for text, texts in zip(predictions, references, strict=True)]
    settings = {
        "order": MAX_ORDER,
        "sigma": SIGMA,
        "case": case(frequencies.tokenize),
        "tok": frequencies.tokenize,
        "df": f"{source}-{frequencies.num_images}",
        "version": f"mmft-{__version__}",
    }
    return _mean_result("cider_d", values, signature("cider_d", references, **settings))


def _mean_result(name: str, values: list[float], settings: str) -> MeasureResult:
    return MeasureResult({name: float(np.mean(values))}, {name: [*values]}, settings)
