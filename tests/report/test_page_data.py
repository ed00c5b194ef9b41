"""From run folders to one page, whatever is in them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmft.errors import ConfigError
from mmft.report.page_data import MAX_FIGURE_BYTES, build_report, write_report
from tests.report.run_folders import HOSTILE, SETTINGS, answer, lines, run_folder, sample, summary

PARTS = {
    "version", "title", "subtitle", "kind", "runs", "tables", "charts", "measures", "columns", "answers",
    "samples", "num_samples_total", "figures", "notes",
}  # fmt: skip


def test_a_run_is_one_page(tmp_path: Path):
    folder = run_folder(tmp_path / "quick", pictures=True)
    data = build_report([folder])
    assert set(data) == PARTS
    assert (data["title"], data["kind"], data["answers"]) == ("quick", "policy", ["before", "after"])
    assert [each["pictures"][0][:23] for each in data["samples"]] == ["data:image/jpeg;base64,"] * 2
    assert [each["id"] for each in data["measures"]] == [
        "reward", "rewards/captioning/bleu", "completions/mean_length",
    ]  # fmt: skip
    assert data["num_samples_total"] == 2
    path = write_report([folder], folder / "report.html")
    page = path.read_text(encoding="utf-8")
    assert "quick" in page
    assert "a red circle 1." in page


def test_the_page_is_made_of_the_files_alone_and_the_same_each_time(tmp_path: Path):
    folder = run_folder(tmp_path / "x", pictures=True)
    first = write_report([folder], tmp_path / "a" / "first.html").read_text(encoding="utf-8")
    assert write_report([folder], tmp_path / "second.html").read_text(encoding="utf-8") == first


def test_runs_are_compared_on_one_page(tmp_path: Path):
    one, other = run_folder(tmp_path / "one", pictures=True), run_folder(tmp_path / "a" / "one")
    data = build_report([one, other])
    assert [run["name"] for run in data["runs"]] == [f"{tmp_path.name}/one", "a/one"]
    assert data["answers"] == [f"{tmp_path.name}/one", "a/one"]
    assert data["title"] == f"{tmp_path.name}/one / a/one"
    assert [table["id"] for table in data["tables"]] == ["runs"]
    assert all(each["pictures"] for each in data["samples"])
    assert "one" in write_report([one, other], tmp_path / "both.html").read_text(encoding="utf-8")
    assert [run["name"] for run in build_report([one, other], ["first/run", "user/b"])["runs"]] == [
        "run",
        "b",
    ]


def test_rows_that_the_run_did_not_keep_are_counted(tmp_path: Path):
    assert build_report([run_folder(tmp_path / "x", told=summary(5_000))])["num_samples_total"] == 5_000
    assert (
        build_report([run_folder(tmp_path / "y", told=summary(held_out_rows="x"))])["num_samples_total"] == 2
    )


def test_what_advantages_are_is_said_where_there_are_any(tmp_path: Path):
    row = sample(0)
    row["after"]["advantages"] = [0.5] * 3
    notes = build_report([run_folder(tmp_path / "x", samples=[row])])["notes"]
    assert "with the total reward at the last token and without the price of KL" in notes[0]
    assert build_report([run_folder(tmp_path / "y")])["notes"] == []


# Figures


def agent_folder(path: Path) -> Path:
    folder = run_folder(path, settings={"env": "x"}, told={"environment": "x"}, samples=[])
    Image.new("RGB", (4, 4)).save(folder / "episode.png")
    return folder


def test_an_agent_shows_its_episodes(tmp_path: Path):
    folder = agent_folder(tmp_path / "x")
    (figure,) = build_report([folder])["figures"]
    assert figure["title"] == "Episodes"
    assert figure["src"].startswith("data:image/png;base64,")
    both = build_report([folder, agent_folder(tmp_path / "y")])["figures"]
    assert [each["title"] for each in both] == ["x: Episodes", "y: Episodes"]


def test_figures_of_an_explanation_are_shown_and_nothing_from_outside(tmp_path: Path):
    folder = run_folder(tmp_path / "x")
    (folder / "explain").mkdir()
    Image.new("RGB", (4, 4)).save(folder / "explain" / "pca.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "outside.png")
    (folder / "explain" / "text.png").write_text("no picture")
    names = [
        "explain/pca.png",
        "../outside.png",
        "explain/text.png",
        "explain/gone.png",
        str(tmp_path / "outside.png"),
    ]
    told = {"figures": [{"file": name, "title": HOSTILE, "caption": "c"} for name in names] + ["odd", {}]}
    (folder / "explain" / "explain.json").write_text(json.dumps(told))
    (figure,) = build_report([folder])["figures"]
    assert figure["title"].endswith("</script>\ufffd\ufffd\u202e")


def test_a_figure_without_room_is_named(tmp_path: Path):
    folder = agent_folder(tmp_path / "x")
    with (folder / "episode.png").open("ab") as file:
        file.write(b"\0" * MAX_FIGURE_BYTES)
    data = build_report([folder])
    assert data["figures"] == []
    assert data["notes"] == ["There is no room for episode.png, which lies in x."]


# Whatever is in them


def hostile_folder(path: Path) -> Path:
    row = {
        "key": [HOSTILE, 0],
        "prompt": HOSTILE,
        "references": [HOSTILE],
        "columns": {HOSTILE: HOSTILE},
        "pictures": [HOSTILE, "../../etc/passwd"],
        "before": answer(HOSTILE, math.nan),
        "after": answer(HOSTILE, None),
    }
    row["after"]["rewards"] = {HOSTILE: 1.0, "nan": math.nan}
    told = summary(
        1, warnings=[HOSTILE], versions={HOSTILE: HOSTILE}, hardware={"cpu": HOSTILE}, device=HOSTILE
    )
    told["after"][f"rewards/{HOSTILE}"] = told["before"][f"rewards/{HOSTILE}"] = 0.5
    folder = run_folder(
        path,
        settings={HOSTILE.replace("\0", "").replace("\ud800", ""): [math.inf, "x" * 10_000]},
        told=told,
        history=[{"step": 1, "loss": 1.0, HOSTILE: 2.0}],
        samples=[row],
    )
    explained = {
        "samples": {json.dumps([HOSTILE, 0]): {"tokens": [[HOSTILE, 1.0]], "shares": {HOSTILE: 1.0}}}
    }
    (folder / "explain").mkdir()
    (folder / "explain" / "explain.json").write_text(json.dumps(explained))
    return folder


def test_hostile_texts_are_texts(tmp_path: Path):
    folder = hostile_folder(tmp_path / "x")
    data = build_report([folder])
    assert "\ud800" not in json.dumps(data, ensure_ascii=False)
    assert "\\u0000" not in json.dumps(data)
    page = write_report([folder], tmp_path / "page.html").read_bytes().decode("utf-8")
    assert "<script>alert" not in page
    assert "\0" not in page
    assert "passwd" not in page


def test_several_hostile_runs_are_one_page(tmp_path: Path):
    folders = [hostile_folder(tmp_path / name) for name in ("a", "b")]
    assert "<script>alert" not in write_report(folders, tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("missing", ["config.yaml", "summary.json", "metrics.jsonl", "samples.jsonl"])
def test_a_folder_that_lacks_a_file_is_still_a_page(tmp_path: Path, missing: str):
    folder = run_folder(tmp_path / "x")
    (folder / missing).unlink()
    write_report([folder], tmp_path / "page.html")
    write_report([folder, run_folder(tmp_path / "y")], tmp_path / "both.html")


@pytest.mark.parametrize(
    "files",
    [
        {"told": {}, "history": [], "samples": []},
        {"told": summary(0) | {"before": None, "after": None}, "samples": []},
        {"told": dict.fromkeys(summary(), 3), "samples": [{}]},
        {
            "told": dict.fromkeys(summary(), "x"),
            "history": [{"step": "x", "loss": []}],
            "samples": [{"key": []}],
        },
        {
            "told": {name: [[]] for name in (*summary(), "health", "differences", "outcomes")},
            "settings": {"seed": "x"},
        },
        {"told": {"environment": {}, "before": {"return": []}, "blanked": {"image": 3}, "intervals": 3}},
        {
            "settings": {"rating_column": "r", "group_column": []},
            "samples": [{"chosen": None, "key": ["x", 1]}],
        },
        {"settings": {name: {"a": [1]} for name in SETTINGS}},
    ],
)
def test_files_of_any_content_are_a_page(tmp_path: Path, files: dict[str, Any]):
    folder = run_folder(tmp_path / "x", **files)
    write_report([folder], tmp_path / "page.html")
    write_report([folder, run_folder(tmp_path / "y", **files)], tmp_path / "both.html")


def test_what_is_no_run_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="holds neither"):
        write_report([tmp_path], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_metrics_alone_are_a_page_with_a_warning(tmp_path: Path):
    folder = tmp_path / "x"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text(lines([{"step": 1, "loss": 1.0}]) + '{"step": 2, "lo')
    data = build_report([folder])
    assert len(data["runs"][0]["warnings"]) == 2
    assert [chart["id"] for chart in data["charts"]] == ["loss"]
    page = write_report([folder], tmp_path / "page.html").read_text(encoding="utf-8")
    assert "did not come to its end" in page
