"""The replay buffer against hand numbers and plain lists; uniform draws; checkpoints."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmft.data.replay import MIN_POSITIONS, NO_ACTION, ReplayBuffer
from mmft.data.replay_batch import Batch
from mmft.errors import ConfigError
from tests.data.replay_lists import NUM_ACTIONS, Lists, append, check_draws, extend, numbered, numbers


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def hand_case() -> ReplayBuffer:
    """Stream 0: states 0, 1, 2, terminated; 3, 4. Stream 1: 10, 11, truncated in 12; 13, 14."""
    buffer = ReplayBuffer(20, 2, NUM_ACTIONS)
    no, cut = {"terminated": False, "last": False}, {"terminated": False, "last": True}
    buffer.append(0, numbered(0), 0, 1.0, **no)
    buffer.append(1, numbered(10), 0, 1.0, **no)
    buffer.append(0, numbered(1), 1, 2.0, **no)
    buffer.append(0, numbered(2), 2, 4.0, terminated=True, last=True)
    buffer.append(1, numbered(11), 1, 2.0, **cut, final_state=numbered(12))
    buffer.append(0, numbered(3), 0, 8.0, **no)
    buffer.append(1, numbered(13), 2, 4.0, **no)
    buffer.append(0, numbered(4), 1, 16.0, **no)
    buffer.append(1, numbered(14), 1, 9.0, **no)
    return buffer


def by_start(batch: Batch, column: Any) -> dict[float, Any]:
    return dict(zip(numbers(batch.states), column, strict=True))


def test_targets_hand_computed():
    # discount 0.5, V(s) the number of the state, three steps:
    #  0: 1 + 0.5 * 2 + 0.25 * 4 = 3 and nothing after it      10: 1 + 0.5 * 2 + 0.25 * V(12) = 5
    #  1: 2 + 0.5 * 4 = 4      2: 4                            11: 2 + 0.5 * V(12) = 8
    #  3: 8 + 0.5 * V(4) = 10, the reward of 4 not known       13: 4 + 0.5 * V(14) = 11
    #     to lead anywhere yet
    batch = hand_case().sample(200, seeded(), num_steps=3)
    targets = batch.targets(batch.next_states["x"].squeeze(1), 0.5)
    expected = {0: 3, 1: 4, 2: 4, 3: 10, 10: 5, 11: 8, 13: 11}
    assert by_start(batch, targets.tolist()) == expected


def test_one_step_transitions_hand_computed():
    batch = hand_case().sample(200, seeded())
    assert batch.rewards.shape == (200, 1)
    assert by_start(batch, batch.rewards[:, 0].tolist()) == {0: 1, 1: 2, 2: 4, 3: 8, 10: 1, 11: 2, 13: 4}
    assert by_start(batch, batch.actions.tolist()) == {0: 0, 1: 1, 2: 2, 3: 0, 10: 0, 11: 1, 13: 2}
    terminated = by_start(batch, batch.window_terminated[:, 0].tolist())
    assert terminated == {0: 0, 1: 0, 2: 1, 3: 0, 10: 0, 11: 0, 13: 0}
    assert by_start(batch, numbers(batch.next_states)) == {0: 1, 1: 2, 2: 2, 3: 4, 10: 11, 11: 12, 13: 14}


def test_without_a_word_on_it_every_action_is_legal():
    batch = hand_case().sample(50, seeded())
    assert batch.legal.all()
    assert batch.next_legal.all()


@pytest.mark.parametrize("num_steps", [1, 3, 9])
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_every_draw_is_what_happened(seed: int, num_steps: int):
    # 7 positions a stream, about 60 written to each: the rings turn many times
    buffer, lists = ReplayBuffer(23, 3, NUM_ACTIONS), Lists(3, seed)
    for time in range(150):
        stream = lists.random.randrange(3)
        append(buffer, stream, *lists.step(stream))
        if time % 10 == 9:
            check_draws(buffer, lists, 7, num_steps)


@pytest.mark.parametrize("seed", [4, 5])
def test_every_draw_is_what_happened_to_all_streams_at_once(seed: int):
    buffer, lists = ReplayBuffer(35, 5, NUM_ACTIONS), Lists(5, seed)
    for time in range(40):
        extend(buffer, [lists.step(stream) for stream in range(5)])
        if time % 5 == 4:
            check_draws(buffer, lists, 7, 3)


def test_a_step_of_all_streams_is_one_step_of_each():
    alone, together = (ReplayBuffer(21, 3, NUM_ACTIONS) for _ in range(2))
    lists = Lists(3, 0)
    for _ in range(20):
        steps = [lists.step(stream) for stream in range(3)]
        extend(together, steps)
        for stream, step in enumerate(steps):
            append(alone, stream, *step)
    one, other = alone.state_dict(), together.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_targets_are_the_defining_sum():
    buffer, lists = ReplayBuffer(60, 2, NUM_ACTIONS), Lists(2, 6)
    for _ in range(40):
        extend(buffer, [lists.step(stream) for stream in range(2)])
    windows = {window.start.number: window for window in lists.windows(30, 4)}
    batch = buffer.sample(300, seeded(), num_steps=4)
    targets = batch.targets(batch.next_states["x"].squeeze(1).double(), 0.9)
    expected = []
    for start in numbers(batch.states):
        window = windows[start]
        known = sum(0.9**t * reward for t, reward in enumerate(window.rewards))
        beyond = 0.0 if window.terminated else 0.9 ** len(window.rewards) * window.after.number
        expected.append(known + beyond)
    # far beyond float32: the discount is as exact as the values
    torch.testing.assert_close(targets, torch.tensor(expected, dtype=torch.float64), rtol=1e-13, atol=1e-13)


def test_a_value_counts_by_the_discount_of_its_step_and_not_after_a_terminated_one():
    batch = hand_case().sample(200, seeded(), num_steps=3)
    values = torch.zeros(200, requires_grad=True)
    batch.targets(values, 0.5).sum().backward()
    assert by_start(batch, values.grad.tolist()) == {0: 0, 1: 0, 2: 0, 3: 0.5, 10: 0.25, 11: 0.5, 13: 0.5}


def test_a_value_after_a_terminated_step_may_be_anything():
    batch = hand_case().sample(200, seeded(), num_steps=3)
    values = torch.where(batch.window_terminated.any(1), torch.nan, 0.0)
    assert values.isnan().any()
    assert batch.targets(values, 0.5).isfinite().all()


def test_values_of_half_precision_make_float32_targets():
    buffer = ReplayBuffer(6, 1, NUM_ACTIONS)
    buffer.append(0, numbered(1), 0, 1.001, terminated=True, last=True)
    targets = buffer.sample(1, seeded()).targets(torch.zeros(1, dtype=torch.bfloat16), 0.5)
    assert torch.equal(targets, torch.tensor([1.001]))  # 1 in half precision


def test_values_of_another_shape_are_named():
    batch = hand_case().sample(2, seeded())
    with pytest.raises(ValueError, match="`next_values` must have dims N; got shape"):
        batch.targets(torch.zeros(2, 1), 0.5)


def test_windows_longer_than_all_that_is_kept_change_no_target():
    short, long = (hand_case().sample(99, seeded(), num_steps=n) for n in (5, 50))
    values = torch.arange(99.0)
    torch.testing.assert_close(long.targets(values, 0.9), short.targets(values, 0.9))


def test_every_start_is_drawn_equally_often():
    # streams of 3, 1 and 6 starts, with positions without action in between; one stream is empty
    buffer = ReplayBuffer(48, 4, NUM_ACTIONS)
    number = 0
    for stream, num_steps in ((0, 3), (1, 1), (3, 6)):
        for step in range(num_steps):
            cut = {"last": step % 2 == 0, "final_state": numbered(-1)}
            buffer.append(stream, numbered(number + step), 0, 0.0, terminated=False, **cut)
        number += num_steps
        if num_steps % 2 == 0:
            buffer.append(stream, numbered(-1), 0, 0.0, terminated=True, last=True)
    batch = buffer.sample(22_000, seeded())
    counts = batch.states["x"].long().flatten().add(1).bincount()
    assert counts.shape == (11,)
    # chi-square of 10 degrees of freedom: above 29.6 in one of a thousand seeds
    assert (counts - 2000).square().sum() / 2000 < 29.6


def test_draws_depend_on_the_generator_alone():
    buffer = hand_case()
    first = buffer.sample(50, seeded(1))
    torch.manual_seed(5)
    assert numbers(buffer.sample(50, seeded(1)).states) == numbers(first.states)
    assert numbers(buffer.sample(50, seeded(2)).states) != numbers(first.states)


def test_the_smallest_buffer_always_has_a_start():
    buffer, lists = ReplayBuffer(MIN_POSITIONS, 1, NUM_ACTIONS), Lists(1, 7)
    append(buffer, 0, *lists.step(0))
    for _ in range(150):
        append(buffer, 0, *lists.step(0))
        check_draws(buffer, lists, MIN_POSITIONS, 2)


def test_a_step_is_not_drawn_before_its_next_state_is_known():
    buffer = ReplayBuffer(6, 1, NUM_ACTIONS)
    with pytest.raises(ValueError, match=r"no step whose next state is known\. Add two steps"):
        buffer.sample(1, seeded())
    buffer.append(0, numbered(1), 0, 0.0, terminated=False, last=False)
    with pytest.raises(ValueError, match="no step whose next state is known"):
        buffer.sample(1, seeded())
    buffer.append(0, numbered(2), 0, 0.0, terminated=False, last=False)
    assert set(numbers(buffer.sample(20, seeded()).states)) == {1}


def test_a_terminated_step_ends_its_episode_even_if_it_is_not_said_to():
    buffer = ReplayBuffer(6, 1, NUM_ACTIONS)
    buffer.append(0, numbered(1), 0, 1.0, terminated=True, last=False)
    buffer.append(0, numbered(2), 0, 5.0, terminated=True, last=False)
    assert set(buffer.sample(20, seeded(), num_steps=2).rewards.sum(1).tolist()) == {1, 5}


def test_its_length_counts_steps_and_no_final_states():
    buffer = ReplayBuffer(10, 2, NUM_ACTIONS)
    cut = {"terminated": False, "last": True, "final_state": numbered(0)}
    lengths = []
    for _ in range(4):
        buffer.append(1, numbered(1), 0, 0.0, **cut)
        lengths.append(len(buffer))
    # 5 positions, s a step and f where it led: sf, sfsf, fsfsf (its first step is gone), fsfsf again
    assert lengths == [1, 2, 2, 2]
    assert len(hand_case()) == 9


def test_what_is_kept_is_a_copy_without_gradient():
    buffer = ReplayBuffer(6, 1, NUM_ACTIONS)
    state = {"x": torch.ones(1, requires_grad=True)}
    buffer.append(0, state, 0, 0.0, terminated=True, last=True)
    with torch.no_grad():
        state["x"] += 1
    batch = buffer.sample(1, seeded())
    assert numbers(batch.states) == [1]
    assert not batch.states["x"].requires_grad
    batch.states["x"] += 1
    assert numbers(buffer.sample(1, seeded()).states) == [1]


def test_its_line_for_the_log_says_what_it_takes():
    # a position: 4 * 128 of state, 8 action, 4 reward, 2 flags, 4 legal, 8 where the step is; 20,000 of them
    buffer = ReplayBuffer(20_000, 8, 4)
    assert buffer.describe() == "room for 20,000 steps of 8 environments, no state yet, 0.5 MB"
    assert buffer.bytes_per_state == 0
    buffer.append(0, {"fused": torch.zeros(128)}, 0, 0.0, terminated=False, last=False)
    assert buffer.num_bytes == (512 + 8 + 4 + 2 + 4 + 8) * 20_000
    assert buffer.bytes_per_state == 512
    described = "room for 20,000 steps of 8 environments, 512 B a state (fused 128 float32), 10.8 MB"
    assert buffer.describe() == described
    assert ReplayBuffer(7, 1, 2).describe() == "room for 7 steps of 1 environment, no state yet, 0.0 MB"


def equal(batch: Batch, other: Batch) -> bool:
    for field in fields(Batch):
        one, two = getattr(batch, field.name), getattr(other, field.name)
        pairs = [(one, two)] if isinstance(one, Tensor) else [(one[name], two[name]) for name in one]
        if not all(torch.equal(x, y) and x.dtype == y.dtype for x, y in pairs):
            return False
    return True


@pytest.mark.parametrize("num_before", [0, 1, 2, 3, 4, 30, 31, 32])
def test_a_loaded_buffer_goes_on_as_if_nothing_had_happened(num_before: int, tmp_path: Path):
    lists, (buffer, loaded) = Lists(3, 8), (ReplayBuffer(29, 3, NUM_ACTIONS) for _ in range(2))
    for _ in range(num_before):
        extend(buffer, [lists.step(stream) for stream in range(3)])
    save_file(buffer.state_dict(), tmp_path / "replay.safetensors")
    append(loaded, 1, *Lists(3, 9).step(1))  # forgotten
    loaded.load_state_dict(load_file(tmp_path / "replay.safetensors"), row_shapes={"x": (1,)})
    assert len(loaded) == len(buffer)
    generators = seeded(), seeded()
    for _ in range(15):
        if any(lists.windows(9, 3)):
            pairs = zip((buffer, loaded), generators, strict=True)
            one, two = (each.sample(64, generator, num_steps=3) for each, generator in pairs)
            assert equal(one, two)
            check_draws(loaded, lists, 9, 3)
        steps = [lists.step(stream) for stream in range(3)]
        for each in (buffer, loaded):
            extend(each, steps)


def test_a_checkpoint_holds_only_what_is_filled():
    state = hand_case().state_dict()
    # 5 steps of stream 0; 4 of stream 1 and the state a truncated episode ended in; of 10 positions each
    assert state["lengths"].tolist() == [5, 5]
    assert state["states.x"].squeeze(1).tolist() == [0, 1, 2, 3, 4, 10, 11, 12, 13, 14]
    assert state["actions"].tolist() == [0, 1, 2, 0, 1, 0, 1, NO_ACTION, 2, 1]
    assert state["rewards"].tolist() == [1, 2, 4, 8, 16, 1, 2, 0, 4, 9]
    assert state["terminated"].nonzero().flatten().tolist() == [2]
    assert state["last"].nonzero().flatten().tolist() == [2, 6]
    assert {len(rows) for name, rows in state.items() if name not in ("sizes", "lengths")} == {10}


@pytest.mark.parametrize(
    ("sizes", "name", "saved", "now"),
    [
        ((22, 2, 3), "capacity", 20, 22),
        ((20, 4, 3), "num_streams", 2, 4),
        ((20, 2, 5), "num_actions", 3, 5),
    ],
)
def test_a_buffer_of_other_sizes_is_not_loaded(sizes: tuple[int, int, int], name: str, saved: int, now: int):
    other = ReplayBuffer(*sizes)
    with pytest.raises(ConfigError, match=f"has `{name}` {saved}, this run's has {now}. Resume with the"):
        other.load_state_dict(hand_case().state_dict())


@pytest.mark.parametrize(
    ("row_shapes", "message"),
    [
        ({"x": (4,)}, r"have `x` of shape \(1,\), those of this run of shape \(4,\). Resume with the"),
        ({"x": (1, 1)}, r"have `x` of shape \(1,\), those of this run of shape \(1, 1\)"),
        ({"x": (1,), "y": (2,)}, r"have `y` of shape None, those of this run of shape \(2,\)"),
        ({"y": (1,)}, r"have `x` of shape \(1,\), those of this run of shape None"),
    ],
)
def test_states_of_other_shapes_are_not_loaded(row_shapes: dict[str, tuple[int, ...]], message: str):
    buffer = hand_case()
    with pytest.raises(ConfigError, match=message):
        buffer.load_state_dict(hand_case().state_dict(), row_shapes)
    assert len(buffer) == 9


def test_sizes_that_make_no_buffer_are_refused():
    with pytest.raises(ConfigError, match="`num_streams` must be >= 1; got 0"):
        ReplayBuffer(20, 0, 2)
    with pytest.raises(ConfigError, match="`num_actions` must be >= 1; got 0"):
        ReplayBuffer(20, 2, 0)
    with pytest.raises(ConfigError, match="`capacity` must be >= 12, 3 for each of 4 environments; got 11"):
        ReplayBuffer(11, 4, 2)


def test_what_is_no_draw_is_refused():
    with pytest.raises(ValueError, match="`num` must be >= 1; got 0"):
        hand_case().sample(0, seeded())
    with pytest.raises(ValueError, match="`num_steps` must be >= 1; got 0"):
        hand_case().sample(1, seeded(), num_steps=0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"reward": float("nan")}, "the reward of stream 1 is nan.*Give a finite reward"),
        ({"reward": float("inf")}, "the reward of stream 1 is inf"),
        ({"action": -1}, "the action of stream 1 is -1; it must be in 0..2"),
        ({"action": 3}, "the action of stream 1 is 3; it must be in 0..2"),
        ({"stream": 2}, "`stream` must be in 0..1; got 2"),
        ({"stream": -1}, "`stream` must be in 0..1; got -1"),
        ({"last": True}, "the episode of stream 1 was truncated, but `final_states` is None. Give the state"),
        (
            {"last": True, "final_state": {"x": torch.zeros(2)}},
            r"`final_states\['x'\]` has rows of 2 float32",
        ),
        ({"legal": torch.ones(2, dtype=torch.bool)}, "`legal` has A=2, but earlier arguments have A=3"),
    ],
)
def test_a_step_that_cannot_be_learned_from_is_refused_and_leaves_no_trace(
    changed: dict[str, Any], message: str
):
    buffer, before = hand_case(), hand_case().state_dict()
    step = {"stream": 1, "state": numbered(15), "action": 0, "reward": 0.0, "last": False, **changed}
    with pytest.raises(ValueError, match=message):
        buffer.append(**step, terminated=False)
    after = buffer.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_wrong_number_of_streams_is_named():
    no = torch.zeros(2, dtype=torch.bool)
    with pytest.raises(ValueError, match="`actions` has E=3, but earlier arguments have E=2"):
        hand_case().extend(
            {"x": torch.zeros(2, 1)},
            torch.zeros(3, dtype=torch.long),
            torch.zeros(2),
            terminated=no,
            last=no,
        )
