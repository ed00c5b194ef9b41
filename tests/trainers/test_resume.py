"""A run that was stopped at a checkpoint and resumed ends with the bits of the run that was not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import LlavaForConditionalGeneration, TrainerCallback

from mmft.engine.actor_critic import HEADS_FILE, VLMActorCritic
from mmft.engine.verify import Verification
from mmft.errors import ConfigError
from mmft.models.backbone import Backbone
from mmft.trainers import collector
from mmft.trainers.callbacks import METRICS_FILE, RewardProgress
from mmft.trainers.ppo import PPOTrainer
from tests import zoo
from tests.trainers.support import (
    END_IDS,
    make_rows,
    make_trainer,
    moved,
    step_rows,
    trained_weights,
    without_cache,
)

SAVING = {"save_strategy": "steps", "save_steps": 1, "max_steps": 10}
"""Rollouts end at steps 4 and 8."""
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


def optimizer_tensors(trainer: PPOTrainer) -> list[Tensor]:
    state = trainer.optimizer.state_dict()["state"]
    return [value for entry in state.values() for value in entry.values()]


def assert_same_end(resumed: PPOTrainer, whole: PPOTrainer) -> None:
    """The same bits in every trained weight and optimizer tensor, the same log."""
    assert resumed.state.global_step == whole.state.global_step
    assert moved(trained_weights(resumed), trained_weights(whole)) == set()
    mine, expected = optimizer_tensors(resumed), optimizer_tensors(whole)
    assert len(mine) == len(expected) > 0
    assert all(torch.equal(a, b) for a, b in zip(mine, expected, strict=True))
    assert without_cache(step_rows(resumed)) == without_cache(step_rows(whole))


@pytest.fixture(scope="module", params=["lora", "full"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PPOTrainer:
    """A run that saves at every step and was never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    dropout = 0.2 if request.param == "lora" else 0.0  # random numbers must be resumed as well
    trainer = make_trainer(folder, lora=request.param == "lora", lora_dropout=dropout, **SAVING)
    trainer.train()
    return trainer


def fresh_copy(whole: PPOTrainer, folder: Path, **settings: Any) -> PPOTrainer:
    lora = whole.actor_critic.backbone.has_adapters
    return make_trainer(folder, lora=lora, lora_dropout=0.2 if lora else 0.0, **(SAVING | settings))


def checkpoint(trainer: PPOTrainer, step: int) -> str:
    return str(Path(trainer.args.output_dir) / f"checkpoint-{step}")


@pytest.mark.parametrize("step", [4, 5, 7], ids=["between rollouts", "in a first pass", "in a second pass"])
def test_a_resumed_run_ends_with_the_same_bits(whole: PPOTrainer, step: int, tmp_path: Path):
    resumed = fresh_copy(whole, tmp_path)
    with torch.no_grad():  # whatever the fresh trainer holds, the checkpoint counts
        for weight in resumed.actor_critic.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight))
    resumed.train(resume_from_checkpoint=checkpoint(whole, step))
    assert_same_end(resumed, whole)


def test_saving_disturbs_nothing(whole: PPOTrainer, tmp_path: Path):
    silent = fresh_copy(whole, tmp_path, save_strategy="no")
    silent.train()
    assert_same_end(silent, whole)


class StopAt(TrainerCallback):
    """Ends the training, as a signal would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


def metrics_file(trainer: PPOTrainer) -> list[dict[str, float]]:
    """The lines of `metrics.jsonl` that belong to optimizer steps, without times."""
    lines = (Path(trainer.args.output_dir) / METRICS_FILE).read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "loss" in row]
    return [{name: value for name, value in row.items() if not name.startswith("seconds/")} for row in rows]


def test_a_stopped_run_resumes_in_its_own_folder(whole: PPOTrainer, tmp_path: Path):
    stopped = fresh_copy(whole, tmp_path, callbacks=[StopAt(8)], save_steps=3)
    stopped.train()
    assert stopped.state.global_step == 8
    assert not Path(checkpoint(stopped, 8)).exists()  # steps 7 and 8 were lost: saved at 6
    resumed = fresh_copy(whole, tmp_path, save_steps=3)
    resumed.train(resume_from_checkpoint=True)
    assert_same_end(resumed, whole)
    assert without_cache(metrics_file(resumed)) == without_cache(metrics_file(whole))


def test_a_rollout_is_saved_only_where_it_is_unfinished(whole: PPOTrainer):
    steps = [4, 5, 6, 7, 8, 9]
    saved = {step: (Path(checkpoint(whole, step)) / "rollout_0.safetensors").is_file() for step in steps}
    assert saved == {4: False, 5: True, 6: True, 7: True, 8: False, 9: True}


def test_weights_alone_hold_no_rollout(tmp_path: Path):
    trainer = make_trainer(tmp_path, save_only_model=True, **(SAVING | {"max_steps": 2}))
    trainer.train()
    assert not (Path(checkpoint(trainer, 2)) / "rollout_0.safetensors").exists()


def test_a_rollout_of_an_earlier_run_in_the_same_folder_is_removed(tmp_path: Path):
    stale = tmp_path / "checkpoint-4" / "rollout_0.safetensors"
    stale.parent.mkdir()
    stale.write_text("of another run")
    make_trainer(tmp_path, **(SAVING | {"max_steps": 4})).train()
    assert not stale.exists()


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in the middle of a rollout."""
    trainer = make_trainer(tmp_path_factory.mktemp("stopped"), **(SAVING | {"max_steps": 5}))
    trainer.train()
    return Path(checkpoint(trainer, 5))


