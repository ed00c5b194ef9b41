"""Explanations as files: what explain.json holds, the pictures beside it, and what becomes of older ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from mmft.engine.attribution import Attribution, PictureImportance, TokenImportance
from mmft.report.explanations import (
    Explained,
    Figure,
    heat_map,
    record,
    table_rows,
    top_tokens,
    write_explanations,
)
from mmft.report.heat_maps import Choice

PICTURE = PIL.Image.new("RGB", (8, 8), "red")


def explained(key: Any = ("validation", 3), **changes: Any) -> Explained:
    found = Attribution(
        of=changes.pop("of", "completion"),
        value=-1.5,
        importance={"image": 1.0, "prompt": 2.0, "answer": 1.0},
        shares={"image": 0.25, "prompt": 0.5, "answer": 0.25},
        tokens=[
            TokenImportance("say", 2.0, "prompt"),
            TokenImportance("a", 0.0, "answer"),
            TokenImportance(" star", 1.0, "answer"),
        ],
        pictures=changes.pop("seen", [PictureImportance(1.0, (1, 2), [0.123456789, 0.5])]),
    )
    return Explained(key, "a star", changes.pop("pictures", [PICTURE]), found, **changes)


def page(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def test_explain_json_holds_each_answer_by_its_key(tmp_path: Path):
    path = write_explanations(tmp_path / "explain", [explained(), explained("text key")])
    assert path == tmp_path / "explain" / "explain.json"
    told = page(path)
    assert (told["of"], told["baseline"], told["method"]) == ("completion", "saved", "relative")
    assert list(told["samples"]) == ['["validation", 3]', '"text key"']
    assert told["samples"]['["validation", 3]'] == {
        "text": "a star",
        "value": -1.5,
        "grid": [1, 2],
        "patches": [0.123457, 0.5],
        "tokens": [["say", 2.0], ["a", 0.0], [" star", 1.0]],
        "num_prompt_tokens": 1,
        "marked": None,
        "shares": {"image": 0.25, "prompt": 0.5, "answer": 0.25},
        "picture": "explain/0_heat.png",
    }
    for name in ("0_heat.png", "1_heat.png"):
        with PIL.Image.open(tmp_path / "explain" / name) as image:
            assert image.format == "PNG"


def test_a_token_is_marked_among_all_tokens_and_named_in_the_title():
    one = explained(of="token", position=1)
    assert one.marked == 2
    assert record(one)["marked"] == 2
    drawn = heat_map(one)
    assert drawn.title == "log-prob of 'star': -1.5"
    assert [token.marked for token in drawn.tokens] == [False, False, True]


def test_the_unit_says_what_was_differentiated_and_how():
    units = {
        (of, method): heat_map(explained(of=of), method).unit
        for of, method in (("completion", "gradient"), ("q", "relative"), ("value", "gradient_x_input"))
    }
    assert units == {
        ("completion", "gradient"): "||dlog p/dE||",
        ("q", "relative"): "||dQ/dE|| ||E||",
        ("value", "gradient_x_input"): "|E . dV/dE|",
    }


def test_several_pictures_are_all_told_of():
    seen = [PictureImportance(1.0, (1, 1), [0.5]), PictureImportance(0.0, None, [])]
    told = record(explained(pictures=[PICTURE, PICTURE], seen=seen))
    assert told["grid"] == [1, 1]
    assert told["pictures"] == [{"grid": [1, 1], "patches": [0.5]}, {"grid": None, "patches": []}]
    assert len(heat_map(explained(pictures=[PICTURE, PICTURE], seen=seen)).pictures) == 2


def test_text_alone_has_no_patches():
    told = record(explained(pictures=[], seen=[]))
    assert told["grid"] is None
    assert told["patches"] == []


def test_decisions_are_figures_too(tmp_path: Path):
    one = explained(["episode", 0], of="q", choices=[Choice("left", 1.0, chosen=True)], score="Q(s, a)")
    told = page(write_explanations(tmp_path / "explain", [one]))
    assert told["figures"] == [
        {"file": "explain/0_heat.png", "title": "a star", "caption": "Q of the chosen action, episode 0"}
    ]


def test_an_unknown_layout_is_told(tmp_path: Path):
    told: list[str] = []
    seen = [PictureImportance(1.0, None, [])]
    write_explanations(tmp_path, [explained(seen=seen)], say=told.append)
    assert told == ["validation 3: the layout of this model's image rows is unknown; no heat is drawn"]


def test_a_folder_that_is_where_one_stands_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    one = explained("key", of="q", choices=[Choice("left", 1.0, chosen=True)])
    told = page(write_explanations(Path("."), [one]))
    assert told["samples"]['"key"']["picture"] == f"{tmp_path.name}/0_heat.png"
    assert told["figures"][0]["file"] == f"{tmp_path.name}/0_heat.png"


def test_a_second_call_leaves_nothing_of_the_first_but_what_is_not_its_own(tmp_path: Path):
    folder = tmp_path / "explain"
    write_explanations(folder, [explained(1), explained(2)])
    for name in ("pca.png", "mine.png"):
        PICTURE.save(folder / name)
    write_explanations(folder, [explained(1)], figures=[Figure("pca.png", "States", "a map")])
    assert {path.name for path in folder.iterdir()} == {"0_heat.png", "explain.json", "pca.png", "mine.png"}
    assert page(folder / "explain.json")["figures"] == [
        {"file": "explain/pca.png", "title": "States", "caption": "a map"}
    ]
    write_explanations(folder, [explained(1)])
    assert {path.name for path in folder.iterdir()} == {"0_heat.png", "explain.json", "mine.png"}


@pytest.mark.parametrize("text", ["{", "[]", '{"samples": [], "figures": []}', '{"samples": {"a": 1}}'])
def test_what_is_no_explanation_is_overwritten(text: str, tmp_path: Path):
    (tmp_path / "explain.json").write_text(text)
    assert page(write_explanations(tmp_path, [explained()]))["of"] == "completion"


def test_no_file_outside_the_folder_is_removed(tmp_path: Path):
    folder = tmp_path / "explain"
    folder.mkdir()
    PICTURE.save(tmp_path / "other.png")
    hostile = {"samples": {"a": {"picture": "../other.png"}}, "figures": [{"file": "../config.yaml"}]}
    (folder / "explain.json").write_text(json.dumps(hostile))
    (folder / "config.yaml").write_text("mine")
    write_explanations(folder, [explained()])
    assert (tmp_path / "other.png").is_file()
    assert (folder / "config.yaml").is_file()


def test_the_table_has_a_line_for_each_and_a_column_for_each_share():
    header, rows = table_rows([explained(), explained(("validation", 4))])
    assert header == ["row", "image share", "prompt share", "answer share", "value", "tokens that count most"]
    assert rows[0] == ["validation 3", "25%", "50%", "25%", "-1.5", "say, star"]


def test_tokens_without_importance_count_nothing():
    assert top_tokens(explained().found, 1) == ["say"]
    assert top_tokens(explained().found, 9) == ["say", "star"]
