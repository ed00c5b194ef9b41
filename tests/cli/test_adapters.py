"""`peft_method` and `adapt` from a recipe: one step of each method, and the run folder that it leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from mmft.cli import main
from mmft.cli.arguments import parse_run
from mmft.cli.loading import load_policy, model_and_adapter
from mmft.models.adapter_settings import METHODS
from mmft.models.adapters import PRETRAINED_FILE
from tests.cli.support import SETTINGS, SFT_SETTINGS, refusal, summary, write_config

ONE_STEP: dict[str, Any] = SETTINGS | {
    "model_name_or_path": "mmft/tiny-captioner",
    "reward_funcs": ["tests.reference.rewards:byte_variety"],
    "reward_weights": None,
    "eval_funcs": [],
    "max_eval_rows": 2,
    "num_samples": 0,
    "max_steps": 1,
    "save_strategy": "no",
    "bottleneck_size": 4,
}
PARTS = {
    "lora": None,
    "dora": ["projector"],
    "rslora": ["vision"],
    "ia3": ["language", "vision"],
    "bottleneck": ["language", "projector"],
}


def recipe(folder: Path, **changes: Any) -> str:
    return write_config(folder, ONE_STEP | {"output_dir": str(folder / "run")} | changes)


def test_weights_that_trained_beside_an_adapter_come_back_with_it(tmp_path: Path):
    run = tmp_path / "run"
    config = recipe(tmp_path, trainable=["projector"], learning_rate=0.05)
    assert main(["ppo", "--config", config]) == 0
    trained = load_file(run / PRETRAINED_FILE)
    assert trained
    names: dict[str, Any] = {}
    exec((run / "README.md").read_text().partition("```python\n")[2].partition("```")[0], names)
    found = dict(names["model"].named_parameters())
    assert all(torch.equal(found[name.removeprefix("backbone.model.")], trained[name]) for name in trained)
    changes = {"adapter_path": str(run), "output_dir": str(tmp_path / "more")}
    again = parse_run("ppo", ["--config", recipe(tmp_path, **changes)])
    for train in (False, True):
        loaded = dict(load_policy(again, train=train).base.named_parameters())
        for name, tensor in trained.items():
            assert torch.equal(loaded[name.partition("base_model.model.")[2]], tensor)


def test_a_warm_start_keeps_what_trained_beside_its_adapters(tmp_path: Path):
    warm = tmp_path / "warm"
    settings = SFT_SETTINGS | {"model_name_or_path": "mmft/tiny-captioner", "output_dir": str(warm)}
    settings |= {"max_steps": 1, "trainable": ["projector"], "eval_split": None}
    assert main(["sft", "--config", write_config(tmp_path, settings)]) == 0
    merged = load_file(warm / "merged" / "model.safetensors")
    run = parse_run("generate", ["--config", recipe(tmp_path, adapter_path=str(warm))])
    base = dict(load_policy(run, train=False).base.named_parameters())
    untrained = parse_run("generate", ["--config", recipe(tmp_path)])
    before = dict(load_policy(untrained, train=False).base.named_parameters())
    names = [name for name in base if "projector" in name]
    kept = {name.rpartition("multi_modal_projector.")[2]: each for name, each in merged.items()}
    assert names
    for name in names:
        assert torch.equal(base[name], kept[name.rpartition("multi_modal_projector.")[2]])
        assert not torch.equal(base[name], before[name])


def test_an_adapter_is_not_put_on_another_adapter(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
        (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "mmft/tiny-captioner"}')
    one, other = map(str, folders)
    stacked = recipe(tmp_path, model_name_or_path=one, adapter_path=other)
    said = refusal(capsys, ["generate", "--config", stacked])
    assert f"`model_name_or_path` {one} holds an adapter without its base model, which {other}" in said
    twice = recipe(tmp_path, model_name_or_path=one, adapter_path=one)
    assert model_and_adapter(parse_run("generate", ["--config", twice])) == ("mmft/tiny-captioner", one)


def test_weights_of_another_model_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = tmp_path / "run"
    assert main(["ppo", "--config", recipe(tmp_path, trainable=["projector"])]) == 0
    save_file({"backbone.model.no.such": torch.ones(2)}, run / PRETRAINED_FILE)
    capsys.readouterr()
    argv = ["generate", "--config", recipe(tmp_path, adapter_path=str(run))]
    assert "holds 'no.such' (2,), which this model does not have" in refusal(capsys, argv)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_of_each_method_is_evaluated_from_its_folder(method: str, tmp_path: Path):
    config, run = recipe(tmp_path, peft_method=method, adapt=PARTS[method]), tmp_path / "run"
    assert main(["ppo", "--config", config]) == 0
    told = summary(run)
    assert told["steps"] == 1
    scores = tmp_path / "scores.json"
    argv = ["evaluate", "--config", str(run / "config.yaml"), "--model_name_or_path", str(run)]
    assert main([*argv, "--output_file", str(scores)]) == 0
    found = json.loads(scores.read_text())
    assert (found["model"], found["adapter"]) == ("mmft/tiny-captioner", str(run))
    assert found["means"]["reward"] == pytest.approx(told["after"]["reward"], abs=1e-6)
    names: dict[str, Any] = {}
    card = (run / "README.md").read_text()
    exec(card.partition("```python\n")[2].partition("```")[0], names)
    assert isinstance(names["model"], PeftModel)
    assert ("import mmft.models.bottleneck" in card) == (method == "bottleneck")


def test_check_shows_what_trains_in_each_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    argv = ["check", "--config", recipe(tmp_path, adapt=["vision", "projector"])]
    assert main(argv) == 0
    said = capsys.readouterr().out
    rows = [
        line.split() for line in said.splitlines() if line.startswith(("language", "vision", "projector"))
    ]
    trained = {part: int(count.replace(",", "")) for part, _, count in rows}
    assert trained["language"] == 0
    assert trained["vision"] > 0
    assert trained["projector"] > 0
    assert "nothing is cached" in said


def test_new_training_on_bottleneck_adapters_is_refused_before_the_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "adapter"
    folder.mkdir()
    settings = {"peft_type": "BOTTLENECK", "base_model_name_or_path": "nowhere/to-be-found"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    said = refusal(capsys, ["ppo", "--config", recipe(tmp_path, adapter_path=str(folder))])
    assert "holds bottleneck adapters, which cannot become part of the weights" in said
    assert "`resume_from_checkpoint`" in said


def test_a_warm_start_of_bottlenecks_cannot_be_merged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model_folder: str
):
    run = tmp_path / "warm"
    settings = SFT_SETTINGS | {"model_name_or_path": model_folder, "output_dir": str(run), "max_steps": 1}
    config = write_config(tmp_path, settings | {"peft_method": "bottleneck", "bottleneck_size": 4})
    assert "Set `save_merged: false`" in refusal(capsys, ["sft", "--config", config])
    assert main(["sft", "--config", config, "--save_merged", "false"]) == 0
    assert f"`mmft evaluate --config FILE --model_name_or_path {run}`" in capsys.readouterr().out
    assert (run / "adapter_model.safetensors").is_file()
    assert not (run / "merged").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_method": "ia3", "use_dora": True}, "`use_dora` is for LoRA, but `peft_method` is 'ia3'"),
        ({"adapt": ["vision"], "lora_target_modules": ["q_proj", "v_proj"]}, "both say where adapters go"),
        ({"peft_method": "dora", "use_peft": False}, "`peft_method` is 'dora' without `use_peft: true`"),
        ({"peft_method": "bottelneck"}, "Did you mean 'bottleneck'?"),
        ({"adapt": ["visoin"]}, "Did you mean 'vision'?"),
        ({"lora_target_modules": ["q_prj", "v_prj"]}, "matches no module of Llava"),
    ],
)
def test_what_cannot_be_is_one_clear_line(
    changes: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert message in refusal(capsys, ["ppo", "--config", recipe(tmp_path, **changes)])


def test_a_quantiser_that_is_not_installed_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def missing(*args: Any, **options: Any) -> None:
        raise ImportError("Using 4-bit quantization requires bitsandbytes: `pip install bitsandbytes`")

    monkeypatch.setattr("mmft.cli.loading.load_backbone", missing)
    said = refusal(capsys, ["ppo", "--config", recipe(tmp_path)])
    assert "cannot be loaded: Using 4-bit quantization requires bitsandbytes" in said
