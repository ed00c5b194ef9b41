"""Pictures and captions in trackers: the real TensorBoard, trackio and wandb, read back."""

from __future__ import annotations

import html
import io
import json
import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import markdown
import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import TrainerControl, TrainerState
from transformers.integrations import integration_utils

from mmft.errors import ConfigError
from mmft.trainers.ppo import PPOConfig
from mmft.trainers.tracked_samples import (
    HELD_OUT,
    TRAINING,
    TrackedSample,
    TrackedSamples,
    plain_markdown,
    track_picture,
    tracked_rows,
)
from mmft.types import PromptRow
from tests.trainers.support import make_rows, make_trainer, token_reward, trained_weights

ROOT = Path(__file__).parents[2]


def logged(folder: Path) -> EventAccumulator:
    """What TensorBoard finds in a run's folder."""
    (events,) = (folder / "runs").iterdir()
    found = EventAccumulator(str(events), size_guidance={"tensors": 0, "images": 0})
    return found.Reload()


def texts(found: EventAccumulator, tag: str) -> list[tuple[int, str]]:
    """Step and text, as a reader of the page sees it."""
    return [
        (each.step, shown(each.tensor_proto.string_val[0].decode()))
        for each in found.Tensors(f"{tag}/text_summary")
    ]


def shown(page: str) -> str:
    """The words of a Markdown page, by the converter that TensorBoard uses."""
    return html.unescape(re.sub("<[^>]*>", "", markdown.markdown(page, extensions=["tables", "fenced_code"])))


def pixels(picture: Image.Image) -> list[Any]:
    return np.asarray(picture.convert("RGB")).tolist()


def test_tensorboard_shows_the_same_rows_at_each_evaluation_and_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = make_rows(6)
    trainer = make_trainer(
        tmp_path / "run",
        eval_rows=rows,
        report_to="tensorboard",
        num_tracked_samples=2,
        tracked_samples_steps=4,
    )
    said = []
    for work in (trainer.evaluate, trainer.train, trainer.evaluate):
        work()
        said.append([(each["completion"], each["reward"]) for each in trainer.eval_samples])
    found = logged(tmp_path / "run")
    assert not (tmp_path / "runs").exists(), "what came before training lies in the run's folder too"
    assert found.Tags()["images"] == [f"{HELD_OUT}/0", f"{HELD_OUT}/1"]
    for number, row in enumerate((0, 3)):  # 2 of 6, spread evenly
        (seen,) = found.Images(f"{HELD_OUT}/{number}")
        assert pixels(Image.open(io.BytesIO(seen.encoded_image_string))) == pixels(rows[row]["image"])
        pages = texts(found, f"{HELD_OUT}/{number}")
        assert [step for step, _ in pages] == [0, 4, 8], "the last step is shown by the evaluation behind it"
        for (_, page), (completion, reward) in zip(pages[::2], (said[0][row], said[2][row]), strict=True):
            lines = [line for line in page.splitlines() if line]
            assert lines[:2] == [f"row eval {row}", f"prompt {rows[row]['prompt']}"]
            assert " ".join(lines[2:-1]) == f"completion {' '.join(completion.split())}".strip()
            assert lines[-1] == f"reward {reward:.4g}, token_reward {reward:.4g}"


def test_what_is_tracked_changes_nothing_about_training(tmp_path: Path) -> None:
    weights = []
    for report_to in ("none", "tensorboard"):
        trainer = make_trainer(
            tmp_path / report_to, eval_rows=make_rows(6), report_to=report_to, tracked_samples_steps=1
        )
        trainer.train()
        weights.append(trained_weights(trainer))
    assert len(texts(logged(tmp_path / "tensorboard"), f"{HELD_OUT}/0")) == 7  # 8 steps but for the last
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_without_held_out_rows_the_last_rollout_is_shown(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, report_to="tensorboard", num_tracked_samples=9, tracked_samples_steps=4)
    judged = []
    collect = trainer.collect

    def remember(number: int) -> Any:
        experience = collect(number)
        judged.append(trainer.last_judged)
        return experience

    trainer.collect = remember
    trainer.train()
    found = logged(tmp_path)
    for place in range(4):  # there are 4 prompts in a rollout
        ((step, page),) = texts(found, f"{TRAINING}/{place}")
        assert step == 4
        row = judged[0].rows[place]
        assert page.splitlines()[0] == f"row train {row.key[1]}"
        ids = judged[0].samples.completions
        first = ids.ids[2 * place][ids.mask[2 * place]].tolist()  # of its two completions
        (reward,) = token_reward([first], number=[row.columns["number"]])
        assert page.splitlines()[-1] == f"reward {reward:g}, token_reward {reward:g}"
        assert " ".join(judged[0].texts[place][0].split()) in page


