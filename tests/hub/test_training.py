"""`push_to_hub`: the repository is made first, the run is pushed once, and a failed push loses nothing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from peft import LoraConfig

from mmft.cli import main
from mmft.cli.final_push import announce_push, push_finished
from mmft.errors import ConfigError
from mmft.hub import prepare_push, repo_of
from mmft.tiny import PROMPT, load_scenes
from mmft.trainers.ppo import PPOConfig, PPOTrainer
from tests.hub.server import TOKEN, Failure, Hub
from tests.hub.support import make_run
from tests.reference.rewards import byte_variety

pytestmark = [
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
    # PEFT compares vocabularies with the base model's config on the hub, where the packaged one is not.
    pytest.mark.filterwarnings("ignore:Could not find a config file in mmft/:UserWarning"),
]
SETTINGS: dict[str, Any] = {
    "model_name_or_path": "mmft/tiny-captioner",
    "dataset_name": "mmft/scenes",
    "instruction": "Describe the picture.",
    "max_train_rows": 4,
    "eval_split": "validation",
    "max_eval_rows": 2,
    "use_peft": True,
    "lora_r": 2,
    "per_device_train_batch_size": 4,
    "max_steps": 2,
    "use_cpu": True,
    "bf16": False,
    "seed": 3,
    "push_to_hub": True,
    "hub_token": TOKEN,
    "hub_private_repo": True,
}
ONLINE = {
    "reward_funcs": ["bleu"], "num_generations": 2, "num_ppo_epochs": 1, "max_completion_length": 4,
    "save_steps": 1,
}  # fmt: skip


def arguments(folder: Path, **told: Any) -> Any:
    """Of a training, as far as a push reads them."""
    plain = {
        "output_dir": str(folder), "push_to_hub": True, "hub_model_id": None, "hub_private_repo": None,
        "hub_revision": None, "hub_token": None, "hub_strategy": "every_save",
    }  # fmt: skip
    return SimpleNamespace(**plain | told)


def command(tmp_path: Path, **settings: Any) -> list[str]:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(SETTINGS | {"output_dir": str(tmp_path / "run")} | settings))
    return ["--config", str(path)]


def test_a_training_command_pushes_its_finished_run(
    hub: Hub, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    assert main(["ppo", *command(tmp_path, **ONLINE)]) == 0
    said = capfd.readouterr()
    assert "when it is finished, this run goes to run on the hub (private)\n" in said.out
    assert f"\npushed to {hub.url}/ada/run: " in said.out
    repo = hub.repos["ada/run"]
    assert repo.private
    assert repo.messages == ["initial commit", "Upload of a run by mmft"]
    there, run = repo.files(), tmp_path / "run"
    assert {"adapter_model.safetensors", "heads.safetensors", "summary.json", "report.html"} <= set(there)
    assert not any(name.startswith("checkpoint-") for name in there)
    assert (run / "checkpoint-1").is_dir()
    assert there["summary.json"] == (run / "summary.json").read_bytes()
    card = ModelCard(there["README.md"].decode())
    assert card.data.base_model is None
    assert card.data.eval_results[0].metric_type == "total-reward"
    assert "from_pretrained('ada/run')" in card.text
    first = next(number for number, each in enumerate(hub.requests) if each.path == "/api/repos/create")
    last = next(number for number, each in enumerate(hub.requests) if "/commit/" in each.path)
    assert first < last
    check_nothing_leaks(run, there, said.out + said.err, tmp_path)


def check_nothing_leaks(run: Path, there: dict[str, bytes], said: str, tmp_path: Path) -> None:
    """No token in anything that was written or printed, no path of this machine in what was sent."""
    written = {str(path): path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert TOKEN.encode() not in b"".join([*written.values(), *there.values(), said.encode()])
    told = (run / "config.yaml").read_text()
    assert told.startswith("# `hub_token` is a secret, and is not written here.\n")
    assert yaml.safe_load(told)["push_to_hub"] is True
    assert "push_to_hub" not in yaml.safe_load(there["config.yaml"])
    assert [name for name, content in there.items() if str(tmp_path).encode() in content] == []


def test_a_warm_start_is_pushed_by_mmft_and_not_by_trl(
    hub: Hub, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    assert main(["sft", *command(tmp_path, activation_checkpointing=False, save_steps=1)]) == 0
    there, run = hub.repos["ada/run"].files(), tmp_path / "run"
    assert hub.repos["ada/run"].messages == ["initial commit", "Upload of a run by mmft"]
    assert {"training_args.bin", "merged", "checkpoint-1"} <= {each.name for each in run.iterdir()}
    assert {"adapter_model.safetensors", "config.yaml", "README.md"} <= set(there)
    assert not any(name.startswith(("training_args", "merged", "checkpoint")) for name in there)
    card = ModelCard(there["README.md"].decode())
    assert (
        "with supervised fine-tuning (TRL's SFTTrainer) on `mmft/scenes`, to write its captions." in card.text
    )
    (result,) = card.data.eval_results
    assert result.metric_type == "loss"
    said = capfd.readouterr()
    assert "this run goes to ada/run on the hub (private)" in said.out
    assert TOKEN.encode() not in b"".join(there.values())


def test_a_closed_door_is_found_before_anything_is_trained(
    hub: Hub, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    hub.read_only.add(TOKEN)
    assert main(["ppo", *command(tmp_path, **ONLINE)]) == 2
    said = capfd.readouterr()
    assert said.err.startswith("mmft ppo: error: cannot write to run: this token may not write there.")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


# The trainer in Python


def trainer(folder: Path, **told: Any) -> PPOTrainer:
    args = PPOConfig(output_dir=str(folder), use_cpu=True, bf16=False, report_to="none", **told)
    adapters = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    rows = [{"prompt": PROMPT, "image": image} for image in load_scenes("train", 2)["image"]]
    return PPOTrainer("mmft/tiny-captioner", byte_variety, args, rows, peft_config=adapters)


def test_a_trainer_pushes_when_it_is_told_to_and_not_when_it_saves(hub: Hub, tmp_path: Path):
    made = trainer(tmp_path / "mine", push_to_hub=True, hub_private_repo=True)
    assert made.hub_model_id == "ada/mine"
    assert hub.repos["ada/mine"].private
    made.save_model(str(tmp_path / "elsewhere"))
    assert hub.counted("POST", "/commit/") == 0
    plan = made.push_to_hub("By hand", revision="second")
    assert plan.url == f"{hub.url}/ada/mine/tree/second"
    there = hub.repos["ada/mine"].files("second")
    assert {"adapter_model.safetensors", "heads.safetensors", "README.md"} <= set(there)
    assert hub.repos["ada/mine"].messages[-1] == "By hand"
    with pytest.raises(ConfigError, match=r"`blocking=False`: a push is one commit.* Leave it out"):
        made.push_to_hub(blocking=False)


def test_a_trainer_can_push_without_having_been_told_at_the_start(hub: Hub, tmp_path: Path):
    made = trainer(tmp_path / "mine", hub_model_id="ada/other")
    assert hub.requests == []
    made.push_to_hub(private=True, license="mit")
    assert hub.repos["ada/other"].private
    assert ModelCard(hub.repos["ada/other"].files()["README.md"].decode()).data.license == "mit"


# What the arguments say


def test_the_repository_is_named_as_the_folder_unless_it_has_a_name(tmp_path: Path):
    assert repo_of(arguments(tmp_path / "mine/")) == "mine"
    assert repo_of(arguments(tmp_path, hub_model_id="ada/x")) == "ada/x"


@pytest.mark.parametrize("strategy", ["checkpoint", "all_checkpoints"])
def test_a_strategy_of_several_pushes_is_refused(strategy: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=f"`hub_strategy` is '{strategy}', but a run is pushed once"):
        prepare_push(arguments(tmp_path, hub_strategy=strategy))


@pytest.mark.parametrize("strategy", ["end", "every_save"])
def test_the_repository_is_made_as_the_arguments_say(
    strategy: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("HF_TOKEN")
    told = {"hub_private_repo": True, "hub_revision": "second", "hub_token": TOKEN}
    assert prepare_push(arguments(tmp_path / "mine", hub_strategy=strategy, **told)) == "ada/mine"
    assert hub.repos["ada/mine"].private
    assert "second" in hub.repos["ada/mine"].branches


def test_a_failed_push_leaves_the_run_and_says_how_to_go_on(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = make_run(tmp_path / "a run")
    args = arguments(run, hub_private_repo=True, hub_revision="second")
    hub.failures.append(Failure("POST", "/commit/", 500))
    assert push_finished(args, "ada/mine") == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert f"the run is finished, all of it is in {run}/, but it was not pushed: " in said.err
    assert f"By hand: `mmft push '{run}' ada/mine --private --revision second`." in said.err
    hub.failures.clear()
    assert push_finished(args, "ada/mine") == 0
    assert f"pushed to {hub.url}/ada/mine/tree/second: 17 files; 5 not sent" in capsys.readouterr().out


def test_a_run_that_nobody_else_could_load_is_finished_all_the_same(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert push_finished(arguments(tmp_path), "ada/mine") == 1
    assert "nothing to push" in capsys.readouterr().err


def test_nobody_pushes_who_was_not_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert push_finished(arguments(tmp_path, push_to_hub=False)) == 0
    monkeypatch.setenv("RANK", "1")
    assert push_finished(arguments(tmp_path)) == 0


def test_where_a_run_will_go_is_said_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    announce_push(arguments(tmp_path, push_to_hub=False))
    assert capsys.readouterr().out == ""
    announce_push(arguments(tmp_path / "mine"))
    assert "goes to mine on the hub (public, unless your organization makes" in capsys.readouterr().out
