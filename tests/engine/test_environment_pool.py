"""Driving environments: what a step says, whose seed it is, going on after a resume, making and closing."""

from __future__ import annotations

import json
import logging
import threading
from typing import Any

import gymnasium
import numpy as np
import pytest

from mmft.engine.environment_pool import Episode, episode_seed
from mmft.environments.find_object import FindObject
from mmft.errors import ConfigError, EnvError
from tests.engine.environment_support import BOOM, Counting, Maker, failing, plain, pool_of

# Steps and episodes


def test_a_step_shows_where_the_action_led_and_where_to_act_next():
    pool = pool_of(Maker(length=2))
    (first, info), _ = pool.reset()
    drawn = first[0]
    assert info == {"optimal_return": 2}
    assert plain(first) == [drawn, 0, 0]
    one, other = pool.step([4, 0])
    expected = [[drawn, 4, 1], {}, 4.0, False, False, False, [drawn, 4, 1], {}]
    assert plain(one) == expected
    assert plain(other)[2:6] == [0.0, False, False, False]
    one, other = pool.step([1, 0])
    # the final observation, and the start of the next episode
    assert plain(one)[:6] == [[drawn, 5, 2], {"is_success": True}, 1.0, True, True, False]
    assert one.next_observation[0] != drawn
    assert plain(one.next_observation)[1:] == [0, 0]
    assert one.next_info == {"optimal_return": 2}
    # truncated: over, but not terminated
    assert plain(other)[1:6] == [{"is_success": False}, 0.0, False, True, False]


def test_the_final_observation_is_not_written_over_by_the_next_episode():
    pool = pool_of(Maker(length=1))  # whose observations are all the same array, and its infos one dict
    pool.reset()
    step = pool.step([5, 6])[0]
    assert plain(step.observation)[1:] == [5, 1]
    assert step.info == {"is_success": False}
    assert plain(step.next_observation)[1:] == [0, 0]


def test_reset_shows_what_is_there_and_starts_nothing_twice():
    make = Maker()
    pool = pool_of(make)
    before = plain(pool.reset())
    assert plain(pool.reset()) == before
    pool.step([3, 4])
    assert [plain(observation)[1] for observation, _ in pool.reset()] == [3, 4]
    assert [len(env.seeds) for env in make.made] == [1, 1]


def test_finished_episodes_are_told_once_with_their_sums():
    pool = pool_of(Maker({"length": 2}, {"length": 3}), first=5)
    pool.reset()
    for actions in ([2, 1], [0, 1], [3, 1]):
        pool.step(actions)
    # 2 + 0 truncated after two steps; 1 + 1 + 1 with a success; the 3 belongs to the next episode
    assert pool.finished() == [
        Episode(2.0, 2, False, 2.0, environment=5, number=0),
        Episode(3.0, 3, True, 3.0, environment=6, number=0),
    ]
    assert pool.finished() == []
    pool.step([1, 1])
    assert pool.finished() == [Episode(4.0, 2, True, 2.0, environment=5, number=1)]


def test_an_environment_need_not_say_what_success_is():
    def silent(env: Counting) -> Any:
        return env.shown, 1.0, True, False, {}

    pool = pool_of(Maker(on_step=silent))
    pool.reset()
    pool.step([0, 0])
    assert [episode.success for episode in pool.finished()] == [None, None]


def test_rewards_may_be_numbers_of_any_kind():
    for reward in (1, True, np.float32(1), np.int64(1), np.array(1.0)):
        pool = pool_of(Maker(on_step=lambda env, reward=reward: (env.shown, reward, False, False, {})), 1)
        pool.reset()
        (step,) = pool.step([0])
        assert step.reward == 1
        assert type(step.reward) is float


def test_actions_arrive_as_plain_numbers():
    class Strict(Counting):
        def step(self, action: int) -> Any:
            assert type(action) is int
            return super().step(action)

    pool = pool_of(Strict, 1)
    pool.reset()
    assert pool.step(np.array([3]))[0].reward == 3