def test_another_split_that_is_evaluated_shows_its_own_rows(tmp_path: Path) -> None:
    rows = make_rows(5)
    trainer = make_trainer(tmp_path, eval_rows=rows[:2], report_to="tensorboard", num_tracked_samples=1)
    trainer.evaluate(rows[4:])
    (seen,) = logged(tmp_path).Images(f"{HELD_OUT}/0")
    assert pixels(Image.open(io.BytesIO(seen.encoded_image_string))) == pixels(rows[4]["image"])


def test_what_nothing_judged_is_no_number(tmp_path: Path) -> None:
    def silent(completions: list[str], **columns: Any) -> list[None]:
        return [None] * len(completions)

    trainer = make_trainer(tmp_path, eval_rows=make_rows(1), rewards=silent, report_to="tensorboard")
    trainer.evaluate()
    ((_, page),) = texts(logged(tmp_path), f"{HELD_OUT}/0")
    assert page.splitlines()[-1] == "reward n/a, silent n/a"


def test_a_picture_file_reaches_tensorboard(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, eval_rows=make_rows(1), report_to="tensorboard", num_tracked_samples=0)
    trainer.evaluate()
    picture = make_rows(1)[0]["image"]
    picture.save(tmp_path / "strip.png")
    track_picture(trainer, "samples/episodes", tmp_path / "strip.png")
    track_picture(trainer, "samples/others", tmp_path / "missing.png")
    found = logged(tmp_path)
    assert found.Tags()["images"] == ["samples/episodes"], "no row is tracked, and no file was missing"
    (seen,) = found.Images("samples/episodes")
    assert pixels(Image.open(io.BytesIO(seen.encoded_image_string))) == pixels(picture)


@pytest.mark.slow
def test_trackio_and_wandb_show_the_same_rows_in_one_run(tmp_path: Path) -> None:
    environment = os.environ | {
        "PYTHONPATH": str(ROOT), "TRACKIO_DIR": str(tmp_path / "trackio"), "WANDB_MODE": "offline",
        "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true", "WANDB_CACHE_DIR": str(tmp_path / "cache"),
        "WANDB_DATA_DIR": str(tmp_path / "cache"), "WANDB_CONFIG_DIR": str(tmp_path / "cache"),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "tests.trainers.tracking_run", str(tmp_path / "run")],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    before, _, after = json.loads(done.stdout.partition("SAID ")[2].splitlines()[0])
    rows = make_rows(6)
    check_trackio(tmp_path / "trackio", before, after, rows)
    check_wandb(tmp_path, before, after, rows)


def check_trackio(folder: Path, before: list[str], after: list[str], rows: list[dict[str, Any]]) -> None:
    with sqlite3.connect(folder / "huggingface.db") as database:
        stored = database.execute("select run_name, metrics from metrics order by id").fetchall()
    database.close()
    assert len({run for run, _ in stored}) == 1, "the evaluation after training belongs to the same run"
    tables = [json.loads(line)[HELD_OUT]["_value"] for _, line in stored if HELD_OUT in json.loads(line)]
    assert [[line["step"] for line in table] for table in tables] == [[0, 0], [4, 4], [8, 8]]
    for table, said in ((tables[0], before), (tables[2], after)):
        assert [line["completion"] for line in table] == [said[0], said[3]]
        assert [line["prompt"] for line in table] == [rows[0]["prompt"], rows[3]["prompt"]]
        for line, row in zip(table, (0, 3), strict=True):
            picture = Image.open(folder / "media" / line["picture 1"]["file_path"])
            assert pixels(picture) == pixels(rows[row]["image"])
            assert line["reward"] == line["token_reward"]


def check_wandb(folder: Path, before: list[str], after: list[str], rows: list[dict[str, Any]]) -> None:
    (run,) = (folder / "wandb").glob("offline-run-*")
    tables = [json.loads(file.read_text()) for file in run.rglob("*.table.json")]
    assert sorted(table["data"][0][0] for table in tables) == [0, 4, 8]
    for table in tables:
        lines = [dict(zip(table["columns"], line, strict=True)) for line in table["data"]]
        said = {0: before, 8: after}.get(lines[0]["step"])
        assert said is None or [line["completion"] for line in lines] == [said[0], said[3]]
        assert all(line["picture 1"] == "Image" for line in lines)
    # What a table refers to waits elsewhere until the run is uploaded.
    waiting = [file for file in (folder / "cache" / "artifacts" / "staging").iterdir()]
    pictures = [pixels(Image.open(file)) for file in waiting if file.read_bytes().startswith(b"\x89PNG")]
    for row in (0, 3):
        assert pictures.count(pixels(rows[row]["image"])) == 3
    assert len(pictures) == 6


