"""Rewards per second on the same captions and references: ours beside the libraries people call.

One run, one machine, every system on the same texts: 10,000 captions with 5 references each, once with 8
captions per set of references, as a rollout has them, and once with a set of its own per caption. Scores are
compared before a time counts. Systems alternate, caches are empty when a timing starts, and what is timed is
the processor's time, so that a busy machine does not count. Writes the section "Rewards" of RESULTS.md.

`evaluate`'s bleu is a script on the hub, not in the package: `--evaluate-bleu` names a folder that holds it.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from typing import Any

import evaluate
import numpy as np
import sacrebleu
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
from sacrebleu.tokenizers.tokenizer_re import TokenizerRegexp

from mmft.evaluation.metrics.measures import bleu
from rewards import BleuReward, CiderD, CiderReward, DocumentFrequencies, RougeLReward
from rewards.bleu import bleu_statistics, reference_ngrams, sentence_bleu
from rewards.rouge import reference_positions
from tests.benchmarks.sections import write_section

HEADING = "# Rewards"
NUM_CAPTIONS, NUM_REFERENCES, VOCABULARY = 10_000, 5, 4_000
GROUPS = {"8 captions per set": 8, "a set per caption": 1}
LETTERS = "etaoinshrdlucmfwgypbvk"
EVALUATE_GIVEN = """`evaluate`'s bleu is a script of the hub, given as a folder;
its shares of matched n-grams are compared, since its brevity penalty takes the shortest reference."""
EVALUATE_MISSING = "`evaluate`'s bleu is a script of the hub and was not at hand."
FUNCTION_WORDS = "a the on in of with and to is at".split()


@dataclass(frozen=True)
class Corpus:
    """Captions, and for each its references; captions of one picture share one list."""

    captions: list[str]
    references: list[list[str]]

    def pairs(self) -> Iterator[tuple[str, list[str]]]:
        return zip(self.captions, self.references, strict=True)

    def as_coco(self) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
        """References and captions by number, as the coco-caption tools take them."""
        return dict(enumerate(self.references)), {row: [text] for row, text in enumerate(self.captions)}


def make_corpus(num_captions: int, group: int, *, tokenized: bool) -> Corpus:
    """Caption-like text: words by Zipf's law, function words between, references that share words.

    `tokenized` gives lower case without punctuation marks, as the coco-caption tools want it.
    """
    chance = random.Random(0)
    words = ["".join(chance.choices(LETTERS, k=chance.randint(3, 9))) for _ in range(VOCABULARY)]
    weights = [1 / (rank + 3) for rank in range(VOCABULARY)]

    def sentence(subject: list[str]) -> str:
        chosen = chance.sample(subject, k=chance.randint(3, 5)) + chance.choices(words, weights, k=1)
        said = " ".join(f"{chance.choice(FUNCTION_WORDS)} {word}" for word in chosen)
        return said if tokenized else said.capitalize() + "."

    captions, references = [], []
    for _ in range(num_captions // group):
        subject = chance.choices(words, weights, k=7)
        texts = [sentence(subject) for _ in range(NUM_REFERENCES)]
        captions += [sentence(subject) for _ in range(group)]
        references += [texts] * group
    return Corpus(captions, references)


class Systems:
    """Everything that is timed. A method gives one score per caption, or the one score of the corpus."""

    def __init__(self, num_captions: int, group: int, evaluate_bleu: Any) -> None:
        self.text = make_corpus(num_captions, group, tokenized=False)
        self.tokenized = make_corpus(num_captions, group, tokenized=True)
        self.module = evaluate_bleu
        self.frequencies = DocumentFrequencies.fit(self.tokenized.references, tokenize="none")
        self.prepared = CiderD(self.frequencies, cache_size=num_captions)
        self.cider_prepared()

    def bleu(self) -> Sequence[Any]:
        return BleuReward()(None, self.text.captions, references=self.text.references)

    def sacrebleu_sentence_bleu(self) -> Sequence[Any]:
        return [sacrebleu.sentence_bleu(c, r, lowercase=True).score / 100 for c, r in self.text.pairs()]

    def sacrebleu_object(self) -> Sequence[Any]:
        scorer = BLEU(lowercase=True, effective_order=True)
        return [scorer.sentence_score(c, r).score / 100 for c, r in self.text.pairs()]

    def coco_bleu(self) -> Sequence[Any]:
        pairs = self.tokenized.pairs()
        return [sentence_bleu(c, r, tokenize="none", smoothing="coco") for c, r in pairs]

    def pycocoevalcap_bleu(self) -> Sequence[Any]:
        return Bleu(4).compute_score(*self.tokenized.as_coco(), verbose=0)[1][3]

    def corpus_bleu(self) -> Sequence[Any]:
        return [bleu(self.text.captions, self.text.references).scores["bleu_4"]]

    def sacrebleu_corpus_bleu(self) -> Sequence[Any]:
        streams = [list(stream) for stream in zip(*self.text.references, strict=True)]
        options: dict[str, Any] = {"lowercase": True, "smooth_method": "none", "force": True}
        return [sacrebleu.corpus_bleu(self.text.captions, streams, **options).score / 100]

    def evaluate_bleu(self) -> Sequence[Any]:
        captions = [text.lower() for text in self.text.captions]
        references = [[text.lower() for text in texts] for texts in self.text.references]
        self.found = self.module.compute(predictions=captions, references=references)
        return self.found["precisions"]

    def cider(self) -> Sequence[Any]:
        reward = CiderReward(self.frequencies)
        return reward(None, self.tokenized.captions, references=self.tokenized.references)

    def cider_prepared(self) -> Sequence[Any]:
        return [self.prepared(c, r) for c, r in self.tokenized.pairs()]

    def pycocoevalcap_cider(self) -> Sequence[Any]:
        return Cider().compute_score(*self.tokenized.as_coco())[1]

    def rouge(self) -> Sequence[Any]:
        reward = RougeLReward(tokenize="none")
        return reward(None, self.tokenized.captions, references=self.tokenized.references)

    def pycocoevalcap_rouge(self) -> Sequence[Any]:
        return Rouge().compute_score(*self.tokenized.as_coco())[1]

    def shares(self) -> Sequence[float]:
        """Matched shares of n-grams: `evaluate`'s BLEU takes the shortest reference's length, these agree."""
        rows = [bleu_statistics(c, r) for c, r in self.text.pairs()]
        totals = [sum(max(0, row[0] - longer) for row in rows) for longer in range(4)]
        return [sum(row[2][order] for row in rows) / totals[order] for order in range(4)]


@dataclass(frozen=True)
class Contest:
    """Systems that give the same scores: ours first, then by label the methods of `Systems`."""

    ours: dict[str, str]
    peers: dict[str, str]


CONTESTS = {
    "BLEU-4, per caption": Contest(
        {"mmft": "bleu"},
        {"sacrebleu.sentence_bleu": "sacrebleu_sentence_bleu", "sacrebleu, one BLEU": "sacrebleu_object"},
    ),
    "BLEU-4 of coco-caption, per caption": Contest(
        {"mmft": "coco_bleu"}, {"pycocoevalcap": "pycocoevalcap_bleu"}
    ),
    "BLEU-4, corpus": Contest(
        {"mmft": "corpus_bleu"},
        {"sacrebleu.corpus_bleu": "sacrebleu_corpus_bleu", "evaluate bleu": "evaluate_bleu"},
    ),
    "CIDEr-D, per caption": Contest(
        {"mmft, references prepared": "cider_prepared", "mmft, references new": "cider"},
        {"pycocoevalcap": "pycocoevalcap_cider"},
    ),
    "ROUGE-L, per caption": Contest({"mmft": "rouge"}, {"pycocoevalcap": "pycocoevalcap_rouge"}),
}


def clear_caches() -> None:
    reference_ngrams.cache_clear()
    reference_positions.cache_clear()
    for tokenizer in (Tokenizer13a, TokenizerRegexp):
        tokenizer.__call__.cache_clear()  # type: ignore[attr-defined]
    gc.collect()


def timed(systems: Systems, method: str) -> tuple[float, Sequence[Any]]:
    clear_caches()
    start = time.process_time()
    scores = getattr(systems, method)()
    return time.process_time() - start, scores


def measure(systems: Systems, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of processor time by contest and label: medians over alternating rounds, scores compared."""
    seconds: dict[str, dict[str, list[float]]] = {}
    for _ in range(rounds):
        for name, contest in CONTESTS.items():
            expected: Sequence[Any] | None = None
            for label, method in {**contest.ours, **contest.peers}.items():
                if method == "evaluate_bleu" and systems.module is None:
                    continue
                spent, scores = timed(systems, method)
                seconds.setdefault(name, {}).setdefault(label, []).append(spent)
                expected = scores if expected is None else expected
                right = systems.shares() if method == "evaluate_bleu" else expected
                np.testing.assert_allclose(scores, right, rtol=0, atol=1e-9, err_msg=f"{name}: {label}")
    return {
        name: {label: statistics.median(times) for label, times in by_label.items()}
        for name, by_label in seconds.items()
    }


