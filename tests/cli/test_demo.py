"""What `mmft demo` does behind its page; the page itself is driven in tests/browser."""

from __future__ import annotations

import importlib.util
import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mmft.cli import demo_work
from mmft.cli.demo import usable_port
from mmft.cli.demo_page import answer_page, error_page, guarded, heading, waiting
from mmft.cli.demo_work import COMPLETION, TOKEN, VALUE, Outcome, Workshop
from mmft.cli.lone_pictures import BASE, TUNED, Part, Said, Scores, open_run
from mmft.errors import ConfigError
from mmft.report.heat_maps import HeatMap
from mmft.runs import Answer, Answerer, Run
from mmft.tiny import load_scenes
from mmft.types import PromptRow
from tests.cli.support import lines, refusal

HOSTILE = '<img src=x onerror="alert(1)">&amp; </p>'


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("picture") / "scene.png"
    load_scenes("validation", 2)[1]["image"].save(path)
    return str(path)


@pytest.fixture(scope="module")
def workshop(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(open_run(str(run_folder)), tmp_path_factory.mktemp("work"))


def test_both_models_answer_as_in_the_run(run_folder: Path, workshop: Workshop, picture: str):
    sample = lines(run_folder / "samples.jsonl")[1]
    references = "\n\n".join(sample["references"])
    outcome = workshop.answer(picture, workshop.prompt, references, "", 0.0)
    assert [each.model for each in outcome.said] == [BASE, TUNED]
    for each, when in zip(outcome.said, ("before", "after"), strict=True):
        assert each.answer.text == sample[when]["completion"]
        assert each.scores is not None
        assert each.scores.total == pytest.approx(sample[when]["reward"], abs=1e-5)


def test_drawn_answers_are_new_each_time_and_share_their_luck(run_folder: Path, picture: str, tmp_path: Path):
    run = open_run(str(run_folder))
    workshop = Workshop(run, tmp_path)
    workshop.answerers = {which: Answerer(run.load_base(), None, run.settings) for which in workshop.models}
    drawn = [workshop.answer(picture, "what", "", "", 1.0) for _ in range(3)]
    texts = [[tuple(each.answer.ids) for each in outcome.said] for outcome in drawn]
    assert all(first == second for first, second in texts), "the same model with the same noise"
    assert len({first for first, _ in texts}) == 3


def test_questions_that_are_not_complete_are_named(workshop: Workshop, picture: str, tmp_path: Path):
    (tmp_path / "broken.png").write_text("no picture")
    for given, message in (
        ((None, "what", "", "", 0.0), "there is no picture yet. Upload one, or choose an example"),
        ((picture, " \n", "", "", 0.0), "the question is empty. Write what to ask"),
        ((picture, "what", "", "{", 0.0), "`--columns` is no JSON"),
        ((str(tmp_path / "broken.png"), "what", "", "", 0.0), "the file cannot be read as a picture"),
    ):
        with pytest.raises(ConfigError, match=message):
            workshop.answer(*given)


def test_each_target_draws_another_heat_map(workshop: Workshop, picture: str):
    outcome = workshop.answer(picture, "what", "", "", 0.0)
    assert workshop.has_critic
    asked = (
        (COMPLETION, TUNED, 0),
        (TOKEN, TUNED, 0),
        (TOKEN, TUNED, 2),
        (VALUE, TUNED, 0),
        (TOKEN, BASE, 0),
    )
    paths = [workshop.explain(outcome, which, target, place) for target, which, place in asked]
    assert len({path.read_bytes() for path in paths}) == len(asked)
    with Image.open(paths[0]) as drawn:
        assert drawn.width > 400
    for target, which, place, message in (
        (TOKEN, TUNED, 99, "the answer has no such token"),
        (TOKEN, TUNED, -1, "the answer has no such token"),
        (VALUE, BASE, 0, "the model before training has no critic. Choose the tuned one"),
    ):
        with pytest.raises(ConfigError, match=message):
            workshop.explain(outcome, which, target, place)


def test_what_was_said_is_explained_token_by_token(
    workshop: Workshop, picture: str, monkeypatch: pytest.MonkeyPatch
):
    drawn: list[HeatMap] = []
    monkeypatch.setattr(demo_work, "draw_heat_map", lambda heat, path: drawn.append(heat))
    outcome = workshop.answer(picture, "what", "", "", 0.0)
    workshop.explain(outcome, TUNED, COMPLETION, 0)
    # Its text would be cut into other tokens, and end by itself.
    assert drawn[0].title == f"log-prob of the answer: {sum(outcome.of(TUNED).answer.logps):.3g}"


def test_a_heat_map_marks_the_token_that_it_explains(
    workshop: Workshop, picture: str, monkeypatch: pytest.MonkeyPatch
):
    drawn: list[HeatMap] = []
    monkeypatch.setattr(demo_work, "draw_heat_map", lambda heat, path: drawn.append(heat))
    outcome = workshop.answer(picture, "what now", "", "", 0.0)
    answer = outcome.of(TUNED).answer
    workshop.explain(outcome, TUNED, TOKEN, 2)
    own = [token for token in drawn[0].tokens if token.part == "answer"]
    assert [token.marked for token in own] == [place == 2 for place in range(len(answer.ids))]
    assert sum(token.marked for token in drawn[0].tokens) == 1
    assert drawn[0].title == f"log-prob of {answer.token_texts[2].strip()!r}: {answer.logps[2]:.3g}"
    assert drawn[0].unit == "||dlog p/dE|| ||E||"


def test_examples_are_the_runs_own_pictures(run_folder: Path, workshop: Workshop):
    samples = lines(run_folder / "samples.jsonl")
    found = workshop.examples()
    assert [(Path(each.picture).read_bytes(), each.prompt, each.references) for each in found] == [
        ((run_folder / row["pictures"][0]).read_bytes(), row["prompt"], "\n".join(row["references"]))
        for row in samples
    ]
    # Gradio serves the page's own folder only, and a hub's run lies elsewhere.
    assert {Path(each.picture).parent for each in found} == {workshop.folder}


def test_pictures_of_other_folders_are_no_examples(run_folder: Path, workshop: Workshop, tmp_path: Path):
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder, ignore=shutil.ignore_patterns("checkpoint-*"))
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    rows = lines(folder / "samples.jsonl")
    rows[0]["pictures"] = ["samples/../../secret.jpg"]
    rows[1]["pictures"] = ["missing.jpg"]
    rows[2] |= {"keywords": ["red"]}
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    other = object.__new__(Workshop)
    other.run, other.folder = Run.from_pretrained(folder), tmp_path
    (example,) = other.examples()
    assert Path(example.picture).read_bytes() == (folder / rows[2]["pictures"][0]).read_bytes()
    assert json.loads(example.columns) == {"keywords": ["red"]}


