"""Digests of observations: equal for what is equal in every process, different for what is not."""

from __future__ import annotations

import itertools
import subprocess
import sys
from typing import Any

import numpy as np

from mmft.engine.environment_calls import observation_digest

DIFFERENT: list[Any] = [
    None,
    0,
    0.0,
    False,
    "",
    "0",
    b"0",
    [],
    {},
    np.zeros(2),
    np.zeros(2, np.float32),
    np.zeros(2, np.int64),
    np.zeros((2, 1)),
    np.array([0.0, -0.0]),
    np.array([0, 1]),
    np.float64(0),
    ["a", "b"],
    ["ab"],
    [["a"], "b"],
    {"a": "b"},
    {"a": ["b"]},
    {"a": None, "b": None},
    np.array(["a", None], dtype=object),
]


def test_observations_that_differ_have_different_digests():
    digests = [observation_digest(value) for value in DIFFERENT]
    pairs = itertools.combinations(zip(DIFFERENT, digests, strict=True), 2)
    assert [(one, other) for (one, a), (other, b) in pairs if a == b] == []


def test_one_pixel_and_one_letter_count():
    def digest(pixel: int = 0, mission: str = "go to the red circle") -> str:
        image = np.zeros((4, 4, 3), np.uint8)
        image[3, 3, 2] = pixel
        return observation_digest({"image": image, "mission": mission})

    assert digest() == digest()
    assert len({digest(), digest(pixel=1), digest(mission="go to the red circles")}) == 3


def test_the_order_of_keys_and_of_memory_does_not_count():
    image = np.arange(6).reshape(2, 3)
    digest = observation_digest({"a": image, "b": (1, "x")})
    assert observation_digest({"b": (1, "x"), "a": np.asfortranarray(image)}) == digest
    assert observation_digest({"b": [1, "x"], "a": image[::1]}) == digest


def test_not_a_number_is_equal_to_itself():
    assert observation_digest(np.array([np.nan])) == observation_digest(np.array([np.nan]))


def test_of_unknown_things_the_type_counts():
    class Thing:
        pass

    assert observation_digest([Thing()]) == observation_digest([Thing()])
    assert observation_digest(Thing()) != observation_digest(object())
    one, other = ([type(name, (), {})() for name in names] for names in (("ab", "c"), ("a", "bc")))
    assert observation_digest(one) != observation_digest(other)


def test_digests_are_the_same_in_another_process():
    value = {"image": np.arange(12, dtype=np.uint8), "mission": "go", "numbers": (1, 2.5, None)}
    code = (
        "import numpy as np; from mmft.engine.environment_calls import observation_digest as digest;"
        "print(digest({'mission': 'go', 'image': np.arange(12, dtype=np.uint8), 'numbers': (1, 2.5, None)}))"
    )
    for seed in ("1", "2"):  # strings hash differently in each
        result = subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert result.stdout.strip() == observation_digest(value)