def test_it_says_which_episode_each_environment_is_in():
    pool = pool_of(Maker({"length": 1}, {"length": 2}, {"on_step": failing(1, BOOM)}, length=3), 3, first=4)
    assert pool.episodes == [-1, -1, -1]
    pool.reset()
    assert pool.episodes == [0, 0, 0]
    pool.step([1, 1, 1])
    assert pool.episodes == [1, 0, 0]
    # the second ends, the third fails; both go on with their next
    pool.step([1, 0, 1])
    assert pool.episodes == [2, 1, 1]
    pool.reset()
    assert pool.episodes == [2, 1, 1]
    other = pool_of(Maker({"length": 1}, {"length": 2}, length=3), 3, first=4)
    other.load_state_dict(pool.state_dict())
    assert other.episodes == [2, 1, 1]


# Seeds


def test_every_episode_has_a_seed_of_its_own():
    make = Maker(length=1)
    pool = pool_of(make, 3, first=2)
    pool.reset()
    for _ in range(4):
        pool.step([0, 0, 0])
    for env, number in zip(make.made, (2, 3, 4), strict=True):
        assert env.seeds == [episode_seed(7, number, episode) for episode in range(5)]
    assert len({seed for env in make.made for seed in env.seeds}) == 15


def test_seeds_depend_on_all_three_numbers_and_fit_in_31_bits():
    seeds = {
        episode_seed(seed, env, episode) for seed in range(3) for env in range(10) for episode in range(100)
    }
    assert len(seeds) == 3000
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert max(seeds) > 2**30
    assert episode_seed(1, 2, 3) == np.random.SeedSequence([1, 2, 3]).generate_state(1)[0] // 2


def test_processes_with_parts_of_the_environments_see_what_one_with_all_sees():
    whole, parts = (
        pool_of(FindObject, 4),
        [pool_of(FindObject, 2, first=first) for first in (0, 2)],
    )
    assert plain(whole.reset()) == plain(parts[0].reset()) + plain(parts[1].reset())
    for step in range(12):
        actions = [(step + number) % 4 for number in range(4)]
        expected = plain(parts[0].step(actions[:2])) + plain(parts[1].step(actions[2:]))
        assert plain(whole.step(actions)) == expected


# Resuming


@pytest.mark.parametrize("time_limit", [None, 30.0])
def test_a_resumed_pool_goes_on_bitwise_the_same(time_limit: float | None):
    actions = np.random.default_rng(0).integers(4, size=(40, 3)).tolist()
    pool = pool_of(FindObject, 3, time_limit=time_limit)
    pool.reset()
    for chosen in actions[:17]:
        pool.step(chosen)
    pool.finished()
    for chosen in actions[17:20]:
        pool.step(chosen)
    state = json.loads(json.dumps(pool.state_dict()))
    resumed = pool_of(FindObject, 3, time_limit=time_limit)
    resumed.load_state_dict(state)
    assert plain(resumed.reset()) == plain(pool.reset())
    for chosen in actions[20:]:
        assert plain(resumed.step(chosen)) == plain(pool.step(chosen))
    ended = pool.finished()
    assert len(ended) > 5
    assert resumed.finished() == ended
    assert resumed.state_dict() == pool.state_dict()
    pool.close()
    resumed.close()


def test_restarts_are_remembered_and_the_failed_episode_is_not_played_again():
    # every new environment fails in its second step, whatever the episode
    pool = pool_of(Maker({"length": 99}, on_step=failing(1, BOOM)), max_restarts=2)
    pool.reset()
    for _ in range(3):
        pool.step([0, 0])
    resumed = pool_of(Maker({"length": 99}, on_step=failing(1, BOOM)), max_restarts=2)
    resumed.load_state_dict(json.loads(json.dumps(pool.state_dict())))
    assert (resumed.num_restarts, resumed.failures) == (1, pool.failures)
    resumed.step([0, 0])
    resumed.step([0, 0])
    with pytest.raises(EnvError, match=r"2 restarts \(`max_restarts`\) are used up"):
        resumed.step([0, 0])


def test_a_pool_that_was_not_started_resumes_as_such():
    make = Maker()
    state = pool_of(Maker()).state_dict()
    pool = pool_of(make)
    pool.load_state_dict(json.loads(json.dumps(state)))
    assert all(env.seeds == [] for env in make.made)
    assert plain(pool.reset()) == plain(pool_of(Maker()).reset())


class Unseeded(Counting):
    """Draws from a generator that no seed reaches."""

    stream = np.random.default_rng(0)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        observation, info = super().reset(seed=seed)
        observation[0] = self.stream.random()
        return observation, info


