"""`mmft demo` from the command to a heat map in Chromium: nothing is asked of any other machine."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from mmft.cli import main
from mmft.cli.lone_pictures import read_picture
from mmft.runs import Answerer, Run
from mmft.tiny import load_scenes
from tests.browser.conftest import Watch
from tests.cli.support import write_config

SETTINGS = {
    "model_name_or_path": "mmft/tiny-captioner",
    "dataset_name": "mmft/scenes",
    "instruction": "Describe the picture.",
    "max_train_rows": 8,
    "reward_funcs": [{"name": "captioning", "gamma": 1.0, "target_length": 12}],
    "trainable": ["head"],
    "num_generations": 4,
    "per_device_train_batch_size": 16,
    "num_ppo_epochs": 1,
    "max_completion_length": 24,
    "learning_rate": 0.05,
    "max_steps": 2,
    "save_strategy": "no",
    "use_cpu": True,
    "disable_tqdm": True,
    "num_samples": 1,
}
SECONDS = 60
"""Until the server answers on a busy machine."""


@dataclass
class Server:
    """A running `mmft demo`."""

    address: str
    process: subprocess.Popen[str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    settings = SETTINGS | {"output_dir": str(folder / "run")}
    assert main(["ppo", "--config", write_config(folder, settings)]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def server(run: Path) -> Iterator[Server]:
    argv = [sys.executable, "-m", "mmft", "demo", str(run), "--port", "0", "--no-browser"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        told = ""
        for line in process.stdout:
            told += line
            if found := re.search(r"http://127\.0\.0\.1:\d+/?", line):
                break
        else:
            pytest.fail(f"the server did not start: {told}")
        yield Server(found[0], process)
        if process.poll() is None:
            process.kill()


@pytest.mark.slow
def test_a_picture_is_answered_explained_and_the_server_ends(
    page: Page, watch: Watch, run: Path, server: Server, tmp_path: Path
) -> None:
    picture = str(tmp_path / "scene.png")
    scene = load_scenes("test", 3)[2]
    scene["image"].save(picture)
    opened = Run.from_pretrained(run)
    row = opened.make_row(read_picture(picture, "it"))
    models = opened.load_base(), opened.load_policy()
    expected = [Answerer(model, None, opened.settings).answer([row])[0] for model in models]
    assert expected[0].text != expected[1].text, "training moved it"

    page.goto(server.address)
    expect(page.locator("#prompt textarea")).to_have_value("Describe the picture.")
    page.set_input_files("#picture input[type=file]", picture)
    expect(page.locator("#picture img")).to_be_visible()
    answer(page)
    captions = page.locator(".mmft-caption")
    expect(captions).to_have_count(2, timeout=SECONDS * 1000)
    for place, each in enumerate(expected):
        assert captions.nth(place).text_content() == each.text + ("" if each.ended else " (cut)")
    expect(page.locator("#answers")).to_contain_text("captioning needs references")
    heat = page.locator("#heat img")
    expect(heat).to_be_visible(timeout=SECONDS * 1000)
    assert heat.evaluate("image => image.naturalWidth") > 400

    # Every target draws another picture.
    seen = [heat.get_attribute("src")]
    for name in ("value", "token"):
        page.locator("#target").get_by_label(name).check()
        expect(heat).not_to_have_attribute("src", seen[-1] or "", timeout=SECONDS * 1000)
        seen.append(heat.get_attribute("src"))
    token = page.locator("#token input")
    expect(token).to_have_value(f"1: {expected[1].token_texts[0]!r}")
    page.locator("#target").get_by_label("nothing").check()
    expect(heat).to_be_hidden()

    # References make a reward; an example brings its own.
    page.get_by_text("for the rewards", exact=True).click()
    page.locator("#references textarea").fill("\n".join(scene["references"]))
    answer(page)
    expect(page.locator("#answers .total td").nth(2)).to_have_text(
        re.compile(r"^-?\d\.\d\d$"), timeout=60_000
    )
    page.locator("#examples button, #examples .gallery-item").first.click()
    expect(page.locator("#references textarea")).not_to_have_value("\n".join(scene["references"]))

    # A file that is no picture is a sentence, and takes what was known of the example away.
    (tmp_path / "broken.png").write_text("no picture")
    page.get_by_label(re.compile("clear|remove", re.IGNORECASE)).first.click()
    page.set_input_files("#picture input[type=file]", str(tmp_path / "broken.png"))
    expect(page.locator("#references textarea")).to_have_value("")
    answer(page)
    expect(page.locator("#answers [role=alert]")).to_contain_text("the file cannot be read as a picture")
    watch.complaints.clear()  # the browser cannot show it either

    # On a phone nothing is wider than the screen.
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0

    leave(page, watch, server)


def leave(page: Page, watch: Watch, server: Server) -> None:
    """Closes the page and ends its server, which leaves no trace."""
    assert watch.complaints == []
    page.context.close()  # a page that is left, or whose server is gone, complains of that
    watch.complaints.clear()
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(timeout=30) == 0
    assert server.process.stdout is not None
    rest = server.process.stdout.read()
    assert "Traceback" not in rest
    assert rest.endswith("ended\n")


def answer(page: Page) -> None:
    """Presses the button."""
    page.get_by_role("button", name="Answer", exact=True).click()
