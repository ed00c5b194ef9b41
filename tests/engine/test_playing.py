"""Playing in tensors: what is read and when, what failed, what is blanked; random numbers by place."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from PIL import Image
from torch import Tensor

from mmft.engine.environment_pool import EnvironmentPool
from mmft.engine.observations import ObservationReader
from mmft.engine.playing import BLANKS, GREY, Blanking, Noise, Played, Player, legal_actions
from mmft.errors import EnvError
from tests.engine.environment_support import Counting, Hook, Maker, failing

NUM_ACTIONS = 10
NOTHING = [0] * NUM_ACTIONS


def player_of(make: Any, num_envs: int = 2, **settings: Any) -> Player:
    """A started player; what environments count is read as text and as numbers."""
    pool = EnvironmentPool(make, num_envs, name="counting", seed=7)
    spaces_of = pool.observation_space, pool.action_space
    reader = ObservationReader(*spaces_of, environment="counting", instruction="at {observation}")
    player = Player(pool, reader, **settings)
    player.start()
    return player


def play(player: Player, *actions: int) -> Played:
    return player.play(torch.tensor(actions))


def counts(player: Player) -> list[list[float]]:
    """[sum of actions, steps] that each environment waits with."""
    return [observation.numbers[1:].tolist() for observation in player.observations]


def returning(*, terminated: bool, info: dict[str, Any]) -> Hook:
    """The second step ends the episode with this info."""

    def hook(env: Counting) -> Any:
        if env.num_steps < 1:
            return None
        env.shown[1:] += 5, 1
        return env.shown, 2.5, terminated, not terminated, info

    return hook


# Steps


def test_what_was_done_and_earned_is_told_in_tensors() -> None:
    player = player_of(Maker(length=2))
    assert counts(player) == [[0, 0], [0, 0]]
    played = play(player, 4, 3)
    assert played.rewards.tolist() == [4.0, 3.0]
    assert played.rewards.dtype == torch.float32
    flags = played.terminated, played.last, played.failed
    assert [flag.tolist() for flag in flags] == [[False, False]] * 3
    assert played.finals == [None, None]
    assert counts(player) == [[4, 1], [3, 1]]
    # an action other than 0 terminates the last step of an episode, 0 truncates it
    played = play(player, 2, 0)
    flags = played.terminated, played.last, played.failed
    assert [flag.tolist() for flag in flags] == [[True, False], [True, True], [False, False]]
    assert {flag.dtype for flag in flags} == {torch.bool}
    assert counts(player) == [[0, 0], [0, 0]]


def test_only_where_a_truncated_episode_ended_is_read() -> None:
    player = player_of(Maker(length=2))
    play(player, 4, 3)
    terminated, truncated = play(player, 2, 0).finals
    assert terminated is None
    assert truncated is not None
    assert truncated.numbers is not None
    assert truncated.numbers[1:].tolist() == [3, 2]
    assert truncated.text.endswith("3.0, 2.0]")


def test_the_end_of_a_terminated_episode_need_not_be_readable() -> None:
    player = player_of(Maker(on_step=returning(terminated=True, info={"action_mask": NOTHING})))
    play(player, 1, 1)
    played = play(player, 1, 1)
    assert played.terminated.all()
    assert played.rewards.tolist() == [2.5, 2.5]
    assert played.finals == [None, None]
    assert counts(player) == [[0, 0], [0, 0]]


def test_the_end_of_a_truncated_episode_must_be_readable() -> None:
    player = player_of(Maker(on_step=returning(terminated=False, info={"action_mask": NOTHING})))
    play(player, 1, 1)
    with pytest.raises(EnvError, match="'action_mask' allows no action"):
        play(player, 1, 1)


def test_actions_that_may_be_taken_at_the_end_are_told_with_it() -> None:
    mask = [0, 1] * 5
    player = player_of(Maker(on_step=returning(terminated=False, info={"action_mask": mask})))
    play(player, 1, 1)
    final = play(player, 1, 1).finals[0]
    assert final is not None
    assert final.legal is not None
    assert final.legal.tolist() == [bool(each) for each in mask]
    assert player.legal.all()  # of the next episodes


def test_actions_reach_the_environment_under_its_own_names() -> None:
    class Shifted(Counting):
        def __init__(self) -> None:
            super().__init__()
            self.action_space = spaces.Discrete(3, start=5)

    player = player_of(Shifted)
    assert player.reader.num_actions == 3
    assert play(player, 0, 2).rewards.tolist() == [5.0, 7.0]


def test_observations_stay_what_they_were_when_the_environments_go_on() -> None:
    player = player_of(Maker())  # whose observations are all the same array
    before = list(player.observations)
    play(player, 1, 2)
    after = list(player.observations)
    play(player, 3, 3)
    assert [o.numbers[1:].tolist() for o in before] == [[0, 0], [0, 0]]
    assert [o.numbers[1:].tolist() for o in after] == [[1, 1], [2, 1]]


def test_starting_again_begins_no_episode_anew() -> None:
    player = player_of(Maker())
    play(player, 4, 5)
    player.observations = []
    player.start()
    assert counts(player) == [[4, 1], [5, 1]]


def test_a_player_is_the_pool_behind_the_reader() -> None:
    player = player_of(Maker(length=4), 3)
    pool = EnvironmentPool(Maker(length=4), 3, name="counting", seed=7)
    pool.reset()
    choose = random.Random(0)
    for _ in range(30):
        actions = [choose.randrange(NUM_ACTIONS) for _ in range(3)]
        steps, played = pool.step(actions), play(player, *actions)
        assert played.rewards.tolist() == [step.reward for step in steps]
        assert played.terminated.tolist() == [step.terminated for step in steps]
        assert played.last.tolist() == [step.last for step in steps]
        for step, seen, final in zip(steps, player.observations, played.finals, strict=True):
            assert seen.numbers.tolist() == step.next_observation.astype(np.float32).tolist()
            assert (final is not None) == (step.last and not step.terminated)


# Failures


def test_where_an_environment_failed_the_step_did_not_happen() -> None:
    player = player_of(Maker({}, {"on_step": failing(1, ValueError("boom"))}))
    play(player, 4, 3)
    waiting = player.observations[1]
    assert player.num_played == 2
    played = play(player, 2, 9)
    assert played.failed.tolist() == [False, True]
    assert played.last.tolist() == [False, True]
    assert played.terminated.tolist() == [False, False]
    assert played.rewards.tolist() == [2.0, 0.0]
    # it ended where it began, and the next episode waits
    assert played.finals == [None, waiting]
    assert counts(player) == [[6, 2], [0, 0]]
    assert player.observations[1].key != waiting.key
    assert player.num_played == 3
    play(player, 1, 1)
    assert player.num_played == 5


def test_steps_are_counted_over_all_environments() -> None:
    player = player_of(Maker(length=2), 3)
    assert player.num_played == 0
    for number in range(1, 6):
        play(player, 1, 0, 1)
        assert player.num_played == 3 * number


# Legal actions


def test_what_may_be_done_is_told_for_each_environment() -> None:
    mask = [1, 0] * 5

    def hook(env: Counting) -> Any:
        env.shown[1:] += 1, 1
        return env.shown, 0.0, False, False, {"action_mask": mask}

    player = player_of(Maker({"on_step": hook}, {}))
    assert player.legal.dtype == torch.bool
    assert player.legal.tolist() == [[True] * NUM_ACTIONS] * 2
    play(player, 0, 1)
    assert player.legal.tolist() == [[bool(each) for each in mask], [True] * NUM_ACTIONS]
    assert torch.equal(legal_actions(player.observations[1:], NUM_ACTIONS), player.legal[1:])


# Blanks


class Scenes(Counting):
    """A picture, a word and two numbers; whoever looks sees how many steps were made."""

    def __init__(self, shape: tuple[int, ...] = (4, 6, 3), length: int = 3) -> None:
        super().__init__(length)
        self.observation_space = spaces.Dict({
            "picture": spaces.Box(0, 255, shape, np.uint8),
            "word": spaces.Text(20),
            "numbers": spaces.Box(-np.inf, np.inf, (2,)),
            "action_mask": spaces.MultiBinary(NUM_ACTIONS),
        })  # fmt: skip
        self.shape = shape

    def seen(self) -> dict[str, Any]:
        return {
            "picture": np.full(self.shape, 10 * self.num_steps, np.uint8),
            "word": f"step {self.num_steps}",
            "numbers": self.shown[1:].copy(),
            "action_mask": np.array([0] + [1] * (NUM_ACTIONS - 1)),
        }

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        _, info = super().reset(seed=seed)
        return self.seen(), info

    def step(self, action: int) -> Any:
        _, *others = super().step(action)
        return self.seen(), *others


def scenes(blank: Blanking | None = None, make: Any = Scenes) -> Player:
    pool = EnvironmentPool(make, 2, name="scenes", seed=7)
    reader = ObservationReader(pool.observation_space, pool.action_space, environment="scenes")
    player = Player(pool, reader, blank)
    player.start()
    return player


@pytest.mark.parametrize("blank", BLANKS)
def test_what_is_blanked_is_the_same_in_every_observation_and_the_rest_is_as_before(blank: str) -> None:
    blanked, whole = scenes(BLANKS[blank]), scenes()
    pairs = list(zip(blanked.observations, whole.observations, strict=True))
    for _ in range(3):
        one, other = play(blanked, 0, 0), play(whole, 0, 0)
        assert torch.equal(one.rewards, other.rewards)
        pairs += zip(blanked.observations, whole.observations, strict=True)
    # where truncated episodes ended, too
    pairs += [pair for pair in zip(one.finals, other.finals, strict=True) if None not in pair]
    assert len(pairs) == 10
    for dark, bright in pairs:
        assert torch.equal(dark.numbers, bright.numbers)
        assert torch.equal(dark.legal, bright.legal)
        assert (dark.text == bright.text) == (blank == "image")
        assert (dark.text_key == bright.text_key) == (blank == "image")
        assert (dark.images == bright.images) == (blank == "text")
        assert (dark.image_key == bright.image_key) == (blank == "text")
        assert dark.key != bright.key
    assert len({dark.image_key if blank == "image" else dark.text_key for dark, _ in pairs}) == 1
    for kind in ("image_key", "text_key"):
        assert len({getattr(bright, kind) for _, bright in pairs}) == 4


def test_pictures_become_grey_of_the_same_size() -> None:
    (image,) = scenes(BLANKS["image"]).observations[0].images
    assert (image.mode, image.size) == ("RGB", (6, 4))
    assert image.getcolors() == [(24, GREY)]


def test_texts_become_empty() -> None:
    assert [o.text for o in scenes(BLANKS["text"]).observations] == ["", ""]


@pytest.mark.parametrize("blank", BLANKS)
def test_what_is_blank_already_has_the_key_it_was_read_with(blank: str) -> None:
    class Blank(Scenes):
        def seen(self) -> dict[str, Any]:
            return super().seen() | {"picture": np.full(self.shape, GREY[0], np.uint8), "word": ""}

    read, blanked = scenes(None, Blank), scenes(BLANKS[blank], Blank)
    for one, other in zip(read.observations, blanked.observations, strict=True):
        assert one.key == other.key


def test_grey_pictures_of_other_sizes_have_other_keys() -> None:
    player = scenes()
    wide = player.observations[0]
    tall = scenes(None, lambda: Scenes((6, 4, 3))).observations[0]
    keys = {BLANKS["image"](each).image_key for each in (wide, tall)}
    assert len(keys) == 2  # though they have the same bytes


# Random numbers


PLACES = [*itertools.product((0, 1), (0, 1, 2), ("act", "act 1", "sample", ""), (0, 1, 300), (0, 1, 7))]
"""Of a run: seed, process, purpose, number, environment."""


def drawn(seed: int, process: int, purpose: str, number: int, environment: int) -> Tensor:
    return torch.rand(8, generator=Noise(seed, process).generator(purpose, number, environment))


def test_the_same_place_has_the_same_numbers() -> None:
    first = [drawn(*place) for place in PLACES]
    torch.manual_seed(5)
    noise = Noise(3, 1)
    noise.uniforms("act", 0, 100)
    assert torch.equal(noise.uniforms("act", 4, 9), Noise(3, 1).uniforms("act", 4, 9))
    for place, expected in zip(reversed(PLACES), reversed(first), strict=True):
        assert torch.equal(drawn(*place), expected)


def test_every_other_place_has_other_numbers() -> None:
    assert len(PLACES) == 2 * 3 * 4 * 3 * 3
    assert len({tuple(drawn(*place).tolist()) for place in PLACES}) == len(PLACES)
    # numbers that look alike in a row: process 1, number 12 is not process 11, number 2
    assert not torch.equal(drawn(0, 1, "act", 12, 0), drawn(0, 11, "act", 2, 0))
    assert not torch.equal(drawn(0, 0, "act 1", 1, 0), drawn(0, 0, "act 11", 1, 0))


def test_numbers_use_up_none_of_the_global_ones() -> None:
    before = torch.get_rng_state()
    Noise(0, 0).uniforms("act", 0, 5)
    assert torch.equal(torch.get_rng_state(), before)


def test_numbers_are_uniform_and_do_not_hang_together_from_place_to_place() -> None:
    noise, count = Noise(0, 0), 400
    rounds = torch.stack([noise.uniforms("act", number, 25) for number in range(count)])
    assert rounds.dtype == torch.float32
    assert 0 <= rounds.min() < rounds.max() < 1
    for numbers in (rounds.flatten(), rounds[:, 0], rounds[:, 24]):
        expected = len(numbers) / 10
        bins = numbers.mul(10).long().bincount(minlength=10)
        # chi-square of 9 degrees of freedom: above 27.9 in one of a thousand seeds
        assert (bins - expected).square().sum() / expected < 27.9
    # consecutive rounds: a correlation of 1 / sqrt(n) is usual
    pairs = torch.stack([rounds[1:].flatten(), rounds[:-1].flatten()])
    assert pairs.corrcoef()[0, 1].abs() < 4 / pairs.shape[1] ** 0.5


def test_a_blank_changes_no_picture_of_the_observation_itself() -> None:
    observation = scenes().observations[0]
    before = [image.tobytes() for image in observation.images]
    blanked = BLANKS["image"](observation)
    assert [image.tobytes() for image in observation.images] == before
    assert isinstance(blanked.images[0], Image.Image)
