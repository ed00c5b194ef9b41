"""CIDEr-D with document frequencies that are fitted once, and references that are prepared once per set.

The numbers are those of the coco-caption tools, which count document frequencies over whatever references
they are given to score; a reward needs them fixed before training, and saved with it.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from operator import mul
from pathlib import Path
from typing import Any

from rewards.ngrams import MAX_ORDER, Ngram, ngrams, tokenizer
from rewards.text import Completion, score_captions, text_column

SIGMA = 6.0
"""Standard deviation of the length penalty, in words."""
CACHE_SIZE = 1024
"""Sets of references that stay prepared; a set of five captions takes some 40 kB."""


@dataclass(frozen=True, slots=True)
class DocumentFrequencies:
    """In how many pictures' references each n-gram occurs: how common, and so how telling, a phrase is.

        idf(g) = log N - log max(1, df(g))

    N is the number of pictures, df(g) the number of those with g in some reference, whatever the number of
    references and of occurrences (Vedantam et al. 2015, eq. 1). An n-gram of one picture weighs as much as an
    unknown one, so only df >= 2 is stored: no number changes and most n-grams go.

    Example:
        >>> from rewards import DocumentFrequencies
        >>> found = DocumentFrequencies.fit([["a red circle", "a circle"], ["a blue square"], ["a cat"]])
        >>> found.num_images, found.counts  # an n-gram of one picture weighs as much as an unknown one
        (3, {('a',): 3})
        >>> round(found.idf(("a",)), 2), round(found.idf(("red",)), 2)
        (0.0, 1.1)
    """

    num_images: int
    counts: Mapping[Ngram, int]
    tokenize: str = "13a"

    def __post_init__(self) -> None:
        tokenizer(self.tokenize)
        if self.num_images < 1:
            raise ValueError(
                f"`num_images` must be at least 1; got {self.num_images}. Fit on the training references."
            )
        most = max(self.counts.values(), default=1)
        if most > self.num_images:
            raise ValueError(
                f"`counts` has an n-gram in {most} pictures, `num_images` is {self.num_images}. "
                "They are not of the same corpus."
            )

    @classmethod
    def fit(
        cls, reference_sets: Iterable[Sequence[str] | None], *, tokenize: str = "13a"
    ) -> DocumentFrequencies:
        """Count over the references of each picture, one set per picture; None is passed over.

        Give each picture once: sets are not compared, since two pictures may well have the same captions.
        """
        split = tokenizer(tokenize)
        counts: Counter[Ngram] = Counter()
        num_images = 0
        for references in reference_sets:
            if references is None:
                continue
            num_images += 1
            found = dict.fromkeys(gram for text in references for gram in chain(*ngrams(split(text))))
            counts.update(iter(found))
        if not num_images:
            raise ValueError("`reference_sets` has no references. CIDEr-D needs those of the training rows.")
        return cls(num_images, {gram: count for gram, count in counts.items() if count > 1}, tokenize)

    def idf(self, gram: Ngram) -> float:
        """How telling an n-gram is, from 0 (in every picture) to log N."""
        return math.log(self.num_images) - math.log(self.counts.get(gram, 1))

    def state_dict(self) -> dict[str, Any]:
        """Everything as JSON takes it; an n-gram is its tokens joined by blanks."""
        counts = {" ".join(gram): count for gram, count in self.counts.items()}
        return {"num_images": self.num_images, "tokenize": self.tokenize, "counts": counts}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> DocumentFrequencies:
        """What `state_dict` gave."""
        missing = {"num_images", "tokenize", "counts"} - set(state)
        if missing:
            raise ValueError(
                f"the document frequencies lack {', '.join(sorted(missing))}; got {sorted(state)}. "
                "Write them with `DocumentFrequencies.save`."
            )
        counts = {tuple(text.split(" ")): int(count) for text, count in state["counts"].items()}
        return cls(int(state["num_images"]), counts, state["tokenize"])

    def save(self, path: str | Path) -> None:
        """Write a JSON file."""
        Path(path).write_text(json.dumps(self.state_dict(), ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> DocumentFrequencies:
        """Read a file that `save` wrote."""
        return cls.from_state_dict(json.loads(Path(path).read_text(encoding="utf-8")))


@dataclass(frozen=True, slots=True)
class WeightedNgrams:
    """A text as CIDEr-D sees it: for each order the vector g_n, by n-gram, and its norm; and the length."""

    vectors: tuple[dict[Ngram, float], ...]
    norms: tuple[float, ...]
    length: int


class CiderD:
    """CIDEr-D of captions against references (Vedantam et al. 2015, arXiv:1411.5726).

        CIDEr-D   = 10 * 1/4 * sum_n CIDEr-D_n,                n = 1..4
        CIDEr-D_n = 1/J * sum_j exp(-(l(c) - l(r_j))^2 / (2 * sigma^2))
                          * min(g_n(c), g_n(r_j)) . g_n(r_j) / (|g_n(c)| * |g_n(r_j)|)

    The paper's eq. 1 weighs n-grams, eq. 2 and 3 are the cosine and its mean over the orders; its section on
    gaming the measure adds the minimum, the length penalty and the factor. g_n(x) holds count * idf for every
    n-gram of x, the minimum is taken entry by entry, sigma = 6. As in the coco-caption tools, the term
    frequency is a bare count (the cosine cancels its denominator), a cosine with an empty vector is 0, and
    l(x) is the number of tokens of x. Scores lie in [0, 10]; with the document frequencies of one picture
    every idf, and so every score, is 0.

    Example:
        >>> from rewards import CiderD, DocumentFrequencies
        >>> references = [["a red circle"], ["a blue square"], ["a cat"]]
        >>> score = CiderD(DocumentFrequencies.fit(references))
        >>> [round(score(caption, references[0]), 1) for caption in ("a red circle", "a circle", "a cat")]
        [7.5, 1.7, 0.0]
    """

    def __init__(
        self,
        document_frequencies: DocumentFrequencies,
        *,
        sigma: float = SIGMA,
        cache_size: int = CACHE_SIZE,
    ) -> None:
        """Score with these document frequencies and their tokeniser; keep `cache_size` sets prepared."""
        if cache_size < 1:
            raise ValueError(f"`cache_size` must be at least 1; got {cache_size}.")
        if not sigma > 0:
            raise ValueError(f"`sigma` must be > 0; got {sigma}.")
        self.document_frequencies = document_frequencies
        self.sigma = sigma
        self.cache_size = cache_size
        self._split = tokenizer(document_frequencies.tokenize)
        self._rarest = math.log(document_frequencies.num_images)
        self._idf = {gram: document_frequencies.idf(gram) for gram in document_frequencies.counts}
        self._prepared: dict[tuple[str, ...], list[WeightedNgrams]] = {}

    def __call__(self, caption: str, references: Sequence[str]) -> float:
        """CIDEr-D of one caption; the references of a set are prepared at its first caption."""
        said = self._weighted(caption)
        prepared = self._references(tuple(references))
        return 10 * sum(self._similarity(said, each) for each in prepared) / (MAX_ORDER * len(prepared))

    def _similarity(self, said: WeightedNgrams, reference: WeightedNgrams) -> float:
        """The sum over the orders, for one reference."""
        total = 0.0
        for order, (ours, theirs) in enumerate(zip(said.vectors, reference.vectors, strict=True)):
            common = [gram for gram in ours if gram in theirs]  # in the order of the text, in every process
            if not common:
                break  # nor is a longer n-gram common
            norms = said.norms[order] * reference.norms[order]
            if norms:
                total += sum(min(ours[gram], theirs[gram]) * theirs[gram] for gram in common) / norms
        distance = said.length - reference.length
        return total * math.exp(-(distance**2) / (2 * self.sigma**2))

    def _weighted(self, text: str) -> WeightedNgrams:
        words = self._split(text)
        vectors, norms = [], []
        for grams in map(list, ngrams(words)):
            vector = dict(zip(grams, map(self._idf.get, grams, repeat(self._rarest)), strict=True))
            if len(vector) < len(grams):
                for gram, count in Counter(grams).items():
                    vector[gram] *= count
            vectors.append(vector)
            norms.append(math.sqrt(sum(map(mul, vector.values(), vector.values()))))
        return WeightedNgrams(tuple(vectors), tuple(norms), len(words))

    def _references(self, references: tuple[str, ...]) -> list[WeightedNgrams]:
        # Least recently used first: a dict keeps the order of insertion, and what is used is put in again.
        found = self._prepared.pop(references, None)
        if found is None:
            if not references:
                raise ValueError("`references` is empty. Give one reference at least.")
            found = [self._weighted(text) for text in references]
            if len(self._prepared) >= self.cache_size:
                del self._prepared[next(iter(self._prepared))]
        self._prepared[references] = found
        return found


class CiderReward:
    """CIDEr-D in TRL's protocol, in [0, 10]; None where a row's references are None.

    Document frequencies come from the training references: a trainer that calls `prepare` has them fitted and
    keeps them with the run (`state_dict`). Elsewhere, as in TRL's trainers, give them: a file of
    `DocumentFrequencies.save`, or the object.

    Example:
        >>> from rewards import CiderReward
        >>> training = {"references": [["a red circle"], ["a blue square"], ["a cat"]]}
        >>> reward = CiderReward()
        >>> reward.prepare(training.get)  # mmft's trainers do so
        >>> scores = reward(None, ["a red circle", "a cat"], references=["a red circle"] * 2)
        >>> [round(score, 1) for score in scores]
        [7.5, 0.0]
    """

    def __init__(
        self,
        document_frequencies: DocumentFrequencies | str | Path | None = None,
        references_column: str = "references",
        tokenize: str | None = None,
        sigma: float = SIGMA,
    ) -> None:
        """Choose where document frequencies come from.

        Args:
            document_frequencies: Fitted ones or the path of a file with them; None to fit in `prepare`.
            references_column: Column with a row's reference captions.
            tokenize: "13a" (lower-cased words and punctuation marks) or "none" (pre-tokenised text); by
                default that of the document frequencies, else "13a".
            sigma: Standard deviation of the length penalty, in words.
        """
        if isinstance(document_frequencies, (str, Path)):
            document_frequencies = DocumentFrequencies.load(document_frequencies)
        if tokenize is not None:
            tokenizer(tokenize)
        if not sigma > 0:
            raise ValueError(f"`sigma` must be > 0; got {sigma}.")
        self.references_column = references_column
        self.tokenize = tokenize
        self.sigma = sigma
        self._scorer: CiderD | None = None
        if document_frequencies is not None:
            self._use(document_frequencies)
        self.__name__ = "cider_d"

    def __repr__(self) -> str:
        fitted = "" if self._scorer is None else f", {self._scorer.document_frequencies.num_images} pictures"
        return f"CiderReward(sigma={self.sigma}{fitted})"

    def prepare(self, column: Callable[[str], list[Any] | None]) -> None:
        """Fit on the training references, unless fitted already; `column(name)` gives a whole column."""
        if self._scorer is not None:
            return
        values = column(self.references_column)
        rows = text_column(values, self.references_column, 0 if values is None else len(values))
        self._use(DocumentFrequencies.fit(rows, tokenize=self.tokenize or "13a"))

    def state_dict(self) -> dict[str, Any]:
        """The document frequencies; empty if there are none yet."""
        return {} if self._scorer is None else self._scorer.document_frequencies.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Use saved document frequencies; an empty state changes nothing."""
        if state:
            self._use(DocumentFrequencies.from_state_dict(state))

    def _use(self, frequencies: DocumentFrequencies) -> None:
        if self.tokenize not in (None, frequencies.tokenize):
            raise ValueError(
                f"`tokenize` is {self.tokenize!r}, the document frequencies were counted with "
                f"{frequencies.tokenize!r}. Leave `tokenize` out, or count them again."
            )
        self._scorer = CiderD(frequencies, sigma=self.sigma)

    def __call__(
        self, prompts: list[Any] | None, completions: list[Completion], **columns: Any
    ) -> list[float | None]:
        """One CIDEr-D per completion."""
        if self._scorer is None:
            raise ValueError(
                "`document_frequencies` of CIDEr-D are not there. mmft's trainers fit them on the training "
                "rows before training; elsewhere call `prepare(columns.get)` with columns of the training "
                "rows, or give the path of a file of `DocumentFrequencies.save`."
            )
        column = self.references_column
        return score_captions(completions, columns.get(column), column, self._scorer)
