"""`mmft ppo` from a newcomer's side: a config in, one command, a run folder out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from mmft.cli import main, online
from mmft.cli.arguments import parse_run
from mmft.cli.loading import load_policy
from mmft.report.page import render_page
from mmft.report.page_data import build_report
from tests.cli.support import SETTINGS, lines, summary, write_config


def test_a_run_leaves_every_file(run_folder: Path):
    names = {path.name for path in run_folder.iterdir()}
    assert names >= {
        "adapter_config.json", "adapter_model.safetensors", "heads.safetensors", "processor_config.json",
        "config.yaml", "metrics.jsonl", "samples.jsonl", "samples", "summary.json", "curves.png",
        "overview.png", "report.html", "README.md",
    }  # fmt: skip


def test_the_summary_tells_before_and_after_and_how_it_ran(run_folder: Path):
    told = summary(run_folder)
    for when in ("before", "after"):
        assert set(told[when]) >= {
            "reward", "rewards/byte_variety", "rewards/captioning", "rewards/captioning/bleu",
            "rewards/bleu_reward", "completions/mean_length",
        }  # fmt: skip
        parts = told[when]["rewards/byte_variety"] + 0.5 * told[when]["rewards/captioning"]
        assert told[when]["reward"] == pytest.approx(parts, abs=1e-6)
    assert told["steps"] == 2
    assert told["wall_seconds"] > 0
    assert told["packed"] is True
    assert 0 <= told["packed_difference"] <= 1e-4
    assert told["num_processes"] == 1
    assert told["unjudged_share"] == 0.0
    assert told["versions"]["torch"] == torch.__version__
    assert (told["held_out_rows"], told["kept_samples"]) == (3, 3)
    assert told["reward_weights"] == {"byte_variety": 1.0, "captioning": 0.5, "bleu_reward": 0.0}
    assert told["hardware"]["cpu"]
    for shares in told["outcomes"].values():
        assert shares["wins"] + shares["ties"] + shares["losses"] == pytest.approx(1.0)


def test_the_report_shows_the_samples_and_agrees_with_the_summary(run_folder: Path):
    told = summary(run_folder)
    data = build_report([run_folder])
    assert data["runs"][0]["warnings"] == told["warnings"]
    assert [each["key"] for each in data["samples"]] == [f"validation {row}" for row in range(3)]
    assert all(len(each["pictures"]) == 1 for each in data["samples"])
    reward = data["tables"][0]["rows"][0]
    assert (reward["measure"], reward["cells"][2]) == ("reward", f"{told['after']['reward']:.3f}")
    drawn = {chart["id"]: chart for chart in data["charts"]}
    assert {"reward", "kl", "explained_variance", "throughput/tokens"} <= set(drawn)
    assert drawn["reward"]["series"][0]["x"] == [1, 2]
    for sample in data["samples"]:
        for answer in sample["answers"]:
            assert len(answer["tokens"]) == len(answer["values"]) == len(answer["advantages"]) > 0
    page = (run_folder / "report.html").read_text(encoding="utf-8")
    assert page == render_page(data)


def test_the_summary_tells_how_sure_the_change_is_and_how_healthy_the_reward(run_folder: Path):
    told = summary(run_folder)
    for name, difference in told["differences"].items():
        change = told["after"][name] - told["before"][name]
        assert difference["value"] == pytest.approx(change, abs=1e-6)
        assert difference["low"] <= difference["value"] <= difference["high"]
    assert set(told["differences"]) >= {"reward", "rewards/captioning", "completions/mean_length"}
    for when in ("before", "after"):
        health = told["health"][when]
        assert health["degenerate_share"] == pytest.approx(sum(health["degenerate"].values()))
        assert 0 <= health["distinct"]["distinct_1"] <= 1
    assert told["masked_samples"] == {}
    assert isinstance(told["warnings"], list)


def test_a_reward_that_rises_while_what_was_not_optimised_falls_is_warned_about(
    model_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = tmp_path / "run"
    settings = SETTINGS | {
        "model_name_or_path": model_folder,
        "output_dir": str(run),
        "reward_funcs": ["tests.reference.rewards:small_ids"],
        "eval_funcs": ["tests.reference.rewards:large_ids"],
        "reward_weights": None,
        "metrics": [{"name": "rouge_l"}],
        "max_train_rows": 16,
        "max_eval_rows": 16,
        "eval_temperature": 1.0,
        "per_device_train_batch_size": 16,
        "num_generations": 4,
        "num_ppo_epochs": 2,
        "learning_rate": 5e-2,
        "kl_coef": 0.0,
        "max_steps": 10,
        "max_completion_length": 8,
        "save_strategy": "no",
        "num_samples": 0,
    }
    assert main(["ppo", "--config", write_config(tmp_path, settings)]) == 0
    said = capsys.readouterr().out
    told = summary(run)
    assert told["after"]["reward"] > told["before"]["reward"]
    (sentence,) = [text for text in told["warnings"] if "large_ids, which was not optimised, fell" in text]
    assert f"WARNING {sentence}\n" in said
    assert f"- {sentence}" in (run / "README.md").read_text()
    assert "metrics/rouge_l" in told["before"]
    assert told["signatures"]["rouge_l"].startswith("name:rouge_l|")
    assert "rouge_l" in said


def test_samples_that_a_reward_failed_on_are_counted_in_the_summary(
    model_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = tmp_path / "run"
    failing = {"name": "tests.reference.rewards:breaks", "on_error": "mask"}
    settings = SETTINGS | {
        "model_name_or_path": model_folder,
        "output_dir": str(run),
        "reward_funcs": ["tests.reference.rewards:byte_variety", failing],
        "reward_weights": [1.0, 0.0],
        "max_steps": 2,
    }
    assert main(["ppo", "--config", write_config(tmp_path, settings)]) == 0
    assert summary(run)["masked_samples"] == {"breaks": 8}  # two steps of four completions
    assert "left out of training: 8 samples that reward breaks failed on" in capsys.readouterr().out


def test_a_metric_that_does_not_fit_the_data_is_refused_before_training(
    model_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = write_config(
        tmp_path, SETTINGS | {"model_name_or_path": model_folder, "output_dir": str(tmp_path / "run")}
    )
    assert main(["ppo", "--config", config, "--metrics", "cider"]) == 2
    assert "`metrics` names 'cider', which is none. Did you mean 'cider_d'?" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_samples_pair_each_held_out_row_before_and_after(run_folder: Path):
    told = summary(run_folder)
    samples = lines(run_folder / "samples.jsonl")
    assert [sample["key"] for sample in samples] == [["validation", row] for row in range(3)]
    assert all(sample["references"] for sample in samples)
    for when in ("before", "after"):
        mean = sum(sample[when]["reward"] for sample in samples) / len(samples)
        assert mean == pytest.approx(told[when]["reward"], abs=1e-6)


def test_the_model_card_shows_the_table_and_loads_the_adapter(run_folder: Path, model_folder: str):
    card = (run_folder / "README.md").read_text()
    assert f"| total reward | {summary(run_folder)['before']['reward']:.3f} |" in card
    code = card.split("```python\n")[1].split("```")[0]
    found: dict[str, Any] = {}
    exec(code, found)
    trained = load_file(run_folder / "adapter_model.safetensors")
    loaded = dict(found["model"].named_parameters())
    for name, tensor in trained.items():
        assert torch.equal(loaded[name.replace(".weight", ".default.weight")], tensor)
    assert any(bool(tensor.any()) for name, tensor in trained.items() if "lora_B" in name)
    assert found["model"].peft_config["default"].base_model_name_or_path == model_folder


def test_the_written_config_repeats_the_run(run_folder: Path, tmp_path: Path):
    again = tmp_path / "again"
    assert main(["ppo", "--config", str(run_folder / "config.yaml"), "--output_dir", str(again)]) == 0
    first, second = (load_file(each / "adapter_model.safetensors") for each in (run_folder, again))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert summary(again)["after"] == summary(run_folder)["after"]


def test_a_run_goes_on_from_its_last_checkpoint(run_folder: Path, tmp_path: Path):
    argv = ["ppo", "--config", str(run_folder / "config.yaml"), "--output_dir", str(tmp_path)]
    assert main(argv) == 0
    assert main([*argv, "--max_steps", "3", "--resume_from_checkpoint", "true"]) == 0
    steps = [line["step"] for line in lines(tmp_path / "metrics.jsonl") if "loss" in line]
    assert steps == [1, 2, 3]
    assert summary(tmp_path)["steps"] == 3
    assert summary(tmp_path)["before"] == summary(run_folder)["before"]


def test_resuming_from_nothing_is_refused(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    argv = ["ppo", "--config", str(run_folder / "config.yaml"), "--output_dir", str(tmp_path)]
    assert main([*argv, "--resume_from_checkpoint", "true"]) == 2
    assert f"{tmp_path} holds no checkpoint" in capsys.readouterr().err
    assert main([*argv, "--resume_from_checkpoint", str(tmp_path)]) == 2
    assert "holds no trainer_state.json" in capsys.readouterr().err


def test_without_held_out_rows_a_run_ends_without_a_comparison(run_folder: Path, tmp_path: Path):
    config = yaml.safe_load((run_folder / "config.yaml").read_text())
    path = write_config(
        tmp_path, config | {"eval_split": None, "max_steps": 1, "output_dir": str(tmp_path / "run")}
    )
    assert main(["ppo", "--config", path]) == 0
    assert summary(tmp_path / "run")["before"] is None
    assert (tmp_path / "run" / "curves.png").is_file()
    assert not (tmp_path / "run" / "samples.jsonl").exists()


@pytest.mark.slow
def test_of_two_processes_one_writes_and_speaks(run_folder: Path, tmp_path: Path):
    argv = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "mmft", "ppo"]
    settings = [
        "--config",
        str(run_folder / "config.yaml"),
        "--output_dir",
        str(tmp_path),
        "--save_strategy",
        "no",
    ]
    done = subprocess.run(
        [sys.executable, *argv, *settings],
        cwd=Path(__file__).parents[2],
        env=distributed_environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("total reward") == 1
    told = summary(tmp_path)
    assert told["num_processes"] == 2
    assert told["before"] == pytest.approx(summary(run_folder)["before"], abs=1e-6)
    assert len(lines(tmp_path / "samples.jsonl")) == 3


def distributed_environment() -> dict[str, str]:
    return dict(os.environ) | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def test_what_breaks_the_last_evaluation_costs_no_weights(
    model_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whens: list[str] = []

    def evaluate(trainer: Any, when: str, metrics: Any) -> None:
        whens.append(when)
        if when == "after":
            raise KeyError("unheard of")

    monkeypatch.setattr(online, "evaluate", evaluate)
    settings = SETTINGS | {"model_name_or_path": model_folder, "output_dir": str(tmp_path / "run")}
    with pytest.raises(KeyError, match="unheard of"):
        main(["ppo", "--config", write_config(tmp_path, settings | {"max_steps": 1, "save_strategy": "no"})])
    assert whens == ["before", "after"]
    assert (tmp_path / "run" / "adapter_model.safetensors").is_file()


def test_an_adapter_names_its_base_as_the_user_did(tmp_path: Path):
    settings = SETTINGS | {"model_name_or_path": "mmft/tiny-captioner", "output_dir": str(tmp_path)}
    run = parse_run("ppo", ["--config", write_config(tmp_path, settings)])
    policy: Any = load_policy(run, train=True).model
    assert policy.peft_config["default"].base_model_name_or_path == "mmft/tiny-captioner"
