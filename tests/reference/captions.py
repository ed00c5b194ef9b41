"""BLEU, ROUGE-L and CIDEr-D with loops and tables, straight from the formulas: slow and plain."""

from __future__ import annotations

import math

Words = list[str]


def grams(words: Words, order: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + order]) for start in range(len(words) - order + 1)]


def bleu(caption: Words, references: list[Words], max_order: int) -> float:
    """Smoothed sentence BLEU: a halved share for every further order without a match."""
    orders = min(max_order, len(caption))
    product, halving = 1.0, 1.0
    for order in range(1, orders + 1):
        said = grams(caption, order)
        matched = 0
        for gram in set(said):
            most = max(grams(reference, order).count(gram) for reference in references)
            matched += min(said.count(gram), most)
        if order == 1 and not matched:
            return 0.0
        if not matched:
            halving /= 2
        product *= (matched or halving) / len(said)
    if not caption:
        return 0.0
    closest = sorted((abs(len(reference) - len(caption)), len(reference)) for reference in references)[0][1]
    brevity = math.exp(1 - closest / len(caption)) if len(caption) < closest else 1.0
    return brevity * product ** (1 / orders)


def longest_common_subsequence(one: Words, other: Words) -> int:
    """The textbook table."""
    table = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i, left in enumerate(one, start=1):
        for j, right in enumerate(other, start=1):
            if left == right:
                table[i][j] = table[i - 1][j - 1] + 1
            else:
                table[i][j] = max(table[i - 1][j], table[i][j - 1])
    return table[-1][-1]


def cider_d(caption: Words, references: list[Words], corpus: list[list[Words]]) -> float:
    """Document frequencies are counted over `corpus`, the references of each picture, n-gram by n-gram."""

    def idf(gram: tuple[str, ...]) -> float:
        pictures = 0
        for texts in corpus:
            pictures += any(gram in grams(text, len(gram)) for text in texts)
        return math.log(len(corpus)) - math.log(max(1, pictures))

    total = 0.0
    for reference in references:
        for order in (1, 2, 3, 4):
            ours, theirs = grams(caption, order), grams(reference, order)
            dot = 0.0
            for gram in set(ours) & set(theirs):
                left, right = ours.count(gram) * idf(gram), theirs.count(gram) * idf(gram)
                dot += min(left, right) * right
            norm = math.sqrt(sum((ours.count(gram) * idf(gram)) ** 2 for gram in set(ours)))
            norm *= math.sqrt(sum((theirs.count(gram) * idf(gram)) ** 2 for gram in set(theirs)))
            distance = len(grams(caption, 2)) - len(grams(reference, 2))
            if norm:
                total += dot / norm * math.exp(-(distance**2) / 72)
    return 10 * total / 4 / len(references)
