"""`mmft sft`: a warm start that `mmft ppo` goes on from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmft.cli import main
from mmft.report.page_data import build_report
from tests.cli.support import SFT_SETTINGS, summary, write_config


def test_a_warm_start_with_adapters_learns_and_ppo_goes_on_from_it(
    model_folder: str, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    warm = tmp_path / "warm"
    settings = SFT_SETTINGS | {"model_name_or_path": model_folder, "output_dir": str(warm)}
    assert main(["sft", "--config", write_config(tmp_path, settings)]) == 0
    assert f"--model_name_or_path {warm}/merged" in capsys.readouterr().out
    told = summary(warm)
    assert told["after"]["loss"] < told["before"]["loss"]
    data = build_report([warm])
    assert data["kind"] == "sft"
    assert data["tables"][0]["rows"][0]["cells"][2] == f"{told['after']['loss']:.3f}"
    assert (warm / "report.html").is_file()
    ppo = ["ppo", "--config", str(run_folder / "config.yaml"), "--max_steps", "1", "--save_strategy", "no"]
    merged, stacked = tmp_path / "merged", tmp_path / "stacked"
    assert main([*ppo, "--model_name_or_path", str(warm / "merged"), "--output_dir", str(merged)]) == 0
    # The same policy, given as base and adapter: the run keeps the base that its own adapter belongs to.
    assert main([*ppo, "--adapter_path", str(warm), "--output_dir", str(stacked)]) == 0
    assert summary(stacked)["before"] == pytest.approx(summary(merged)["before"], abs=1e-5)
    assert summary(stacked)["before"] != pytest.approx(summary(run_folder)["before"], abs=1e-5)
    evaluate = [
        "evaluate",
        "--config",
        str(stacked / "config.yaml"),
        "--output_file",
        str(tmp_path / "scores.json"),
    ]
    override = ["--model_name_or_path", str(stacked / "base"), "--adapter_path", str(stacked)]
    assert main([*evaluate, *override]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["means"] == pytest.approx(summary(stacked)["after"], abs=1e-5)


def test_a_warm_start_of_the_weights_themselves_is_a_model(model_folder: str, tmp_path: Path):
    warm = tmp_path / "warm"
    settings = SFT_SETTINGS | {"model_name_or_path": model_folder, "output_dir": str(warm), "use_peft": False}
    path = write_config(
        tmp_path, settings | {"trainable": ["projector", "language"], "completion_choice": "all"}
    )
    assert main(["sft", "--config", path]) == 0
    before, after = (load_file(Path(each) / "model.safetensors") for each in (model_folder, warm))
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert "language_model" in moved
    assert "vision_tower" not in moved
