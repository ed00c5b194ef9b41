"""The grid: what a step does and costs, what the best return is, and that one needs picture and mission."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from mmft.environments.find_object import AGENT, FindObject
from mmft.errors import ConfigError
from mmft.tiny.drawing import COLOUR_JITTER
from mmft.tiny.lexicon import CANVAS, COLOURS, SHAPES

UP, RIGHT, DOWN, LEFT = range(4)


def laid_out(agent: Any, target: Any, wrong: tuple[Any, ...] = (), **settings: Any) -> FindObject:
    """An environment whose red circle is to be found, with blue squares in the other places."""
    env = FindObject(**settings)
    env.reset(seed=0)
    env.objects = {target: ("red", "circle")} | dict.fromkeys(wrong, ("blue", "square"))
    env.agent, env.target = agent, target
    env._distances = env._distances_to(target)
    return env


def centre(image: np.ndarray, cell: tuple[int, int], size: int) -> np.ndarray:
    column, row = (int((number + 0.5) * CANVAS / size) for number in cell)
    return image[row, column].astype(int)


def test_each_action_moves_by_one_cell_and_the_border_holds():
    # columns grow to the right, rows downwards
    for action, cell in {UP: (1, 0), RIGHT: (2, 1), DOWN: (1, 2), LEFT: (0, 1)}.items():
        env = laid_out((1, 1), (3, 3))
        env.step(action)
        assert env.agent == cell
    for corner, actions in {(0, 0): (UP, LEFT), (3, 3): (DOWN, RIGHT)}.items():
        for action in actions:
            env = laid_out(corner, (2, 1))
            env.step(action)
            assert env.agent == corner


def test_the_way_to_the_target_hand_computed():
    # right, down, down: -0.05 - 0.05 + (1 - 0.05) = 0.85
    env = laid_out((0, 0), (1, 2))
    results = [env.step(action)[1:] for action in (RIGHT, DOWN, DOWN)]
    assert results == [
        (-0.05, False, False, {}),
        (-0.05, False, False, {}),
        (0.95, True, False, {"is_success": True}),
    ]


def test_a_wrong_object_ends_the_episode_and_costs_one_more():
    env = laid_out((0, 0), (1, 2), wrong=((1, 0),))
    assert env.step(RIGHT)[1:] == (-1.05, True, False, {"is_success": False})


def test_arriving_at_a_wrong_object_may_cost_nothing_but_the_step():
    env = laid_out((0, 0), (1, 2), wrong=((1, 0),), wrong_reward=0.0)
    assert env.step(RIGHT)[1:] == (-0.05, True, False, {"is_success": False})


def test_out_of_steps_the_episode_is_truncated_and_not_terminated():
    env = laid_out((0, 0), (3, 3), size=4, max_steps=6, step_cost=0.0)
    results = [env.step(UP)[1:] for _ in range(6)]
    assert results[:5] == [(0.0, False, False, {})] * 5
    assert results[5] == (0.0, False, True, {"is_success": False})


def test_arriving_with_the_last_step_is_a_success_and_no_truncation():
    env = laid_out((1, 0), (1, 2), max_steps=6)
    results = [env.step(action)[1:] for action in (UP, UP, UP, UP, DOWN, DOWN)]
    assert results[5] == (0.95, True, False, {"is_success": True})


@pytest.mark.parametrize("size", [2, 3, 4])
def test_by_default_an_episode_has_four_steps_per_side(size: int):
    assert FindObject(size=size).max_steps == 4 * size


def test_the_shortest_way_leads_around_wrong_objects():
    # . X T    the straight way is 2, around below 4
    # . . .
    env = laid_out((0, 0), (2, 0), wrong=((1, 0),), size=3)
    assert env._distances[env.agent] == 4
    assert env.optimal_actions() == {DOWN}


@pytest.mark.parametrize(
    "settings", [{}, {"size": 2}, {"size": 3, "num_objects": 4}, {"num_objects": 6, "step_cost": 0.1}]
)
def test_optimal_actions_earn_the_optimal_return(settings: dict[str, Any]):
    env = FindObject(**settings)
    for seed in range(40):
        info, total, terminated = env.reset(seed=seed)[1], 0.0, False
        while not terminated:
            _, reward, terminated, truncated, ended = env.step(max(env.optimal_actions()))
            assert not truncated
            total += reward
        assert ended["is_success"]
        assert total == pytest.approx(info["optimal_return"])
        assert env.optimal_actions() == set()


@pytest.mark.parametrize("settings", [{"size": 3, "num_objects": 4}, {"size": 4, "num_objects": 6}])
def test_no_policy_earns_more_than_the_optimal_return(settings: dict[str, Any]):
    # At the highest cost and without a fine, where ending at a wrong object pays most. Values by dynamic
    # programming over what `step` does, which knows nothing of distances; the moves that reach the value are
    # the optimal actions.
    for seed in range(12):
        env = FindObject(step_cost=0.1, wrong_reward=0.0, **settings)
        optimal_return = env.reset(seed=seed)[1]["optimal_return"]
        cells = [(x, y) for x in range(env.size) for y in range(env.size) if (x, y) not in env.objects]
        moves = {(cell, action): moved(env, cell, action) for cell in cells for action in range(4)}
        values = dict.fromkeys(cells, 0.0)
        for _ in range(env.max_steps):
            gains = {key: reward + values.get(to, 0.0) for key, (reward, to) in moves.items()}
            values = {cell: max(gains[cell, action] for action in range(4)) for cell in cells}
        assert values[env.agent] == pytest.approx(optimal_return)
        best = {a for a in range(4) if gains[env.agent, a] == pytest.approx(values[env.agent])}
        assert env.optimal_actions() == best


def moved(env: FindObject, cell: Any, action: int) -> tuple[float, Any]:
    twin = copy.deepcopy(env)
    twin.agent = cell
    reward = twin.step(action)[1]
    return reward, twin.agent


def test_the_picture_shows_each_thing_where_it_is():
    for settings in ({"size": 2}, {"size": 3, "num_objects": 3}, {"num_objects": 4}):
        env = FindObject(**settings)
        for seed in range(10):
            image = env.reset(seed=seed)[0]["image"]
            for cell, (colour, _) in [*env.objects.items(), (env.agent, AGENT)]:
                off = np.abs(centre(image, cell, env.size) - COLOURS[colour])
                assert off.max() <= COLOUR_JITTER
            empty = {(x, y) for x in range(env.size) for y in range(env.size)} - {*env.objects, env.agent}
            assert all(centre(image, cell, env.size).min() > 200 for cell in empty)


def test_the_agent_that_arrives_is_drawn_over_the_object():
    env = laid_out((0, 0), (1, 0))
    image = env.step(RIGHT)[0]["image"]
    assert centre(image, (1, 0), 4).max() <= 45


def test_the_picture_of_a_position_does_not_flicker():
    env = laid_out((1, 1), (3, 3))
    first = env.step(UP)[0]["image"]
    moved_away = env.step(DOWN)[0]["image"]
    again = env.step(UP)[0]["image"]
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, moved_away)


def test_without_jitter_a_layout_always_looks_the_same():
    env = FindObject(jitter=False)
    pictures = set()
    for seed in range(5):
        env.reset(seed=seed)
        env.objects, env.agent, env.target = {(0, 0): ("red", "circle")}, (1, 1), (0, 0)
        pictures.add(env.step(RIGHT)[0]["image"].tobytes())
    assert len(pictures) == 1


def test_shades_differ_between_episodes():
    env = FindObject()
    assert len({env.reset(seed=seed)[0]["image"].max() for seed in range(10)}) > 1


def test_an_episode_is_a_function_of_its_seed():
    def seen(env: FindObject, seed: int) -> tuple[Any, ...]:
        observation, info = env.reset(seed=seed)
        return observation["image"].tobytes(), observation["mission"], info["optimal_return"]

    used = FindObject()
    for seed in range(5):
        used.reset()
        used.step(seed % 4)
        assert seen(used, seed) == seen(FindObject(), seed)
    assert len({seen(used, seed) for seed in range(20)}) == 20


def test_objects_differ_in_kind_and_place_and_none_is_black():
    env = FindObject(num_objects=5)
    for seed in range(50):
        env.reset(seed=seed)
        assert len(set(env.objects.values())) == len(env.objects) == 5
        assert env.agent not in env.objects
        assert all(colour != "black" for colour, _ in env.objects.values())


def test_the_mission_names_the_target():
    env = FindObject()
    for seed in range(20):
        mission = env.reset(seed=seed)[0]["mission"]
        assert mission == "go to the {} {}".format(*env.objects[env.target])


def test_half_of_the_wrong_objects_share_colour_or_shape_with_the_target_and_none_both():
    env = FindObject()
    shared = []
    for seed in range(800):
        env.reset(seed=seed)
        (colour, shape), (other_colour, other_shape) = env.objects.values()
        shared.append((colour == other_colour) + (shape == other_shape))
    assert set(shared) == {0, 1}
    # 800 coins: a standard deviation of 0.018
    assert np.mean(shared) == pytest.approx(0.5, abs=0.06)


def test_any_object_of_a_picture_may_be_the_target():
    env = FindObject(num_objects=3)
    places = []
    for seed in range(900):
        env.reset(seed=seed)
        places.append(list(env.objects).index(env.target))
    # each a third, with a standard deviation of 0.016: also the first, which the others are made alike to
    np.testing.assert_allclose(np.bincount(places) / 900, 1 / 3, atol=0.06)


def test_every_object_can_be_reached_in_time():
    # a picture with an object behind others would tell that this one is not the target
    env = FindObject(size=3, num_objects=4, max_steps=4)
    for seed in range(60):
        env.reset(seed=seed)
        assert all(env._distances_to(cell)[env.agent] <= 4 for cell in env.objects)


def test_a_blanked_picture_is_grey_and_says_nothing():
    env, seeing = FindObject(blank="image", render_mode="rgb_array"), FindObject()
    observation, expected = env.reset(seed=3)[0], seeing.reset(seed=3)[0]
    assert (observation["image"] == 127).all()
    assert observation["mission"] == expected["mission"]
    np.testing.assert_array_equal(env.render(), expected["image"])


def test_a_blanked_mission_says_nothing():
    env, reading = FindObject(blank="text"), FindObject()
    observation, expected = env.reset(seed=3)[0], reading.reset(seed=3)[0]
    assert observation["mission"] == "go to the object"
    np.testing.assert_array_equal(observation["image"], expected["image"])


def test_colours_and_shapes_can_be_limited():
    env = FindObject(colours=["red", "blue"], shapes="star")
    for seed in range(10):
        env.reset(seed=seed)
        assert sorted(env.objects.values()) == [("blue", "star"), ("red", "star")]


def test_every_observation_is_of_its_space():
    for settings in ({}, {"blank": "image"}, {"blank": "text"}):
        env = FindObject(**settings)
        assert env.observation_space.contains(env.reset(seed=0)[0])
        assert env.observation_space.contains(env.step(0)[0])
    longest = max(len(f"go to the {colour} {shape}") for colour in COLOURS for shape in SHAPES)
    assert env.observation_space["mission"].max_length >= longest


def test_pictures_belong_to_whoever_got_them():
    env = FindObject(render_mode="rgb_array")
    before = env.reset(seed=0)[0]["image"]
    before[:] = 0
    assert env.render().max() > 200


def test_without_a_render_mode_nothing_is_drawn():
    env = FindObject()
    env.reset(seed=0)
    assert env.render() is None


def test_kinds_are_the_only_objects_there_are():
    kinds = [("red", "circle"), ("blue", "square"), ("green", "star")]
    env = FindObject(size=3, kinds=[list(kind) for kind in kinds])
    seen = set()
    for seed in range(40):
        env.reset(seed=seed)
        seen |= set(env.objects.values())
    assert seen == set(kinds)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 5}, "`size` must be one of 2, 3, 4; got 5"),
        ({"num_objects": 0}, "`num_objects` must be from 1 to 8 on a grid of 4 x 4.*got 0"),
        ({"size": 2, "num_objects": 3}, "`num_objects` must be from 1 to 2 on a grid of 2 x 2.*got 3"),
        ({"colours": ["red"], "shapes": ["star"]}, "`num_objects` is 2, but .* make 1 kinds. Allow more"),
        ({"step_cost": 0.2}, "`step_cost` must be from 0 to 0.1, .*got 0.2"),
        ({"step_cost": -0.1}, "`step_cost` must be from 0 to 0.1, .*got -0.1"),
        ({"wrong_reward": 0.1}, "`wrong_reward` must be from -1 to 0; got 0.1"),
        ({"wrong_reward": -1.5}, "`wrong_reward` must be from -1 to 0; got -1.5"),
        ({"max_steps": 5}, "`max_steps` must be at least 6, .*got 5"),
        ({"blank": "mission"}, "`blank` must be one of none, image, text; got 'mission'"),
        ({"colours": ["black"]}, "`colours` names 'black', which is the agent's"),
        ({"colours": ["rde"]}, "`colours` names 'rde', which is not drawn. Did you mean 'red'"),
        ({"shapes": ["hexagon", "x"]}, "`shapes` names 'hexagon', .*They may be circle, square"),
        ({"kinds": [["red", "circle"]], "shapes": ["star"]}, "`kinds` and `colours` or `shapes` exclude"),
        ({"kinds": ["red circle"]}, "`kinds` must be pairs such as .red, circle.; got 'red circle'"),
        ({"kinds": [["red", "circle"], ["blue", "sqare"]]}, "`kinds` names 'sqare', .*mean 'square'"),
        ({"kinds": [["black", "circle"]]}, "`kinds` names 'black', which is the agent's"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        FindObject(**settings)
