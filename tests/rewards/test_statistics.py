"""Running statistics equal those of all numbers at once, however these were dealt; held-out scales freeze."""

from __future__ import annotations

import json
import math
import random
import statistics

import pytest

from rewards.statistics import RunningScale, RunningStatistics, min_max, z_score


def seen(*batches: list[float | None]) -> RunningStatistics:
    running = RunningStatistics()
    for batch in batches:
        running.update(batch)
    return running


def settle(scale: RunningScale, *processes: list[float | None], training: bool = True) -> list[float | None]:
    """One batch, dealt to processes that have all seen what `scale` has; the scaled values side by side."""
    scale.take_in([scale.share(values) for values in processes], training=training)
    return [value for values in processes for value in scale.scaled(values, training=training)]


def test_statistics_hand_computed():
    running = seen([1.0, 2.0], [6.0])  # mean 3; 4 + 1 + 9 = 14
    assert (running.count, running.mean, running.minimum, running.maximum) == (3, 3.0, 1.0, 6.0)
    assert running.squares == pytest.approx(14)
    assert running.std == pytest.approx(math.sqrt(14 / 3))


def test_batches_of_any_size_add_up_to_all_numbers():
    generator = random.Random(0)
    numbers = [generator.gauss(1e4, 0.1) for _ in range(300)]  # E[x^2] - E[x]^2 would lose most digits
    running = seen(numbers[:1], [], numbers[1:50], numbers[50:])
    assert running.count == 300
    assert running.mean == pytest.approx(statistics.fmean(numbers), rel=1e-15)
    assert running.std == pytest.approx(statistics.pstdev(numbers), rel=1e-10)
    assert (running.minimum, running.maximum) == (min(numbers), max(numbers))


def test_several_processes_see_what_one_would():
    numbers = [0.1 * (n**2 % 17) for n in range(40)]
    together, apart = RunningScale("z-score"), RunningScale("z-score")
    for start in (0, 20):
        batch = numbers[start : start + 20]
        expected = settle(together, batch)
        assert settle(apart, batch[:3], [], batch[3:]) == pytest.approx(expected, rel=1e-12)
    assert apart.training.count == 40
    assert apart.training.std == pytest.approx(statistics.pstdev(numbers), rel=1e-12)


def test_what_cannot_be_judged_is_left_out():
    assert seen([None, 2.0, math.nan, 4.0]) == seen([2.0, 4.0])
    assert seen([None]) == RunningStatistics()


def test_an_infinite_value_is_refused():
    with pytest.raises(ValueError, match="`values` holds an infinite number"):
        seen([1.0, math.inf])


def test_nothing_and_a_single_number_have_no_spread():
    assert RunningStatistics().std == 0.0
    assert seen([5.0]).std == 0.0


def test_a_saved_state_gives_every_bit_back():
    running = seen([0.1, 0.2, 1 / 3], [1e-30, -7.7])
    restored = RunningStatistics()
    restored.load_state_dict(json.loads(json.dumps(running.state_dict())))
    assert restored == running
    empty = RunningStatistics()
    empty.load_state_dict(json.loads(json.dumps(RunningStatistics().state_dict())))
    assert empty == RunningStatistics()


def test_scalings_hand_computed():
    running = seen([1.0, 2.0, 6.0])
    assert [min_max(value, running) for value in (1.0, 2.0, 6.0)] == [0.0, 0.2, 1.0]
    assert z_score(6.0, running) == pytest.approx(3 / math.sqrt(14 / 3))
    assert z_score(3.0, running) == 0.0
    assert min_max(11.0, running) == 2.0  # beyond what was seen, not clipped


def test_a_range_around_zero_and_below_keeps_its_ends():
    assert [min_max(value, seen([-4.0, 0.0])) for value in (-4.0, -1.0, 0.0)] == [0.0, 0.75, 1.0]
    assert min_max(1.0, seen([0.0, 4.0])) == 0.25


