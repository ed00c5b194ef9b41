"""`mmft report`: a page for a run, or for several."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmft.cli import main, report_command
from mmft.cli.report_command import write_page
from tests.cli.support import refusal
from tests.report.run_folders import run_folder


def test_a_run_gets_its_page_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = run_folder(tmp_path / "quick", pictures=True)
    assert main(["report", str(folder)]) == 0
    assert "a red circle 1." in (folder / "report.html").read_text(encoding="utf-8")
    size = (folder / "report.html").stat().st_size / 1e6
    assert capsys.readouterr().out == f"{folder}/report.html ({size:.1f} MB): open it in a browser\n"


def test_several_runs_share_a_page_where_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    one, other = run_folder(tmp_path / "one"), run_folder(tmp_path / "other")
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(one), "other"]) == 0
    assert capsys.readouterr().out.startswith("report.html (")
    assert "2 runs compared" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not (one / "report.html").exists()
    assert not (other / "report.html").exists()


def test_the_page_goes_where_it_is_sent(tmp_path: Path):
    folder = run_folder(tmp_path / "x")
    target = tmp_path / "new" / "page.html"
    assert main(["report", str(folder), "--output", str(target)]) == 0
    assert target.is_file()
    assert not (folder / "report.html").exists()


def test_a_run_of_the_hub_goes_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    snapshot = run_folder(tmp_path / "cache" / "0123abcd")
    monkeypatch.setattr(report_command, "local_folder", lambda name: snapshot)
    monkeypatch.chdir(tmp_path)
    assert main(["report", "user/my-run"]) == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "my-run" in page
    assert "0123abcd" not in page
    assert not (snapshot / "report.html").exists()


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = run_folder(tmp_path / "x")
    assert "is no folder" in refusal(capsys, ["report", str(tmp_path / "nowhere")])
    assert "holds neither summary.json nor metrics.jsonl" in refusal(capsys, ["report", str(tmp_path)])
    assert f"`--output` {tmp_path} is a folder; name a file in it" in refusal(
        capsys, ["report", str(folder), "--output", str(tmp_path)]
    )
    assert "the following arguments are required: RUN" in refusal(capsys, ["report"])
    assert "unrecognized arguments: --out" in refusal(capsys, ["report", str(folder), "--out", "x"])


def test_a_page_that_cannot_be_made_costs_no_run_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fails(*_: object) -> Path:
        raise ZeroDivisionError("no luck")

    monkeypatch.setattr(report_command, "write_report", fails)
    write_page(tmp_path)
    said = capsys.readouterr().out
    assert said.startswith("note: no report.html is written (ZeroDivisionError: no luck);")
    assert said.endswith(f"`mmft report {tmp_path}` tries again.\n")
