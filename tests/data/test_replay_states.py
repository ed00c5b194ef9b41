"""States of a replay buffer: any dtype, sequences that grow, and what does not fit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmft.data.replay import ReplayBuffer
from mmft.data.replay_states import StateStore, check_row_shapes, check_states, kinds_of


def words(*ids: int) -> dict[str, Tensor]:
    return {"text": torch.tensor([[i, -i] for i in ids]), "text_mask": torch.ones(len(ids), dtype=torch.bool)}


def filled(*states: dict[str, Tensor], capacity: int = 12) -> ReplayBuffer:
    buffer = ReplayBuffer(capacity, 1, 2)
    for number, state in enumerate(states):
        buffer.append(0, state, 0, float(number), terminated=True, last=True)
    return buffer


def drawn(buffer: ReplayBuffer, name: str) -> list[object]:
    """A tensor of each state, in the order of time."""
    batch = buffer.sample(200, torch.Generator().manual_seed(0))
    found = dict(zip(batch.rewards[:, 0].tolist(), batch.states[name].tolist(), strict=True))
    return [found[number] for number in sorted(found)]


def test_sequences_are_padded_to_the_longest_whenever_it_comes():
    buffer = filled(words(1, 2), words(3, 4, 5), words(6))
    assert drawn(buffer, "text_mask") == [[True, True, False], [True, True, True], [True, False, False]]
    assert drawn(buffer, "text") == [
        [[1, -1], [2, -2], [0, 0]],
        [[3, -3], [4, -4], [5, -5]],
        [[6, -6], [0, 0], [0, 0]],
    ]


def test_a_short_sequence_leaves_nothing_of_the_long_one_it_overwrites():
    buffer = filled(words(1, 2, 3), words(4), words(5), words(6), capacity=3)
    assert drawn(buffer, "text") == [[[i, -i], [0, 0], [0, 0]] for i in (4, 5, 6)]
    assert drawn(buffer, "text_mask") == [[True, False, False]] * 3


def test_a_final_state_may_be_the_longest():
    buffer = ReplayBuffer(12, 1, 2)
    buffer.append(0, words(1), 0, 0.0, terminated=False, last=True, final_state=words(2, 3))
    batch = buffer.sample(1, torch.Generator())
    assert batch.states["text_mask"].tolist() == [[True, False]]
    assert batch.next_states["text"].tolist() == [[[2, -2], [3, -3]]]


def test_every_dtype_stays_what_it_is():
    state = {
        "pixels": torch.full((3, 4, 4), 255, dtype=torch.uint8),
        "ids": torch.tensor([2**40, 7]),
        "seen": torch.tensor(True),
        "half": torch.ones(2, dtype=torch.bfloat16),
    }
    buffer = filled(state)
    states = buffer.sample(1, torch.Generator()).states
    assert all(torch.equal(states[name][0], state[name]) for name in state)
    assert {name: x.dtype for name, x in states.items()} == {name: x.dtype for name, x in state.items()}
    # 48 pixels of a byte, 2 * 8, 1 and 2 * 2
    assert buffer.bytes_per_state == 48 + 16 + 1 + 4
    assert "69 B a state (pixels 3x4x4 uint8, ids 2 int64, seen bool, half 2 bfloat16)" in buffer.describe()


def test_what_is_longer_takes_more_room():
    store = StateStore(2, 5, torch.device("cpu"))
    here = torch.tensor([1])
    assert store.num_bytes == 0
    for length in (2, 4, 3):
        store.write(here, here, {"x": torch.ones(1, length, 3), "x_mask": torch.ones(1, length).bool()})
    # the longest: 4 tokens of 3 floats and a flag, at 2 * 5 positions
    assert store.bytes_per_state == 4 * (3 * 4 + 1)
    assert store.num_bytes == 2 * 5 * store.bytes_per_state


def test_the_length_of_a_sequence_is_kept_through_a_checkpoint():
    state = filled(words(1, 2, 3), words(4)).state_dict()
    loaded = ReplayBuffer(12, 1, 2)
    loaded.load_state_dict(state, {"text": (9, 2), "text_mask": (9,)})
    loaded.append(0, words(5), 0, 2.0, terminated=True, last=True)
    assert drawn(loaded, "text_mask") == [[True, True, True], [True, False, False], [True, False, False]]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": torch.zeros(1, 4)}, r"`states\['x'\]` has rows of 4 float32, but the buffer keeps 3 float32"),
        (
            {"x": torch.zeros(1, 2)},
            "has rows of 2 float32, but the buffer keeps 3 float32. Only a sequence",
        ),
        ({"x": torch.zeros(1, 3).double()}, "has rows of 3 float64, but the buffer keeps 3 float32"),
        ({"x": torch.zeros(1, 3, 1)}, "has rows of 3x1 float32, but the buffer keeps 3 float32"),
        ({"words": torch.zeros(1, 9, 7)}, "has rows of 9x7 float32, but the buffer keeps 2x5 float32"),
        (
            {"plane": torch.zeros(1, 9, 5)},
            "9x5 float32, but the buffer keeps 2x5.*, with a `plane_mask` beside it",
        ),
        (
            {"x": torch.zeros(2, 3)},
            r"`states\['x'\]` must have one row for each of 1 streams; got shape \(2, 3\)",
        ),
        ({"words_mask": torch.zeros(1).bool()}, "has rows of bool, but the buffer keeps 2 bool"),
        ({"x": torch.tensor(0.0)}, r"must have one row for each of 1 streams; got shape \(\)"),
        (
            {"y": torch.zeros(1, 3)},
            "must hold plane, words, words_mask, x, as every state before; got plane, .* y",
        ),
    ],
)
def test_a_state_of_another_kind_is_named(changed: dict[str, Tensor], message: str):
    states = {
        "x": torch.zeros(1, 3),
        "plane": torch.zeros(1, 2, 5),
        "words": torch.zeros(1, 2, 5),
        "words_mask": torch.zeros(1, 2).bool(),
    }
    with pytest.raises(ValueError, match=message):
        check_states("states", {**states, **changed}, kinds_of(states, 1), 1)


def test_a_missing_tensor_is_named():
    with pytest.raises(
        ValueError, match=r"must hold x, y, as every state before; got x\. Mask what is missing"
    ):
        check_states(
            "states", {"x": torch.zeros(1, 3)}, kinds_of({"x": torch.zeros(1, 3), "y": torch.zeros(1)}, 1), 1
        )


def test_only_the_length_of_a_saved_sequence_may_differ():
    saved = kinds_of({"x": torch.zeros(1, 4, 3), "x_mask": torch.zeros(1, 4)}, 1)
    check_row_shapes(saved, {"x": (7, 3), "x_mask": (7,)})
    with pytest.raises(ValueError, match=r"have `x` of shape \(4, 3\), those of this run of shape \(4, 5\)"):
        check_row_shapes(saved, {"x": (4, 5), "x_mask": (4,)})
