"""What is recorded of an episode is what the agent saw, thought and did."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from PIL import Image
from torch import Tensor

from mmft.engine.observations import Observation, ObservationReader
from mmft.environments.making import make_environment
from mmft.errors import EnvError
from mmft.report import episodes
from mmft.report.episodes import Frame, Recording, action_names, evenly, record_episodes, side_by_side


class Counting(gymnasium.Env[dict[str, Any], int]):
    """The picture is as bright as the step is late; action a pays a. The last mask allows nothing."""

    def __init__(self, *, length: int = 3, still: bool = False, fails: bool = False) -> None:
        self.observation_space = spaces.Dict(
            {
                "view": spaces.Box(0, 255, (4, 5, 3), np.uint8),
                "said": spaces.Text(20),
                "action_mask": spaces.MultiBinary(3),
            }
        )
        self.action_space = spaces.Discrete(3, start=1)
        self.length, self.still, self.fails, self.num_steps = length, still, fails, 0
        self.closed = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self.num_steps = 0
        return self._seen(), {}

    def step(self, action: int) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        if self.fails:
            raise RuntimeError("out of order")
        self.num_steps += 1
        over = self.num_steps == self.length
        return self._seen(), float(action), over, False, {"is_success": over} if over else {}

    def close(self) -> None:
        self.closed = True

    def _seen(self) -> dict[str, Any]:
        bright = 0 if self.still else 10 * self.num_steps
        mask = [1, 0, 1] if self.num_steps < self.length else [self.still, 0, 0]
        return {
            "view": np.full((4, 5, 3), bright, np.uint8),
            "said": "count" if self.still else f"count to {self.length}",
            "action_mask": np.array(mask, np.int8),
        }


def last_legal(observations: Sequence[Observation], legal: Tensor) -> tuple[Tensor, Tensor]:
    """The last action that is allowed; it has not the highest score of all."""
    scores = torch.tensor([0.5, 2.0, 1.0]).expand(len(observations), 3)
    return torch.where(legal, scores, -1.0).argmax(1), scores


def recorded(count: int = 1, **arguments: Any) -> list[Recording]:
    return record_episodes(
        lambda: Counting(**arguments), last_legal, count, name="counting", seed=0, reading={}
    )


def test_frames_hold_what_was_seen_thought_and_done():
    (recording,) = recorded()
    assert [frame.action for frame in recording.frames] == [2, 2, 2]
    assert [frame.reward for frame in recording.frames] == [3.0, 3.0, 3.0], "action 2 is called 3 here"
    assert {frame.scores for frame in recording.frames} == {(0.5, 2.0, 1.0)}
    assert {frame.legal for frame in recording.frames} == {(True, False, True)}
    assert {frame.text for frame in recording.frames} == {"count to 3"}
    bright = [frame.picture.getpixel((0, 0))[0] for frame in recording.frames if frame.picture]
    assert bright == [0, 10, 20], "before each action"
    assert (recording.num_steps, recording.total_reward, recording.success) == (3, 9.0, True)
    assert recording.outcome == "return 9.00, success"


def test_the_end_is_shown_where_it_can_be_read_and_is_new():
    def end_of(env: gymnasium.Env[Any, Any]) -> Frame:
        (recording,) = record_episodes(
            lambda: env,
            lambda seen, legal: (torch.tensor([1]), torch.zeros(1, 4)),
            1,
            name="x",
            seed=0,
            reading={},
        )
        return recording.frames[-1]

    assert recorded()[0].frames[-1].action == 2, "no action is legal at its end, so that it cannot be read"
    assert recorded(still=True)[0].frames[-1].action == 2, "and here the end looks like the beginning"
    end = end_of(make_environment("mmft/FindObject-v0", {"size": 2, "max_steps": 2}))
    assert (end.action, end.reward, end.scores) == (None, None, ())
    assert end.picture is not None


def test_episodes_follow_each_other():
    one, other = recorded(2)
    assert [len(each.frames) for each in (one, other)] == [3, 3]


def test_the_recorded_episodes_are_those_of_the_evaluation():
    seeds = []

    class Seeded(Counting):
        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            seeds.append(seed)
            return super().reset(seed=seed)

    record_episodes(Seeded, last_legal, 2, name="x", seed=7, reading={})
    from mmft.engine.environment_pool import episode_seed

    assert seeds[:2] == [episode_seed(7, 0, 0), episode_seed(7, 0, 1)]


def test_a_recording_stops_after_so_many_steps(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(episodes, "RECORDED_STEPS", 4)
    (recording,) = recorded(length=100)
    assert len(recording.frames) == 4
    assert not recording.ended
    assert recording.outcome == "return 12.00 so far"


def test_an_environment_that_fails_says_so_and_is_closed():
    made: list[Counting] = []

    def make() -> Counting:
        made.append(Counting(fails=True))
        return made[-1]

    with pytest.raises(EnvError, match="'counting', number 0, episode 0, step 1: RuntimeError: out of order"):
        record_episodes(make, last_legal, 1, name="counting", seed=0, reading={})
    assert made[0].closed


def names_of(env: gymnasium.Env[Any, Any]) -> tuple[str, ...]:
    return action_names(env, ObservationReader(env.observation_space, env.action_space, environment="x"))


def test_actions_are_called_what_the_environment_calls_them():
    assert names_of(Counting()) == ("1", "2", "3"), "without names their numbers, from the first on"
    assert names_of(make_environment("mmft/FindObject-v0", {})) == ("up", "right", "down", "left")
    minigrid = names_of(make_environment("MiniGrid-Empty-5x5-v0", {}))
    assert minigrid == ("left", "right", "forward", "pickup", "drop", "toggle", "done")


@pytest.mark.parametrize(
    ("attribute", "value", "expected"),
    [
        ("action_names", ["a", "b", "c"], ("a", "b", "c")),
        ("ACTION_NAMES", ("x", "y", "z"), ("x", "y", "z")),
        ("label_names", (False, True, 2), ("False", "True", "2")),
        ("actions", enum.IntEnum("Actions", "go stay turn"), ("go", "stay", "turn")),
        ("action_names", "abc", ("1", "2", "3")),
        ("action_names", ["a", "b"], ("1", "2", "3")),
        ("actions", 3, ("1", "2", "3")),
    ],
)
def test_names_are_taken_where_there_is_one_for_each_action(
    attribute: str, value: Any, expected: tuple[str, ...]
):
    env = Counting()
    setattr(env, attribute, value)
    assert names_of(env) == expected


def test_pictures_that_are_seen_together_stand_side_by_side():
    red, blue = Image.new("RGB", (4, 6), "red"), Image.new("RGB", (3, 2), "blue")
    joined = side_by_side([red, blue])
    assert joined is not None
    assert joined.size == (4 + 2 + 3, 6)
    assert [joined.getpixel(place) for place in ((3, 5), (4, 0), (6, 1), (6, 2))] == [
        (255, 0, 0), (255, 255, 255), (0, 0, 255), (255, 255, 255),
    ]  # fmt: skip
    assert side_by_side([red]) is red
    assert side_by_side([]) is None


def test_frames_are_chosen_evenly_from_the_first_to_the_last():
    frames = [Frame(None, str(number)) for number in range(17)]
    assert [place for place, _ in evenly(frames, 5)] == [0, 4, 8, 12, 16]
    assert evenly(frames, 5)[1][1].text == "4"
    assert [place for place, _ in evenly(frames, 17)] == list(range(17))
    assert [place for place, _ in evenly(frames[:3], 5)] == [0, 1, 2]
