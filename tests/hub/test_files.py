"""What of a run folder is shared: what is listed, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mmft.cli.agent_folder import EPISODES_FILE
from mmft.cli.launch import CONFIG_FILE, SUMMARY_FILE
from mmft.cli.run_folder import CURVES_FILE, OVERVIEW_FILE
from mmft.engine.actor_critic import HEADS_FILE
from mmft.engine.reward_model import HEAD_FILE
from mmft.engine.saved_policy import BASE_FOLDER
from mmft.errors import ConfigError, HubError
from mmft.hub import files
from mmft.hub.files import Allowed, collect, is_drawn, kind_of, matches
from mmft.models import agent_spec, reward_model
from mmft.report.agent_card import EPISODE_FILE, MOVING_FILE
from mmft.report.card_parts import PICTURE_FOLDER
from mmft.report.page_data import REPORT_FILE
from mmft.tiny import PREFERENCES_NAME, RATED_CAPTIONS_NAME, RATINGS_NAME, SCENES_NAME
from mmft.trainers.callbacks import METRICS_FILE, SAMPLES_FILE
from mmft.trainers.reward_state import REWARDS_FILE
from tests.hub.support import ROWS, SHARED, STAY, make_run


def names(folder: Path, *, samples: bool = True, checkpoints: bool = False) -> list[str]:
    shared, _ = collect(folder, kind_of(folder), samples=samples, checkpoints=checkpoints)
    return sorted(each.path for each in shared)


def test_what_is_listed_goes_and_the_rest_stays_with_its_reason(tmp_path: Path):
    run = make_run(tmp_path / "run")
    shared, left = collect(run, "policy", samples=True, checkpoints=False)
    assert sorted(each.path for each in shared) == sorted([*SHARED, *ROWS])
    assert {each.path: each.why for each in left} == STAY
    assert all(each.size == (run / each.path).stat().st_size > 0 for each in shared)


def test_rows_of_the_data_stay_unless_they_are_asked_for(tmp_path: Path):
    run = make_run(tmp_path / "run")
    shared, left = collect(run, "policy", samples=False, checkpoints=False)
    assert sorted(each.path for each in shared) == SHARED
    told = {each.path: each.why for each in left if each.path not in STAY}
    assert told == {
        name: "shows rows of the data; --samples sends it"
        for name in ("card/", "explain/", "overview.png", "report.html", "samples.jsonl", "samples/")
    }


def test_a_checkpoint_goes_without_the_state_of_the_optimizer(tmp_path: Path):
    run = make_run(tmp_path / "run")
    added = set(names(run, checkpoints=True)) - set(names(run))
    assert added == {"checkpoint-2/adapter_model.safetensors", "checkpoint-2/trainer_state.json"}
    _, left = collect(run, "policy", samples=True, checkpoints=True)
    assert {each.path: each.why for each in left}["checkpoint-2/optimizer.pt"] == "state of the optimizer"


def test_the_base_that_exists_nowhere_else_goes_with_its_adapter(tmp_path: Path):
    run = make_run(tmp_path / "run")
    (run / "base").mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "optimizer.pt"):
        (run / "base" / name).touch()
    new = [name for name in names(run) if name.startswith("base/")]
    assert new == ["base/config.json", "base/model.safetensors", "base/tokenizer.json"]


def test_each_kind_has_files_of_its_own():
    own = {
        "policy": [HEADS_FILE, REWARDS_FILE],
        "agent": [HEADS_FILE, agent_spec.SPEC_FILE],
        "reward_model": [HEAD_FILE, reward_model.SPEC_FILE],
        "sft": [],
        "model": [],
    }
    every = {name for each in own.values() for name in each}
    for kind, listed in own.items():
        allowed = Allowed(kind, samples=True, checkpoints=False)  # type: ignore[arg-type]
        assert {name for name in every if allowed.takes(name)} == set(listed)


def test_the_names_on_the_list_are_those_that_the_library_writes():
    written = [
        CONFIG_FILE, SUMMARY_FILE, METRICS_FILE, CURVES_FILE, OVERVIEW_FILE, SAMPLES_FILE, EPISODES_FILE,
        EPISODE_FILE, MOVING_FILE, REPORT_FILE, f"{PICTURE_FOLDER}/0.jpg", f"{BASE_FOLDER}/config.json",
        "samples/00007.jpg",
    ]  # fmt: skip
    allowed = Allowed("policy", samples=True, checkpoints=False)
    assert [name for name in written if not allowed.takes(name)] == []
    without = Allowed("policy", samples=False, checkpoints=False)
    told = {OVERVIEW_FILE, SAMPLES_FILE, EPISODES_FILE, EPISODE_FILE, MOVING_FILE, REPORT_FILE}
    assert {name for name in written if not without.takes(name)} == told | {
        f"{PICTURE_FOLDER}/0.jpg",
        "samples/00007.jpg",
    }
    assert files.BASE_FOLDER == BASE_FOLDER
    assert (files.AGENT_FILE, files.REWARD_MODEL_FILE) == (agent_spec.SPEC_FILE, reward_model.SPEC_FILE)
    assert set(files.DRAWN) == {SCENES_NAME, PREFERENCES_NAME, RATINGS_NAME, RATED_CAPTIONS_NAME}


def test_a_star_stands_for_no_slash():
    assert matches("model-00001-of-00002.safetensors", ["model-*-of-*.safetensors"])
    assert matches("samples/1.jpg", ["samples/*.jpg"])
    assert not matches("samples/deep/1.jpg", ["samples/*.jpg"])
    assert not matches("1.jpg", ["samples/*.jpg"])
    assert not matches("samples/1.jpg.exe", ["samples/*.jpg"])
    assert not matches("samples/1.jpg/private", ["samples/*.jpg"])
    assert not matches("samples", ["samples/*.jpg"])


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples/00000.jpg"])
def test_a_link_out_of_the_folder_is_refused(name: str, tmp_path: Path):
    run = make_run(tmp_path / "run")
    secret = tmp_path / "secret"
    secret.write_text("not yours")
    (run / name).unlink()
    (run / name).symlink_to(secret)
    with pytest.raises(
        HubError, match=rf"{name} is a link to {secret}, outside of the run.*Nothing was sent"
    ):
        names(run)


def test_a_linked_folder_is_refused_where_its_files_would_go(tmp_path: Path):
    run = make_run(tmp_path / "run")
    elsewhere = tmp_path / "elsewhere"
    (run / "samples").rename(elsewhere)
    (run / "samples").symlink_to(elsewhere)
    with pytest.raises(HubError, match=f"is a link to {elsewhere}, outside"):
        names(run)
    _, left = collect(run, "policy", samples=False, checkpoints=False)
    assert "samples" in {each.path for each in left}


def test_a_link_that_stays_inside_goes(tmp_path: Path):
    run = make_run(tmp_path / "run")
    (run / "vocab.json").symlink_to(run / "tokenizer.json")
    assert "vocab.json" in names(run)


@pytest.mark.parametrize(
    ("file", "settings", "kind"),
    [
        ("agent.json", {"env": "x"}, "agent"),
        ("reward_model.json", {}, "reward_model"),
        ("adapter_config.json", {"algorithm": "rwl"}, "policy"),
        ("config.json", {"algorithm": "ppo"}, "policy"),
        ("adapter_config.json", {"completion_choice": "first"}, "sft"),
        ("config.json", None, "model"),
    ],
)
def test_the_kind_of_a_run_is_seen_from_its_files(
    file: str, settings: dict | None, kind: str, tmp_path: Path
):
    (tmp_path / file).touch()
    if settings is not None:
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    assert kind_of(tmp_path) == kind


def test_a_policy_that_was_trained_in_python_is_known_by_its_critic(tmp_path: Path):
    (tmp_path / "adapter_config.json").touch()
    assert kind_of(tmp_path) == "model"
    (tmp_path / HEADS_FILE).touch()
    assert kind_of(tmp_path) == "policy"


def test_without_a_critic_it_is_known_by_its_rewards(tmp_path: Path):
    (tmp_path / "adapter_config.json").touch()
    (tmp_path / REWARDS_FILE).touch()
    assert kind_of(tmp_path) == "policy"
    assert REWARDS_FILE in names(tmp_path)


def test_a_folder_without_a_model_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"holds no adapter, no model, .*nothing to push"):
        kind_of(tmp_path)
    with pytest.raises(ConfigError, match="no folder; give the folder of a finished run"):
        kind_of(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("settings", "drawn"),
    [
        ({"dataset_name": "mmft/scenes"}, True),
        ({"dataset_name": "some-org/photographs"}, False),
        ({"dataset_name": "imagefolder"}, False),
        ({}, False),
        ({"env": "mmft/FindObject-v0"}, True),
        ({"env": "MiniGrid-Empty-5x5-v0"}, True),
        ({"env": "mmft/Rows-v0"}, False),
        ({"env": "my_module:my_make"}, False),
    ],
)
def test_only_what_was_drawn_belongs_to_nobody(settings: dict, drawn: bool):
    assert is_drawn(settings) is drawn