def test_without_samples_scenes_are_drawn(tmp_path: Path):
    workshop = Workshop(open_run("mmft/tiny-captioner"), tmp_path)
    assert (workshop.models, workshop.suite, workshop.remark) == ((TUNED,), None, "")
    examples = workshop.examples()
    outcome = workshop.answer(examples[0].picture, examples[0].prompt, "", examples[0].columns, 0.0)
    (said,) = outcome.said
    assert said.answer.text.startswith("a")
    assert outcome.row.columns["facts"] == load_scenes("test", 1)[0]["facts"]
    assert "before and after" not in heading(workshop)


def test_a_conversation_is_asked_as_it_was_unless_it_is_changed(tmp_path: Path):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "what"}]
    (tmp_path / "config.yaml").write_text("algorithm: ppo\n")
    (tmp_path / "samples.jsonl").write_text(json.dumps({"key": 0, "prompt": messages}) + "\n")
    workshop = object.__new__(Workshop)
    workshop.run = Run.from_pretrained(tmp_path)
    workshop.prompt = workshop._run_prompt()
    assert workshop.prompt == "system: Be brief.\nuser: what"
    assert workshop._question(workshop.prompt) == messages
    assert workshop._question("what else") == "what else"


def said(model: str, text: str, scores: Scores | None, ended: bool = True) -> Said:
    return Said(model, Answer(text, [1], [text], [0.0], None, ended, None, {}), scores)


