"""Rated captions: what they say, what it is worth, and that imitating them all is no good idea."""

from __future__ import annotations

import random

import pytest

from mmft.tiny.facts import share_true
from mmft.tiny.lexicon import SceneObject
from mmft.tiny.rated_captions import (
    CAPTIONS_PER_PICTURE,
    KINDS,
    caption_reward,
    load_rated_captions,
    rated_captions,
)
from mmft.tiny.scenes import PROMPT, load_scenes

CIRCLE = SceneObject("red", "circle", "small", 16.0, 16.0)
SQUARE = SceneObject("blue", "square", "large", 40.0, 40.0)


@pytest.mark.parametrize(
    ("caption", "reward"),
    [
        ("a red circle and a blue square.", 1.0),
        ("a red circle.", 0.5),  # one of two objects, and nothing false
        ("a red circle and a green square.", 0.25),  # one of two, and one of two statements
        ("a red circle is left of a blue square.", 1.0),
        (
            "a red circle is right of a blue square.",
            2 / 3,
        ),  # both are named; of three statements one is false
        ("a red circle, a blue square and a pink star.", 2 / 3),
        ("a green star.", 0.0),
        ("a circle and a square.", 0.0),  # no object is named by colour and shape
        ("red circle blue square", 1 / 6),  # one of two; of three statements two are words out of place
        ("what a nice day.", 0.0),
        ("", 0.0),
    ],
)
def test_the_reward_of_a_caption_is_what_it_tells_times_how_much_of_it_is_true(caption: str, reward: float):
    assert caption_reward(caption, [CIRCLE, SQUARE]) == pytest.approx(reward)


@pytest.mark.parametrize("seed", range(5))
def test_a_picture_has_every_kind_of_caption_equally_often(seed: int):
    rows = rated_captions([CIRCLE, SQUARE], 8, random.Random(seed))
    assert sorted(row["kind"] for row in rows) == sorted(2 * KINDS)


def test_kinds_mean_what_they_say_and_rewards_order_them():
    rows = load_rated_captions("train", 400)
    rewards: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for row in rows:
        objects = [SceneObject(**item) for item in row["facts"]]
        assert (share_true(row["completion"], objects) == 1.0) == (not row["kind"].endswith("false"))
        assert row["reward"] == pytest.approx(caption_reward(row["completion"], objects))
        rewards[row["kind"]].append(row["reward"])
    assert set(rewards["full"]) == {1.0}
    assert set(rewards["terse, false"]) == {0.0}
    means = {kind: sum(values) / len(values) for kind, values in rewards.items()}
    assert means["full, false"] < means["terse"] < means["full"]


def test_captions_of_a_picture_stand_together_and_held_out_pictures_are_those_of_the_scenes():
    rows = load_rated_captions("train", CAPTIONS_PER_PICTURE + 1)
    scenes = load_scenes("train", 2)
    for number, row in enumerate(rows):
        scene = scenes[number // CAPTIONS_PER_PICTURE]
        assert row["image"].tobytes() == scene["image"].tobytes()
        assert row["references"] == scene["references"]
        assert row["facts"] == scene["facts"]
        assert row["prompt"] == PROMPT
    held_out, scenes = load_rated_captions("validation", 3), load_scenes("validation", 3)
    assert [row["image"].tobytes() for row in held_out] == [row["image"].tobytes() for row in scenes]


def test_a_larger_dataset_begins_with_the_rows_of_a_smaller_one():
    few, more = load_rated_captions("train", 5), load_rated_captions("train", 20)
    assert few["completion"][:] == more["completion"][:5]
    assert few["completion"][:] != load_rated_captions("train", 5, seed=1)["completion"][:]


def test_no_rows_and_unknown_splits_are_refused():
    with pytest.raises(ValueError, match="`size` must be >= 1; got 0"):
        load_rated_captions("train", 0)
    with pytest.raises(ValueError, match="`split` must be one of train, validation, test; got 'dev'"):
        load_rated_captions("dev")
