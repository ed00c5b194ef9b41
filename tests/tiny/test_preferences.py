"""True and false captions: one fact apart, true and false by the facts, and the same to whoever is blind."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from mmft.tiny.facts import share_true, stated_facts
from mmft.tiny.lexicon import SceneObject
from mmft.tiny.preferences import KINDS, Preference, load_preferences, load_ratings, make_preference
from mmft.tiny.scenes import PROMPT, SPLITS, make_scene, well_apart

RELATIONS = {"left_of", "right_of", "above", "below"}
WORDS = {
    "colour": {"red", "orange", "yellow", "green", "blue", "purple", "pink", "black"},
    "shape": {"circle", "square", "triangle", "cross", "star"},
    "size": {"small", "large"},
    "relation": RELATIONS,
    "number": {"two", "three"},
}


@pytest.fixture(scope="module")
def preferences() -> list[Preference]:
    return [make_preference("train", index) for index in range(1500)]


def words(caption: str) -> list[str]:
    return re.findall(r"\w+", caption.replace(" of a", "_of a").replace("an ", "a "))


def test_the_chosen_caption_is_wholly_true_and_the_rejected_one_is_not(preferences: list[Preference]) -> None:
    for row in preferences:
        assert share_true(row.chosen, row.scene.objects) == 1.0, row.chosen
        share = share_true(row.rejected, row.scene.objects)
        assert share is not None
        assert share < 1.0, row.rejected


def test_captions_of_a_row_differ_in_one_word_of_the_kind_they_are_said_to(
    preferences: list[Preference],
) -> None:
    for row in preferences:
        pairs = list(zip(words(row.chosen), words(row.rejected), strict=True))
        (changed,) = [pair for pair in pairs if pair[0] != pair[1]]
        assert set(changed) <= WORDS[row.kind], row


def test_no_caption_is_malformed_and_every_word_is_read(preferences: list[Preference]) -> None:
    for row in preferences:
        for caption in (row.chosen, row.rejected):
            assert all(fact.kind != "malformed" for fact in stated_facts(caption)), caption


def test_every_kind_occurs_about_equally_often(preferences: list[Preference]) -> None:
    counts = Counter(row.kind for row in preferences)
    assert counts.keys() == KINDS.keys() == WORDS.keys()
    assert min(counts.values()) > 0.15 * len(preferences)


def test_pictures_are_scenes_like_the_others(preferences: list[Preference]) -> None:
    for row in preferences:
        assert well_apart(row.scene.objects)
        assert list(row.scene.objects) == sorted(row.scene.objects, key=lambda item: item.x)
        assert len({item.colour for item in row.scene.objects}) == len(row.scene.objects)


def test_a_row_depends_on_split_seed_and_index_alone() -> None:
    def seen(split: str, index: int, seed: int = 0) -> tuple[Any, ...]:
        row = make_preference(split, index, seed)
        return row.scene.image.tobytes(), row.chosen, row.rejected, row.kind

    assert seen("train", 3) == seen("train", 3)
    streams = [("train", 0, 0), ("validation", 0, 0), ("test", 0, 0), ("train", 0, 1), ("train", 1, 0)]
    assert len({seen(*stream) for stream in streams}) == len(streams)
    few, many = load_preferences("test", 3), load_preferences("test", 6)
    assert few["chosen"][:] == many["chosen"][:3]


def test_pictures_are_in_no_split_of_the_scenes() -> None:
    scenes = {make_scene(split, index).image.tobytes() for split in SPLITS for index in range(100)}
    assert not scenes & {
        make_preference(split, index).scene.image.tobytes() for split in SPLITS for index in range(100)
    }


# Whoever does not look


def blind_accuracy(pairs: Sequence[tuple[str, str]]) -> float:
    """Held-out accuracy of logistic regression on the words and pairs of words, two thirds to learn from."""
    counted = [(bag(chosen), bag(rejected)) for chosen, rejected in pairs]
    place = {
        word: number for number, word in enumerate(sorted({w for two in counted for b in two for w in b}))
    }
    features = torch.zeros(len(pairs), len(place))
    for row, (chosen, rejected) in enumerate(counted):
        for word, count in chosen.items():
            features[row, place[word]] += count
        for word, count in rejected.items():
            features[row, place[word]] -= count
    cut = 2 * len(pairs) // 3
    weights = torch.zeros(len(place), requires_grad=True)
    optimizer = torch.optim.Adam([weights], lr=0.05)
    for _ in range(200):
        loss = -F.logsigmoid(features[:cut] @ weights).mean() + 1e-3 * weights.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (features[:cut] @ weights > 0).float().mean() > 0.6, "it learns what there is to learn by heart"
    margins = features[cut:] @ weights
    return ((margins > 0).float() + 0.5 * (margins == 0)).mean().item()


def bag(caption: str) -> Counter[str]:
    """Words, pairs of neighbours, and the length."""
    said = words(caption)
    return Counter([*said, *map(" ".join, itertools.pairwise(said)), f"length {len(said)}"])


def test_a_learner_that_sees_no_picture_stays_at_chance(preferences: list[Preference]) -> None:
    # 500 held-out rows: chance is 0.5 with a standard deviation of 0.022
    assert blind_accuracy([(row.chosen, row.rejected) for row in preferences]) == pytest.approx(0.5, abs=0.07)


def test_the_same_learner_finds_a_leak_where_there_is_one(preferences: list[Preference]) -> None:
    # What is said to be pink is mostly false.
    leaky = [
        (row.chosen, re.sub("red|orange|yellow|green|blue", "pink", row.rejected)) for row in preferences
    ]
    assert blind_accuracy(leaky) > 0.7


def test_either_caption_of_a_row_could_have_been_the_true_one(preferences: list[Preference]) -> None:
    # The coin is all that decides: of small and large either is right as often as the other.
    larger = [
        "large" in set(words(row.chosen)) - set(words(row.rejected))
        or "small" in set(words(row.rejected)) - set(words(row.chosen))
        for row in preferences
        if row.kind == "size"
    ]
    # about 300 coins: a standard deviation of 0.03
    assert sum(larger) / len(larger) == pytest.approx(0.5, abs=0.1)


# Datasets


def test_the_columns_of_preferences() -> None:
    rows = load_preferences("test", 4)
    assert rows.column_names == ["image", "prompt", "chosen", "rejected", "kind", "facts"]
    expected = make_preference("test", 2)
    assert rows[2]["image"].tobytes() == expected.scene.image.tobytes()
    told = rows[2]
    assert (told["prompt"], told["chosen"], told["kind"]) == (PROMPT, expected.chosen, expected.kind)
    assert tuple(SceneObject(**item) for item in told["facts"]) == expected.scene.objects


def test_ratings_are_the_share_of_true_facts() -> None:
    rows = load_ratings("train", 60)
    assert rows.column_names == ["image", "prompt", "completion", "rating", "kind", "facts"]
    for row in rows:
        objects = [SceneObject(**item) for item in row["facts"]]
        assert row["rating"] == pytest.approx(share_true(row["completion"], objects))
    true = sum(rating == 1.0 for rating in rows["rating"])
    assert 15 <= true <= 45, "one of the two captions of each row, by a coin"
    assert load_ratings("train", 5)["completion"][:] == rows["completion"][:5]


@pytest.mark.parametrize("load", [load_preferences, load_ratings])
def test_no_rows_and_unknown_splits_are_refused(load: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="`size` must be >= 1; got 0"):
        load("train", 0)
    with pytest.raises(ValueError, match="`split` must be one of train, validation, test; got 'dev'"):
        load("dev")
