"""Questions: answers that the scene bears out, one word between yes and no, no use in half of it."""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter, defaultdict
from typing import Any

import gymnasium
import numpy as np
import pytest

from mmft.environments.scene_questions import QUESTIONS, SceneQuestions, ask_of_two, is_true
from mmft.errors import ConfigError
from mmft.tiny.drawing import COLOUR_JITTER
from mmft.tiny.facts import stated_facts
from mmft.tiny.lexicon import COLOURS, SHAPES, SceneObject, holds
from mmft.tiny.scenes import well_apart

FORMS = {
    "existence": r"is there an? (\w+) (\w+)\?",
    "relation": r"is there an? (\w+) (\w+) (left of|right of|above|below) the (\w+)\?",
    "count": r"are there (two|three) (\w+)\?",
}
NUMBERS = {"two": 2, "three": 3}
NUM_PAIRS = 600


@pytest.fixture(scope="module")
def episodes() -> list[dict[str, Any]]:
    env = SceneQuestions()
    found = []
    for seed in range(900):
        observation, _ = env.reset(seed=seed)
        names = ("kind", "objects", "question", "answer")
        found.append({name: getattr(env, name) for name in names} | {"observation": observation})
    return found


def answered(kind: str, question: str, objects: tuple[SceneObject, ...]) -> bool:
    """The answer read off the words by a way of its own."""
    words = re.fullmatch(FORMS[kind], question).groups()
    if kind == "count":
        shape = "cross" if words[1] == "crosses" else words[1].removesuffix("s")
        return sum(item.shape == shape for item in objects) == NUMBERS[words[0]]
    named = [item for item in objects if (item.colour, item.shape) == words[:2]]
    if kind == "existence":
        return bool(named)
    others = [item for item in objects if item.shape == words[3]]
    return any(holds(words[2], one, other) for one in named for other in others if one is not other)


def test_the_answer_is_borne_out_by_the_scene(episodes: list[dict[str, Any]]):
    for episode in episodes:
        assert answered(episode["kind"], episode["question"], episode["objects"]) == episode["answer"]


def test_an_answer_hand_checked():
    scene = (SceneObject("red", "circle", "small", 10, 10), SceneObject("blue", "square", "large", 40, 12))
    assert is_true("is there a red circle?", scene)
    assert not is_true("is there a blue circle?", scene)
    assert is_true("is there a red circle left of the square?", scene)
    assert not is_true("is there a red circle above the square?", scene), "2 pixels are not clearly above"
    assert not is_true("are there two circles?", scene)


def test_every_word_of_a_question_is_read(episodes: list[dict[str, Any]]):
    for episode in episodes:
        facts = stated_facts(episode["question"])
        assert all(fact.kind != "malformed" for fact in facts)
        expected = {"existence": "object", "relation": "relation", "count": "count"}[episode["kind"]]
        assert expected in [fact.kind for fact in facts]


@pytest.mark.parametrize("kind", list(QUESTIONS))
def test_two_scenes_are_told_apart_by_one_word(kind: str):
    stream, changed = random.Random(0), set()
    pairs = [pair for _ in range(NUM_PAIRS) if (pair := ask_of_two(kind, stream)) is not None]
    assert len(pairs) > NUM_PAIRS / 4
    for (one, asked), (other, asked_of_other) in pairs:
        assert answered(kind, asked, one)
        assert answered(kind, asked_of_other, other)
        assert not answered(kind, asked, other)
        assert not answered(kind, asked_of_other, one)
        assert well_apart(one)
        assert well_apart(other)
        words = [
            re.sub(" an ", " a ", text).replace(" of", "_of").split() for text in (asked, asked_of_other)
        ]
        (pair,) = [pair for pair in zip(*words, strict=True) if pair[0] != pair[1]]
        changed.add(frozenset(word.rstrip("?") for word in pair))
    plural = {"circles", "squares", "triangles", "crosses", "stars"}
    allowed = {
        "existence": (set(COLOURS), set(SHAPES)),
        "relation": ({"left_of", "right_of", "above", "below"},),
        "count": ({"two", "three"}, plural),
    }[kind]
    # any word of a sort can become any other of it
    assert changed == {frozenset(pair) for words in allowed for pair in itertools.combinations(words, 2)}


def test_the_object_of_a_relation_is_the_only_one_of_its_shape(episodes: list[dict[str, Any]]):
    for episode in episodes:
        if episode["kind"] == "relation":
            shape = episode["question"].rstrip("?").split()[-1]
            assert [item.shape for item in episode["objects"]].count(shape) == 1


