"""CIDEr-D: hand numbers, slow loops, the coco-caption tools, and what is kept with a run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pycocoevalcap.cider.cider import Cider

from rewards import CiderD, CiderReward, DocumentFrequencies, check, ngrams
from tests.reference import captions as slow
from tests.rewards.parity import CORPORA, golden_rows, random_corpora

TWO = DocumentFrequencies.fit([["a cat"], ["a dog"]])  # idf: a 0; cat, dog, "a cat", unknown words log 2


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        # 1-grams "cat": cosine 1; 2-grams "a cat": cosine 1; no longer ones: 10 * 2/4.
        ("a cat", 5.0),
        # 1-grams (the, cat) against (cat): 1/sqrt 2; no 2-gram: 10/4 / sqrt 2.
        ("the cat", 10 / 4 / math.sqrt(2)),
        # One word has no bigram, the reference one: distance 1, 10/4 * exp(-1 / (2 * 36)).
        ("cat", 10 / 4 * math.exp(-1 / 72)),
        # "cat" twice counts once: min(2, 1) * 1 / (2 * 1).
        ("cat cat", 10 / 4 / 2),
        # "a" is in both pictures: weight 0.
        ("a a", 0.0),
        ("", 0.0),
        ("owls", 0.0),
    ],
)
def test_cider_d_hand_computed(caption: str, expected: float):
    assert CiderD(TWO)(caption, ["a cat"]) == pytest.approx(expected, abs=1e-12)


def test_cider_d_is_the_mean_over_the_references():
    scorer = CiderD(TWO)
    expected = (scorer("the cat", ["a cat"]) + scorer("the cat", ["the cat sat"])) / 2
    assert scorer("the cat", ["a cat", "the cat sat"]) == pytest.approx(expected)


def test_a_caption_that_is_its_reference_gets_ten():
    frequencies = DocumentFrequencies.fit([["a cat on a mat"], ["a dog in the rain"]])
    assert CiderD(frequencies)("A cat on a mat", ["a cat on a mat"]) == pytest.approx(10.0)


def test_a_narrow_sigma_punishes_length_more():
    wide, narrow = CiderD(TWO, sigma=100.0), CiderD(TWO, sigma=1.0)
    assert narrow("cat", ["a cat"]) == pytest.approx(10 / 4 * math.exp(-1 / 2))
    assert narrow("cat", ["a cat"]) < wide("cat", ["a cat"])
    assert narrow("the cat", ["a cat"]) == wide("the cat", ["a cat"])


def test_cider_d_does_not_depend_on_the_order_of_the_references():
    references = ["a cat", "the cat sat", "a cat sat on it"]
    scorer = CiderD(TWO)
    assert scorer("a cat sat", references) == pytest.approx(scorer("a cat sat", references[::-1]), abs=1e-12)


@pytest.mark.parametrize("name", CORPORA)
def test_cider_d_equals_the_recorded_numbers_of_the_coco_caption_tools(name: str):
    rows = golden_rows(name)
    scorer = CiderD(DocumentFrequencies.fit([texts for _, texts in rows], tokenize="none"))
    values = [scorer(text, texts) for text, texts in rows]
    assert values == pytest.approx(CORPORA[name]["cider_d_per_caption"], abs=1e-11)


def test_cider_d_equals_the_coco_caption_tools_and_a_slow_loop_on_random_text():
    for rows in random_corpora(60):
        references = {index: texts for index, (_, texts) in enumerate(rows)}
        captions = {index: [text] for index, (text, _) in enumerate(rows)}
        _, expected = Cider().compute_score(references, captions)
        scorer = CiderD(DocumentFrequencies.fit(references.values(), tokenize="none"))
        values = [scorer(text, texts) for text, texts in rows]
        assert values == pytest.approx(list(expected), abs=1e-11)
        corpus = [[text.split() for text in texts] for texts in references.values()]
        looped = [
            slow.cider_d(text.split(), said, corpus) for (text, _), said in zip(rows, corpus, strict=True)
        ]
        assert values == pytest.approx(looped, abs=1e-11)


def test_document_frequencies_count_pictures_not_references_and_keep_what_two_have():
    found = DocumentFrequencies.fit([["a cat", "a cat a cat"], None, ["a dog"], ["the dog"]])
    assert found.num_images == 3
    assert found.counts == {("a",): 2, ("dog",): 2}
    assert found.idf(("cat",)) == found.idf(("never", "seen")) == pytest.approx(math.log(3))
    assert found.idf(("dog",)) == pytest.approx(math.log(3 / 2))


def test_a_picture_more_makes_what_it_lacks_more_telling():
    sets = [["a cat on a mat"], ["a dog on a mat"]]
    longer = DocumentFrequencies.fit([*sets, ["birds in the sky"]])
    assert longer.idf(("cat",)) > DocumentFrequencies.fit(sets).idf(("cat",))


@pytest.mark.parametrize("tokenize", ["13a", "none"])
def test_document_frequencies_survive_a_file(tmp_path: Path, tokenize: str):
    sets = [["Ein Käfer, rot", "a 'beetle'"], ["Ein Käfer , blau"], ['a "beetle" \\ 猫']]
    found = DocumentFrequencies.fit(sets, tokenize=tokenize)
    found.save(tmp_path / "df.json")
    assert DocumentFrequencies.load(tmp_path / "df.json") == found
    assert DocumentFrequencies.from_state_dict(json.loads(json.dumps(found.state_dict()))) == found
    assert found.counts


def test_the_references_of_a_set_are_prepared_once_and_the_memory_is_bounded(monkeypatch: pytest.MonkeyPatch):
    split: list[str] = []
    monkeypatch.setitem(ngrams.TOKENIZERS, "13a", lambda text: split.append(text) or text.split())
    scorer = CiderD(TWO, cache_size=2)
    for references in (["one"], ["two"], ["one"], ["three"], ["one"], ["two"]):
        scorer("said", references)
    # "three" pushes "two" out, which was not used for longer than "one".
    assert [split.count(text) for text in ("one", "two", "three", "said")] == [1, 2, 1, 6]


def columns(**values: list[Any]) -> Callable[[str], list[Any] | None]:
    return values.get


def test_the_reward_is_fitted_on_the_training_references_once():
    reward = CiderReward(references_column="said")
    reward.prepare(columns(said=[["a cat"], "a dog", None]))
    assert reward(None, ["the cat", "x"], said=[["a cat"], None]) == [pytest.approx(10 / 4 / 2**0.5), None]
    state = reward.state_dict()
    reward.prepare(columns(said=[["something else"]]))
    assert reward.state_dict() == state


def test_the_reward_restores_what_it_was_fitted_on():
    reward = CiderReward()
    reward.prepare(columns(references=[["a cat"], ["a dog"]]))
    other = CiderReward()
    other.load_state_dict(json.loads(json.dumps(reward.state_dict())))
    other.prepare(columns(references=[["never"], ["looked"], ["at"]]))
    row = {"references": [["a cat"]]}
    assert other(None, ["the cat"], **row) == reward(None, ["the cat"], **row)
    assert reward(None, ["the cat"], **row) == pytest.approx([10 / 4 / 2**0.5])
    assert other.__name__ == "cider_d"


def test_the_reward_takes_a_file_or_frequencies_and_their_tokeniser(tmp_path: Path):
    frequencies = DocumentFrequencies.fit([["A cat."], ["A dog."]], tokenize="none")
    frequencies.save(tmp_path / "df.json")
    for given in (frequencies, tmp_path / "df.json", str(tmp_path / "df.json")):
        reward = CiderReward(given)
        assert reward(None, ["A cat.", "a cat ."], references=[["A cat."]] * 2) == [5.0, 0.0]


def test_the_reward_without_document_frequencies_says_what_to_do():
    reward = CiderReward()
    assert reward.state_dict() == {}
    reward.load_state_dict({})
    with pytest.raises(ValueError, match=r"`document_frequencies` of CIDEr-D are not there.*`prepare"):
        reward(None, ["a cat"], references=[["a cat"]])


def test_the_reward_passes_the_checker():
    check(CiderReward(TWO), prompts=["p"] * 2, completions=["a cat", "b"], references=[["a cat"]] * 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DocumentFrequencies.fit([None]), "`reference_sets` has no references"),
        (lambda: DocumentFrequencies(0, {}), "`num_images` must be at least 1; got 0"),
        (lambda: DocumentFrequencies(1, {("a",): 2}), "n-gram in 2 pictures, `num_images` is 1"),
        (lambda: DocumentFrequencies.from_state_dict({"counts": {}}), "lack num_images, tokenize; got"),
        (lambda: CiderD(TWO, sigma=0.0), "`sigma` must be > 0; got 0.0"),
        (lambda: CiderReward(sigma=-1.0), "`sigma` must be > 0; got -1.0"),
        (lambda: CiderD(TWO, cache_size=0), "`cache_size` must be at least 1; got 0"),
        (lambda: CiderD(TWO)("a", []), "`references` is empty"),
        (lambda: CiderReward(tokenize="ptb"), "`tokenize` must be .*; got 'ptb'"),
        (lambda: CiderReward(TWO, tokenize="none"), "`tokenize` is 'none', .* counted with '13a'"),
        (lambda: CiderReward().prepare(columns(other=[])), "the reward needs a column `references`"),
        (lambda: CiderReward(TWO)(None, ["a"]), "the reward needs a column `references`"),
    ],
)
def test_what_cider_d_cannot_use_is_named(call: Callable[[], Any], message: str):
    with pytest.raises(ValueError, match=message):
        call()
