"""The towers behind CLIPScore: each picture once, whatever the calls, threads and sizes of caches."""

from __future__ import annotations

import threading

import pytest
import torch
from PIL import Image

from rewards.pictures import image_key
from tests.rewards.contrastive import (
    CAPTIONS,
    FAMILIES,
    PICTURES,
    cosines_of,
    logged_call,
    scorer,
)


def test_changed_pixels_change_the_score():
    score = scorer()
    (before,) = cosines_of(score, ["a red dog"], [PICTURES[0]])
    changed = PICTURES[0].copy()
    changed.paste((255, 0, 0), (4, 4, 12, 12))
    (after,) = cosines_of(score, ["a red dog"], [changed])
    assert abs(after - before) > 1e-3
    assert score.counters.images_encoded == 2


def test_a_picture_changed_in_place_is_seen_as_another():
    score, picture = scorer(), PICTURES[0].copy()
    (before,) = cosines_of(score, ["a red dog"], [picture])
    picture.paste((255, 0, 0), (4, 4, 12, 12))
    assert abs(cosines_of(score, ["a red dog"], [picture])[0] - before) > 1e-3


def test_the_cache_tells_pictures_of_one_size_apart():
    score, captions = scorer(), ["a red dog", "a red dog"]
    warm = [cosines_of(score, captions, PICTURES[:2]) for _ in range(2)][1]
    assert warm == pytest.approx(
        [cosines_of(scorer(), ["a red dog"], [picture])[0] for picture in PICTURES[:2]], abs=1e-5
    )
    assert abs(warm[0] - warm[1]) > 1e-3


def test_equal_bytes_in_another_shape_are_another_picture():
    wide, high = Image.new("RGB", (8, 2), "red"), Image.new("RGB", (2, 8), "red")
    assert wide.tobytes() == high.tobytes()
    assert image_key(wide) != image_key(high)
    assert image_key(wide) == image_key(wide.copy())


def test_eight_completions_and_two_epochs_run_the_image_tower_once_per_picture():
    score = scorer()
    seen: list[int] = []
    model = score.embedder.source
    assert isinstance(model, torch.nn.Module)
    model.vision_model.register_forward_hook(
        lambda _module, _args, output: seen.append(len(output.pooler_output))
    )
    captions = [f"caption {row} {sample}" for row in range(4) for sample in range(8)]
    images = [[PICTURES[row]] for row in range(4) for _ in range(8)]
    work = [logged_call(score, completions=captions, images=images)[1] for _ in range(2)]
    assert seen == [4], "one forward pass over four pictures for 2 x 32 captions"
    assert [log["clip_score/image_tower_calls"] for log in work] == [1, 0]
    assert [log["clip_score/images_encoded"] for log in work] == [4, 0]
    assert [log["clip_score/cache_hits"] for log in work] == [28, 32]
    assert (score.counters.images_encoded, score.counters.cache_hits) == (4, 60)


def test_pictures_decoded_anew_in_each_epoch_are_recognised():
    score = scorer()
    for _ in range(3):
        cosines_of(score, CAPTIONS, [picture.copy() for picture in PICTURES])
    assert (score.counters.images_encoded, score.counters.cache_hits) == (4, 8)


def test_a_small_cache_forgets_the_oldest_picture_and_still_scores_right():
    score = scorer(image_cache_size=2)
    expected = cosines_of(scorer())
    assert cosines_of(score) == pytest.approx(expected, abs=1e-5)  # four at once, although two are kept
    cosines_of(score, ["x"], [PICTURES[2]])  # kept, and now newer than the last one
    cosines_of(score, ["x"], [PICTURES[0]])  # pushes out the last one
    assert score.counters.images_encoded == 5
    cosines_of(score, ["x"], [PICTURES[2]])
    assert score.counters.images_encoded == 5
    cosines_of(score, ["x"], [PICTURES[3]])
    assert score.counters.images_encoded == 6


def test_without_a_cache_only_repeats_in_a_call_are_saved():
    score = scorer(image_cache_size=0)
    for _ in range(2):
        cosines_of(score, ["x", "y"], [PICTURES[0], PICTURES[0]])
    assert (score.counters.images_encoded, score.counters.cache_hits) == (2, 2)


def test_equal_captions_are_embedded_once_and_references_are_remembered():
    score = scorer(reference=True)
    references = [["a dog", "a cat"]] * 4
    score.scores(PICTURES, ["a red dog"] * 4, references)
    assert score.counters.texts_encoded == 3
    score.scores(PICTURES, ["a red dog"] * 4, references)
    assert score.counters.texts_encoded == 4  # the caption again, the references not


def test_two_threads_share_one_scorer():
    score = scorer(image_cache_size=1)
    expected = cosines_of(scorer())
    found: list[list[float]] = []
    threads = [threading.Thread(target=lambda: found.append(cosines_of(score))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(each == pytest.approx(expected, abs=1e-5) for each in found)
    assert len(found) == 4


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_pictures_of_other_modes_are_read_as_rgb(mode: str):
    score, other = scorer(), PICTURES[0].convert(mode)
    first, second = cosines_of(score, ["x", "x"], [other, other.convert("RGB")])
    assert first == second == pytest.approx(cosines_of(scorer(), ["x"], [other.convert("RGB")])[0], abs=1e-6)
    assert score.counters.images_encoded == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_batch_size_changes_calls_and_no_score(family: str):
    small, large = scorer(family, batch_size=3), scorer(family)
    assert cosines_of(small) == pytest.approx(cosines_of(large), abs=1e-5)
    assert (small.counters.image_tower_calls, large.counters.image_tower_calls) == (2, 1)
