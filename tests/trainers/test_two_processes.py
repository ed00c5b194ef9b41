"""Two processes on CPU do what one does with the same global batch, and resume together."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mmft.engine.actor_critic import HEADS_FILE
from tests.trainers.support import make_rows, moved, of_the_update, step_rows, trained_weights, without_cache
from tests.trainers.two_processes import scenario

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TIMEOUT = 400
"""Seconds after which two processes that wait for each other are a failure."""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def launch(script: str, folder: Path, **environment: str) -> None:
    """Runs a script of this folder with torchrun on two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--master_addr", "127.0.0.1", "--master_port", str(free_port())]
    environment = {
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    } | environment
    process = subprocess.Popen(
        [*command, str(Path(__file__).parent / script), str(folder)],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"two processes did not finish in {TIMEOUT} s:\n{process.communicate()[0][-4000:]}")
    assert process.returncode == 0, output[-4000:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of one launch, shared by the tests: most of its time is imports."""
    path = tmp_path_factory.mktemp("two")
    launch("two_processes.py", path)
    return path


def weights(folder: Path, number: int) -> dict[str, Tensor]:
    return load_file(folder / f"weights_{number}.safetensors")


def log(folder: Path, number: int) -> dict[str, Any]:
    return json.loads((folder / f"log_{number}.json").read_text())


@pytest.mark.parametrize(
    "name", ["lora", "full weights", "unjudged", "masked", "scaled", "controlled", "group"]
)
def test_two_processes_make_the_update_of_one(name: str, folder: Path, tmp_path: Path):
    alone = scenario(name, tmp_path, 1)
    start = trained_weights(alone)
    alone.train()
    expected, actual = trained_weights(alone), weights(folder / name, 0)
    assert actual.keys() == expected.keys()
    assert moved(start, expected) == start.keys()
    for key, weight in expected.items():
        torch.testing.assert_close(actual[key], weight, rtol=0, atol=1e-5, msg=key)
    steps = log(folder / name, 0)["steps"]
    assert len(steps) == len(step_rows(alone))
    for mine, theirs in zip(of_the_update(steps), of_the_update(step_rows(alone)), strict=True):
        assert mine == pytest.approx(theirs, abs=2e-4)


@pytest.mark.parametrize("name", ["lora", "full weights", "unjudged", "masked", "scaled", "saving"])
def test_both_processes_hold_the_same_weights(name: str, folder: Path):
    assert moved(weights(folder / name, 0), weights(folder / name, 1)) == set()


def test_the_processes_had_different_lengths_and_logged_the_same(folder: Path):
    first, second = log(folder / "lora", 0), log(folder / "lora", 1)
    assert sum(first["lengths"]) != sum(second["lengths"])
    assert max(first["lengths"]) != max(second["lengths"]) or first["lengths"] != second["lengths"]
    assert first["steps"] == second["steps"]


def test_a_process_without_any_judgement_waits_for_nobody(folder: Path):
    share = [step["rewards/unjudged_share"] for step in log(folder / "unjudged", 0)["steps"][::2]]
    assert share[0] == 0.5


def test_what_fails_on_one_process_is_masked_there_and_counted_by_both(folder: Path):
    for number in (0, 1):
        steps = log(folder / "masked", number)["steps"][::2]
        assert [step.get("rewards/failing_reward/masked") for step in steps] == [8.0, None]
        assert steps[0]["rewards/unjudged_share"] == 0.5
    unjudged, masked = (weights(folder / name, 0) for name in ("unjudged", "masked"))
    assert moved(unjudged, masked) == set(), "a masked sample trains no more than an unjudged one"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("failing", "'failing_reward' failed on row .* no luck"),
        ("stalling", "took longer than its `time_limit`"),
    ],
)
def test_an_error_on_one_process_stops_both(name: str, told: str, folder: Path):
    first, second = ((folder / f"{name}_{number}.txt").read_text() for number in (0, 1))
    assert re.search(told, second)
    assert first == f"on process 1: {second}"


@pytest.mark.parametrize("step", [2, 3], ids=["between rollouts", "inside a rollout"])
@pytest.mark.parametrize("number", [0, 1])
def test_two_processes_resume_with_the_same_bits(step: int, number: int, folder: Path):
    resumed, whole = folder / f"resumed {step}", folder / "saving"
    assert moved(weights(resumed, number), weights(whole, number)) == set()
    mine, expected = log(resumed, number)["steps"], log(whole, number)["steps"]
    assert without_cache(mine) == without_cache(expected)


def test_both_halves_of_an_unfinished_rollout_are_saved(folder: Path):
    names = {path.name for path in (folder / "saving" / "checkpoint-3").glob("rollout_*")}
    assert names == {"rollout_0.safetensors", "rollout_1.safetensors"}


def test_two_processes_evaluate_every_row_once(folder: Path, tmp_path: Path):
    alone = scenario("saving", tmp_path, 1)
    alone.actor_critic.load_checkpoint(folder / "saving" / "checkpoint-6")
    expected = alone.evaluate()
    assert len(alone.eval_samples) == len(make_rows(5))
    for number in (0, 1):
        actual = json.loads((folder / f"evaluation_{number}.json").read_text())
        for name, value in expected.items():
            if name.startswith("eval_"):
                assert actual[name] == pytest.approx(value, abs=1e-5), name


FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}
"""What `accelerate launch` sets from configs/accelerate/fsdp2.yaml."""


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sharded")
    launch("two_processes_sharded.py", path, **FSDP)
    return path


@pytest.mark.parametrize(
    ("name", "files", "runs"),
    [
        ("held lora", ("adapter_model.safetensors", HEADS_FILE), ("whole", "resumed")),
        ("held weights", ("model.safetensors", HEADS_FILE), ("weights", "resumed weights")),
    ],
)
def test_sharded_weights_make_the_update_of_one_process(
    name: str, files: tuple[str, ...], runs: tuple[str, ...], sharded: Path, tmp_path: Path
):
    """Regularisers hold the weights: each process has a part of them and of the pretrained ones."""
    alone = scenario(name, tmp_path, 1)
    alone.train()
    alone.save_model(str(tmp_path))
    for file in files:
        expected = load_file(tmp_path / file)
        for run in runs:
            actual = load_file(sharded / run / file)
            assert actual.keys() == expected.keys()
            for key, weight in expected.items():
                torch.testing.assert_close(actual[key], weight, rtol=0, atol=1e-5, msg=f"{run}: {key}")
    for run in runs:
        steps = json.loads((sharded / f"steps {run}.json").read_text())
        for mine, theirs in zip(of_the_update(steps), of_the_update(step_rows(alone)), strict=True):
            assert mine == pytest.approx(theirs, abs=2e-4), run
            assert mine["regularization/distance"] == pytest.approx(
                theirs["regularization/distance"], rel=1e-4, abs=1e-6
            )