def test_an_environment_that_is_no_function_of_its_seed_cannot_be_resumed():
    pool = pool_of(Unseeded)
    pool.reset()
    pool.step([1, 1])
    told = (
        r"'counting', number 0, episode 0, step 1: it is not a function of seed and actions, .*observation; "
        r".*from `self.np_random`"
    )
    with pytest.raises(EnvError, match=told):
        pool_of(Unseeded).load_state_dict(pool.state_dict())


def test_an_episode_that_ends_or_fails_while_it_is_played_again_is_no_function_of_its_seed():
    pool = pool_of(Maker(length=3))
    pool.reset()
    pool.step([1, 1])
    pool.step([1, 1])
    with pytest.raises(EnvError, match="step 2: it is not a function of seed and actions"):
        pool_of(Maker(length=2)).load_state_dict(pool.state_dict())
    with pytest.raises(EnvError, match=r"step 2: .*saved observation \(ValueError: boom\)") as caught:
        pool_of(Maker(on_step=failing(1, BOOM))).load_state_dict(pool.state_dict())
    assert caught.value.__cause__ is BOOM


@pytest.mark.parametrize("settings", [{"seed": 8}, {"first": 1}, {"num_envs": 3}])
def test_a_state_of_other_environments_is_refused(settings: dict[str, int]):
    state = pool_of(Maker()).state_dict()
    told = "the state is of 2 environments from number 0 on, seed 7; these are .*Resume with the same"
    with pytest.raises(ConfigError, match=told):
        pool_of(Maker(), **settings).load_state_dict(state)


# Making and closing


def test_closing_closes_all_whatever_goes_wrong(caplog: pytest.LogCaptureFixture):
    class Stuck(Counting):
        def close(self) -> None:
            super().close()
            raise OSError("still open")

    made: list[Counting] = []

    def make() -> Counting:
        made.append(Stuck())
        return made[-1]

    pool = pool_of(make)
    with caplog.at_level(logging.INFO):
        pool.close()
    pool.close()
    assert [env.num_closed for env in made] == [1, 1]
    assert caplog.messages == ["an environment could not be closed: OSError: still open"] * 2


@pytest.mark.parametrize("time_limit", [None, 30.0])
def test_an_environment_that_cannot_be_made_is_told_as_it_is_and_the_others_are_closed(
    time_limit: float | None,
):
    made: list[Counting] = []

    def make() -> Counting:
        if made:
            raise ConfigError("`size` is wrong")
        made.append(Counting())
        return made[0]

    before = set(threading.enumerate())
    with pytest.raises(ConfigError, match="`size` is wrong"):
        pool_of(make, time_limit=time_limit)
    assert made[0].num_closed == 1
    for thread in set(threading.enumerate()) - before:
        thread.join(30)
        assert not thread.is_alive()


def test_all_environments_have_the_same_spaces():
    make = Maker({}, {"num_actions": 4})
    with pytest.raises(
        EnvError, match=r"number 1: `action_space` is Discrete\(4\), but Discrete\(10\) in number 0"
    ):
        pool_of(make)
    assert [env.num_closed for env in make.made] == [1, 1]
    pool = pool_of(Maker())
    assert pool.action_space == gymnasium.spaces.Discrete(10)
    assert pool.observation_space.shape == (3,)


def test_an_environment_that_is_made_anew_has_the_same_spaces_too():
    pool = pool_of(Maker({"on_step": failing(0, BOOM)}, {}, num_actions=4))
    pool.reset()
    with pytest.raises(EnvError, match=r"number 0: `action_space` is Discrete\(4\), but Discrete\(10\)"):
        pool.step([0, 0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_envs": 0}, "`num_envs` must be at least 1; got 0"),
        ({"seed": -1}, "`seed` must be at least 0; got -1"),
        ({"first": -1}, "`first` must be at least 0; got -1"),
        ({"time_limit": 0.0}, "`time_limit` must be above 0 seconds and finite; got 0.0. None is no limit"),
        ({"time_limit": float("inf")}, "`time_limit` must be above 0 seconds and finite; got inf"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        pool_of(Maker(), **settings)


def test_actions_must_be_one_per_environment_and_follow_a_reset():
    pool = pool_of(Maker())
    with pytest.raises(ValueError, match="call `reset` before the first `step`"):
        pool.step([0, 0])
    pool.reset()
    with pytest.raises(ValueError, match="`actions` has 3 entries for 2 environments"):
        pool.step([0, 0, 0])
