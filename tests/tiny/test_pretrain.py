"""The pretraining script: what it teaches, how it steps, and what it leaves behind."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmft.tiny.facts import share_true
from mmft.tiny.lessons import IGNORED, CaptionTeacher, caption, patch_labels, patch_words
from mmft.tiny.lexicon import COLOURS, SHAPES, SceneObject
from mmft.tiny.pretrain import Lesson, School, learning_rate, make_optimizers, save_captioner
from mmft.tiny.scenes import Scene, make_scene
from mmft.tiny.scoring import is_detailed, score_captions


@pytest.fixture(scope="module")
def school(tmp_path_factory: pytest.TempPathFactory) -> School:
    return School(batch_size=2, work_dir=tmp_path_factory.mktemp("school"))


def test_patches_are_labelled_with_the_object_on_their_centre() -> None:
    # Diameter 24 around (20, 12) covers x 8..32 and y 0..24: the centres 12, 20, 28 and 4, 12, 20.
    blank = make_scene("train", 0).image
    labels = patch_labels([Scene(blank, (SceneObject("red", "cross", "large", x=20.0, y=12.0),))])
    grid = labels["colour"].view(8, 8)
    assert (grid[0:3, 1:4] == list(COLOURS).index("red") + 1).all()
    assert int((grid > 0).sum()) == 9
    assert int(labels["shape"].max()) == SHAPES.index("cross") + 1
    assert int(labels["rank"].max()) == 1
    assert int(labels["to_first_other"].max()) == 0  # there is no other


def test_patches_say_how_their_object_lies_to_the_others_from_left_to_right() -> None:
    star = SceneObject("blue", "star", "small", x=50.0, y=10.0)
    cross = SceneObject("red", "cross", "small", x=20.0, y=12.0)
    disc = SceneObject("green", "circle", "small", x=24.0, y=45.0)
    assert [
        (words["rank"], words.get("to_first_other"), words.get("to_second_other"))
        for words in patch_words([star, cross, disc])
    ] == [("third", "right of", "above"), ("leftmost", "above", "left of"), ("second", "below", "below")]


def test_only_the_caption_and_its_end_are_learned(school: School) -> None:
    scenes = [make_scene("train", index) for index in range(2)]
    batch = school.teacher.batch(scenes, ["a red circle.", "a large red circle is above a star."])
    tokenizer = school.processor.tokenizer
    learned = [row[row != IGNORED] for row in batch.labels]
    assert [tokenizer.decode(row) for row in learned] == [
        "a red circle.</s>",
        "a large red circle is above a star.</s>",
    ]
    for ids, row in zip(batch.input_ids, batch.labels, strict=True):
        assert (ids[row != IGNORED] == row[row != IGNORED]).all()


def test_the_lesson_sets_the_share_of_terse_captions_and_all_are_true() -> None:
    stream = random.Random(0)
    objects = next(
        scene.objects
        for scene in (make_scene("train", index) for index in range(50))
        if len(scene.objects) == 3
    )
    captions = [caption(objects, 0.8, stream) for _ in range(1000)]
    assert sum(map(is_detailed, captions)) == pytest.approx(200, abs=40)
    assert all(share_true(text, objects) == 1.0 for text in captions)


def test_the_learning_rate_warms_up_and_ends_where_the_lesson_says() -> None:
    lesson = Lesson("details", steps=1000, first_lr=1e-2, last_lr=1e-3)
    assert learning_rate(lesson, 0) == pytest.approx(1e-2 / 50, rel=1e-3)
    assert learning_rate(lesson, 500) == pytest.approx(5.5e-3)  # half way along the cosine: the mean of both
    assert learning_rate(lesson, 1000) == pytest.approx(1e-3)


def test_every_weight_has_exactly_one_optimizer(school: School) -> None:
    groups = [group for optimizer in make_optimizers([school.pupil]) for group in optimizer.param_groups]
    taken = [id(weight) for group in groups for weight in group["params"]]
    assert sorted(taken) == sorted(id(weight) for weight in school.pupil.parameters())


def test_a_lesson_moves_the_weights_and_resuming_restores_them(school: School, tmp_path: Path) -> None:
    before = school.pupil.model.model.vision_tower.state_dict()
    before = {key: value.clone() for key, value in before.items()}
    school.teach(Lesson("patches", steps=1, first_lr=1e-3, last_lr=1e-3))
    school.teach(Lesson("details", steps=2, first_lr=1e-3, last_lr=1e-3))
    assert [(record["name"], record["steps"]) for record in school.records] == [
        ("patches", 1),
        ("details", 2),
    ]
    assert all(0 < record["loss"] < 20 for record in school.records)
    after = school.pupil.model.model.vision_tower.state_dict()
    assert any(not torch.equal(before[key], after[key]) for key in before)

    other = School(batch_size=2, work_dir=tmp_path)
    other.resume(school.work_dir / "details.safetensors")
    assert other.num_seen == school.num_seen == 6
    assert other.records == school.records
    for (name, ours), theirs in zip(
        school.pupil.state_dict().items(), other.pupil.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), name


def test_saved_weights_are_half_precision_and_load_as_single(school: School, tmp_path: Path) -> None:
    save_captioner(school.pupil.model, school.processor, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert {weight.dtype for weight in stored.values()} == {torch.float16}
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert model.dtype == torch.float32
    for ours, loaded in zip(school.pupil.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours.half().float(), loaded, atol=0, rtol=0)
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert CaptionTeacher(processor).prompt_ids == school.teacher.prompt_ids
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "llava"


def test_scores_of_hand_written_captions() -> None:
    circle = SceneObject("red", "circle", "large", x=20.0, y=20.0)
    scene = Scene(make_scene("train", 0).image, (circle,))
    captions = ["a red circle.</s><pad>", "a large red circle.</s>", "a small red circle.</s>", "a blue star"]
    scores = score_captions([(text, scene) for text in captions])
    assert scores.exact_share == 2 / 4
    assert scores.true_fact_share == 2 / 4
    assert scores.detailed_share == 2 / 4
    assert scores.mean_words == (3 + 4 + 4 + 3) / 4
    assert scores.ended_share == 3 / 4
