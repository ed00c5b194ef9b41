"""What is read of a run's folder, whatever state it is in."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from mmft.errors import ConfigError
from mmft.report.page_source import labels, picture_within, read_run, read_runs
from mmft.runs import Run
from tests.report.run_folders import HISTORY, SETTINGS, run_folder, summary


def test_every_file_is_read(tmp_path: Path):
    run = read_run(run_folder(tmp_path / "x"))
    assert run.label == "x"
    assert run.settings["learning_rate"] == 1e-3
    assert run.summary["steps"] == 2
    assert run.history == HISTORY
    assert len(run.samples) == 2
    assert (run.episodes, run.explained, run.problems) == ([], {}, [])


def test_a_run_that_crashed_is_read_and_said_to_have(tmp_path: Path):
    folder = run_folder(tmp_path / "x")
    (folder / "summary.json").unlink()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "los')
    run = read_run(folder)
    assert run.warnings == [
        "There is no summary.json: the run did not come to its end, and this is what it logged.",
        "1 line of metrics.jsonl cannot be read and is left out.",
    ]
    assert run.history == HISTORY


def test_files_that_hold_something_else_are_left_out_and_named(tmp_path: Path):
    folder = run_folder(tmp_path / "x")
    (folder / "config.yaml").write_text("a: [1, 2")
    (folder / "summary.json").write_text("[1]")
    (folder / "samples.jsonl").write_bytes(b'{"key": "\xff"}\n[1]\nnull\n' + b"[" * 100_000 + b"\n")
    run = read_run(folder)
    assert run.problems == [
        "config.yaml cannot be read and is left out.",
        "summary.json cannot be read and is left out.",
        "3 lines of samples.jsonl cannot be read and are left out.",
    ]
    assert run.samples == [{"key": "\ufffd"}]


def test_a_line_ends_where_json_says_and_at_no_other_separator(tmp_path: Path):
    folder = run_folder(tmp_path / "x", samples=[])
    (folder / "samples.jsonl").write_text('{"key": "a\u2028b\x85c"}\n', encoding="utf-8")
    assert read_run(folder).samples == [{"key": "a\u2028b\x85c"}]


def test_what_is_no_run_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"there is no folder .*nowhere\. Give the `output_dir` of a run"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(
        ConfigError, match=r"holds neither summary.json nor metrics.jsonl: no run has been there"
    ):
        read_run(tmp_path)
    with pytest.raises(ConfigError, match="no run is named; give the folder of at least one"):
        read_runs([])


@pytest.mark.parametrize(
    ("settings", "told", "kind"),
    [
        (SETTINGS, summary(), "policy"),
        ({}, {}, "policy"),
        ({"env": "mmft/FindObject-v0"}, {}, "agent"),
        ({}, {"environment": "x"}, "agent"),
        ({"rating_column": "rating", "env": None}, {}, "reward_model"),
        ({}, {"loss_type": "mse"}, "reward_model"),
        ({"completion_choice": "all"}, {}, "sft"),
    ],
)
def test_what_a_run_trained_is_told_by_its_files(
    tmp_path: Path, settings: dict[str, Any], told: dict[str, Any], kind: str
):
    assert read_run(run_folder(tmp_path / "x", settings=settings, told=told)).kind == kind


@pytest.mark.parametrize(("file", "kind"), [("agent.json", "agent"), ("reward_model.json", "reward_model")])
def test_a_run_from_python_is_what_it_saved(tmp_path: Path, file: str, kind: str):
    folder = run_folder(tmp_path / "x", settings=None, told={})
    (folder / file).write_text("{}")
    assert read_run(folder).kind == Run.from_pretrained(folder).kind == kind


def test_runs_of_different_kinds_are_not_compared(tmp_path: Path):
    policy = run_folder(tmp_path / "policy")
    agent = run_folder(tmp_path / "agent", settings={"env": "x"}, told={})
    with pytest.raises(
        ConfigError, match=r"policy trained a policy and .*agent an agent; a report compares runs of one kind"
    ):
        read_runs([policy, agent])


def test_labels_tell_runs_apart():
    paths = [Path("/a/x/run"), Path("/a/y/run"), Path("/b/x/run"), Path("/a/other"), Path("/a/other")]
    assert labels(paths) == ["a/x/run", "y/run", "b/x/run", "other", "other (2)"]
    assert labels([Path("user/name")]) == ["name"]


def test_a_folder_is_called_by_its_own_name_however_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run_folder(tmp_path / "mine")
    monkeypatch.chdir(tmp_path / "mine")
    assert [run.label for run in read_runs([Path()])] == ["mine"]
    assert [run.label for run in read_runs([Path()], [Path("user/hub-run")])] == ["hub-run"]


def test_warnings_of_the_run_come_before_those_of_its_files(tmp_path: Path):
    run = read_run(run_folder(tmp_path / "x", told=summary(warnings=["Too long.", 3]), settings=None))
    assert run.warnings == ["Too long.", "3"]
    odd = read_run(run_folder(tmp_path / "odd", told=summary(warnings="Too long.")))
    assert odd.warnings == []


def test_a_file_outside_the_folder_is_no_picture_of_it(tmp_path: Path):
    folder = tmp_path / "run"
    folder.mkdir()
    for path in (tmp_path / "a.png", folder / "a.png"):
        path.write_bytes(b"PNG!")
    assert picture_within(folder, "a.png", b"PNG") == b"PNG!"
    assert picture_within(folder, "a.png", b"JPEG") is None
    for name in ("../a.png", str(tmp_path / "a.png"), "b/../../a.png", "b.png", "a.png\0", "\ud800.png", ""):
        assert picture_within(folder, name, b"PNG") is None


def test_json_of_any_depth_does_no_harm(tmp_path: Path):
    folder = run_folder(tmp_path / "x")
    (folder / "summary.json").write_text("[" * 100_000)
    assert read_run(folder).problems == ["summary.json cannot be read and is left out."]
    (folder / "summary.json").write_text('{"a": ' + "[" * 60 + "]" * 60 + "}")
    assert read_run(folder).problems == ["summary.json cannot be read and is left out."]
    (folder / "summary.json").write_text('{"a": ' + "[" * 40 + "]" * 40 + "}")
    assert read_run(folder).problems == []
    assert json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])["step"] == 1


def test_settings_that_unfold_without_end_are_left_out(tmp_path: Path):
    folder = run_folder(tmp_path / "x")
    names = "abcdefghijk"
    bomb = ["a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    bomb += [f"{b}: &{b} [{', '.join(['*' + a] * 10)}]" for a, b in itertools.pairwise(names)]
    for text in ("\n".join(bomb), "a: &a [*a]"):
        (folder / "config.yaml").write_text(text)
        run = read_run(folder)
        assert run.settings == {}
        assert run.problems == ["config.yaml cannot be read and is left out."]
