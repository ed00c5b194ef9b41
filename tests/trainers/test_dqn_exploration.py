"""How deep Q-learning explores: by the named probabilities, over legal actions, one network an episode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmft.errors import ConfigError
from mmft.exploration.actions import boltzmann_probs, epsilon_greedy_probs
from tests.trainers.agent_support import NUM_ACTIONS, Makes, legal_at, make_agent_trainer, perturb, recorded
from tests.trainers.support import step_rows


def test_epsilon_falls_with_the_steps_in_environments(tmp_path: Path):
    # One round of two environments an optimizer step, after 16 random steps. From 1 to 0.1 over the first
    # half of 48 steps: 1 - 0.9 * played / 24, so 0.4 after 16, 0.325 after 18, and 0.1 from 24 on.
    trainer = make_agent_trainer(
        tmp_path, train_freq=2, exploration_fraction=0.5, exploration_final_eps=0.1, total_timesteps=48
    )
    trainer.train()
    logged = [row.get("epsilon") for row in step_rows(trainer)]
    assert logged[0] is None, "the first update follows on random steps alone"
    assert logged[1:7] == pytest.approx([0.4, 0.325, 0.25, 0.175, 0.1, 0.1])
    assert [row["environment_steps"] for row in step_rows(trainer)] == [16 + 2 * step for step in range(16)]


def test_a_buffer_that_holds_less_than_the_warm_up_ends_it_all_the_same(tmp_path: Path):
    # Three environments get 5 of 16 positions each, and final states of truncated episodes take some.
    trainer = make_agent_trainer(
        tmp_path, env=Makes(ending="truncated"), num_envs=3, buffer_size=16, exploration_initial_eps=0.0
    )
    trainer.train()
    assert len(trainer.buffer) < 16
    assert step_rows(trainer)[-1]["epsilon"] == pytest.approx(0.05)


@pytest.mark.parametrize("exploration", ["epsilon_greedy", "boltzmann"])
def test_actions_are_drawn_by_the_named_probabilities(exploration: str, tmp_path: Path):
    level = {"epsilon_greedy": "eps", "boltzmann": "temperature"}[exploration]
    settings = {f"exploration_{end}_{level}": 0.4 for end in ("initial", "final")}
    trainer = make_agent_trainer(tmp_path, exploration=exploration, dropout=0.5, **settings)
    trainer._prepare_inputs({"micro_batch": 0})
    trainer.agent.eval()
    count, state = 4000, trainer.player.observations[0]
    legal = torch.tensor([[True, False, True]])
    with torch.no_grad():
        trainer.agent.q_head.actions.output.weight.div_(4)
        q = trainer.agent([state]).q
    probs = {
        "epsilon_greedy": epsilon_greedy_probs(q, 0.4, legal),
        "boltzmann": boltzmann_probs(q, 0.4, legal),
    }[exploration][0]
    trainer.agent.train()  # and yet nothing is dropped
    actions = trainer._explore(trainer.states([state] * count), legal.expand(count, -1))
    assert torch.equal(actions, trainer._explore(trainer.states([state] * count), legal.expand(count, -1)))
    shares = torch.bincount(actions, minlength=NUM_ACTIONS) / count
    assert probs[1] == shares[1] == 0
    assert 0.05 < probs[0] < 0.95
    torch.testing.assert_close(shares, probs, rtol=0, atol=0.03)  # 4 standard deviations of 4000 draws
    assert level.replace("eps", "epsilon") in trainer.metric_log.flush()


def test_thompson_draws_one_network_for_each_episode(tmp_path: Path):
    trainer = make_agent_trainer(tmp_path, exploration="thompson", dropout=0.5, hidden_sizes=[16, 16])
    seen: dict[tuple[int, int], list[Tensor]] = {}
    forward = trainer.agent.q_head.forward

    def watch(hidden: Tensor, *, masks: Any = None) -> Tensor:
        if masks is not None:
            for number, episode in enumerate(trainer.player.pool.episodes):
                mask = torch.cat([layer[number] for layer in masks])
                seen.setdefault((number, episode), []).append(mask)
        return forward(hidden, masks=masks)

    trainer.agent.q_head.forward = watch
    streams = recorded(trainer)
    trainer.train()
    assert len(seen) >= 8
    assert max(len(masks) for masks in seen.values()) == 3, "an episode has three steps"
    for masks in seen.values():
        assert all(torch.equal(mask, masks[0]) for mask in masks)
        assert set(masks[0].tolist()) == {0.0, 2.0}
    distinct = {tuple(masks[0].tolist()) for masks in seen.values()}
    assert len(distinct) == len(seen), "another episode or environment, another network"
    assert len({step.action for steps in streams for step in steps[8:]}) > 1


def test_thompson_takes_the_best_action_of_the_drawn_network(tmp_path: Path):
    trainer = make_agent_trainer(tmp_path, exploration="thompson", dropout=0.5, hidden_sizes=[16])
    trainer._prepare_inputs({"micro_batch": 0})
    perturb(trainer.agent, 1.0)
    trainer.agent.train()
    observations = list(trainer.player.observations)
    actions = trainer._explore(trainer.states(observations), trainer.player.legal)
    for number, observation in enumerate(observations):
        episode = trainer.player.pool.episodes[number]
        mask = trainer.agent.q_head.masks(1, trainer.noise.generator("thompson", episode, number))
        trainer.agent.eval()
        with torch.no_grad():
            q = trainer.agent([observation], masks=mask).q[0]
        assert int(actions[number]) == int(q.argmax())


def test_thompson_needs_an_agent_with_dropout(tmp_path: Path):
    agent = make_agent_trainer(tmp_path).agent
    told = "`exploration: thompson` draws networks by dropout, and `model` is an agent that has none"
    with pytest.raises(ConfigError, match=told):
        make_agent_trainer(tmp_path, model=agent, exploration="thompson", dropout=0.5)


@pytest.mark.parametrize("exploration", ["epsilon_greedy", "boltzmann", "thompson"])
def test_no_exploration_takes_an_illegal_action(exploration: str, tmp_path: Path):
    env = Makes(masked=True)
    settings = {"total_timesteps": 620, "train_freq": 50, "exploration": exploration, "dropout": 0.2}
    trainer = make_agent_trainer(tmp_path, env=env, **settings)
    trainer.train()
    trainer.evaluate()
    taken = [step for counter in env.made for step in counter.taken]
    assert len(taken) > 500
    assert all(legal_at(num_steps)[action] for num_steps, action in taken)
    assert len(set(taken)) == 6, "every legal action of each of three steps is tried"
