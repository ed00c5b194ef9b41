"""Environments by name: the shipped ones, MiniGrid, your own, time limits, and messages about wrong names."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import mmft.environments
from mmft.environments.find_object import FindObject
from mmft.environments.making import make_environment
from mmft.environments.registration import ENVIRONMENTS, register_environments
from mmft.environments.rows import RowsEnvironment
from mmft.environments.scene_questions import SceneQuestions
from mmft.errors import ConfigError, DataError
from tests.data.pictures import GREEN, RED, two_pixels

ROWS = [
    {"image": two_pixels(RED, GREEN), "sentence": "red first", "label": True},
    {"image": two_pixels(GREEN, RED), "sentence": "red last", "label": False},
]
KWARGS: dict[str, dict[str, Any]] = {
    "mmft/FindObject-v0": {"size": 3},
    "mmft/Rows-v0": {"rows": ROWS},
    "mmft/SceneQuestions-v0": {"kinds": ["count"]},
}
MODULE = '''
import gymnasium

class Counting(gymnasium.Env):
    """Counts its steps."""

    metadata = {"render_modes": ["rgb_array"]}
    observation_space = gymnasium.spaces.Discrete(100)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, start=0, render_mode=None):
        if start == 13:
            raise TypeError("13 is no start")
        self.start, self.render_mode = start, render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = self.start
        return self.count, {}

    def step(self, action):
        self.count += 1
        return self.count, 0.0, False, False, {}


def make_it(start=1):
    return Counting(start)


def hand_on(**settings):
    return Counting(**settings)


def make_nothing():
    return "an environment"


number = 7
gymnasium.register("mmft-test/Counting-v2", "counting_module:Counting", max_episode_steps=3)
'''


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of the user's in the current folder, forgotten again with what it registers."""
    (tmp_path / "counting_module.py").write_text(MODULE)
    (tmp_path / "broken_module.py").write_text("import no_such_package\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "counting_module", raising=False)
    monkeypatch.setattr(gymnasium.envs.registration, "registry", registry := dict(gymnasium.registry))
    monkeypatch.setattr(gymnasium, "registry", registry)


@pytest.mark.parametrize("name", list(ENVIRONMENTS))
def test_shipped_environments_keep_the_contract_of_gymnasium(name: str):
    check_env(make_environment(name, KWARGS[name]).unwrapped)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("mmft/FindObject-v0", FindObject),
        ("mmft/Rows-v0", RowsEnvironment),
        ("mmft/SceneQuestions-v0", SceneQuestions),
    ],
)
def test_shipped_environments_are_made_by_their_id_with_their_arguments(name: str, kind: Any):
    env = make_environment(name, KWARGS[name])
    assert type(env.unwrapped) is kind
    assert env.spec.id == name
    assert {key: env.spec.kwargs[key] for key in KWARGS[name]} == KWARGS[name]


def test_every_shipped_id_is_registered_once():
    before = dict(gymnasium.registry)
    register_environments()  # gymnasium would warn of an id that is registered again
    assert gymnasium.registry == before
    assert {name for name in before if name.startswith("mmft/")} == set(ENVIRONMENTS)


def test_public_names_come_from_their_homes():
    for name, home in mmft.environments._HOMES.items():
        assert getattr(mmft.environments, name) is getattr(sys.modules[home], name)
    assert set(mmft.environments.__all__) == {*mmft.environments._HOMES, "register_environments"}
    assert set(mmft.environments.__all__) <= set(dir(mmft.environments))
    with pytest.raises(AttributeError, match="no attribute 'Walk'; it offers FindObject, "):
        _ = mmft.environments.Walk


def test_importing_the_package_loads_neither_torch_nor_datasets():
    code = (
        "import sys, mmft.environments as e; e.make_environment; e.FindObject; e.SceneQuestions; "
        "print({'torch', 'datasets', 'transformers', 'minigrid'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_no_checks_of_gymnasium_are_put_around_and_the_order_is_enforced():
    assert "PassiveEnvChecker" not in str(make_environment("mmft/FindObject-v0"))
    with pytest.raises(gymnasium.error.ResetNeeded):
        make_environment("mmft/FindObject-v0").step(0)


def test_render_asks_for_pictures():
    env = make_environment("mmft/FindObject-v0", render=True)
    observation, _ = env.reset(seed=0)
    np.testing.assert_array_equal(env.render(), observation["image"])
    assert make_environment("mmft/FindObject-v0").render_mode is None


def test_minigrid_shows_pixels():
    env = make_environment("MiniGrid-Empty-5x5-v0", {"tile_size": 4}, render=True)
    observation, _ = env.reset(seed=0)
    assert observation["image"].shape == env.observation_space["image"].shape == (20, 20, 3)
    assert observation["image"].dtype == np.uint8
    assert observation["image"].max() > 10, "codes of cells are at most 10"
    assert {"mission", "direction"} <= observation.keys()
    assert env.render().ndim == 3


def test_minigrid_shows_what_the_agent_sees():
    env = make_environment("minigrid:BabyAI-GoToRedBallGrey-v0", {"partial": True})
    observation, _ = env.reset(seed=0)
    assert observation["image"].shape == (7 * 8, 7 * 8, 3)
    whole = make_environment("BabyAI-GoToRedBallGrey-v0").reset(seed=0)[0]
    assert whole["image"].shape == (8 * 8, 8 * 8, 3)
    assert whole["mission"] == observation["mission"] == "go to the red ball"


def test_arguments_of_minigrid_reach_it_and_wrong_ones_are_named():
    env = make_environment("MiniGrid-Empty-5x5-v0", {"max_steps": 2})
    env.reset(seed=0)
    assert [env.step(0)[3] for _ in range(2)] == [False, True]
    with pytest.raises(ConfigError, match="'MiniGrid-Empty-5x5-v0' has no argument 'steps'"):
        make_environment("MiniGrid-Empty-5x5-v0", {"steps": 2})
    with pytest.raises(ConfigError, match="Did you mean 'MiniGrid-Empty-6x6-v0'"):
        make_environment("MiniGrid-Empty-5x6-v0")
    with pytest.raises(ConfigError, match="`tile_size` must be at least 1 pixel per cell; got 0"):
        make_environment("MiniGrid-Empty-5x5-v0", {"tile_size": 0})


def test_without_minigrid_its_ids_say_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "minigrid", None)
    with pytest.raises(ConfigError, match=r"need the package minigrid .*pip install 'mmft\[env\]'"):
        make_environment("MiniGrid-Empty-5x5-v0")