@pytest.mark.parametrize("kind", ["min-max", "z-score"])
def test_a_constant_is_scaled_to_zero_and_the_first_change_stays_in_bounds(kind: str):
    scale = RunningScale(kind)
    assert settle(scale, [0.5, 0.5, None]) == [0.0, 0.0, None]
    assert settle(scale, [0.5], training=False) == [0.0]
    assert settle(scale, [1.5], training=False) != [0.0]
    settle(scale, [0.5])
    frozen = RunningScale(kind)
    settle(frozen, [0.5], training=False)
    settle(frozen, [0.5])
    assert settle(frozen, [2.0], training=False) == [1.5]


@pytest.mark.parametrize("kind", ["min-max", "z-score"])
def test_scaled_training_rewards_do_not_depend_on_offset_and_unit(kind: str):
    batches = [[0.3, 0.1, 0.9], [0.2, 0.8, 0.85]]
    plain, moved = RunningScale(kind), RunningScale(kind)
    for batch in batches:
        expected = settle(plain, batch)
        assert settle(moved, [100 * value - 7 for value in batch]) == pytest.approx(expected, rel=1e-6)


def test_the_present_batch_counts():
    scale = RunningScale("min-max")
    assert settle(scale, [0.0, 1.0]) == [0.0, 1.0]
    assert settle(scale, [4.0, 2.0]) == [1.0, 0.5]


def test_held_out_samples_do_not_move_the_scale_of_training():
    scale, alone = RunningScale("z-score"), RunningScale("z-score")
    settle(scale, [1.0, 2.0])
    settle(alone, [1.0, 2.0])
    settle(scale, [50.0, 60.0], training=False)
    assert scale.training == alone.training
    assert settle(scale, [3.0]) == settle(alone, [3.0])


def test_the_first_evaluation_sets_a_scale_that_training_freezes():
    scale = RunningScale("min-max")
    assert settle(scale, [0.0, 1.0], training=False) == [0.0, 1.0]
    assert settle(scale, [2.0], training=False) == [1.0]  # a second batch of it: the range grows to [0, 2]
    assert not scale.is_frozen
    settle(scale, [100.0, 200.0])
    assert scale.is_frozen
    assert settle(scale, [1.0, 4.0], training=False) == [0.5, 2.0]
    assert settle(scale, [1.0, 2.0], training=False) == [0.5, 1.0]
    assert scale.held_out == seen([0.0, 1.0], [2.0])


def test_training_before_any_evaluation_freezes_nothing():
    scale = RunningScale("min-max")
    settle(scale, [100.0])
    assert not scale.is_frozen
    assert settle(scale, [0.0, 8.0], training=False) == [0.0, 1.0]
    settle(scale, [100.0])
    assert settle(scale, [4.0], training=False) == [0.5]


def test_an_evaluation_that_nothing_could_be_judged_in_sets_no_scale():
    scale = RunningScale("min-max")
    assert settle(scale, [None], training=False) == [None]
    settle(scale, [1.0])
    assert not scale.is_frozen
    assert settle(scale, [0.0, 2.0, 1.0], training=False) == [0.0, 1.0, 0.5]


def test_a_saved_scale_goes_on_as_it_was():
    scale = RunningScale("z-score")
    settle(scale, [0.0, 1.0], training=False)
    settle(scale, [5.0, 7.0, 10.0])
    restored = RunningScale("z-score")
    restored.load_state_dict(json.loads(json.dumps(scale.state_dict())))
    assert restored.is_frozen
    assert settle(restored, [3.0, 4.0]) == settle(scale, [3.0, 4.0])
    assert settle(restored, [3.0], training=False) == settle(scale, [3.0], training=False)


def test_a_process_that_left_a_batch_out_catches_up():
    """Its reward failed once: it must neither keep a scale of its own nor take the others' away."""
    missed, other = RunningScale("min-max"), RunningScale("min-max")
    other.take_in([other.share([0.0, 10.0])], training=True)
    shares = [missed.share([5.0]), other.share([20.0])]
    for scale in (missed, other):
        scale.take_in(shares, training=True)
    assert missed.state_dict() == other.state_dict()
    assert missed.scaled([5.0], training=True) == [0.25]


def test_an_unknown_scaling_is_named():
    with pytest.raises(ValueError, match="`scaling` must be one of 'min-max', 'z-score' or None; got 'rank'"):
        RunningScale("rank")
