"""The description of an agent: written and read, compared, refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from mmft.errors import ConfigError
from mmft.models.agent_spec import ACTOR_CRITIC, SPEC_FILE, AgentSpec, Q

EVERYTHING: dict[str, Any] = {
    "kind": ACTOR_CRITIC,
    "num_actions": 5,
    "modalities": ("text", "image"),
    "num_numbers": 3,
    "fusion": "cross_modal",
    "fusion_size": 16,
    "fusion_options": {"num_heads": 4},
    "pooled": False,
    "hidden_sizes": (32, 8),
    "dropout": 0.25,
    "dueling": True,
    "feature_scaling": "min_max",
    "pca_components": 9,
    "reading": {"image_keys": ["picture"], "instruction": "Où? {mission}"},
    "backbone": "adapter",
    "base": "mmft/tiny-captioner",
    "dtype": "bfloat16",
}


def plain(**changed: Any) -> AgentSpec:
    return AgentSpec(**{"kind": Q, "num_actions": 4, "modalities": ("fused",)} | changed)


def test_the_cases_below_change_every_field():
    defaults = plain()
    assert set(EVERYTHING) == {field.name for field in dataclasses.fields(AgentSpec)}
    assert all(getattr(defaults, name) != value for name, value in EVERYTHING.items())


@pytest.mark.parametrize("values", [EVERYTHING, {}])
def test_what_is_saved_is_loaded(values: dict[str, Any], tmp_path: Path):
    spec = plain(**values)
    spec.save(tmp_path)
    loaded = AgentSpec.load(tmp_path)
    assert loaded == spec
    assert isinstance(loaded.modalities, tuple)
    assert isinstance(loaded.hidden_sizes, tuple)
    assert loaded.differences(spec) == spec.differences(loaded) == []


def test_the_file_is_read_by_people_too(tmp_path: Path):
    plain(**EVERYTHING).save(tmp_path)
    text = (tmp_path / SPEC_FILE).read_text(encoding="utf-8")
    assert '\n "num_actions": 5,\n' in text
    assert text.endswith("}\n")


@pytest.mark.parametrize("name", [name for name in EVERYTHING if name not in ("base", "dtype")])
def test_every_difference_is_told_with_both_values(name: str):
    mine, theirs = plain(), plain(**{name: EVERYTHING[name]})
    (told,) = mine.differences(theirs)
    saved, now = (json.loads(json.dumps(getattr(spec, name))) for spec in (theirs, mine))
    assert told == f"{name}={saved!r} (now {now!r})"


def test_a_difference_is_told_from_where_one_stands():
    assert plain().differences(plain(fusion="linear")) == ["fusion='linear' (now 'vlm')"]
    assert plain(fusion="linear").differences(plain()) == ["fusion='vlm' (now 'linear')"]


def test_several_differences_are_told_in_the_order_of_the_fields():
    told = plain().differences(plain(dropout=0.5, kind=ACTOR_CRITIC, hidden_sizes=(7,)))
    assert told == [
        "kind='actor_critic' (now 'q')",
        "hidden_sizes=[7] (now [])",
        "dropout=0.5 (now 0.0)",
    ]


def test_where_the_base_lies_and_its_precision_do_not_count():
    assert plain().differences(plain(base="/elsewhere", dtype="bfloat16")) == []


def test_lists_and_tuples_say_the_same():
    mine, theirs = (plain(reading={"image_keys": keys}) for keys in (("a", "b"), ["a", "b"]))
    assert mine.differences(theirs) == []


def test_a_folder_without_an_agent_is_named(tmp_path: Path):
    message = rf"{tmp_path} holds no agent\.json; give the folder of a run of `mmft dqn`, or of `mmft ppo`"
    with pytest.raises(ConfigError, match=message):
        AgentSpec.load(tmp_path)


@pytest.mark.parametrize("change", ["less", "more", "both"])
def test_a_file_of_another_version_is_named(change: str, tmp_path: Path):
    plain().save(tmp_path)
    path = tmp_path / SPEC_FILE
    values = json.loads(path.read_text(encoding="utf-8"))
    if change != "more":
        del values["pooled"]
    if change != "less":
        values["novelty"] = None
    path.write_text(json.dumps(values), encoding="utf-8")
    names = {"less": "'pooled'", "more": "'novelty'", "both": "'novelty', 'pooled'"}[change]
    message = rf"agent\.json has the fields \[{names}\] too many or too few; it was written by another"
    with pytest.raises(ConfigError, match=message):
        AgentSpec.load(tmp_path)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ConfigError, match="`kind` of an agent must be q or actor_critic; got 'sarsa'"):
        plain(kind="sarsa")


@pytest.mark.parametrize("num_actions", [0, -1])
def test_an_agent_without_actions_is_refused(num_actions: int):
    with pytest.raises(ConfigError, match=f"`num_actions` must be >= 1; got {num_actions}"):
        plain(num_actions=num_actions)


def test_one_action_is_enough():
    assert plain(num_actions=1).num_actions == 1
