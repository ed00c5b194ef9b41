"""From a caption to tokens and n-grams: what BLEU, ROUGE-L and CIDEr-D share.

Two tokenisers, chosen by name in every measure. No stemming, and no removal of punctuation: the coco-caption
tools drop it before they score, so give them and these measures the same tokens (`tokenize="none"`) for the
same numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

Ngram = tuple[str, ...]
MAX_ORDER = 4

# On text of these characters alone 13a does nothing but part "." and "," from their neighbours.
_PLAIN = re.compile(r"[a-z .,'-]*")


@lru_cache(maxsize=1)
def _tokenizer() -> Tokenizer13a:
    return Tokenizer13a()


def tokens(text: str) -> list[str]:
    """Lower-case 13a tokens, words and punctuation marks, as sacrebleu counts them."""
    text = text.lower()
    if _PLAIN.fullmatch(text):
        return text.replace(".", " . ").replace(",", " , ").split()
    return _tokenizer()(text.rstrip()).split()


TOKENIZERS: dict[str, Callable[[str], list[str]]] = {"13a": tokens, "none": str.split}
"""`13a`: lower case, punctuation marks are tokens. `none`: pre-tokenised text, split at blanks, case kept."""


def tokenizer(name: str) -> Callable[[str], list[str]]:
    """The tokeniser of that name."""
    if name not in TOKENIZERS:
        raise ValueError(
            f'`tokenize` must be "13a" or "none" (text that is tokenised already, split at white space); '
            f"got {name!r}."
        )
    return TOKENIZERS[name]


def case(tokenize: str) -> str:
    """How a tokeniser treats case, in the words of sacrebleu's signatures."""
    return "lc" if tokenize == "13a" else "mixed"


def ngrams(words: Sequence[str]) -> tuple[Iterator[Ngram], ...]:
    """The n-grams of the orders 1 to 4, each in the order of the text."""
    # zip ends with the shortest, so a text that is too short has none. Written out for speed.
    second, third, fourth = words[1:], words[2:], words[3:]
    return (
        zip(words, strict=False),
        zip(words, second, strict=False),
        zip(words, second, third, strict=False),
        zip(words, second, third, fourth, strict=False),
    )
