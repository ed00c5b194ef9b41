"""The copies that are sent say nothing that holds on this machine only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from mmft.errors import ConfigError
from mmft.hub.files import collect, kind_of
from mmft.hub.portable import (
    ROWS_BEGIN,
    ROWS_END,
    Destination,
    is_local,
    make_portable,
    without_places,
    without_rows,
)
from mmft.tiny import captioner_path
from tests.hub.support import make_run


def sent(run: Path, **told: Any) -> tuple[dict[str, str], list[str]]:
    """Path and text of the files that differ from those of the run, and the notes."""
    there = Destination(run, "ada/quick", **told)
    shared, _ = collect(run, kind_of(run), samples=there.samples, checkpoints=False)
    files = make_portable(shared, there)
    return {each.path: each.content.decode() for each in files if each.content is not None}, there.notes


def test_the_settings_are_those_of_a_run_that_others_can_repeat(tmp_path: Path):
    own = {"push_to_hub": True, "hub_model_id": "ada/quick", "hub_private_repo": True, "seed": 3}
    run = make_run(tmp_path / "run", **own)
    before = (run / "config.yaml").read_text()
    changed, notes = sent(run)
    assert yaml.safe_load(changed["config.yaml"]) == {
        "algorithm": "ppo",
        "dataset_name": "mmft/scenes",
        "model_name_or_path": "mmft/tiny-captioner",
        "reward_funcs": ["captioning"],
        "output_dir": "runs/quick",
        "seed": 3,
    }
    assert notes == []
    assert (run / "config.yaml").read_text() == before


def test_a_place_on_this_machine_is_named_once_and_sent_without_its_folders(tmp_path: Path):
    reward = {"name": "reward_model", "path": "/home/ada/rewards/mine"}
    run = make_run(tmp_path / "run", dataset_name="/data/coco/train", reward_funcs=[reward, "bleu"])
    changed, notes = sent(run)
    settings = yaml.safe_load(changed["config.yaml"])
    assert settings["dataset_name"] == "./train"
    assert settings["reward_funcs"] == [{"name": "reward_model", "path": "./mine"}, "bleu"]
    assert [note.split(" ")[0] for note in notes] == ["`dataset_name`", "`reward_funcs`"]


def test_no_text_leads_into_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/ada")
    run = make_run(tmp_path / "run", dataset_data_dir="/data/coco/train")
    summary = {
        "a": f"{run}/checkpoint-2", "b": f"{tmp_path}/other", "c": "/home/ada/x", "d": "/data/coco/train",
        "e": "https://host/home/ada", "f": "/data/coco/training", "g": f"{run}-2",
    }  # fmt: skip
    (run / "summary.json").write_text(json.dumps(summary))
    changed, _ = sent(run)
    assert json.loads(changed["summary.json"]) == {
        "a": "./checkpoint-2", "b": "./other", "c": "~/x", "d": "./train", "e": "https://host/home/ada",
        "f": "/data/coco/training", "g": "./run-2",
    }  # fmt: skip
    assert changed["report.html"] == "<html>./samples</html>"


def test_what_a_model_reads_is_never_taken_for_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/root")
    words = {"system_prompt": "/no_think", "instruction": "/root", "env_kwargs": {"word": "/no_think"}}
    run = make_run(tmp_path / "run", **words, dataset_data_dir="/root/pictures")
    files = (
        "tokenizer.json",
        "chat_template.jinja",
        "vocab.txt",
        "base/tokenizer_config.json",
        "rewards.json",
    )
    (run / "base").mkdir()
    for name in files:
        (run / name).write_text(f'["/root", "/no_think", "/root/pictures", "{run}"]')
    changed, notes = sent(run)
    assert not set(files) & set(changed)
    settings = yaml.safe_load(changed["config.yaml"])
    assert {name: settings[name] for name in words} == words
    assert settings["dataset_data_dir"] == "./pictures"
    assert [note.split(" ")[0] for note in notes] == ["`dataset_data_dir`"]


def test_a_folder_in_any_other_setting_begins_where_others_can_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME", "/home/ada")
    changed, _ = sent(make_run(tmp_path / "run", env_kwargs={"rows": "/home/ada/rows"}))
    assert yaml.safe_load(changed["config.yaml"])["env_kwargs"] == {"rows": "~/rows"}


def test_relative_paths_that_exist_here_are_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("pictures", "runs/judge", "imagefolder"):
        (tmp_path / name).mkdir(parents=True)
    rewards = [{"name": "reward_model", "path": "runs/judge"}, {"name": "reward_model", "path": "ada/judge"}]
    told = {"dataset_data_dir": "pictures", "dataset_name": "imagefolder", "adapter_path": "./gone"}
    changed, notes = sent(make_run(tmp_path / "run", reward_funcs=rewards, **told, instruction="pictures"))
    assert sorted(notes) == [
        "`adapter_path` names a place on this machine, by the path './gone', which others do not have: "
        "others put their own.",
        "`dataset_data_dir` names a place on this machine, by the path 'pictures', which others do not have: "
        "others put their own.",
        "`reward_funcs` names a place on this machine, by the path 'runs/judge', which others do not have: "
        "push the reward model, and name its repository there.",
    ]
    assert yaml.safe_load(changed["config.yaml"])["reward_funcs"] == rewards


def test_texts_that_need_no_change_are_sent_as_they_are(tmp_path: Path):
    changed, _ = sent(make_run(tmp_path / "run"))
    assert set(changed) == {"README.md", "config.yaml", "report.html"}


def test_bytes_that_are_no_text_survive(tmp_path: Path):
    run = make_run(tmp_path / "run")
    (run / "metrics.jsonl").write_bytes(b'"\xff" ' + str(run).encode())
    there = Destination(run, "ada/quick")
    shared, _ = collect(run, "policy", samples=True, checkpoints=False)
    contents = {each.path: each.content for each in make_portable(shared, there)}
    assert contents["metrics.jsonl"] == b'"\xff" .'


# The base model


def with_base(run: Path, name: str | None, file: str = "adapter_config.json", **spec: Any) -> Path:
    key = "base_model_name_or_path" if file == "adapter_config.json" else "base"
    (run / file).write_text(json.dumps({key: name, "r": 2} | spec))
    return run


@pytest.mark.parametrize("name", ["mmft/tiny-captioner", "some-org/some-vlm"])
def test_a_base_that_others_have_keeps_its_name(name: str, tmp_path: Path):
    changed, _ = sent(with_base(make_run(tmp_path / "run"), name))
    assert "adapter_config.json" not in changed or json.loads(changed["adapter_config.json"]) == {
        "base_model_name_or_path": name,
        "r": 2,
    }


def test_the_folder_of_the_packaged_base_has_a_name(tmp_path: Path):
    changed, _ = sent(with_base(make_run(tmp_path / "run"), captioner_path()))
    assert json.loads(changed["adapter_config.json"])["base_model_name_or_path"] == "mmft/tiny-captioner"


def test_a_base_that_is_a_folder_here_is_an_error_until_it_has_a_name(tmp_path: Path):
    model = tmp_path / "model"
    model.mkdir()
    run = with_base(make_run(tmp_path / "run", model_name_or_path=str(model)), str(model))
    with pytest.raises(
        ConfigError, match=rf"belongs to the model in {model}, .*`--base-model`.*`mmft merge`"
    ):
        sent(run)
    changed, notes = sent(run, base="some-org/some-vlm")
    assert json.loads(changed["adapter_config.json"])["base_model_name_or_path"] == "some-org/some-vlm"
    assert yaml.safe_load(changed["config.yaml"])["model_name_or_path"] == "some-org/some-vlm"
    assert ModelCard(changed["README.md"]).data.base_model == "some-org/some-vlm"
    assert notes == []


def test_a_base_that_goes_along_is_named_by_its_place(tmp_path: Path):
    run = with_base(make_run(tmp_path / "run"), str(tmp_path / "run" / "base"))
    (run / "base").mkdir()
    (run / "base" / "config.json").touch()
    changed, _ = sent(run)
    assert json.loads(changed["adapter_config.json"])["base_model_name_or_path"] == "./base"


def test_the_card_of_a_run_with_its_base_says_where_that_is(tmp_path: Path):
    run = with_base(make_run(tmp_path / "run", output_dir="runs/mine"), "runs/mine/base")
    (run / "base").mkdir()
    (run / "base" / "config.json").touch()
    (run / "README.md").write_text("`runs/mine/base` trained\nbase = X.from_pretrained('runs/mine/base')\n")
    changed, notes = sent(run)
    assert changed["README.md"] == (
        "`ada/quick/base` trained\nbase = X.from_pretrained('ada/quick', subfolder='base')\n"
    )
    assert notes == [
        "the model under the adapter goes along in base/: with PEFT alone, load it first with "
        "from_pretrained('ada/quick', subfolder='base')."
    ]
    changed, notes = sent(run, base="some-org/some-vlm")
    assert (
        "`some-org/some-vlm` trained\nbase = X.from_pretrained('some-org/some-vlm')" in changed["README.md"]
    )
    assert notes == []


def test_a_base_below_the_run_that_is_not_there_is_an_error(tmp_path: Path):
    run = with_base(make_run(tmp_path / "run", output_dir="runs/mine"), "runs/mine/base")
    with pytest.raises(ConfigError, match=r"belongs to the model in runs/mine/base, a folder that others do"):
        sent(run)


@pytest.mark.parametrize("file", ["agent.json", "reward_model.json"])
def test_the_same_holds_of_agents_and_reward_models(file: str, tmp_path: Path):
    run = with_base(make_run(tmp_path / "run"), str(tmp_path), file, backbone="frozen")
    with pytest.raises(ConfigError, match=f"belongs to the model in {tmp_path}"):
        sent(run)
    changed, _ = sent(run, base="some-org/some-vlm")
    assert json.loads(changed[file])["base"] == "some-org/some-vlm"


def test_an_agent_does_not_look_for_its_base_beside_it(tmp_path: Path):
    run = with_base(make_run(tmp_path / "run"), str(tmp_path), "agent.json", backbone="frozen")
    (run / "base").mkdir()
    (run / "base" / "config.json").touch()
    with pytest.raises(ConfigError, match=f"belongs to the model in {tmp_path}"):
        sent(run)


def test_a_whole_model_does_not_tell_where_it_came_from(tmp_path: Path):
    run = make_run(tmp_path / "run")
    (run / "adapter_config.json").unlink()
    changed, _ = sent(with_base(run, str(tmp_path), "agent.json", backbone="full"))
    assert json.loads(changed["agent.json"])["base"] is None


@pytest.mark.parametrize(
    ("name", "local"),
    [
        ("some-org/some-vlm", False), ("mmft/tiny-captioner", False), ("/data/model", True),
        ("~/model", True), ("./model", True), ("../model", True), ("C:\\model", True), ("here", True),
        (None, False),
    ],
)  # fmt: skip
def test_folders_are_local_and_names_are_not(
    name: str | None, local: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert is_local(name) is local


# The card


def test_the_card_says_where_the_run_is_now(tmp_path: Path):
    changed, _ = sent(make_run(tmp_path / "run"), license="apache-2.0")
    card = ModelCard(changed["README.md"])
    assert card.data.to_dict() == {"license": "apache-2.0", "library_name": "peft", "tags": ["mmft"]}
    assert "PeftModel.from_pretrained(base, 'ada/quick')" in card.text
    assert "\n# quick\n" in card.text
    assert str(tmp_path) not in changed["README.md"]
    assert "a private picture" in card.text


def test_the_entry_of_a_reward_model_names_the_repository(tmp_path: Path):
    run = make_run(tmp_path / "run")
    entry = f"  - {{name: reward_model, path: {run}, penalty: 1.0}}\n  - {{name: reward_model, path: {run}}}"
    (run / "README.md").write_text(entry)
    changed, _ = sent(run)
    assert changed["README.md"].count("path: ada/quick") == 2


def test_a_card_without_rows_shows_none_even_where_a_row_holds_the_mark(tmp_path: Path):
    changed, _ = sent(make_run(tmp_path / "run"), samples=False)
    assert "private" not in changed["README.md"]
    assert "Numbers.\n\n## Use" in changed["README.md"]
    card = f"a\n\n{ROWS_BEGIN}\n{ROWS_END}\nstill private {ROWS_BEGIN}\n{ROWS_END}\n\nb\n"
    assert without_rows(card) == "a\n\nb\n"
    assert without_rows(f"a\n{ROWS_BEGIN} private") == "a\n"
    assert without_rows("a") == "a"


def test_short_places_are_no_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir("/")
    monkeypatch.setenv("HOME", "/")
    assert without_places("1 / 2", Destination(make_run(tmp_path / "run"), "ada/quick")) == "1 / 2"