def test_kinds_and_answers_are_balanced(episodes: list[dict[str, Any]]):
    # 900 episodes, each of the six a share of 1/6 with a standard deviation of 0.0124
    counts = Counter((episode["kind"], episode["answer"]) for episode in episodes)
    assert len(counts) == 6
    np.testing.assert_allclose([count / 900 for count in counts.values()], 1 / 6, atol=0.045)


def test_no_word_gives_the_answer_away(episodes: list[dict[str, Any]]):
    answers = defaultdict(list)
    for episode in episodes:
        for word in set(re.findall(r"\w+", episode["question"])):
            answers[word].append(episode["answer"])
    for word, given in answers.items():
        # within four standard deviations of one half
        assert abs(np.mean(given) - 0.5) <= 4 * 0.5 / len(given) ** 0.5, word


def test_the_number_of_objects_does_not_give_the_answer_away(episodes: list[dict[str, Any]]):
    for kind in QUESTIONS:
        for number in (1, 2, 3):
            given = [e["answer"] for e in episodes if e["kind"] == kind and len(e["objects"]) == number]
            assert not given or abs(np.mean(given) - 0.5) <= 4 * 0.5 / len(given) ** 0.5


def test_the_picture_shows_the_scene(episodes: list[dict[str, Any]]):
    for episode in episodes[:50]:
        image = episode["observation"]["image"].astype(int)
        for item in episode["objects"]:
            off = np.abs(image[int(item.y), int(item.x)] - COLOURS[item.colour])
            assert off.max() <= COLOUR_JITTER


@pytest.mark.parametrize("action", [0, 1])
def test_one_step_judges_the_answer(action: int):
    env = SceneQuestions()
    seen = set()
    for seed in range(20):
        assert env.reset(seed=seed)[1] == {"optimal_return": 1.0}
        right, answer = action == env.answer, ("no", "yes")[env.answer]
        told = {"is_success": right, "answer": answer}
        assert env.step(action)[1:] == (float(right), True, False, told)
        seen.add(right)
    assert seen == {False, True}


def test_the_observation_stays_what_was_asked():
    env = SceneQuestions()
    first, after = env.reset(seed=1)[0], env.step(0)[0]
    assert first["question"] == after["question"] == env.question
    np.testing.assert_array_equal(first["image"], after["image"])
    assert first["image"] is not after["image"]


def test_an_episode_is_a_function_of_its_seed():
    def seen(env: SceneQuestions, seed: int) -> tuple[Any, ...]:
        observation, _ = env.reset(seed=seed)
        return observation["image"].tobytes(), observation["question"], env.answer

    used = SceneQuestions()
    assert [seen(used, seed) for seed in (3, 4)] == [seen(SceneQuestions(), seed) for seed in (3, 4)]
    assert len({seen(used, seed) for seed in range(20)}) == 20


def test_kinds_can_be_chosen():
    for kinds in ("count", ["count"]):
        env = SceneQuestions(kinds=kinds)
        for seed in range(10):
            env.reset(seed=seed)
            assert env.kind == "count"
            assert env.question.startswith("are there")


def test_blanks_take_one_half_away_and_leave_the_other():
    whole = SceneQuestions().reset(seed=2)[0]
    without_image, env = SceneQuestions(blank="image", render_mode="rgb_array"), SceneQuestions(blank="text")
    observation = without_image.reset(seed=2)[0]
    assert (observation["image"] == 127).all()
    assert observation["question"] == whole["question"]
    np.testing.assert_array_equal(without_image.render(), whole["image"])
    observation = env.reset(seed=2)[0]
    assert observation["question"] == "is it so?"
    np.testing.assert_array_equal(observation["image"], whole["image"])
    assert env.render() is None


def test_every_observation_is_of_its_space(episodes: list[dict[str, Any]]):
    space = SceneQuestions().observation_space
    assert all(space.contains(episode["observation"]) for episode in episodes)
    assert space.contains(SceneQuestions(blank="text").reset(seed=0)[0])
    # the longest of all: of orange triangles and "right of"
    assert space["question"].contains("is there an orange triangle right of the triangle?")


def test_a_step_before_the_reset_is_refused():
    with pytest.raises(gymnasium.error.ResetNeeded, match="call `reset` before `step`"):
        SceneQuestions().step(0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"kinds": ["colour"]},
            r"`kinds` may name existence, relation, count, one at least; got \['colour'\]",
        ),
        ({"kinds": []}, r"one at least; got \[\]"),
        ({"blank": "picture"}, "`blank` must be one of none, image, text; got 'picture'"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        SceneQuestions(**settings)