@pytest.mark.parametrize(
    ("max_steps", "epochs", "due"),
    [
        (400, 1, [20, 40]),  # 400 / 20 = 20 steps; ten rollouts of one step would be 10
        (410, 1, [21, 42]),  # 410 / 20 = 20.5, rounded up
        (80, 1, [10, 20]),  # 80 / 20 = 4; ten rollouts are 10
        (80, 3, [30, 60]),  # of three steps each: 30
    ],
)
def test_unset_it_is_a_twentieth_of_the_run_and_at_most_every_tenth_rollout(
    max_steps: int, epochs: int, due: list[int]
) -> None:
    args = SimpleNamespace(tracked_samples_steps=None)
    trainer: Any = SimpleNamespace(args=args, plan=SimpleNamespace(steps_per_rollout=epochs))
    states = [TrainerState(global_step=step, max_steps=max_steps) for step in range(1, max_steps)]
    found = [state.global_step for state in states if TrackedSamples(trainer)._is_due(state)]
    assert found[:2] == due


def test_zero_steps_leave_evaluations_only(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, eval_rows=make_rows(2), report_to="tensorboard", tracked_samples_steps=0, max_steps=2
    )
    trainer.train()
    assert logged(tmp_path).Tags()["images"] == []


def test_a_step_that_ends_in_an_evaluation_is_shown_once(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, eval_rows=make_rows(2), report_to="tensorboard", tracked_samples_steps=2, max_steps=8,
        eval_strategy="steps", eval_steps=4,
    )  # fmt: skip
    trainer.train()
    assert [step for step, _ in texts(logged(tmp_path), f"{HELD_OUT}/0")] == [2, 4, 6, 8]


def test_other_processes_answer_along_and_log_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tmp_path, eval_rows=make_rows(2), report_to="tensorboard", tracked_samples_steps=1)
    trainer.evaluate()
    before = len(texts(logged(tmp_path), f"{HELD_OUT}/0"))
    (callback,) = (each for each in trainer.callback_handler.callbacks if isinstance(each, TrackedSamples))
    asked = []
    answer = trainer.answer_held_out
    monkeypatch.setattr(trainer, "answer_held_out", lambda *given: asked.append(given) or answer(*given))
    state = TrainerState(global_step=1, max_steps=9, is_world_process_zero=False)
    callback.on_step_end(trainer.args, state, TrainerControl())
    callback.on_evaluate(trainer.args, state, TrainerControl())
    assert [indices for _, indices in asked] == [[0, 1]], "sampling from sharded weights takes every process"
    assert len(texts(logged(tmp_path), f"{HELD_OUT}/0")) == before


@pytest.mark.parametrize(
    "settings", [{"report_to": "none"}, {"report_to": "tensorboard", "num_tracked_samples": 0}]
)
def test_without_tracker_or_samples_there_is_no_callback(tmp_path: Path, settings: dict[str, Any]) -> None:
    trainer = make_trainer(tmp_path, **settings)
    assert not any(isinstance(each, TrackedSamples) for each in trainer.callback_handler.callbacks)


def test_a_tracker_that_is_not_installed_keeps_the_error_of_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(integration_utils, "is_trackio_available", lambda: False)
    with pytest.raises(RuntimeError, match="requires trackio to be installed"):
        make_trainer(tmp_path, report_to="trackio")


def test_impossible_numbers_are_refused(tmp_path: Path) -> None:
    for name in ("num_tracked_samples", "tracked_samples_steps"):
        with pytest.raises(ConfigError, match=f"`{name}` must be >= 0 and finite; got -1"):
            PPOConfig(output_dir=str(tmp_path), use_cpu=True, **{name: -1})


def test_rows_are_spread_evenly() -> None:
    assert tracked_rows(10, 4) == [0, 2, 5, 7]  # 0, 2.5, 5, 7.5, rounded down
    assert tracked_rows(3, 4) == [0, 1, 2]


def test_a_sample_is_made_small_and_storable() -> None:
    wide = Image.new("RGBA", (512, 128), "red")
    row = PromptRow(("eval", 3), "what \ud800", [], [wide], {})
    sample = TrackedSample.of(row, "a\udfff", float("nan"), {"bleu": 1 / 3, "other": None})
    assert [picture.size for picture in sample.pictures] == [(256, 64)]
    assert sample.pictures[0].mode == "RGB"
    assert wide.size == (512, 128), "the row's own picture stays"
    assert (sample.key, sample.prompt, sample.completion) == ("eval 3", "what ?", "a?")
    assert (sample.reward, dict(sample.rewards)) == (None, {"bleu": 0.3333, "other": None})


@pytest.mark.parametrize(
    "text",
    [
        "*a* _b_ **c** `d` # e", "<script>alert(1)</script>", "[x](javascript:alert(1)) ![y](z)",
        "1. one - two",
        "a | b", "&lt; &amp; &#65;", "~~gone~~ \\* \\\\", "$x$ {y} http://z.example",
    ],
)  # fmt: skip
def test_plain_markdown_shows_every_character(text: str) -> None:
    page = markdown.markdown(plain_markdown(text), extensions=["tables", "fenced_code"])
    assert page.startswith("<p>")
    assert page.count("<") == 2, "a paragraph and nothing in it"
    assert shown(plain_markdown(text)) == text
