"""Environments that fail, hang or lie, in training and in evaluation, and what of them is refused."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from mmft.engine.playing import Played
from mmft.errors import ConfigError, EnvError
from mmft.trainers import held_out_episodes
from mmft.trainers.ppo import AgentPPOConfig, AgentPPOTrainer
from tests.trainers.agent_support import Counter, Makes, failing, make_agent_trainer, reward_of
from tests.trainers.support import step_rows

PPO = AgentPPOTrainer, AgentPPOConfig


@pytest.fixture(autouse=True)
def _no_warnings(caplog: pytest.LogCaptureFixture) -> None:
    """That an environment was made anew is logged; here it is counted."""
    caplog.set_level(logging.ERROR, logger="mmft.engine.environment_pool")


def circumstances(trainer: Any) -> Callable[[Tensor], tuple[int, int, int]]:
    """Reads a stored picture: the number drawn at the reset, the steps so far and the last action."""

    def read(picture: Tensor) -> tuple[int, int, int]:
        start, steps, action = (int(picture[0, column, 0]) for column in (0, 2, 4))
        return start // 60, steps // 40, action // 80

    return read


def test_a_failed_environment_is_made_anew_and_counted(tmp_path: Path):
    env = Makes({"on_step": failing(in_reset=3)}, {}, {"on_step": failing(in_reset=2, at=2)})
    trainer = make_agent_trainer(tmp_path, env=env)
    trainer.train()
    assert len(env.made) == 4, "two at first, one in place of the first, and one in place of that"
    restarts = [row["env_restarts"] for row in step_rows(trainer)]
    assert sum(restarts) == trainer.player.pool.num_restarts == 2
    assert trainer.player.num_played == 44, "a step that failed did not happen"
    assert "no luck" in trainer.player.pool.failures[0]


@pytest.mark.parametrize("at", [0, 1, 2])
def test_nothing_is_learned_across_a_break(at: int, tmp_path: Path):
    """Every transition in the buffer is one that the environment makes: its picture tells what it pays."""
    env = Makes({"on_step": failing(in_reset=2, at=at)}, {"on_step": failing(in_reset=4, at=at)})
    trainer = make_agent_trainer(tmp_path, env=env, lora=True, learning_starts=40, buffer_size=80)
    trainer._prepare_inputs({"micro_batch": 0})
    assert trainer.player.pool.num_restarts == 2
    read = circumstances(trainer)
    batch = trainer.buffer.sample(600, torch.Generator().manual_seed(0))
    for row in range(600):
        start, steps, last_action = read(batch.states["picture_0"][row])
        action, reward = int(batch.actions[row]), float(batch.rewards[row, 0])
        assert reward == pytest.approx(reward_of(start, steps, last_action, action))
        assert bool(batch.window_terminated[row, 0]) == (steps == 2 and start % 2 == 1)
        if not batch.window_terminated[row, 0]:
            assert read(batch.next_states["picture_0"][row]) == (start, steps + 1, action)


def test_windows_end_where_an_environment_failed(tmp_path: Path):
    env = Makes(ending="terminated", length=4, on_step=failing(in_reset=2, at=2))
    trainer = make_agent_trainer(tmp_path, env=env, lora=True, n_steps=4, num_envs=2)
    trainer._prepare_inputs({"micro_batch": 0})
    assert trainer.player.pool.num_restarts == 2
    read = circumstances(trainer)
    batch = trainer.buffer.sample(600, torch.Generator().manual_seed(0), num_steps=4)
    lengths = batch.bootstrap_index + 1
    broken = 0
    for row in range(600):
        start, steps, _ = read(batch.states["picture_0"][row])
        terminated = bool(batch.window_terminated[row].any())
        reached = steps + int(lengths[row])
        if terminated:
            assert reached == 4
        else:
            broken += reached == 2
            assert read(batch.next_states["picture_0"][row])[:2] == (start, reached)
    assert broken > 0, "some windows end in the state in which the environment failed"


def test_a_rollout_leaves_out_what_failed(tmp_path: Path):
    env = Makes({"on_step": failing(in_reset=5)}, {})
    trainer = make_agent_trainer(tmp_path, *PPO, env=env)
    trainer.train()
    assert sum(row.get("env_restarts", 0) for row in step_rows(trainer)) == 1
    assert trainer.player.num_played == 8 + 48 - 1


def test_the_only_environment_must_not_fail(tmp_path: Path):
    env = Makes(on_step=failing(in_reset=2))
    trainer = make_agent_trainer(tmp_path, env=env, num_envs=1)
    with pytest.raises(EnvError, match=r"environment 'Makes', number 0, .*RuntimeError: no luck\. Repair it"):
        trainer.train()


def test_too_many_failures_stop_the_run(tmp_path: Path):
    trainer = make_agent_trainer(tmp_path, env=Makes(on_step=failing(in_reset=1)), max_env_restarts=1)
    with pytest.raises(EnvError, match=r"1 restarts \(`max_restarts`\) are used up"):
        trainer.train()


@pytest.mark.parametrize("kind", [(), PPO], ids=["dqn", "ppo"])
def test_a_reward_that_is_no_number_stops_the_run(kind: Any, tmp_path: Path):
    def unpaid(env: Counter) -> Any:
        if env.num_resets == 2:
            return env._observe(), float("nan"), False, False, {}
        return None

    trainer = make_agent_trainer(tmp_path, *kind, env=Makes({}, {"on_step": unpaid}))
    with pytest.raises(
        EnvError, match=r"environment 'Makes', number 1, .* the reward is nan\. Return a finite"
    ):
        trainer.train()


def test_an_environment_that_hangs_is_left_behind(tmp_path: Path):
    released = threading.Event()

    def hang(env: Counter) -> None:
        if env.num_resets == 3:
            released.wait(60)

    trainer = make_agent_trainer(tmp_path, env=Makes({"on_step": hang}), env_time_limit=0.3)
    try:
        trainer.train()
    finally:
        released.set()
    assert sum(row["env_restarts"] for row in step_rows(trainer)) == 1
    assert "no answer within the `time_limit` of 0.3 s" in trainer.player.pool.failures[0]
    assert trainer.player.num_played == 45, "an odd number after the failure, of rounds of two"
    trainer.player.pool.close()


class Blind(Counter):
    """Observes numbers alone."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Box(0, 1, (2,), np.float32)


