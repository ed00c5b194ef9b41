"""`mmft generate --image`: pictures of one's own, and what the run's rewards make of the answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmft.cli import main
from mmft.cli.generate_image import page
from mmft.cli.lone_pictures import Part, Said, Scores
from mmft.runs import Answer
from mmft.tiny import load_scenes
from tests.cli.support import lines, refusal


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The held-out scenes of the run, as files."""
    folder = tmp_path_factory.mktemp("pictures")
    files = [str(folder / f"{number}.png") for number in range(3)]
    for file, row in zip(files, load_scenes("validation", 3), strict=True):
        row["image"].save(file)
    return files


def said(capsys: pytest.CaptureFixture[str], argv: list[str]) -> list[dict[str, Any]]:
    assert main(["generate", *argv, "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_held_out_picture_gets_the_answers_and_rewards_of_the_run(
    run_folder: Path, pictures: list[str], capsys: pytest.CaptureFixture[str]
):
    samples = lines(run_folder / "samples.jsonl")
    told = ["--references", *samples[1]["references"], "--columns", json.dumps({"keywords": None})]
    found = said(capsys, ["--model", str(run_folder), "--image", pictures[1], "--base", *told])
    assert [each["model"] for each in found] == ["base", "tuned"]
    for each, when in zip(found, ("before", "after"), strict=True):
        expected = samples[1][when]
        assert each["completion"] == expected["completion"]
        assert each["ended"] == expected["ended"]
        assert each["logp"] == pytest.approx(expected["mean_logp"] * expected["tokens"], abs=1e-4)
        assert each["reward"] == pytest.approx(expected["reward"], abs=1e-5)
        for name, part in each["rewards"].items():
            assert part["value"] == pytest.approx(expected["rewards"][name], abs=1e-5)
        assert {name: part["weight"] for name, part in each["rewards"].items()} == {
            "byte_variety": 1.0, "captioning": 0.5, "bleu_reward": 0.0,
        }  # fmt: skip


def test_without_references_what_needs_them_is_left_out(
    run_folder: Path, pictures: list[str], capsys: pytest.CaptureFixture[str]
):
    assert main(["generate", "--model", str(run_folder), "--image", *pictures[:2]]) == 0
    printed = capsys.readouterr().out
    assert "captioning: n/a (needs references: --references), left out of the total\n" in printed
    assert "bleu_reward: n/a (needs references: --references)\n" in printed
    pages = printed.split(pictures[1])
    assert len(pages) == 2
    assert pages[0].startswith(pictures[0])
    for text in pages:
        (total,) = [line.split()[1] for line in text.splitlines() if line.startswith("total")]
        (variety,) = [line.split()[2] for line in text.splitlines() if line.startswith("byte_variety")]
        assert total == variety != "n/a"


def test_drawn_answers_follow_their_seed(
    run_folder: Path, pictures: list[str], capsys: pytest.CaptureFixture[str]
):
    argv = ["--model", str(run_folder), "--image", pictures[0], "--do_sample", "--num_generations", "3"]
    texts = [
        [each["completion"] for each in said(capsys, [*argv, *more])]
        for more in ([], ["--seed", "3"], ["--seed", "4"], ["--max_completion_length", "2"])
    ]
    assert len(set(texts[0])) == 3
    assert texts[0] == texts[1], "3 is the run's own seed"
    assert texts[0] != texts[2]
    assert [whole.startswith(cut) for whole, cut in zip(texts[0], texts[3], strict=True)] == [True] * 3
    assert texts[0] != texts[3]
    cold = said(capsys, [*argv, "--temperature", "0.001"])
    greedy = said(capsys, ["--model", str(run_folder), "--image", pictures[0]])
    assert {each["completion"] for each in cold} == {greedy[0]["completion"]}


def test_a_model_without_a_run_answers_what_it_is_asked(
    model_folder: str, pictures: list[str], capsys: pytest.CaptureFixture[str]
):
    argv = ["generate", "--model", model_folder, "--image", pictures[0]]
    assert "does not say what it asked. Give a prompt. It is `--prompt` here." in refusal(capsys, argv)
    assert "is a model without a run. Leave it out" in refusal(capsys, [*argv, "--prompt", "what", "--base"])
    assert main([*argv, "--prompt", "what"]) == 0
    assert capsys.readouterr().out.startswith(f"{pictures[0]}\n    ")
    (found,) = said(capsys, [*argv[1:], "--prompt", "what", "--reward_funcs", "repetition"])
    assert found["reward"] == found["rewards"]["repetition"]["value"]
    assert found["rewards"]["repetition"]["weight"] == 1.0


def test_the_packaged_captioner_answers_by_name(pictures: list[str], capsys: pytest.CaptureFixture[str]):
    (found,) = said(capsys, ["--model", "mmft/tiny-captioner", "--image", pictures[0]])
    assert found["completion"].startswith("a")
    assert (found["reward"], found["rewards"]) == (None, {})


def test_mistakes_are_one_line(
    run_folder: Path, pictures: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty").mkdir()
    (tmp_path / "crashed").mkdir()
    (tmp_path / "crashed" / "config.yaml").write_text("instruction: what\n")
    run, picture = ["--model", str(run_folder)], ["--image", pictures[0]]
    for argv, message in (
        ([*run, "--image", "nope.png"], "`--image` 'nope.png' is no file"),
        ([*run, "--image", str(tmp_path / "text.png")], "text.png' cannot be read as a picture"),
        ([*run, "--image"], "argument --image: expected at least one argument. See `mmft generate --help`"),
        (picture, "the following arguments are required: --model"),
        (["--model", str(tmp_path / "nope"), *picture], "is no folder"),
        (["--model", str(tmp_path / "empty"), *picture], "holds no run"),
        (["--model", str(tmp_path / "crashed"), *picture], "no policy was saved there"),
        ([*run, *picture, "--temperature", "2"], "`--temperature` is for drawing; add `--do_sample`"),
        ([*run, *picture, "--num_generations", "2"], "`--num_generations` is for drawing"),
        ([*run, *picture, "--seed", "2"], "`--seed` is for drawing"),
        ([*run, *picture, "--do_sample", "--temperature", "0"], "`--temperature` must be > 0; got 0.0"),
        ([*run, *picture, "--max_completion_length", "0"], "`--max_completion_length` must be > 0; got 0"),
        ([*run, *picture, "--reward_funcs", "blue"], "Did you mean 'bleu'?"),
    ):
        assert message in refusal(capsys, ["generate", *argv])


def test_rewards_that_cannot_be_made_are_told_beside_the_answer(
    run_folder: Path, pictures: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    moved = tmp_path / "run"
    moved.mkdir()
    for file in run_folder.iterdir():
        if file.is_file():
            (moved / file.name).symlink_to(file)
    (moved / "config.yaml").unlink()
    (moved / "config.yaml").write_text("instruction: what\nreward_funcs: [not_here:reward]\n")
    assert main(["generate", "--model", str(moved), "--image", pictures[0]]) == 0
    printed = capsys.readouterr()
    assert printed.err.startswith("WARNING the rewards of the run cannot be made here, so nothing is judged:")
    assert printed.out.startswith(pictures[0])


def test_help_is_printed(capsys: pytest.CaptureFixture[str]):
    assert main(["generate", "--image", "x", "--help"]) == 0
    assert "--references TEXT" in capsys.readouterr().out


def one(model: str, text: str, scores: Scores | None) -> Said:
    answer = Answer(text, [1], [text], [0.0], None, True, None, {})
    return Said(model, answer, scores)


def test_the_page_of_a_picture():
    parts = [
        [Part("captioning", 0.5, 1.0, {"captioning/bleu": 0.25}), Part("bleu", 0.0, None, why="failed")],
        [Part("captioning", 0.5, 0.5, {"captioning/bleu": None}), Part("bleu", 0.0, 2.0)],
    ]
    shown = page(
        "a.png", [one("base", "a circle", Scores(parts[0])), one("tuned", "a\nsquare", Scores(parts[1]))]
    )
    assert shown.splitlines() == [
        "a.png",
        "  base    0.50  a circle",
        "  tuned   0.25  a square",
        "reward        weight  base  tuned",
        "----------  --------  ----  -----",
        "captioning       0.5  1.00   0.50",
        "  bleu                0.25    n/a",
        "bleu        reported   n/a   2.00",
        "total                 0.50   0.25",
        "bleu: n/a (failed)",
    ]
    numbered = page("a.png", [one("tuned", "a", None), one("tuned", "b", None)])
    assert numbered == "a.png\n  1  a\n  2  b"