def table(results: dict[str, dict[str, dict[str, float]]], num_captions: int) -> str:
    """One line per contest, case and system; the ratio is ours over the peer's rate."""
    rows = [("measure", "case", "system", "captions/s", "mmft is faster by"), ("---",) * 5]
    for name, contest in CONTESTS.items():
        for case, found in results.items():
            by_label = found[name]
            ours = [by_label[label] for label in contest.ours]
            for label, spent in by_label.items():
                ratios = "" if label in contest.ours else ", ".join(f"{spent / own:.1f}x" for own in ours)
                rows.append((name, case, label, f"{num_captions / spent:,.0f}", ratios))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def report(results: dict[str, dict[str, dict[str, float]]], num_captions: int) -> str:
    packages = ("sacrebleu", "pycocoevalcap", "evaluate")
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    measured = any("evaluate bleu" in found["BLEU-4, corpus"] for found in results.values())
    script = EVALUATE_GIVEN if measured else EVALUATE_MISSING
    return f"""{HEADING}

{date.today().isoformat()}, {os.cpu_count()} CPU cores ({platform.machine()}), one process and one thread,
Python {platform.python_version()}, {versions}.
`python -m tests.benchmarks.rewards` writes this section.

{num_captions:,} captions of 8 to 12 words, {NUM_REFERENCES} references each, synthetic
(Zipf's law over {VOCABULARY:,} words).
Rates are per second of processor time, medians of alternating rounds with empty caches, tokenising
included; scores agree to 1e-9 before a time counts. "8 captions per set" are the completions of
one prompt, "a set per caption" leaves nothing to share. References of CIDEr-D are "prepared" once a caption
was scored against them, "new" before; its document frequencies are those of the corpus, fitted beforehand
here and counted inside the call by pycocoevalcap.
{script}

{table(results, num_captions)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--captions", type=int, default=NUM_CAPTIONS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--evaluate-bleu", help="a folder named bleu with the script bleu.py of the hub")
    arguments = parser.parse_args()
    module = None
    if arguments.evaluate_bleu:
        module = evaluate.load(arguments.evaluate_bleu, keep_in_memory=True)
    results = {
        case: measure(Systems(arguments.captions, group, module), arguments.rounds)
        for case, group in GROUPS.items()
    }
    text = report(results, arguments.captions)
    sys.stdout.write(text)
    if arguments.captions == NUM_CAPTIONS:
        write_section(text)


if __name__ == "__main__":
    main()
