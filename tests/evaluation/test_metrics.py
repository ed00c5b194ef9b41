"""Corpus measures by short name: peers' numbers, signatures, rows that cannot be judged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sacrebleu
from PIL import Image

from mmft.evaluation.metrics import METRICS, CorpusResult, corpus_metrics
from rewards import ClipScore, DocumentFrequencies, sentence_bleu
from tests.rewards.contrastive import build_contrastive
from tests.rewards.parity import CORPORA, Rows, golden_rows, random_corpora

TEXT_MEASURES = ("bleu", "rouge_l", "cider_d")
PREDICTIONS = ["A red circle on a mat.", "a dog barks", "", "the bird"]
REFERENCES = [["a red circle is on a mat", "see, a ball"], ["the dog barks"], ["x y z"], None]
PRE_TOKENISED = {name: {"tokenize": "none"} for name in TEXT_MEASURES}


def of(rows: Rows, **options: Any) -> CorpusResult:
    names = [text for text, _ in rows]
    settings = {**PRE_TOKENISED, "bleu": {"tokenize": "none", **options}}
    return corpus_metrics(TEXT_MEASURES, names, [texts for _, texts in rows], options=settings)


@pytest.mark.parametrize("name", CORPORA)
def test_corpus_numbers_are_those_of_the_coco_caption_tools(name: str):
    found, expected = of(golden_rows(name), smoothing="coco"), CORPORA[name]
    for order in (1, 2, 3, 4):
        assert found.scores[f"bleu_{order}"] == pytest.approx(expected["bleu"][order - 1], abs=1e-12)
        assert found.per_sample[f"bleu_{order}"] == pytest.approx(
            expected["bleu_per_caption"][order - 1], abs=1e-12
        )
    for measure in ("rouge_l", "cider_d"):
        assert found.scores[measure] == pytest.approx(expected[measure], abs=1e-11)
        assert found.per_sample[measure] == pytest.approx(expected[f"{measure}_per_caption"], abs=1e-11)


@pytest.mark.parametrize("name", [name for name in CORPORA if name != "one word each"])
def test_bleu_without_smoothing_is_that_of_the_coco_caption_tools_where_there_are_n_grams(name: str):
    found = of(golden_rows(name)).scores
    assert [found[f"bleu_{order}"] for order in (1, 2, 3, 4)] == pytest.approx(
        CORPORA[name]["bleu"], abs=1e-3
    )


def test_bleu_without_smoothing_is_zero_where_a_corpus_has_no_n_gram_of_an_order():
    assert of(golden_rows("one word each")).scores["bleu_2"] == 0.0


@pytest.mark.parametrize("smoothing", ["none", "exp"])
def test_corpus_bleu_is_that_of_sacrebleu(smoothing: str):
    for rows in random_corpora(40):
        longest = max(len(texts) for _, texts in rows)
        streams = [[texts[j] if j < len(texts) else None for _, texts in rows] for j in range(longest)]
        found = of(rows, smoothing=smoothing).scores
        for order in (1, 2, 3, 4):
            peer = sacrebleu.metrics.BLEU(tokenize="none", smooth_method=smoothing, max_ngram_order=order)
            expected = peer.corpus_score([text for text, _ in rows], streams).score / 100
            assert found[f"bleu_{order}"] == pytest.approx(expected, abs=1e-12), rows


def test_text_is_lower_cased_and_tokenised_unless_it_is_said_to_be():
    found = corpus_metrics(["bleu"], PREDICTIONS[:2], REFERENCES[:2]).scores["bleu_4"]
    streams: list[Any] = [["a red circle is on a mat", "the dog barks"], ["see, a ball", None]]
    expected = sacrebleu.corpus_bleu(PREDICTIONS[:2], streams, lowercase=True, smooth_method="none").score
    assert found == pytest.approx(expected / 100)


def test_a_perfect_corpus_gets_exactly_one():
    rows = ["a red circle is on a mat", "a dog barks at a cat"]
    scores = corpus_metrics(["bleu", "rouge_l"], rows, rows).scores
    assert set(scores.values()) == {1.0}


def test_rows_without_references_are_left_out_and_counted():
    found = corpus_metrics(TEXT_MEASURES, PREDICTIONS, REFERENCES)
    kept = corpus_metrics(TEXT_MEASURES, PREDICTIONS[:3], REFERENCES[:3])
    assert found.scores == kept.scores
    assert found.num_judged == dict.fromkeys(TEXT_MEASURES, 3)
    assert found.per_sample == {name: [*values, None] for name, values in kept.per_sample.items()}


def test_numbers_of_rows_are_sentence_scores_and_their_mean_is_no_corpus_bleu():
    found = corpus_metrics(["bleu", "cider_d"], PREDICTIONS, REFERENCES)
    expected = [sentence_bleu(PREDICTIONS[row], REFERENCES[row] or []) for row in range(3)]
    assert found.per_sample["bleu_4"] == [*expected, None]
    assert found.scores["bleu_4"] != pytest.approx(np.mean(expected))
    assert found.scores["cider_d"] == pytest.approx(np.mean(found.per_sample["cider_d"][:3]))


def test_corpus_bleu_of_chosen_rows_is_that_of_a_corpus_of_them():
    found = corpus_metrics(["bleu"], PREDICTIONS, REFERENCES)
    chosen = np.array([1, 0, 3, 0])  # row 3 cannot be judged
    kept = [1, 0, 0]
    expected = corpus_metrics(["bleu"], [PREDICTIONS[row] for row in kept], [REFERENCES[row] for row in kept])
    assert {name: of_rows(chosen) for name, of_rows in found.of_rows.items()} == expected.scores
    assert set(found.of_rows) == {"bleu_1", "bleu_2", "bleu_3", "bleu_4"}


def test_signatures_tell_what_the_numbers_depend_on(tmp_path: Path):
    frequencies = DocumentFrequencies.fit([["a cat"], ["a dog"], ["a bird"]], tokenize="none")
    frequencies.save(tmp_path / "df.json")
    options = {
        "bleu": {"smoothing": "exp"},
        "rouge_l": {"tokenize": "none"},
        "cider_d": {"document_frequencies": str(tmp_path / "df.json")},
    }
    found = corpus_metrics(TEXT_MEASURES, PREDICTIONS, REFERENCES, options=options).signatures
    version = sacrebleu.__version__
    assert found["bleu"] == (
        f"name:bleu|nrefs:1-2|case:lc|eff:no|tok:13a|smooth:exp|len:closest|version:sacrebleu-{version}"
    )
    assert found["rouge_l"].startswith("name:rouge_l|nrefs:1-2|beta:1.2|case:mixed|tok:none|version:mmft-")
    assert "|order:4|sigma:6.0|case:mixed|tok:none|df:given-3|" in found["cider_d"]
    own = corpus_metrics(["cider_d"], PREDICTIONS, REFERENCES).signatures["cider_d"]
    assert "|tok:13a|df:corpus-3|" in own


def test_given_document_frequencies_change_cider_d():
    frequencies = DocumentFrequencies.fit([["a red circle is on a mat"], ["a dog"], ["the dog barks"]])
    given = {"cider_d": {"document_frequencies": frequencies}}
    found = corpus_metrics(["cider_d"], PREDICTIONS, REFERENCES, options=given).scores
    assert found != corpus_metrics(["cider_d"], PREDICTIONS, REFERENCES).scores


def test_clip_score_is_that_of_the_reward_and_needs_pictures_only():
    scorer = ClipScore(*build_contrastive("clip"), reference=True)
    pictures = [Image.new("RGB", (16, 16), name) for name in ("red", "green", "blue")]
    images = [pictures[0], None, [pictures[1], pictures[2]], pictures[1]]
    found = corpus_metrics(
        ["clip_score"], PREDICTIONS, REFERENCES, images, options={"clip_score": {"model": scorer}}
    )
    parts = scorer.parts([pictures[0], pictures[1:], pictures[1]], [PREDICTIONS[row] for row in (0, 2, 3)],
                         [REFERENCES[row] for row in (0, 2, 3)])  # fmt: skip
    for name in ("clip_score", "ref_clip_score"):
        values = found.per_sample[name]
        assert [values[row] for row in (0, 2, 3)] == pytest.approx(parts[name])
        assert values[1] is None
        judged = [value for value in values if value is not None]
        assert found.scores[name] == pytest.approx(np.mean(judged))
    assert found.per_sample["ref_clip_score"][3] is None  # a picture, but no references
    assert found.num_judged == {"clip_score": 3}
    assert found.signatures["clip_score"].startswith("name:clip_score|nrefs:1-2|model:CLIPModel|w:2.5|")


def test_clip_score_by_name_makes_the_scorer():
    model, processor = build_contrastive("clip")
    options = {"clip_score": {"model": model, "processor": processor, "weight": 1.0}}
    picture = Image.new("RGB", (16, 16), "red")
    found = corpus_metrics(["clip_score"], ["a cat"], None, [picture], options=options)
    assert found.scores == {
        "clip_score": ClipScore(model, processor, weight=1.0).scores([picture], ["a cat"])[0]
    }
    assert "nrefs" not in found.signatures["clip_score"]


def test_every_measure_has_results_under_names_of_its_own():
    names = [name for measure in TEXT_MEASURES for name in corpus_metrics([measure], ["a"], ["b"]).scores]
    assert names == ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d"]
    assert list(METRICS) == [*TEXT_MEASURES, "clip_score"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: corpus_metrics(["blue"], ["a"], ["a"]), "there is no measure 'blue'. Did you mean 'bleu'"),
        (
            lambda: corpus_metrics(["zzz"], ["a"], ["a"]),
            "no measure 'zzz'. Known are bleu, rouge_l, cider_d, clip",
        ),
        (
            lambda: corpus_metrics(["bleu"], ["a"], ["a"], options={"rouge": {}}),
            "no measure 'rouge'. Did you",
        ),
        (lambda: corpus_metrics(["bleu"], ["a"]), "`bleu` needs `references`; got none"),
        (lambda: corpus_metrics(["clip_score"], ["a"], ["a"]), "`clip_score` needs `images`; got none"),
        (
            lambda: corpus_metrics(["bleu"], ["a"], [None]),
            "`bleu` has no row to judge: of 1 rows none has `ref",
        ),
        (lambda: corpus_metrics(["bleu"], ["a"], [[]]), "row 0: `references` is empty"),
        (
            lambda: corpus_metrics(["bleu"], ["a", "b"], [["a"]]),
            "`references` has 1 entries for 2 predictions",
        ),
        (lambda: corpus_metrics(["bleu"], "a", ["a"]), "`predictions` must be a list of texts; got 'a'"),
        (
            lambda: corpus_metrics(["bleu"], ["a"], ["a"], options={"bleu": {"smoothing": "floor"}}),
            "`smoothing` must be one of none, exp, coco; got 'floor'",
        ),
        (
            lambda: corpus_metrics(
                ["cider_d"],
                ["a"],
                ["a"],
                options={
                    "cider_d": {"tokenize": "none", "document_frequencies": DocumentFrequencies.fit([["a"]])}
                },
            ),
            "`tokenize` is 'none', the document frequencies were counted with '13a'",
        ),
    ],
)
def test_what_cannot_be_measured_is_named(call: Callable[[], Any], message: str):
    with pytest.raises(ValueError, match=message):
        call()
