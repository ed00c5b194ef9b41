"""Deep Q-learning in environments: targets by a slow loop, the target network, what is kept, what moves."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmft.data.replay import ReplayBuffer
from mmft.data.replay_batch import Batch
from mmft.engine.agent import load_agent
from mmft.engine.observations import Observation
from mmft.errors import ConfigError, NonFiniteError
from tests.trainers.agent_support import (
    NUM_ACTIONS,
    Counter,
    Makes,
    Taken,
    agent_weights,
    make_agent_trainer,
    perturb,
    recorded,
)
from tests.trainers.support import moved, step_rows

GAMMA = 0.9


def drawn_places(trainer: Any) -> list[tuple[int, int]]:
    """Stream and position in it of every start that the buffer draws from now on."""
    places: list[tuple[int, int]] = []
    windows = trainer.buffer._windows

    def watch(streams: Tensor, starts: Tensor, num_steps: int) -> Batch:
        places.extend(zip(streams.tolist(), starts.tolist(), strict=True))
        return windows(streams, starts, num_steps)

    trainer.buffer._windows = watch
    return places


def by_position(steps: list[Taken]) -> dict[int, int]:
    """Which step is at a position of the buffer: the final states of truncated episodes take one too."""
    numbers: dict[int, int] = {}
    position = 0
    for number, step in enumerate(steps):
        numbers[position] = number
        position += 2 if step.last and not step.terminated else 1
    return numbers


def slow_target(trainer: Any, steps: list[Taken], start: int, num_steps: int, double: bool) -> float:
    """The return of a window, one step at a time, from observations and networks alone."""
    total = 0.0
    for offset, step in enumerate(steps[start : start + num_steps]):
        total += GAMMA**offset * step.reward
        if step.terminated:
            return total
        after = step.final if step.last else steps[start + offset + 1].before
        # The newest step of a stream leads to a state that the buffer does not hold yet.
        beyond = start + offset + 2
        if step.last or offset + 1 == num_steps or (beyond == len(steps) and not steps[-1].last):
            return total + GAMMA ** (offset + 1) * slow_value(trainer, after, double)
    raise AssertionError("the window ended nowhere")


@torch.no_grad()
def slow_value(trainer: Any, observation: Observation, double: bool) -> float:
    q = trainer.target([observation]).q[0].tolist()
    chooser = trainer.agent([observation]).q[0].tolist() if double else q
    allowed = [True] * NUM_ACTIONS if observation.legal is None else observation.legal.tolist()
    best = max((a for a in range(NUM_ACTIONS) if allowed[a]), key=lambda action: chooser[action])
    return q[best]


def slow_loss(errors: list[float], delta: float | None) -> float:
    if delta is None:
        return sum(error**2 for error in errors) / len(errors)
    losses = [e**2 if abs(e) <= delta else delta * (2 * abs(e) - delta) for e in errors]
    return sum(losses) / len(losses)


@pytest.mark.parametrize(
    ("settings", "env"),
    [
        ({}, {}),
        ({"double_q": False}, {}),
        ({"n_steps": 3}, {}),
        ({"n_steps": 2, "double_q": False}, {"masked": True, "ending": "truncated"}),
        ({"huber_delta": 0.2}, {"ending": "terminated"}),
        ({"dueling": True}, {"masked": True}),
        ({"fusion": "cross_modal", "fusion_heads": 2}, {}),
        ({"lora": True, "n_steps": 2}, {}),
    ],
    ids=["double", "plain", "3 steps", "masks, truncated", "huber", "dueling, masks", "sequences", "lora"],
)
def test_the_first_loss_is_that_of_targets_by_a_slow_loop(
    settings: dict[str, Any], env: dict[str, Any], tmp_path: Path
):
    trainer = make_agent_trainer(tmp_path, env=Makes(**env), per_device_train_batch_size=24, **settings)
    streams, places = recorded(trainer), drawn_places(trainer)
    batch = trainer._prepare_inputs({"micro_batch": 0})
    perturb(trainer.agent)  # so that the target network says something else
    trainer.agent.eval()
    loss = trainer.compute_loss(trainer.agent, batch)
    errors = []
    for stream, position in places[-24:]:  # those before gave the statistics of features that are not kept
        steps = streams[stream]
        start = by_position(steps)[position]
        target = slow_target(
            trainer, steps, start, settings.get("n_steps", 1), settings.get("double_q", True)
        )
        with torch.no_grad():
            q = trainer.agent([steps[start].before]).q[0, steps[start].action]
        errors.append(target - float(q))
    assert float(loss.detach()) == pytest.approx(slow_loss(errors, settings.get("huber_delta")), rel=1e-4)
    logged = trainer.metric_log.flush()
    assert logged["td_error"] == pytest.approx(sum(map(abs, errors)) / 24, rel=1e-4)


def constant_target(trainer: Any, values: list[float]) -> None:
    """The target network says the same everywhere."""
    stream = trainer.target.q_head.actions
    with torch.no_grad():
        stream.output.weight.zero_()
        stream.output.bias.copy_(torch.tensor(values))


@pytest.mark.parametrize(
    ("ending", "masked", "expected"),
    [("terminated", False, 0.0), ("truncated", False, 0.9 * 5.0), ("truncated", True, 0.9 * 2.0)],
)
def test_what_follows_the_end_of_an_episode(ending: str, masked: bool, expected: float, tmp_path: Path):
    # Target values (1, 5, 2) everywhere, gamma 0.9. Nothing follows termination; after truncation the best
    # legal action does: after one step a masked counter allows all but action 1, so 2 and not 5.
    env = Makes(length=1, ending=ending, masked=masked)
    trainer = make_agent_trainer(tmp_path, env=env, double_q=False)
    batch = trainer._prepare_inputs({"micro_batch": 0})["batch"]
    constant_target(trainer, [1.0, 5.0, 2.0])
    targets = batch.targets(trainer._next_values(batch), GAMMA)
    torch.testing.assert_close(targets - batch.rewards[:, 0], torch.full_like(targets, expected))


def test_the_network_that_chooses_does_not_drop(tmp_path: Path):
    trainer = make_agent_trainer(tmp_path, dropout=0.5, hidden_sizes=[64])
    batch = trainer._prepare_inputs({"micro_batch": 0})["batch"]
    trainer.agent.train()
    perturb(trainer.agent)
    values = trainer._next_values(batch)
    assert torch.equal(values, trainer._next_values(batch))
    assert trainer.agent.training
    assert not trainer.target.training


def test_the_target_network_follows_at_the_steps_due_and_by_tau(tmp_path: Path):
    trainer = make_agent_trainer(tmp_path, target_update_interval=3, tau=0.25)
    seen: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
    compute = trainer.compute_loss

    def watch(*args: Any, **kwargs: Any) -> Tensor:
        target = {n: p.clone() for n, p in trainer.target.named_parameters() if "q_head" in n}
        agent = {n: p.detach().clone() for n, p in trainer.agent.named_parameters() if "q_head" in n}
        seen.append((target, agent))
        return compute(*args, **kwargs)

    trainer.compute_loss = watch
    trainer.train()
    assert len(seen) == 8
    assert moved(*seen[0]) == set(), "the target begins as the agent"
    for step in range(1, 8):
        (before, _), (after, agent) = seen[step - 1], seen[step]
        for name, weight in after.items():
            expected = before[name] + 0.25 * (agent[name] - before[name]) if step in (3, 6) else before[name]
            torch.testing.assert_close(weight, expected, rtol=0, atol=1e-7, msg=f"{step} {name}")
        assert bool(moved(before, after)) == (step in (3, 6))


@pytest.mark.parametrize("lora", [False, True])
def test_statistics_are_those_of_the_warm_up_and_stay(lora: bool, tmp_path: Path):
    trainer = make_agent_trainer(tmp_path, lora=lora)
    streams = recorded(trainer)
    scaler = trainer.agent.transforms.scalers["fused"]
    assert not trainer.agent.transforms.is_fitted
    trainer._prepare_inputs({"micro_batch": 0})
    features = trainer.agent.encoder.encode([step.before for steps in streams for step in steps])
    rows = features.embeddings["fused"][:, 0].detach()
    assert (features.masks["fused"].sum(), len(rows)) == (16, 16)
    if lora:  # of as many states, drawn from the buffer, as have a successor
        assert int(scaler.num_seen) == 14
        assert bool(
            (scaler.minimum >= rows.min(0).values).all() & (scaler.maximum <= rows.max(0).values).all()
        )
        assert bool((scaler.minimum < scaler.maximum).all())
    else:
        assert int(scaler.num_seen) == 16
        torch.testing.assert_close(scaler.mean.float(), rows.mean(0))
    before = {name: buffer.clone() for name, buffer in trainer.agent.transforms.named_buffers()}
    start = trainer.agent.q_head.actions.output.weight.clone()
    trainer.train()
    assert not torch.equal(start, trainer.agent.q_head.actions.output.weight)
    assert moved(before, dict(trainer.agent.transforms.named_buffers())) == set()
    assert trainer.target.transforms is trainer.agent.transforms


@pytest.mark.parametrize(
    ("train_freq", "num_envs", "warm_up", "played"),
    [
        (4, 2, 16, [16, 20, 24, 28, 32, 36, 40, 44]),
        (1, 2, 17, [18, 18, 20, 20, 22, 22, 24, 24]),  # due 17, 18, 19, 20, ...: rounds of two reach them
        (0.5, 2, 16, [16, 18, 18, 18, 18, 20, 20, 20]),  # due 16, 16.5, 17, 17.5, 18, 18.5, ...
        (2.5, 3, 16, [18, 21, 21, 24, 27, 30, 33, 36]),  # due 16, 18.5, 21, 23.5, 26, 28.5, 31, 33.5
    ],
)
def test_so_many_steps_in_environments_for_an_optimizer_step(
    train_freq: float, num_envs: int, warm_up: int, played: list[int], tmp_path: Path
):
    trainer = make_agent_trainer(
        tmp_path,
        train_freq=train_freq,
        num_envs=num_envs,
        learning_starts=warm_up,
        total_timesteps=warm_up + round(8 * train_freq),
    )
    assert trainer.args.max_steps == 8
    trainer.train()
    assert [row["environment_steps"] for row in step_rows(trainer)] == played


def test_accumulated_micro_batches_equal_one_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = make_agent_trainer(tmp_path / "whole", max_grad_norm=0.1)
    parts = make_agent_trainer(
        tmp_path / "parts", per_device_train_batch_size=2, gradient_accumulation_steps=4, max_grad_norm=0.1
    )
    batches: list[Batch] = []
    sample = ReplayBuffer.sample

    def remembered(*args: Any, **kwargs: Any) -> Batch:
        batches.append(sample(*args, **kwargs))
        return batches[-1]

    monkeypatch.setattr(ReplayBuffer, "sample", remembered)
    whole.train()
    pieces = (rows_of(batch, rows) for batch in batches for rows in torch.arange(8).split(2))
    monkeypatch.setattr(ReplayBuffer, "sample", lambda *args, **kwargs: next(pieces))
    parts.train()
    assert next(pieces, None) is None
    weights = agent_weights(parts)
    for name, weight in agent_weights(whole).items():
        torch.testing.assert_close(weights[name], weight, rtol=0, atol=2e-6, msg=name)
    for mine, expected in zip(step_rows(parts), step_rows(whole), strict=True):
        assert mine == pytest.approx(expected, abs=1e-5)


def rows_of(batch: Batch, rows: Tensor) -> Batch:
    fields = {field.name: getattr(batch, field.name) for field in dataclasses.fields(Batch)}
    states = {name: fields.pop(name) for name in ("states", "next_states")}
    return Batch(
        **{name: {key: tensor[rows] for key, tensor in state.items()} for name, state in states.items()},
        **{name: tensor[rows] for name, tensor in fields.items()},
    )


def test_features_are_kept_while_the_backbone_is_frozen_and_pictures_where_it_trains(tmp_path: Path):
    frozen = make_agent_trainer(tmp_path / "frozen")
    frozen.train()
    # 32 numbers of 4 bytes, and one byte that says they are there.
    assert "129 B a state (fused 1x32 float32, fused_mask 1 bool)" in frozen.buffer.describe()
    trained = make_agent_trainer(tmp_path / "trained", lora=True)
    trained.train()
    # A number of 8 bytes for the text, and a picture of 8 x 6 pixels of 3 bytes.
    assert "152 B a state (words int64, picture_0 8x6x3 uint8)" in trained.buffer.describe()
    assert sorted(trained.texts.known) == ["four", "one", "three", "two"]
    assert frozen.texts.known == []


def test_the_loss_reaches_adapters_and_the_target_follows_them(tmp_path: Path):
    trainer = make_agent_trainer(tmp_path, lora=True, target_update_interval=4, total_timesteps=16 + 4 * 5)
    before = agent_weights(trainer)
    trainer.train()
    changed = moved(before, agent_weights(trainer))
    assert {name for name in before if "lora_" in name} <= changed
    assert all("lora_" in name or "q_head" in name or "transforms" in name for name in changed)
    target = dict(trainer.target.named_parameters())
    followed = {name for name in changed & target.keys() if not torch.equal(target[name], before[name])}
    assert {name for name in before if "lora_" in name} <= followed, "as it did after four of five steps"
    assert moved(agent_weights(trainer), dict(trainer.target.state_dict())) >= followed


def test_a_frozen_backbone_stays_as_it_is(tmp_path: Path):
    trainer = make_agent_trainer(tmp_path)
    before = agent_weights(trainer)
    trainer.train()
    changed = moved(before, agent_weights(trainer))
    assert {name for name in changed if name.startswith("backbone.")} == set()
    assert {name for name in before if name.startswith("q_head.")} <= changed


def test_a_second_run_starts_anew_from_the_weights_as_they_are(tmp_path: Path):
    trainer = make_agent_trainer(tmp_path)
    trainer.train()
    learned = agent_weights(trainer)
    followed: list[int] = []
    follow = trainer.target.follow

    def watch(*args: Any) -> None:
        followed.append(trainer.state.global_step)
        follow(*args)

    trainer.target.follow = watch
    trainer.train()
    assert moved(learned, agent_weights(trainer))
    assert [row["environment_steps"] for row in step_rows(trainer)] == [16 + 4 * step for step in range(8)]
    assert len(trainer.buffer) == 44
    assert followed[1:] == [3, 6], "and before the first step"


def test_heads_may_learn_faster_than_the_backbone(tmp_path: Path):
    trainer = make_agent_trainer(tmp_path, lora=True, learning_rate=0.0, head_learning_rate=1e-2)
    before = agent_weights(trainer)
    trainer.train()
    changed = moved(before, agent_weights(trainer)) - {n for n in before if n.startswith("transforms")}
    assert changed == {name for name in before if name.startswith("q_head")}


def test_a_saved_agent_goes_on_learning(tmp_path: Path):
    first = make_agent_trainer(tmp_path / "first")
    first.train()
    first.save_model(str(tmp_path / "saved"))
    saved = agent_weights(first)
    second = make_agent_trainer(tmp_path / "second", model=load_agent(tmp_path / "saved"))
    assert moved(saved, agent_weights(second)) == set()
    second.train()
    changed = moved(saved, agent_weights(second))
    assert changed == {name for name in saved if name.startswith("q_head.")}


def test_an_agent_for_something_else_is_refused(tmp_path: Path):
    agent = make_agent_trainer(tmp_path).agent
    agent._spec = dataclasses.replace(agent.spec, num_actions=5)
    told = r"`model` is an agent with num_actions=5, but DQNTrainer on 'Counter' needs 3\. Build it for"
    with pytest.raises(ConfigError, match=told):
        make_agent_trainer(tmp_path, model=agent)


def test_a_loss_without_end_stops_the_run_and_changes_nothing(tmp_path: Path):
    trainer = make_agent_trainer(tmp_path, env=Counter)
    with torch.no_grad():
        trainer.agent.q_head.actions.output.bias[0] = torch.inf
    before = agent_weights(trainer)
    told = r"step 0: the loss is (inf|nan) .*Nothing was updated; .*the rewards of 'Counter'"
    with pytest.raises(NonFiniteError, match=told):
        trainer.train()
    assert {n for n in moved(before, agent_weights(trainer)) if "transforms" not in n} == set()
