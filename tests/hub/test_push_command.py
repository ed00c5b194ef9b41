"""`mmft push` from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from mmft.cli import main
from tests.hub.server import TOKEN, Hub
from tests.hub.support import ROWS, SHARED, make_run

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


def test_every_option_reaches_the_push(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = make_run(tmp_path / "run", model_name_or_path=str(tmp_path))
    (run / "adapter_config.json").write_text(f'{{"base_model_name_or_path": "{tmp_path}"}}')
    words = ["push", str(run), "mine", "--private", "--revision", "second", "--commit-message", "Hello"]
    words += [
        "--include-checkpoints",
        "--no-samples",
        "--base-model",
        "some-org/some-vlm",
        "--license",
        "mit",
    ]
    assert main(words) == 0
    repo = hub.repos["ada/mine"]
    assert repo.private
    assert repo.messages[-1] == "Hello"
    there = repo.files("second")
    extra = {"checkpoint-2/adapter_model.safetensors", "checkpoint-2/trainer_state.json"}
    assert set(there) == {*SHARED, *extra}
    card = ModelCard(there["README.md"].decode())
    assert (card.data.license, card.data.base_model) == ("mit", "some-org/some-vlm")
    said = capsys.readouterr().out
    assert said.endswith(f"pushed to {hub.url}/ada/mine/tree/second\n")
    assert "what a push does" not in said
    assert main(words) == 0
    assert capsys.readouterr().out.endswith(f"nothing has changed at {hub.url}/ada/mine/tree/second\n")


def test_samples_are_sent_where_they_are_asked_for(hub: Hub, tmp_path: Path):
    run = make_run(tmp_path / "run", dataset_name="some-org/photographs")
    assert main(["push", str(run), "mine", "--samples"]) == 0
    assert set(ROWS) <= set(hub.repos["ada/mine"].files())


def test_a_dry_run_says_everything_and_sends_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    run = make_run(tmp_path / "run")
    assert main(["push", str(run), "ada/mine", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("ada/mine: 17 files, ")
    assert "1. create ada/mine (public unless your organization makes it private) unless it exists" in said


def test_a_mistake_is_one_line_and_exit_code_2(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    assert main(["push", str(tmp_path), "ada/mine"]) == 2
    assert main(["push", str(tmp_path), "ada/mine", "--privat"]) == 2
    assert main(["push", str(tmp_path)]) == 2
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    assert main(["push", str(make_run(tmp_path / "run")), "ada/mine"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[:2] for line in lines] == [["mmft push", "error"]] * 4
    assert [part in line for part, line in zip(
        ("nothing to push", "--privat", "REPO", "no valid token"), lines, strict=True
    )] == [True] * 4  # fmt: skip


def test_the_help_says_what_is_never_sent(capsys: pytest.CaptureFixture[str]):
    assert main(["push", "--help"]) == 0
    said = capsys.readouterr().out
    assert "Never sent: optimizer states" in said
    assert "--samples, --no-samples" in said
    assert TOKEN not in said