@pytest.mark.parametrize(
    ("settings", "changed"),
    [
        ({"per_device_train_batch_size": 8}, r"local_groups=4 \(now 8\)"),
        ({"num_mini_batches": 4}, r"local_groups=4 \(now 8\), num_mini_batches=2 \(now 4\)"),
        ({"num_ppo_epochs": 5}, r"num_epochs=2 \(now 5\)"),
        ({"seed": 1}, r"seed=42 \(now 1\)"),
        ({"rows": make_rows(3)}, r"num_rows=16 \(now 3\)"),
    ],
)
def test_another_plan_cannot_take_over_half_a_rollout(
    settings: dict[str, Any], changed: str, stopped: Path, tmp_path: Path
):
    trainer = make_trainer(tmp_path, **(SAVING | settings))
    with pytest.raises(ConfigError, match=rf"saved in the middle of a rollout with {changed}\. Resume with"):
        trainer.train(resume_from_checkpoint=str(stopped))


def test_half_a_rollout_that_is_gone_is_named(stopped: Path, tmp_path: Path):
    folder = shutil.copytree(stopped, tmp_path / "checkpoint-5")
    (folder / "rollout_0.safetensors").unlink()
    trainer = make_trainer(tmp_path / "run", **SAVING)
    with pytest.raises(ConfigError, match=r"rollout_0.safetensors is missing in .*the middle of rollout 1"):
        trainer.train(resume_from_checkpoint=str(folder))


def test_the_cut_into_micro_batches_may_change_when_a_run_resumes(stopped: Path, tmp_path: Path):
    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    trainer = make_trainer(tmp_path, **(SAVING | settings | {"max_steps": 6}))
    trainer.train(resume_from_checkpoint=str(stopped))
    assert trainer.experience.number == 1


def test_a_resumed_run_finds_its_path_before_it_encodes(
    stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(collector, "verify_packed", lambda *_: Verification(False, "packed log-probs differ"))
    trainer = make_trainer(tmp_path, **(SAVING | {"max_steps": 6}))
    trainer.train(resume_from_checkpoint=str(stopped))
    assert not trainer.actor_critic.packed


def test_the_critic_is_restored(stopped: Path, tmp_path: Path):
    trainer = make_trainer(tmp_path, **SAVING)
    head = trainer.actor_critic.value_head
    with torch.no_grad():
        for weight in head.parameters():
            weight.add_(torch.randn_like(weight))
    trainer.actor_critic.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / HEADS_FILE).is_file()
    other = make_trainer(tmp_path / "other", **SAVING).actor_critic
    assert not torch.equal(other.value_head.weight, head.weight)
    other.load_heads(tmp_path / "saved")
    assert torch.equal(other.value_head.weight, head.weight)
    assert torch.equal(other.value_head.bias, head.bias)


def reference_logps(trainer: PPOTrainer, backbone: Backbone) -> Tensor:
    """Log-probs of the trainer's last rollout under another backbone."""
    experience = trainer.experience
    with torch.no_grad():
        return VLMActorCritic(backbone, reference=False)(experience.prompts, experience.completions).logps


def test_a_saved_adapter_is_a_plain_peft_adapter(tmp_path: Path):
    trainer = make_trainer(tmp_path)
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    model = PeftModel.from_pretrained(zoo.build_model("llava"), tmp_path / "final")
    logps = reference_logps(trainer, Backbone(model, zoo.build_processor("llava")))
    trainer.actor_critic.eval()
    mine = reference_logps(trainer, trainer.actor_critic.backbone)
    assert torch.equal(logps, mine)
    untrained = reference_logps(trainer, Backbone(zoo.build_model("llava"), zoo.build_processor("llava")))
    assert (untrained - mine).abs().max() > 1e-3


def test_saved_full_weights_are_a_plain_model(tmp_path: Path):
    trainer = make_trainer(tmp_path, lora=False, end_ids=END_IDS)
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path / "final", dtype=torch.float32)
    expected = dict(trainer.actor_critic.backbone.model.named_parameters())
    assert moved(dict(model.named_parameters()), expected) == set()


def test_the_best_checkpoint_is_loaded_at_the_end(tmp_path: Path):
    settings = {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "reward", "max_steps": 3}
    trainer = make_trainer(
        tmp_path, load_best_model_at_end=True, eval_rows=make_rows(4), **(SAVING | settings)
    )
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    again = make_trainer(tmp_path / "again", **SAVING)
    again.actor_critic.load_checkpoint(best)
    assert moved(trained_weights(again), trained_weights(trainer)) == set()


def test_the_progress_bar_shows_the_reward(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    trainer = make_trainer(tmp_path, disable_tqdm=False, max_steps=2)
    shown: list[dict[str, str]] = []
    bar = next(c for c in trainer.callback_handler.callbacks if isinstance(c, RewardProgress))
    trainer.add_callback(Watch(bar, shown))
    trainer.train()
    assert shown[0].keys() == {"reward", "kl", "mean_length"}
    assert "{'loss'" not in capsys.readouterr().out  # no line per log


class Watch(TrainerCallback):
    """Reads what stands behind the bar after each log."""

    def __init__(self, bar: RewardProgress, shown: list[dict[str, str]]) -> None:
        self.bar, self.shown = bar, shown

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        postfix = self.bar.training_bar.postfix
        self.shown.append(dict(part.split("=") for part in postfix.split(", ")) if postfix else {})
