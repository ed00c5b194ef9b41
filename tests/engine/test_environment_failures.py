"""Environments that fail: made anew, left behind, or the end of the run, with messages that say where."""

from __future__ import annotations

import logging
import threading
from typing import Any

import numpy as np
import pytest

from mmft.engine.environment_pool import episode_seed
from mmft.errors import EnvError
from tests.engine.environment_support import BOOM, Counting, Maker, failing, plain, pool_of


@pytest.mark.parametrize("time_limit", [None, 30.0])
def test_an_environment_that_raises_is_made_anew_and_the_others_go_on(
    time_limit: float | None, caplog: pytest.LogCaptureFixture
):
    make = Maker({}, {"on_step": failing(1, BOOM)})
    pool = pool_of(make, time_limit=time_limit)
    pool.reset()
    pool.step([1, 1])
    with caplog.at_level(logging.WARNING):
        one, other = pool.step([2, 2])
    assert plain(one)[2:6] == [2.0, False, False, False]
    assert plain(other)[:6] == [None, {}, 0.0, False, True, True]
    # the next episode, in a new environment
    failed, new = make.made[1:]
    assert failed.num_closed == 1
    assert new.seeds == [episode_seed(7, 1, 1)]
    assert plain(other.next_observation)[1:] == [0, 0]
    assert other.next_info == {"optimal_return": 3}
    assert pool.num_restarts == 1
    told = "environment 'counting', number 1, episode 0, step 2: ValueError: boom"
    assert pool.failures == [told]
    assert caplog.messages == [
        f"{told}. It is made anew and goes on with its next episode; further failures of this one are "
        "counted only."
    ]
    for _ in range(3):
        pool.step([1, 1])
    # of the episode that was cut off nothing is told
    assert [(e.environment, e.number) for e in pool.finished()] == [(0, 0), (1, 1)]
    pool.close()


def test_an_environment_is_warned_of_once_and_counted_every_time(caplog: pytest.LogCaptureFixture):
    pool = pool_of(Maker({"length": 99}, on_step=failing(1, BOOM)), max_restarts=50)
    pool.reset()
    with caplog.at_level(logging.WARNING):
        for _ in range(60):
            pool.step([0, 0])
    assert pool.num_restarts == 30
    assert len(caplog.messages) == 1
    assert len(pool.failures) == 20, "the last ones"
    assert pool.failures[-1].startswith("environment 'counting', number 1, episode 29, step 2")


def test_a_reset_that_raises_costs_its_episode_and_not_the_step_before():
    make = Maker({}, {"length": 1, "on_reset": failing(1, BOOM)})
    pool = pool_of(make)
    pool.reset()
    other = pool.step([0, 1])[1]
    assert plain(other)[1:6] == [{"is_success": True}, 1.0, True, True, False]
    assert pool.failures == ["environment 'counting', number 1, episode 1, step 0: ValueError: boom"]
    assert make.made[2].seeds == [episode_seed(7, 1, 2)]
    assert plain(other.next_observation)[1:] == [0, 0]
    assert len(pool.finished()) == 1


def test_the_very_first_reset_may_fail_too():
    make = Maker({"on_reset": failing(0, BOOM)})
    pool = pool_of(make)
    assert len(pool.reset()) == 2
    assert pool.num_restarts == 1
    assert make.made[2].seeds == [episode_seed(7, 0, 1)]


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        ((0, 1.0, False, {}), r"TypeError: `step` returned 4 values, not the tuple \(observation, reward, "),
        ([0, 1.0, False, False, {}], "TypeError: `step` returned list, not the tuple"),
        ((0, 1.0, False, False, None), "TypeError: `step` returned NoneType as `info`, not a dict"),
    ],
)
def test_what_is_no_step_counts_as_a_failure(returned: Any, told: str):
    make = Maker({"on_step": lambda env: returned})
    pool = pool_of(make)
    pool.reset()
    assert [step.failed for step in pool.step([0, 0])] == [True, False]
    alone = pool_of(Maker(on_step=lambda env: returned), 1)
    alone.reset()
    with pytest.raises(EnvError, match=told):
        alone.step([0])


def test_the_only_environment_must_not_fail():
    pool = pool_of(Maker(on_step=failing(2, BOOM)), 1, first=4)
    pool.reset()
    pool.step([0])
    pool.step([0])
    told = r"'counting', number 4, episode 0, step 3: ValueError: boom\. Repair it; of several .*`num_envs`"
    with pytest.raises(EnvError, match=told) as caught:
        pool.step([0])
    assert caught.value.__cause__ is BOOM


def test_too_many_failures_stop_the_run():
    pool = pool_of(Maker({"length": 99}, on_step=failing(1, BOOM)), max_restarts=2)
    pool.reset()
    for _ in range(5):
        pool.step([0, 0])
    told = (
        r"episode 2, step 2: .*2 restarts \(`max_restarts`\) are used up.*Before it: .*episode 0, .*episode 1"
    )
    with pytest.raises(EnvError, match=told) as caught:
        pool.step([0, 0])
    assert caught.value.__cause__ is BOOM


