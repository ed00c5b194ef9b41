"""Reading Gymnasium observations: what is found by itself, what can be said, and what is refused."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from mmft.engine.observations import Observation, ObservationReader
from mmft.errors import ConfigError, EnvError

PICTURE = spaces.Box(0, 255, (6, 8, 3), np.uint8)
MISSION = spaces.Text(40)
SPACE = spaces.Dict({"image": PICTURE, "mission": MISSION, "direction": spaces.Discrete(4)})
ACTIONS = spaces.Discrete(3)


class Missions(gymnasium.Space[str]):
    """A space of another's making that holds strings, as MiniGrid's does."""

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        return "go to the door"


def make_reader(
    space: gymnasium.Space[Any] = SPACE, actions: Any = ACTIONS, **settings: Any
) -> ObservationReader:
    return ObservationReader(space, actions, environment="Toy-v0", **settings)


def pixels(seed: int = 0, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape or (6, 8, 3), dtype=np.uint8)


def one_pixel(value: float) -> np.ndarray:
    """A white picture of floats with one pixel of another grey."""
    picture = np.ones((6, 8), np.float32)
    picture[2, 3] = value
    return picture


def observe(**values: Any) -> dict[str, Any]:
    return {"image": pixels(), "mission": "go home", "direction": 2} | values


def read(reader: ObservationReader, observation: Any, **info: Any) -> Observation:
    return reader.read(observation, info)


def test_keys_are_found_by_their_spaces() -> None:
    reader = make_reader()
    assert (reader.image_keys, reader.text_keys, reader.number_keys) == (
        ("image",),
        ("mission",),
        ("direction",),
    )
    assert (reader.num_actions, reader.num_numbers) == (3, 4)
    observation = read(reader, observe())
    assert np.array_equal(np.asarray(observation.images[0]), pixels())
    assert observation.images[0].mode == "RGB"
    assert observation.text == "go home"
    assert observation.numbers.tolist() == [0, 0, 1, 0]
    assert observation.legal is None


def test_keys_can_be_said() -> None:
    space = spaces.Dict({
        "left": PICTURE, "right": PICTURE, "rule": MISSION, "mission": MISSION,
        "speed": spaces.Box(-1, 1, ()), "direction": spaces.Discrete(4),
    })  # fmt: skip
    values = {
        "left": pixels(1), "right": pixels(2), "rule": "be quick", "mission": "go home",
        "speed": np.float32(0.5), "direction": 1,
    }  # fmt: skip
    found = read(make_reader(space), values)
    # In the order of the space, which sorts its keys.
    assert found.text.split("\n") == ["go home", "be quick"]
    assert found.numbers.tolist() == [0, 1, 0, 0, 0.5]
    said = make_reader(space, image_keys=["right", "left"], text_keys=["rule"], number_keys=["speed"])
    observation = read(said, values)
    assert [np.asarray(image).tolist() for image in observation.images] == [
        pixels(2).tolist(),
        pixels(1).tolist(),
    ]
    assert observation.text == "be quick"
    assert observation.numbers.tolist() == [0.5]
    nothing = read(make_reader(space, text_keys=[], number_keys=[]), values)
    assert nothing.text == ""
    assert nothing.numbers is None


def test_a_space_of_strings_of_anothers_making_is_text() -> None:
    space = spaces.Dict({"image": PICTURE, "mission": Missions(None, None)})
    assert make_reader(space).text_keys == ("mission",)
    assert read(make_reader(space), {"image": pixels(), "mission": "fetch the key"}).text == "fetch the key"


@pytest.mark.parametrize(
    ("space", "key"), [(PICTURE, "image"), (MISSION, "text"), (spaces.Box(-1, 1, (2,)), "observation")]
)
def test_a_space_that_is_no_dict_gets_a_key(space: gymnasium.Space[Any], key: str) -> None:
    value = {"image": pixels(), "text": "go home", "observation": np.array([0.5, -1], np.float32)}[key]
    instruction = "You are at {observation}." if key == "observation" else None
    observation = read(make_reader(space, instruction=instruction), value)
    assert bool(observation.images) == (key == "image")
    assert observation.text == {"image": "", "text": "go home", "observation": "You are at [0.5, -1.0]."}[key]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((6, 8), lambda x: np.stack([x] * 3, -1)),
        ((6, 8, 1), lambda x: np.concatenate([x] * 3, -1)),
        ((6, 8, 3), lambda x: x),
        ((3, 6, 8), lambda x: np.moveaxis(x, 0, -1)),
        ((3, 6, 3), lambda x: x),  # the last axis counts where both could be meant
    ],
)
def test_pictures_of_every_layout_become_rgb(shape: tuple[int, ...], expected: Any) -> None:
    value = pixels(3, *shape)
    image = read(make_reader(spaces.Box(0, 255, shape, np.uint8)), value).images[0]
    assert np.array_equal(np.asarray(image), expected(value))


def test_what_is_transparent_becomes_white() -> None:
    value = pixels(0, 6, 8, 4)
    value[..., 3] = 255
    value[0, 0] = (10, 20, 30, 0)
    image = np.asarray(read(make_reader(spaces.Box(0, 255, (6, 8, 4), np.uint8)), value).images[0])
    assert image[0, 0].tolist() == [255, 255, 255]
    assert np.array_equal(image[1:], value[1:, :, :3])


def test_pictures_of_floats_are_scaled() -> None:
    reader = make_reader(spaces.Box(0, 1, (6, 8, 3), np.float32))
    value = np.full((6, 8, 3), 0.5, np.float32)
    value[0, 0] = (0, 1, 0.2)
    image = np.asarray(read(reader, value).images[0])
    assert image[0, 0].tolist() == [0, 255, 51]  # 0.2 * 255 = 51
    assert image[1, 1].tolist() == [128] * 3  # 0.5 * 255 = 127.5, to the even number


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(0, 255, (6, 8, 2), np.uint8),
        spaces.Box(0, 255, (4, 84, 84), np.uint8),  # four grey frames, no picture
        spaces.Box(-1, 1, (6, 8, 3), np.float32),
        spaces.Box(0, 255, (6, 8, 3), np.int64),
        spaces.Box(0, 1, (6, 8, 2), np.float32),
        spaces.Box(-1, 1, (2, 2), np.float32),
        spaces.Box(0, 255, (48,), np.uint8),
    ],
)
def test_what_only_resembles_a_picture_is_none(space: spaces.Box) -> None:
    reader = make_reader(spaces.Dict({"image": PICTURE, "other": space}))
    assert reader.image_keys == ("image",)
    assert reader.number_keys == (("other",) if len(space.shape) == 1 else ())


def test_numbers_are_laid_side_by_side() -> None:
    space = spaces.Dict({
        "a": spaces.Discrete(3, start=1),
        "b": spaces.MultiBinary(2),
        "c": spaces.MultiDiscrete([2, 3]),
        "d": spaces.Box(-9, 9, (2,), np.float64),
        "e": spaces.Box(-9, 9, (), np.int64),
        "image": PICTURE,
    })  # fmt: skip
    reader = make_reader(space)
    values = {"a": 3, "b": [1, 0], "c": np.array([1, 0]), "d": [0.25, -1.0], "e": 7, "image": pixels()}
    # 3 is the third of 1, 2, 3; then two bits; 1 of 2 and 0 of 3; then numbers as they are.
    expected = [0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 0.25, -1, 7]
    numbers = read(reader, values).numbers
    assert numbers.dtype == torch.float32
    assert numbers.tolist() == expected
    assert reader.num_numbers == len(expected)


def test_an_instruction_is_filled_from_the_observation() -> None:
    space = spaces.Dict({"image": PICTURE, "mission": MISSION, "speed": spaces.Box(0, 9, (), np.float32)})
    reader = make_reader(space, instruction="{mission}, at {speed:.1f}. {{Left}} or right?")
    values = {"image": pixels(), "mission": "go home", "speed": np.float32(1.25)}
    assert read(reader, values).text == "go home, at 1.2. {Left} or right?"
    assert read(make_reader(space, instruction="Which way?"), values).text == "Which way?"


def test_actions_are_named_from_where_they_start() -> None:
    assert make_reader(actions=spaces.Discrete(3, start=-1)).to_action(2) == 1
    assert make_reader().to_action(2) == 2


def test_legal_actions_come_from_the_observation_or_from_info() -> None:
    reader = make_reader()
    assert read(reader, observe(), action_mask=np.array([1, 0, 1], np.int8)).legal.tolist() == [
        True,
        False,
        True,
    ]
    space = spaces.Dict({**SPACE.spaces, "action_mask": spaces.Box(0, 1, (3,), np.int8)})
    masked = make_reader(space)
    assert masked.number_keys == ("direction",)
    both = read(masked, observe(action_mask=np.array([0, 0, 1])), action_mask=np.array([1, 1, 1]))
    assert both.legal.tolist() == [False, False, True]
    named = make_reader(mask_key="valid")
    observation = read(named, observe(), valid=[True, False, False], action_mask="not asked for")
    assert observation.legal.tolist() == [True, False, False]
    assert observation.legal.dtype == torch.bool


def test_equal_pictures_and_texts_have_equal_keys_and_nothing_else_counts() -> None:
    reader = make_reader()
    base = read(reader, observe())
    same = read(reader, observe(direction=0), action_mask=[1, 0, 0])
    assert (base.image_key, base.text_key, base.key) == (same.image_key, same.text_key, same.key)
    assert base.key == base.image_key + base.text_key
    assert len(base.image_key) == len(base.text_key) == 16
    assert base.text_key == hashlib.blake2b(b"go home", digest_size=16).digest()
    other_text, other_image = read(reader, observe(mission="go")), read(reader, observe(image=pixels(1)))
    assert other_text.image_key == base.image_key
    assert other_text.text_key != base.text_key
    assert other_image.text_key == base.text_key
    assert other_image.image_key != base.image_key
    assert len({base.key, other_text.key, other_image.key}) == 3


def test_the_shape_of_a_picture_belongs_to_its_key() -> None:
    value = pixels()
    wide = read(make_reader(PICTURE), value)
    tall = read(make_reader(spaces.Box(0, 255, (8, 6, 3), np.uint8)), value.reshape(8, 6, 3))
    assert wide.images[0].tobytes() == tall.images[0].tobytes()
    assert wide.image_key != tall.image_key


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_picture_outlives_the_buffer_of_the_environment(dtype: Any) -> None:
    buffer = np.full((6, 8, 3), 1, dtype)
    reader = make_reader(spaces.Box(0, 255 if dtype == np.uint8 else 1, (6, 8, 3), dtype))
    observation = read(reader, buffer)
    before = observation.images[0].tobytes()
    buffer[:] = 0
    assert observation.images[0].tobytes() == before


@pytest.mark.parametrize("actions", [spaces.Box(-1, 1, (2,)), spaces.MultiDiscrete([2, 2])])
def test_actions_that_are_no_choice_among_finitely_many_are_refused(actions: gymnasium.Space[Any]) -> None:
    message = (
        f"environment 'Toy-v0' has the action space {re.escape(str(actions))}, but a policy chooses among"
    )
    with pytest.raises(ConfigError, match=message):
        make_reader(actions=actions)


def test_an_environment_without_picture_and_text_is_refused_with_what_it_has() -> None:
    space = spaces.Dict({"speed": spaces.Box(0, 1, (1,)), "gear": spaces.Discrete(5)})
    message = (
        r"environment 'Toy-v0' has no picture and no text .* gear: Discrete\(5\), speed: Box.* `instruction`"
    )
    for instruction in (None, "Drive."):
        with pytest.raises(ConfigError, match=message):
            make_reader(space, instruction=instruction)
    assert make_reader(space, instruction="Gear {gear}.").image_keys == ()


@pytest.mark.parametrize("setting", ["image_keys", "text_keys", "number_keys"])
def test_a_key_that_is_not_there_is_refused_with_those_that_are(setting: str) -> None:
    message = rf"'Toy-v0': `{setting}` names 'rgb', .* direction: Discrete\(4\), image: Box.*, mission: Text"
    with pytest.raises(ConfigError, match=message):
        make_reader(**{setting: ["rgb"]})


@pytest.mark.parametrize(
    ("setting", "key", "kind"),
    [
        ("image_keys", "mission", "a picture: uint8, or floats"),
        ("text_keys", "direction", "a text"),
        ("number_keys", "image", "a Discrete, MultiDiscrete, MultiBinary, or a Box of at most one axis"),
    ],
)
def test_a_key_of_another_kind_is_refused(setting: str, key: str, kind: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"'Toy-v0': `{setting}` names '{key}', whose space .* is not {kind}"
    ):
        make_reader(**{setting: [key]})


@pytest.mark.parametrize("key", ["goal", "image", "", "mission.upper", "0"])
def test_an_instruction_that_names_no_text_and_no_number_is_refused(key: str) -> None:
    message = re.escape(f"`instruction` names {{{key}}}, which is no text and no number of its observations")
    with pytest.raises(ConfigError, match=message):
        make_reader(instruction=f"Find {{{key}}}!")


def test_an_instruction_that_is_no_template_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"`instruction` is 'Go \{mission', which is no template \(.*\)\. Write keys"
    ):
        make_reader(instruction="Go {mission")


def test_an_instruction_that_cannot_be_filled_is_refused() -> None:
    reader = make_reader(instruction="Go {mission:.1f}")
    with pytest.raises(
        ConfigError, match=r"cannot be filled with \{'mission': 'go home'\} .* behind a colon"
    ):
        read(reader, observe())


@pytest.mark.parametrize(
    ("key", "value", "found"),
    [
        ("image", pixels(0, 6, 8, 4), r"'image' has the shape \(6, 8, 4\); its space promises Box"),
        ("image", pixels().astype(np.int64), "'image' is of int64"),
        ("image", [[1], [2, 3]], "'image' is no array"),
        ("mission", 3, "'mission' is of type int, not text; its space promises Text"),
        ("direction", 4, r"'direction' is 4; its space promises Discrete\(4\)"),
        ("direction", 1.0, r"'direction' is 1\.0; its space"),
        ("speed", [np.nan, 0], r"'speed' is \[nan, 0\], not finite numbers"),
        ("speed", [0, -np.inf], "'speed' is .* not finite numbers"),
        ("speed", [1e300, 0], "'speed' is .* not finite numbers"),
        ("speed", ["fast", "slow"], "'speed' is .* not finite numbers"),
        ("speed", [0, 1, 2], r"'speed' has the shape \(3,\)"),
        ("gears", [0.5, 1], r"'gears' is \[0\.5, 1\]; its space promises MultiDiscrete"),
        ("grey", one_pixel(-0.1), "'grey' is of float32, or holds values that are not"),
        ("grey", one_pixel(1.1), "'grey' is of float32, or holds values that are not"),
        ("grey", one_pixel(np.nan), "'grey' is of float32, or holds values"),
        ("grey", np.ones((6, 8), np.int64), "'grey' is of int64, or holds values"),
    ],
)  # fmt: skip
def test_a_value_that_does_not_fit_its_space_is_refused(key: str, value: Any, found: str) -> None:
    more: dict[str, gymnasium.Space[Any]] = {
        "speed": spaces.Box(-1, 1, (2,)),
        "grey": spaces.Box(0, 1, (6, 8)),
        "gears": spaces.MultiDiscrete([2, 3]),
    }
    reader = make_reader(spaces.Dict({**SPACE.spaces, **more}))
    good = observe(speed=[0.5, 0.5], grey=one_pixel(0.5), gears=[1, 2])
    read(reader, good)
    with pytest.raises(EnvError, match=f"environment 'Toy-v0': {found}"):
        read(reader, good | {key: value})


@pytest.mark.parametrize("key", ["image", "mission", "direction"])
def test_a_key_that_an_observation_lacks_is_named(key: str) -> None:
    values = observe()
    del values[key]
    with pytest.raises(
        EnvError, match=f"environment 'Toy-v0': the observation lacks '{key}'; its space promises"
    ):
        read(make_reader(), values)


def test_an_observation_that_is_no_dict_is_refused() -> None:
    with pytest.raises(
        EnvError, match=r"'Toy-v0' observed a ndarray where its observation space promises a dict"
    ):
        read(make_reader(), pixels())


@pytest.mark.parametrize("mask", [[1, 0], [1, 0, 2], 1, [[1, 0, 1]], [1, 0, np.nan]])
def test_a_mask_of_another_form_is_refused(mask: Any) -> None:
    with pytest.raises(
        EnvError, match=r"'Toy-v0': the legal actions under 'action_mask' must be 3 zeros or ones"
    ):
        read(make_reader(), observe(), action_mask=mask)


def test_a_mask_that_allows_nothing_is_refused() -> None:
    with pytest.raises(EnvError, match=r"'Toy-v0': 'action_mask' allows no action\. .* `terminated=True`"):
        read(make_reader(), observe(), action_mask=np.zeros(3, np.int8))


def test_minigrid_missions_are_text() -> None:
    from minigrid.core.mission import MissionSpace

    space = spaces.Dict({"image": PICTURE, "mission": MissionSpace(lambda: "get to the green goal square")})
    assert make_reader(space).text_keys == ("mission",)
