"""The packaged scenes: endless, deterministic, apart by split, and described truly."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mmft.tiny.captions import listing, reference_captions, relation
from mmft.tiny.facts import share_true
from mmft.tiny.lexicon import CANVAS, COLOURS, SHAPES, SceneObject, dominant_relation, holds
from mmft.tiny.scenes import SPLITS, load_scenes, make_scene

CIRCLE = SceneObject("red", "circle", "large", x=15.0, y=20.0)
SQUARE = SceneObject("blue", "square", "small", x=40.0, y=22.0)
STAR = SceneObject("orange", "star", "small", x=18.0, y=50.0)


def picture(split: str, index: int, seed: int = 0) -> bytes:
    return make_scene(split, index, seed).image.tobytes()


def test_the_same_arguments_give_the_same_pixels_and_facts() -> None:
    assert picture("train", 3) == picture("train", 3)
    assert make_scene("train", 3).objects == make_scene("train", 3).objects


def test_a_row_does_not_depend_on_how_many_are_drawn() -> None:
    few, many = load_scenes("validation", 3), load_scenes("validation", 9)
    assert [row["references"] for row in few] == many[:3]["references"]


def test_split_seed_and_index_each_change_the_scene() -> None:
    streams = [("train", 0, 0), ("validation", 0, 0), ("test", 0, 0), ("train", 0, 1), ("train", 1, 0)]
    assert len({picture(*stream) for stream in streams}) == len(streams)


def test_no_picture_is_in_two_splits() -> None:
    seen = {split: {picture(split, index) for index in range(300)} for split in SPLITS}
    for first, second in itertools.combinations(seen.values(), 2):
        assert not first & second
    assert all(len(pictures) == 300 for pictures in seen.values())


def test_every_colour_shape_and_number_of_objects_occurs() -> None:
    scenes = [make_scene("train", index).objects for index in range(300)]
    assert {item.colour for scene in scenes for item in scene} == set(COLOURS)
    assert {item.shape for scene in scenes for item in scene} == set(SHAPES)
    assert {len(scene) for scene in scenes} == {1, 2, 3}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_picture_shows_the_object_where_the_facts_say(shape: str) -> None:
    scenes = [make_scene("train", index) for index in range(400)]
    found = [(scene, item) for scene in scenes for item in scene.objects if item.shape == shape]
    for scene, item in found:
        centre = np.asarray(scene.image)[int(item.y), int(item.x)].astype(int)
        nearest = min(COLOURS, key=lambda name: np.abs(centre - np.array(COLOURS[name])).sum())
        assert nearest == item.colour


@pytest.mark.parametrize("shape", SHAPES)
def test_a_large_object_covers_at_least_twice_the_pixels_of_a_small_one(shape: str) -> None:
    covered: dict[str, list[int]] = {"small": [], "large": []}
    for scene in (make_scene("train", index) for index in range(500)):
        if len(scene.objects) == 1 and scene.objects[0].shape == shape:
            pixels = np.asarray(scene.image).astype(int)
            covered[scene.objects[0].size].append(int((np.abs(pixels - pixels[0, 0]).sum(-1) > 60).sum()))
    assert 2 * max(covered["small"]) < min(covered["large"])


def test_objects_stay_inside_the_picture_and_differ_in_colour() -> None:
    for index in range(300):
        objects = make_scene("test", index).objects
        assert len({item.colour for item in objects}) == len(objects)
        assert all(6 < item.x < CANVAS - 6 and 6 < item.y < CANVAS - 6 for item in objects)


def test_every_reference_states_only_true_facts() -> None:
    for index in range(400):
        objects = make_scene("validation", index).objects
        for text in reference_captions(objects):
            assert share_true(text, objects) == 1.0, text


def test_references_go_from_short_to_detailed_and_name_every_object() -> None:
    for row in load_scenes("train", 50):
        shortest, longest = row["references"][0], row["references"][-1]
        assert len(longest.split()) > len(shortest.split())
        for item in row["facts"]:
            assert all(f"{item['colour']} {item['shape']}" in text for text in row["references"])


def test_captions_hand_written() -> None:
    objects = (CIRCLE, STAR, SQUARE)
    assert listing(objects, with_size=False) == "a red circle, an orange star and a blue square."
    assert relation(CIRCLE, objects, with_size=True) == (
        "a large red circle is above a small orange star and left of a small blue square."
    )
    assert reference_captions((CIRCLE,)) == ["a red circle.", "a large red circle."]


def test_relations_of_hand_placed_objects() -> None:
    assert dominant_relation(CIRCLE, SQUARE) == "left of"
    assert dominant_relation(SQUARE, CIRCLE) == "right of"
    assert dominant_relation(CIRCLE, STAR) == "above"
    assert dominant_relation(STAR, CIRCLE) == "below"
    assert holds("left of", CIRCLE, SQUARE)
    assert not holds("above", CIRCLE, SQUARE)  # two pixels higher is not clearly above


def test_load_scenes_gives_the_columns_that_rewards_and_trainers_read() -> None:
    rows = load_scenes("test", 4)
    assert rows.column_names == ["image", "references", "facts", "caption"]
    assert rows[0]["image"].size == (CANVAS, CANVAS)
    assert rows[0]["image"].mode == "RGB"
    objects = make_scene("test", 0).objects
    assert [SceneObject(**item) for item in rows[0]["facts"]] == list(objects)


def test_pictures_survive_the_dataset_without_loss() -> None:
    assert load_scenes("test", 2)[1]["image"].tobytes() == picture("test", 1)


def test_an_unknown_split_is_named() -> None:
    with pytest.raises(ValueError, match=r"`split` must be one of train, validation, test; got 'dev'"):
        load_scenes("dev")


def test_a_size_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="`size` must be >= 1; got 0"):
        load_scenes("train", 0)