class Steering(Counter):
    """Takes numbers as actions."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = spaces.Box(-1, 1, (2,), np.float32)


@pytest.mark.parametrize(
    ("env", "settings", "told"),
    [
        (Blind, {}, r"environment 'Blind' has no picture and no text in its observations; they have obs"),
        (Steering, {}, r"environment 'Steering' has the action space Box.* finitely many actions"),
        (
            Counter,
            {"image_keys": ["camera"]},
            r"'Counter': `image_keys` names 'camera', which its observations",
        ),
        (Counter, {"instruction": "{goal}?"}, r"'Counter': `instruction` names {goal}, which is no text"),
        ("mmft/Nothing-v0", {}, r"no environment is registered as 'mmft/Nothing-v0'"),
        ("mmft/FindObject-v0", {"env_kwargs": {"sise": 3}}, r"has no argument 'sise'\. Did you mean 'size'"),
        (7, {}, r"`env` must be an id or a callable that makes an environment; got 7\."),
        (Counter, {"env_kwargs": {"length": 2}}, r"`env_kwargs` are for an `env` that is an id; bind them"),
    ],
)
def test_what_no_agent_can_act_in_is_refused(env: Any, settings: dict[str, Any], told: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=told):
        make_agent_trainer(tmp_path, env=env, **settings)


def test_what_an_observation_lacks_is_named(tmp_path: Path):
    def silent(env: Counter) -> Any:
        return {"image": env._observe()["image"]}, 0.0, False, False, {}

    trainer = make_agent_trainer(tmp_path, env=Makes(on_step=silent))
    with pytest.raises(EnvError, match=r"environment 'Makes': the observation lacks 'mission'"):
        trainer.train()


# Evaluation


def test_evaluation_plays_the_same_episodes_each_time_and_none_of_training(tmp_path: Path):
    env = Makes(length=2)
    trainer = make_agent_trainer(tmp_path, env=env, eval_episodes=5)
    before = trainer.evaluate()
    first = trainer.eval_episodes
    assert len(first) == 5, "of an agent that has no statistics yet, at random"
    assert [(e.environment, e.number) for e in first] == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2)]
    assert before == trainer.evaluate()
    trainer.train()
    trainer.agent.train()
    trained = trainer.evaluate()
    assert trainer.agent.training
    assert trained == trainer.evaluate()
    assert trainer.player.num_played == 44, "evaluation moves no environment of training"
    returns = [episode.total_reward for episode in trainer.eval_episodes]
    assert trained["eval_return"] == pytest.approx(sum(returns) / 5)
    assert trained["eval_episode_length"] == 2
    assert sum("eval_return" in row for row in trainer.state.log_history) == 2, "since training began"
    training, *evaluations = (env.made[start : start + 2] for start in range(0, 10, 2))
    assert len({str([counter.seeds for counter in pair]) for pair in evaluations}) == 1
    played, held_out = ({seed for c in pair for seed in c.seeds} for pair in (training, evaluations[0]))
    assert not played & held_out
    assert (len(played), len(held_out)) == (24, 8), "every episode that began has a seed of its own"


def test_short_episodes_count_no_more_than_long_ones(tmp_path: Path):
    trainer = make_agent_trainer(tmp_path, eval_env=Makes({"length": 1}, {"length": 4}), eval_episodes=5)
    trainer.evaluate()
    assert [(e.environment, e.length) for e in trainer.eval_episodes] == [
        (0, 1),
        (1, 4),
        (0, 1),
        (1, 4),
        (0, 1),
    ]


def test_evaluation_acts_greedily(tmp_path: Path):
    trainer = make_agent_trainer(tmp_path, env=Makes(length=3))
    trainer.train()
    with torch.no_grad():  # the second action is the best everywhere
        trainer.agent.q_head.actions.output.weight.zero_()
        trainer.agent.q_head.actions.output.bias.copy_(torch.tensor([0.0, 1.0, 0.5]))
    metrics = trainer.evaluate()
    assert metrics["eval_success"] == 1, "the last action of every episode was 1"


def test_a_policy_is_evaluated_by_its_likeliest_legal_action(tmp_path: Path):
    env = Makes(masked=True)
    trainer = make_agent_trainer(tmp_path, *PPO, env=env)
    trainer.train()
    with torch.no_grad():
        trainer.agent.policy_head.logits.output.weight.zero_()
        trainer.agent.policy_head.logits.output.bias.copy_(torch.tensor([0.0, 1.0, 0.5]))
    num_made = len(env.made)
    trainer.evaluate()
    taken = {step for counter in env.made[num_made:] for step in counter.taken}
    # Action 1 wherever it is legal; after one step it is not, and action 2 comes next.
    assert taken == {(0, 1), (1, 2), (2, 1)}


@pytest.mark.parametrize("blank", ["image", "text"])
def test_what_is_blanked_is_not_seen(blank: str, tmp_path: Path):
    trainer = make_agent_trainer(tmp_path, fusion="linear")
    trainer.train()
    seen: list[Any] = []
    act = trainer.act

    def watch(observations: Any, legal: Tensor) -> Any:
        seen.extend(observations)
        return act(observations, legal)

    trainer.act = watch
    num_logged = len(trainer.state.log_history)
    metrics = trainer.evaluate(blank=blank, metric_key_prefix="blank")
    assert {"blank_return", "blank_episode_length", "blank_success"} == metrics.keys()
    assert len(trainer.state.log_history) == num_logged
    pixels = {pixel for observation in seen for pixel in np.asarray(observation.images[0]).ravel().tolist()}
    texts = {observation.text for observation in seen}
    if blank == "image":
        assert pixels == {127}
        assert texts <= {"one", "two", "three", "four"}
    else:
        assert texts == {""}
        assert len(pixels) > 1
    with pytest.raises(ConfigError, match=r"`blank` must be one of image, text; got 'sound'\."):
        trainer.evaluate(blank="sound")


def test_evaluation_may_happen_elsewhere(tmp_path: Path):
    elsewhere = Makes(length=1)
    trainer = make_agent_trainer(
        tmp_path,
        env="mmft/FindObject-v0",
        env_kwargs={"size": 2, "num_objects": 1},
        model="mmft/tiny-captioner",
        eval_env=lambda: found(elsewhere),
    )
    assert trainer.evaluate()["eval_episode_length"] == 1
    assert elsewhere.made


def found(make: Makes) -> gymnasium.Env[Any, Any]:
    """A counter of as many actions as the grid has."""
    counter = make()
    counter.action_space = spaces.Discrete(4)
    return counter


def test_an_evaluation_without_end_is_an_error_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(held_out_episodes, "MAX_STEPS", 20)

    def endless() -> Counter:
        return Counter(length=10**9)

    trainer = make_agent_trainer(tmp_path, env=Counter, eval_env=endless)
    told = r"environment 'endless': no episode ended in 20 steps\. Give it a time limit \(`gymnasium\.wrap"
    with pytest.raises(EnvError, match=told):
        trainer.evaluate()


def test_an_environment_that_fails_in_evaluation_leaves_its_episode_out(tmp_path: Path):
    elsewhere = Makes({"on_step": failing(in_reset=1)}, {}, length=2)
    trainer = make_agent_trainer(tmp_path, eval_env=elsewhere, eval_episodes=4)
    trainer.evaluate()
    assert [(e.environment, e.number) for e in trainer.eval_episodes] == [(1, 0), (0, 1), (1, 1), (0, 2)]
    assert all(episode.length == 2 for episode in trainer.eval_episodes)


def test_episodes_are_logged_once_with_their_means(tmp_path: Path):
    env = Makes(length=2, ending="truncated")
    trainer = make_agent_trainer(tmp_path, env=env, train_freq=4)
    returns: list[float] = []
    play = trainer.player.play
    running = [0.0, 0.0]

    def watch(actions: Tensor) -> Played:
        played = play(actions)
        for number in range(2):
            running[number] += float(played.rewards[number])
            if played.last[number]:
                returns.append(running[number])
                running[number] = 0.0
        return played

    trainer.player.play = watch
    trainer.train()
    rows = step_rows(trainer)
    # 16 random steps are 4 episodes in each of two environments, and every 4 steps after them one in each.
    assert rows[0]["return"] == pytest.approx(sum(returns[:8]) / 8, abs=1e-5)
    for number, row in enumerate(rows[1:]):
        assert row["return"] == pytest.approx(sum(returns[8 + 2 * number : 10 + 2 * number]) / 2, abs=1e-5)
    assert {row["episode_length"] for row in rows} == {2.0}