@pytest.mark.usefixtures("own_module")
def test_your_own_environment_from_the_current_folder():
    assert make_environment("counting_module:Counting", {"start": 5}).reset()[0] == 5
    assert make_environment("counting_module:make_it").reset()[0] == 1
    assert make_environment("counting_module:hand_on", {"start": 2}).reset()[0] == 2
    # drawn where it can be asked for
    assert make_environment("counting_module:Counting", render=True).render_mode == "rgb_array"
    assert make_environment("counting_module:hand_on", render=True).render_mode == "rgb_array"
    assert make_environment("counting_module:make_it", render=True).render_mode is None


@pytest.mark.usefixtures("own_module")
def test_an_id_that_a_module_registers_keeps_its_time_limit():
    env = make_environment("counting_module:mmft-test/Counting-v2", {"start": 4})
    assert env.reset()[0] == 4
    assert [env.step(0)[3] for _ in range(3)] == [False, False, True]


@pytest.mark.usefixtures("own_module")
def test_what_gymnasium_warns_of_is_logged(caplog: pytest.LogCaptureFixture):
    make_environment("counting_module:mmft-test/Counting-v2")
    with caplog.at_level(logging.WARNING):
        env = make_environment("mmft-test/Counting")
    assert env.spec.id == "mmft-test/Counting-v2"
    (message,) = caplog.messages
    assert message.startswith(
        "environment 'mmft-test/Counting': WARN: Using the latest versioned environment"
    )
    assert "\x1b" not in message


@pytest.mark.usefixtures("own_module")
@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("mmft/FindObjects-v0", {}, "registered as 'mmft/FindObjects-v0'. Did you mean 'mmft/FindObject-v0'"),
        (
            "xyz",
            {},
            "registered as 'xyz'. mmft's own are mmft/FindObject-v0, mmft/Rows-v0, .*`my_module:my_make`",
        ),
        ("mmft/FindObject-v0", {"sise": 3}, "has no argument 'sise'. Did you mean 'size'"),
        ("counting_module:Counting", {"strat": 3}, "has no argument 'strat'. Did you mean 'start'"),
        ("counting_module:make_it", {"strat": 3}, "has no argument 'strat'. Did you mean 'start'"),
        ("counting_module:hand_on", {"strat": 3}, "'counting_module:hand_on' has no argument 'strat'"),
        ("counting_module:Counting", {"start": 13}, "cannot be made from {'start': 13}: 13 is no start"),
        ("counting_module:make_nothing", {}, "is of type str; it must be a `gymnasium.Env`"),
        ("counting_module:number", {}, "'counting_module:number' is 7, which cannot be called"),
        ("counting_module:make_ti", {}, "no 'make_ti' and registers no such id. Did you mean 'make_it'"),
        ("counting_module:mmft-test/Counting-v1", {}, "Did you mean 'mmft-test/Counting-v2'"),
        ("conuting_module:Counting", {}, "Run from the folder that holds conuting_module, or install it"),
        ("broken_module:make_it", {}, "no_such_package.*It is there, but its own imports fail"),
    ],
)
def test_wrong_names_and_arguments_are_named(name: str, kwargs: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        make_environment(name, kwargs)


def test_an_id_whose_package_is_missing_says_so(monkeypatch: pytest.MonkeyPatch):
    spec = gymnasium.envs.registration.EnvSpec("mmft-test/Gone-v0", entry_point="no_such_package:Gone")
    monkeypatch.setitem(gymnasium.registry, spec.id, spec)
    with pytest.raises(ConfigError, match=r"'mmft-test/Gone-v0' cannot be made from \{\}: No module named"):
        make_environment("mmft-test/Gone-v0")


def test_what_an_environment_says_of_its_own_settings_stays_as_it_is():
    with pytest.raises(ConfigError, match=r"^`size` must be one of 2, 3, 4; got 9"):
        make_environment("mmft/FindObject-v0", {"size": 9})
    with pytest.raises(DataError, match=r"^there are no rows"):
        make_environment("mmft/Rows-v0", {"rows": []})
