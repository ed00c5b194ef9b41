"""The measures as `evaluate` modules: batches, combinations, pictures, and no trace on the disk."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import evaluate
import pytest
from PIL import Image

from mmft.evaluation.metrics import Bleu, CiderD, ClipScore, RougeL, corpus_metrics
from rewards import ClipScore as Scorer
from rewards import DocumentFrequencies
from tests.rewards.contrastive import build_contrastive

PREDICTIONS = ["A red circle on a mat.", "a dog barks", ""]
REFERENCES = [["a red circle is on a mat", "see, a ball"], ["the dog barks"], ["x y z"]]
ROWS: dict[str, Any] = {"predictions": PREDICTIONS, "references": REFERENCES}


def expected(*names: str, **options: Any) -> dict[str, Any]:
    found = corpus_metrics(names, PREDICTIONS, REFERENCES, options=options)
    return {**found.scores, **{f"{name}_signature": text for name, text in found.signatures.items()}}


@pytest.fixture
def scorer() -> Scorer:
    return Scorer(*build_contrastive("clip"), reference=True)


@pytest.fixture
def pictures() -> list[Image.Image]:
    return [Image.effect_noise((16, 16), 80 + 10 * index).convert("RGB") for index in range(3)]


@pytest.mark.parametrize(("module", "name"), [(Bleu, "bleu"), (RougeL, "rouge_l"), (CiderD, "cider_d")])
def test_a_module_gives_the_corpus_numbers_and_their_signature(module: type, name: str):
    metric = module()
    assert metric.compute(**ROWS) == expected(name)
    assert metric.compute(**ROWS) == expected(name)  # nothing is left of the first time
    assert metric.name == name


def test_rows_may_come_in_batches_and_one_by_one_and_a_lone_text_is_a_list_of_one():
    metric = Bleu()
    metric.add_batch(predictions=PREDICTIONS[:1], references=REFERENCES[:1])
    metric.add_batch(predictions=PREDICTIONS[1:2], references=["the dog barks"])
    metric.add(prediction=PREDICTIONS[2], reference="x y z")
    assert metric.compute() == expected("bleu")


def test_settings_of_the_constructor_count():
    frequencies = DocumentFrequencies.fit([["a"], ["a cat"]], tokenize="none")
    options = {
        "bleu": {"tokenize": "none", "smoothing": "exp"},
        "rouge_l": {"tokenize": "none"},
        "cider_d": {"document_frequencies": frequencies},
    }
    modules = [Bleu(**options["bleu"]), RougeL(**options["rouge_l"]), CiderD(**options["cider_d"])]
    assert evaluate.combine(modules).compute(**ROWS) == expected("bleu", "rouge_l", "cider_d", **options)


def test_all_four_combine_under_names_of_their_own(scorer: Scorer, pictures: list[Image.Image]):
    combined = evaluate.combine([Bleu(), RougeL(), CiderD(), ClipScore(scorer)])
    options = {"clip_score": {"model": scorer}}
    found = corpus_metrics(
        ["bleu", "rouge_l", "cider_d", "clip_score"], PREDICTIONS, REFERENCES, pictures, options=options
    )
    signatures = {f"{name}_signature": text for name, text in found.signatures.items()}
    assert combined.compute(**ROWS, images=pictures) == pytest.approx({**found.scores, **signatures})
    combined.add_batch(predictions=PREDICTIONS[:2], references=REFERENCES[:2], images=pictures[:2])
    combined.add(prediction=None, references="x y z", predictions=PREDICTIONS[2], images=pictures[2])
    assert combined.compute() == pytest.approx({**found.scores, **signatures})


def test_pictures_may_be_files_or_several_per_row(
    scorer: Scorer, pictures: list[Image.Image], tmp_path: Path
):
    pictures[0].save(tmp_path / "picture.png")
    rows = [str(tmp_path / "picture.png"), pictures[:2], [pictures[2]]]
    values = scorer.parts([pictures[0], pictures[:2], pictures[2]], PREDICTIONS, REFERENCES)
    found = ClipScore(scorer).compute(**ROWS, images=rows)
    for name in ("clip_score", "ref_clip_score"):
        assert found[name] == pytest.approx(sum(values[name]) / 3)


def test_clip_score_without_references_takes_none(pictures: list[Image.Image]):
    model, processor = build_contrastive("clip")
    found = ClipScore(model, processor=processor, weight=1.0, keep_in_memory=True).compute(
        predictions=PREDICTIONS, images=pictures
    )
    values = Scorer(model, processor, weight=1.0).scores(pictures, PREDICTIONS)
    assert found["clip_score"] == pytest.approx(sum(values) / 3)
    assert set(found) == {"clip_score", "clip_score_signature"}


def test_nothing_is_written_outside_a_cache_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    assert Bleu().compute(**ROWS) == expected("bleu")
    assert [path for path in tmp_path.rglob("*") if path.name != "temporary"] == []
    kept = Bleu(keep_in_memory=False, cache_dir=str(tmp_path / "asked"))
    assert kept.compute(**ROWS) == expected("bleu")
    assert (tmp_path / "asked" / "bleu").is_dir()
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("module", [Bleu, RougeL, CiderD])
def test_no_rows_are_refused_by_name(module: type):
    with pytest.raises(ValueError, match=f"`{module().measure}` has no row to judge"):
        module().compute(predictions=[], references=[])


def test_settings_at_compute_are_refused():
    with pytest.raises(ValueError, match=r"`compute` takes no tokenize. Settings go to the constructor"):
        Bleu().compute(**ROWS, tokenize="none")


def test_measures_on_text_load_neither_torch_nor_transformers_nor_evaluate():
    code = (
        "import sys; from mmft.evaluation.metrics import corpus_metrics;"
        "corpus_metrics(['bleu', 'rouge_l', 'cider_d'], ['a'], ['a']);"
        "heavy = ('torch', 'transformers', 'evaluate', 'datasets', 'pycocoevalcap');"
        "print([name for name in heavy if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