def test_an_environment_that_fails_as_soon_as_it_is_made_anew_stops_the_run():
    make = Maker({}, {"on_step": failing(0, BOOM)}, on_reset=failing(0, KeyError("no display")))
    pool = pool_of(make)
    pool.reset()
    told = "episode 1, step 0: failed again as soon as .*: KeyError: 'no display'.*before: ValueError: boom"
    with pytest.raises(EnvError, match=told) as caught:
        pool.step([0, 0])
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize("reward", [np.nan, np.inf, None, "1", np.ones(1)])
def test_a_wrong_reward_is_an_error_at_once(reward: Any):
    def step(env: Counting) -> Any:
        return (env.shown, reward, False, False, {}) if env.num_steps == 1 else None

    make = Maker({}, {"on_step": step})
    pool = pool_of(make)
    pool.reset()
    pool.step([0, 0])
    told = r"'counting', number 1, episode 0, step 2: the reward is .*\. Return a finite number"
    with pytest.raises(EnvError, match=told):
        pool.step([0, 0])
    assert len(make.made) == 2


@pytest.mark.parametrize("time_limit", [None, 30.0])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
def test_an_interrupt_is_no_failure(error: BaseException, time_limit: float | None):
    pool = pool_of(Maker(on_step=failing(0, error)), time_limit=time_limit)
    pool.reset()
    with pytest.raises(type(error)):
        pool.step([0, 0])
    assert pool.num_restarts == 0
    pool.close()


# Time limits


@pytest.fixture
def release() -> Any:
    """Set at the end of the test, so that nothing hangs longer."""
    event = threading.Event()
    yield event
    event.set()


def test_an_environment_that_hangs_is_left_behind(release: threading.Event):
    make = Maker({}, {"on_step": lambda env: release.wait(60) and None})
    pool = pool_of(make, time_limit=0.2)
    pool.reset()
    one, other = pool.step([1, 1])
    assert [one.failed, other.failed] == [False, True]
    assert plain(other.next_observation)[1:] == [0, 0]
    assert pool.failures == [
        "environment 'counting', number 1, episode 0, step 1: TimeoutError: no answer within the "
        "`time_limit` of 0.2 s"
    ]
    hung, new = make.made[1:]
    assert hung.num_closed == 0
    assert pool.step([1, 1])[1].failed is False
    release.set()
    # the thread that comes back after all closes what it was given
    assert hung.closed.wait(30)
    pool.close()
    assert [env.num_closed for env in (make.made[0], new)] == [1, 1]


def test_a_reset_that_hangs_is_left_behind_too(release: threading.Event):
    def hang(env: Counting) -> None:
        if len(env.seeds) == 2:
            release.wait(60)

    pool = pool_of(Maker({}, {"length": 1, "on_reset": hang}), time_limit=0.2)
    pool.reset()
    step = pool.step([0, 1])[1]
    assert (step.failed, step.last) == (False, True)
    assert "episode 1, step 0: TimeoutError" in pool.failures[0]


def test_the_only_environment_must_not_hang(release: threading.Event):
    pool = pool_of(Maker(on_step=lambda env: release.wait(60) and None), 1, time_limit=0.1)
    pool.reset()
    with pytest.raises(EnvError, match=r"no answer within the `time_limit` of 0\.1 s\. Repair it"):
        pool.step([0])
    pool.close()  # does not wait for it


def test_a_timeout_of_the_environments_own_is_no_hang():
    make = Maker({}, {"on_step": failing(0, TimeoutError("of the simulator"))})
    pool = pool_of(make, time_limit=30.0)
    pool.reset()
    pool.step([0, 0])
    assert pool.failures[0].endswith("TimeoutError: of the simulator")
    assert make.made[1].num_closed == 1
    pool.close()


def test_with_a_time_limit_an_environment_lives_in_one_thread_and_without_in_this_one():
    here = threading.get_ident()
    for time_limit in (None, 30.0):
        make = Maker(length=1)
        pool = pool_of(make, time_limit=time_limit)
        pool.reset()
        pool.step([0, 0])
        pool.close()
        threads = [env.threads for env in make.made]
        assert [len(idents) for idents in threads] == [1, 1]
        assert all((here in idents) == (time_limit is None) for idents in threads)


def test_threads_end_when_the_pool_is_closed():
    before = set(threading.enumerate())
    pool = pool_of(Maker(), time_limit=30.0)
    pool.reset()
    mine = set(threading.enumerate()) - before
    assert len(mine) == 2
    assert all(thread.daemon for thread in mine)
    pool.close()
    for thread in mine:
        thread.join(30)
        assert not thread.is_alive()
