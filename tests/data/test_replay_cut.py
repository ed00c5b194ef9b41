"""Episodes that break off, and steps of some streams only, against hand numbers and plain lists."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from mmft.data.replay import ReplayBuffer
from tests.data.replay_lists import NUM_ACTIONS, Lists, append, check_draws, cut, extend, numbered, numbers

NO: dict[str, Any] = {"terminated": False, "last": False}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def same(one: ReplayBuffer, other: ReplayBuffer) -> bool:
    """Whether two buffers hold the same and draw the same."""
    states = one.state_dict(), other.state_dict()
    assert states[0].keys() == states[1].keys()
    held = all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    batches = [buffer.sample(30, seeded(), num_steps=2) for buffer in (one, other)]
    return held and numbers(batches[0].states) == numbers(batches[1].states)


# Episodes that break off


def test_what_led_to_the_break_is_learned_from_hand_computed():
    # Stream 0: states 0, 1, broken off in 2; 3, 4. Discount 0.5, V(s) the number of the state, three steps:
    #  0: 1 + 0.5 * 2 + 0.25 * V(2) = 2.5      1: 2 + 0.5 * V(2) = 3      3: 8 + 0.5 * V(4) = 10
    buffer = ReplayBuffer(12, 1, NUM_ACTIONS)
    buffer.append(0, numbered(0), 0, 1.0, **NO)
    buffer.append(0, numbered(1), 1, 2.0, **NO)
    buffer.cut(torch.tensor([0]), {"x": torch.tensor([[2.0]])})
    buffer.append(0, numbered(3), 0, 8.0, **NO)
    buffer.append(0, numbered(4), 1, 16.0, **NO)
    batch = buffer.sample(100, seeded(), num_steps=3)
    targets = batch.targets(batch.next_states["x"].squeeze(1), 0.5)
    assert dict(zip(numbers(batch.states), targets.tolist(), strict=True)) == {0: 2.5, 1: 3, 3: 10}
    assert not batch.window_terminated.any()
    assert len(buffer) == 4


def test_a_break_makes_the_newest_step_known():
    buffer = ReplayBuffer(12, 1, NUM_ACTIONS)
    buffer.append(0, numbered(1), 0, 0.0, **NO)
    with pytest.raises(ValueError, match="no step whose next state is known"):
        buffer.sample(1, seeded())
    buffer.cut(torch.tensor([0]), {"x": torch.tensor([[2.0]])})
    batch = buffer.sample(5, seeded())
    assert numbers(batch.states) == [1] * 5
    assert numbers(batch.next_states) == [2] * 5


def test_the_actions_at_the_break_are_those_given_or_all():
    legal = torch.tensor([[True, False, True], [False, True, False]])
    for given in (legal, None):
        buffer = ReplayBuffer(12, 2, NUM_ACTIONS)
        for stream in (0, 1):
            buffer.append(stream, numbered(stream), 0, 0.0, **NO)
        buffer.cut(torch.tensor([1, 0]), {"x": torch.tensor([[11.0], [10.0]])}, given)
        batch = buffer.sample(20, seeded())
        found = dict(zip(numbers(batch.next_states), batch.next_legal.tolist(), strict=True))
        allowed = torch.ones(2, NUM_ACTIONS) if given is None else given
        assert found == {11: allowed[0].tolist(), 10: allowed[1].tolist()}


def running(*, episodes_end: bool) -> ReplayBuffer:
    """Steps 1, 2 and 3 of stream 1; of stream 0 nothing."""
    buffer = ReplayBuffer(12, 2, NUM_ACTIONS)
    for number in (1, 2, 3):
        ends = {"terminated": episodes_end, "last": episodes_end}
        buffer.append(1, numbered(number), 0, float(number), **ends)
    return buffer


@pytest.mark.parametrize("streams", [[0], [1], [0, 1], []])
def test_where_no_episode_runs_nothing_breaks_off(streams: list[int]):
    buffer, before = running(episodes_end=True), running(episodes_end=True)
    buffer.cut(torch.tensor(streams, dtype=torch.long), {"x": torch.full((len(streams), 1), 9.0)})
    assert same(buffer, before)


def test_a_break_after_a_truncated_episode_changes_nothing():
    buffers = [ReplayBuffer(12, 1, NUM_ACTIONS) for _ in range(2)]
    for buffer in buffers:
        buffer.append(0, numbered(1), 0, 0.0, terminated=False, last=True, final_state=numbered(2))
    buffers[0].cut(torch.tensor([0]), {"x": torch.tensor([[3.0]])})
    assert same(*buffers)


def test_an_episode_breaks_off_once():
    buffer, before = running(episodes_end=False), running(episodes_end=False)
    for each, times in ((buffer, 2), (before, 1)):
        for number in range(times):
            each.cut(torch.tensor([1]), {"x": torch.tensor([[9.0 + number]])})
    assert same(buffer, before)


@pytest.mark.parametrize("num_steps", range(1, 9))
def test_a_break_is_a_truncation_where_it_is_noticed(num_steps: int):
    """Also where the ring of 4 positions has turned, so that the break overwrites the oldest step."""
    cut_later, truncated = (ReplayBuffer(8, 2, NUM_ACTIONS) for _ in range(2))
    for number in range(num_steps):
        ends = number == num_steps - 1
        for stream in (0, 1):
            state, final = numbered(10 * stream + number), numbered(99)
            legal = torch.tensor([True, stream == 0, False])
            step = {"action": 1, "reward": float(number), "terminated": False, "legal": legal}
            ending = {"final_state": final, "final_legal": legal} if ends else {}
            truncated.append(stream, state, **step, last=ends, **ending)
            cut_later.append(stream, state, **step, last=False)
    legal = torch.tensor([[True, False, False], [True, True, False]])
    cut_later.cut(torch.tensor([1, 0]), {"x": torch.tensor([[99.0], [99.0]])}, legal)
    assert same(cut_later, truncated)


def test_only_the_named_streams_break_off():
    buffer = ReplayBuffer(24, 4, NUM_ACTIONS)
    for stream in range(4):
        buffer.append(stream, numbered(stream), 0, 0.0, **NO)
    buffer.cut(torch.tensor([3, 1]), {"x": torch.tensor([[30.0], [10.0]])})
    batch = buffer.sample(40, seeded())
    assert dict(zip(numbers(batch.states), numbers(batch.next_states), strict=True)) == {3: 30, 1: 10}
    for stream in range(4):
        buffer.append(stream, numbered(stream + 100), 0, 0.0, **NO)
    batch = buffer.sample(100, seeded(), num_steps=5)
    found = dict(zip(numbers(batch.states), numbers(batch.next_states), strict=True))
    assert found == {0: 100, 1: 10, 2: 102, 3: 30}


def test_the_state_at_a_break_may_be_the_longest_and_is_kept_without_gradient():
    def words(*ids: int) -> dict[str, Tensor]:
        return {"text": torch.tensor(ids)[:, None].float(), "text_mask": torch.ones(len(ids)).bool()}

    buffer = ReplayBuffer(12, 1, NUM_ACTIONS)
    buffer.append(0, words(1), 0, 0.0, **NO)
    found = {name: tensor[None] for name, tensor in words(2, 3, 4).items()}
    found["text"].requires_grad_()
    buffer.cut(torch.tensor([0]), found)
    batch = buffer.sample(1, seeded())
    assert batch.next_states["text"].tolist() == [[[2], [3], [4]]]
    assert batch.states["text_mask"].tolist() == [[True, False, False]]
    assert not batch.next_states["text"].requires_grad


# Some streams


@pytest.mark.parametrize("num_steps", [1, 3])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_draw_is_what_happened_where_episodes_broke_off(seed: int, num_steps: int):
    # 7 positions a stream, about 50 written to each: the rings turn many times
    buffer, lists = ReplayBuffer(28, 4, NUM_ACTIONS), Lists(4, seed)
    for time in range(60):
        failed = [stream for stream in range(4) if lists.random.random() < 0.2]
        others = [stream for stream in range(4) if stream not in failed]
        for chosen in (failed, others):
            lists.random.shuffle(chosen)
        if failed:
            cut(buffer, failed, [lists.break_off(stream) for stream in failed])
        if others:
            extend(buffer, [lists.step(stream) for stream in others], others)
        if time % 5 == 4:
            check_draws(buffer, lists, 7, num_steps)


@pytest.mark.parametrize("streams", [*itertools.permutations(range(3), 2), (0,), (2,), (2, 0, 1)])
def test_a_step_of_some_streams_is_one_step_of_each(streams: tuple[int, ...]):
    alone, together = (ReplayBuffer(21, 3, NUM_ACTIONS) for _ in range(2))
    lists = Lists(3, 3)
    for number in range(12):
        chosen = streams if number % 2 else (0, 1, 2)
        steps = [lists.step(stream) for stream in chosen]
        extend(together, steps, chosen)
        for stream, step in zip(chosen, steps, strict=True):
            append(alone, stream, *step)
    assert same(alone, together)


def test_all_streams_in_order_need_no_names():
    named, unnamed = (ReplayBuffer(21, 3, NUM_ACTIONS) for _ in range(2))
    lists = Lists(3, 4)
    for _ in range(10):
        steps = [lists.step(stream) for stream in range(3)]
        extend(named, steps, (0, 1, 2))
        extend(unnamed, steps)
    assert same(named, unnamed)


def test_a_round_in_which_every_environment_failed_adds_nothing():
    buffer, before = running(episodes_end=False), running(episodes_end=False)
    nothing = torch.zeros(0)
    buffer.extend(
        {"x": torch.zeros(0, 1)},
        nothing.long(),
        nothing,
        terminated=nothing.bool(),
        last=nothing.bool(),
        legal=torch.zeros(0, NUM_ACTIONS).bool(),
        streams=nothing.long(),
    )
    assert same(buffer, before)


def test_errors_name_the_stream_and_not_the_row():
    no, buffer = torch.zeros(2, dtype=torch.bool), ReplayBuffer(24, 4, NUM_ACTIONS)
    states, streams = {"x": torch.zeros(2, 1)}, torch.tensor([3, 1])
    rewards, actions = torch.tensor([0.0, float("nan")]), torch.tensor([0, 0])
    with pytest.raises(ValueError, match="the reward of stream 1 is nan"):
        buffer.extend(states, actions, rewards, terminated=no, last=no, streams=streams)
    with pytest.raises(ValueError, match=r"the action of stream 3 is 7; it must be in 0\.\.2"):
        buffer.extend(states, actions + 7, 0 * actions.float(), terminated=no, last=no, streams=streams)
    with pytest.raises(ValueError, match="the episode of stream 3 was truncated, but `final_states` is None"):
        buffer.extend(states, actions, 0 * actions.float(), terminated=no, last=~no, streams=streams)
    with pytest.raises(ValueError, match="`actions` has E=2, but earlier arguments have E=1"):
        buffer.extend(states, actions, rewards, terminated=no, last=no, streams=streams[:1])
    assert len(buffer) == 0


# Checkpoints


@pytest.mark.parametrize("seed", range(4))
def test_a_buffer_loaded_after_a_break_goes_on_as_if_nothing_had_happened(seed: int):
    lists, (buffer, loaded) = Lists(3, seed), (ReplayBuffer(21, 3, NUM_ACTIONS) for _ in range(2))
    for number in range(20):
        extend(buffer, [lists.step(stream) for stream in range(3)])
        if number % 3 == seed % 3:
            stream = number % 3
            cut(buffer, [stream], [lists.break_off(stream)])
    loaded.load_state_dict(buffer.state_dict())
    for _ in range(6):
        assert same(buffer, loaded)
        check_draws(loaded, lists, 7, 3)
        # the loaded one knows too which episodes still run
        found = [lists.break_off(stream) for stream in range(3)]
        steps = [lists.step(stream) for stream in range(3)]
        for each in (buffer, loaded):
            cut(each, range(3), found)
            extend(each, steps)
