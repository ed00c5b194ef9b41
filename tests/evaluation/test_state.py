"""Actions and states: components, rho, and the multiple correlation on known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mmft.evaluation.bootstrap import Resampling
from mmft.evaluation.state import correlate_with_state, principal_components

QUICK = Resampling(num_resamples=300)


def states_along(direction: np.ndarray, count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """States that differ mostly along one direction, and how far each lies on it."""
    generator = np.random.default_rng(0)
    place = generator.normal(size=count)
    return place[:, None] * direction + 0.05 * generator.normal(size=(count, len(direction))), place


def test_the_first_component_is_the_direction_in_which_states_differ():
    states, place = states_along(np.array([1.0, -2.0, 3.0, 0.5]))
    found = principal_components(states)
    assert found.projected.shape[1] == 4
    assert abs(np.corrcoef(found.projected[:, 0], place)[0, 1]) > 0.999
    assert found.explained[0] > 0.98
    assert sum(found.explained) == pytest.approx(1.0)


def test_components_are_uncorrelated_and_do_not_know_the_scale_of_a_coordinate():
    states = np.random.default_rng(0).normal(size=(40, 6))
    states[:, 1] += states[:, 0]
    found = principal_components(states, 3).projected
    assert np.cov(found.T) == pytest.approx(np.diag(np.cov(found.T).diagonal()), abs=1e-12)
    scaled = principal_components(states * [1, 1000, 1, 1e-3, 1, 1] + 7, 3).projected
    assert scaled == pytest.approx(found, abs=1e-6)


def test_coordinates_that_never_change_say_nothing():
    states = np.random.default_rng(0).normal(size=(30, 3))
    with_prompt = np.concatenate([states, np.full((30, 50), 0.1)], axis=1)
    assert principal_components(with_prompt).projected == pytest.approx(
        principal_components(states).projected
    )
    assert principal_components(np.ones((10, 4))).projected.shape == (10, 0)


def test_a_missing_modality_counts_as_the_mean_of_the_others():
    states = np.random.default_rng(0).normal(size=(20, 4))
    states[3, 2:] = math.nan
    filled = states.copy()
    filled[3, 2:] = np.nanmean(states[:, 2:], axis=0)
    both = [principal_components(each, 2) for each in (states, filled)]
    # The spread is over the rows that have it, so that the two differ by a hair.
    assert np.isfinite(both[0].projected).all()
    assert both[0].projected == pytest.approx(both[1].projected, abs=0.2)


def test_the_state_that_decides_the_action_is_found():
    states, place = states_along(np.array([1.0, 1.0, 1.0]))
    found = correlate_with_state(place, states, QUICK)
    assert abs(found.components[0].value) > 0.99
    assert found.multiple > 0.99
    assert found.adjusted > 0.99
    assert found.p_value == pytest.approx(1 / 301)


def test_the_multiple_correlation_is_that_of_least_squares():
    generator = np.random.default_rng(0)
    states, actions = generator.normal(size=(50, 3)), generator.normal(size=50)
    found = correlate_with_state(actions, states, QUICK)
    design = np.column_stack([np.ones(50), principal_components(states).projected])
    rest = actions - design @ np.linalg.lstsq(design, actions, rcond=None)[0]
    fit = 1 - (rest @ rest) / ((actions - actions.mean()) ** 2).sum()
    assert found.multiple**2 == pytest.approx(fit)
    assert found.adjusted**2 == pytest.approx(max(0.0, 1 - (1 - fit) * 49 / 46))
    # The components are uncorrelated, so their squared rhos add up.
    assert sum(each.value**2 for each in found.components) == pytest.approx(fit)


def test_noise_fits_by_chance_and_the_adjusted_number_says_so():
    generator = np.random.default_rng(2)
    found = [
        correlate_with_state(generator.normal(size=25), generator.normal(size=(25, 30)), QUICK)
        for _ in range(20)
    ]
    assert np.mean([each.multiple for each in found]) > 0.35
    assert np.mean([each.adjusted for each in found]) < 0.25
    assert 0.25 < np.mean([each.p_value for each in found]) < 0.75


def test_few_rows_get_few_components():
    states = np.random.default_rng(0).normal(size=(12, 30))
    assert principal_components(states).projected.shape == (12, 2)
    assert principal_components(states[:3]).projected.shape == (3, 1)


def test_rows_without_an_action_are_left_out():
    states, place = states_along(np.array([1.0, 2.0]))
    found = correlate_with_state([None, *place[1:]], states, QUICK)
    assert (found.count, found.left_out) == (59, 1)
    assert found.multiple == correlate_with_state(place[1:], states[1:], QUICK).multiple


@pytest.mark.parametrize(
    ("actions", "states", "reason"),
    [
        ([1.0] * 10, np.eye(10), "the action is the same number in every row"),
        ([1.0, 2.0], np.eye(2), "2 rows have one; a correlation needs 3"),
        (list(range(10)), np.ones((10, 3)), "the state is the same in every row"),
    ],
)
def test_what_cannot_be_correlated_says_why(actions: list[float], states: np.ndarray, reason: str):
    found = correlate_with_state(actions, states, QUICK)
    assert math.isnan(found.multiple)
    assert found.components == []
    assert reason in str(found.reason)


def test_every_action_needs_a_state():
    with pytest.raises(ValueError, match=r"a row per action \(3\); got 2"):
        correlate_with_state([1, 2, 3], np.eye(2), QUICK)