def test_the_page_marks_what_changed_and_escapes_everything():
    outcome = Outcome(
        PromptRow(0, "what", [], [], {}),
        [
            said(BASE, "a circle", Scores([Part(HOSTILE, 1.0, 1.0, {f"{HOSTILE}/x": 0.5})])),
            said(TUNED, f"a {HOSTILE}", Scores([Part(HOSTILE, 1.0, 3.0, {f"{HOSTILE}/x": None})]), False),
        ],
    )
    page = answer_page(outcome, HOSTILE)
    assert "<img" not in page
    assert page.count("&lt;img src=x onerror=&quot;alert(1)&quot;&gt;&amp;amp; &lt;/p&gt;") == 3
    assert '<p class="mmft-caption">a<del> circle</del></p>' in page
    assert '<p class="mmft-caption">a<ins> &lt;img' in page
    assert "(cut)" in page
    assert "<td>1</td><td>1.00</td><td>3.00</td><td>+2.00</td>" in page
    assert "<td>x</td><td></td><td>0.50</td><td>n/a</td><td></td>" in page
    assert "<b>reward 3.00</b>" in page


def test_the_page_says_why_there_is_no_number():
    missing = Scores([Part("bleu", 1.0, None, why="needs references", needs="references")])
    page = answer_page(Outcome(PromptRow(0, "what", [], [], {}), [said(TUNED, "", missing)]))
    told = (
        "bleu needs references, which can be given under \u201cfor the rewards\u201d; it is left out of the"
    )
    assert told in page
    assert "(nothing)" in page
    watched = Scores([Part("bleu", 0.0, None, why=HOSTILE)])
    page = answer_page(Outcome(PromptRow(0, "what", [], [], {}), [said(TUNED, "a", watched)]))
    assert page.endswith("&lt;/p&gt;.</p>")


def test_mistakes_are_shown_and_failures_named(caplog: pytest.LogCaptureFixture):
    def fail(error: Exception) -> Any:
        raise error

    assert guarded(lambda: 3, str) == 3
    shown = guarded(lambda: fail(ConfigError(f"bad\n{HOSTILE}")), str)
    assert shown == error_page(f"bad {HOSTILE}")
    assert "<img" not in shown
    assert 'role="alert"' in shown
    assert not caplog.records
    assert "This failed: ZeroDivisionError: x" in guarded(lambda: fail(ZeroDivisionError("x")), str)
    assert "the page's work failed" in caplog.text


def test_the_remark_stands_on_the_empty_page(workshop: Workshop):
    assert HOSTILE not in waiting(workshop)
    other = object.__new__(Workshop)
    other.remark = HOSTILE
    assert "&lt;img" in waiting(other)
    assert "press Answer" in waiting(other)


def test_mistakes_on_the_command_line_are_one_line(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "agent.json").write_text("{}")
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    for argv, message in (
        ([], "the following arguments are required: RUN. See `mmft demo --help`"),
        ([str(run_folder), "--port", "70000"], "`--port` must be between 0 and 65535; got 70000"),
        ([str(run_folder), "--share"], "unrecognized arguments: --share"),
        ([str(tmp_path)], "trained an agent, which acts and writes no text"),
        ([str(tmp_path / "nope")], "is no folder"),
    ):
        assert message in refusal(capsys, ["demo", *argv])


def test_a_port_is_tried_before_anything_is_loaded(
    run_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    monkeypatch.setattr("mmft.cli.demo_work.Workshop", None)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        told = refusal(capsys, ["demo", str(run_folder), "--port", str(port)])
    assert f"`--port` {port} of `--host` 127.0.0.1 cannot be used (" in told
    assert usable_port("127.0.0.1", port) == port
    assert usable_port("127.0.0.1", 0) > 0


def test_without_gradio_the_extra_is_named(
    run_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "gradio" else find(name, *more)
    )
    told = refusal(capsys, ["demo", str(run_folder)])
    assert "`mmft demo` needs the package gradio: pip install 'mmft[demo]'." in told


def test_nothing_about_a_model_trains(workshop: Workshop, picture: str):
    outcome = workshop.answer(picture, "what", "", "", 0.0)
    workshop.explain(outcome, TUNED, COMPLETION, 0)
    for answerer in workshop.answerers.values():
        assert not any(each.requires_grad or each.grad is not None for each in answerer.policy.parameters())
    assert torch.is_grad_enabled()
