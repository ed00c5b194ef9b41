"""Training reward models: what they learn, what is reported, what is refused, resuming, two processes."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

from mmft.data.rows import PromptDataset
from mmft.engine.learned_reward import LearnedReward
from mmft.engine.reward_model import HEAD_FILE, VLMRewardModel
from mmft.errors import ConfigError, DataError, NonFiniteError
from mmft.models.backbone import make_backbone
from mmft.models.reward_model import SPEC_FILE
from mmft.trainers.reward_model import RewardModelConfig, RewardModelTrainer
from tests import zoo
from tests.trainers.reward_support import (
    LEARNING,
    SETTINGS,
    make_reward_trainer,
    preferences,
    ratings,
    step_rows,
    trained_weights,
)
from tests.trainers.support import moved


def test_uncertainty_is_reported_where_it_is_asked_for(tmp_path: Path):
    settings = LEARNING | {"dropout": 0.2, "mc_samples": 8, "max_steps": 10}
    trainer = make_reward_trainer(tmp_path, preferences(16), preferences(8, seed=1), **settings)
    trainer.train()
    metrics = trainer.evaluate()
    assert metrics["eval_epistemic_std"] > 0
    assert "eval_aleatoric_std" not in metrics
    assert trainer.evaluate() == metrics  # the same networks are drawn each time
    sample = trainer.eval_samples[0]
    assert sample["chosen_epistemic"] > 0
    assert sample["chosen"] == "red"
    assert sample["rejected"] == "blue"


@pytest.mark.parametrize("training", ["lora", "full", "frozen"])
def test_what_should_train_moves_and_the_rest_stays(training: str, tmp_path: Path):
    # Ratings: preferences see differences, which the head's last bias does not change.
    trainer = make_reward_trainer(tmp_path, ratings(16), training=training, loss_type="mse")
    start, every = (
        trained_weights(trainer),
        {n: p.clone() for n, p in trainer.reward_model.named_parameters()},
    )
    trainer.train()
    # The unit is for ratings; the language head is not on the way to a reward.
    still = {"reward_head.shift", "reward_head.scale"} | {name for name in start if "lm_head" in name}
    assert moved(start, trained_weights(trainer)) == start.keys() - still
    now = dict(trainer.reward_model.named_parameters())
    assert moved(every, now) <= start.keys()
    assert any(name.startswith("backbone") for name in start) == (training != "frozen")


def test_micro_batches_add_up(tmp_path: Path):
    whole = make_reward_trainer(tmp_path, per_device_train_batch_size=8, gradient_accumulation_steps=1)
    parts = make_reward_trainer(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    for trainer in (whole, parts):
        trainer.train()
    for name, weight in trained_weights(whole).items():
        torch.testing.assert_close(trained_weights(parts)[name], weight, rtol=0, atol=1e-5, msg=name)
    first, second = step_rows(whole)[0], step_rows(parts)[0]
    assert second["loss"] == pytest.approx(first["loss"], abs=1e-6)
    assert second["mean_margin"] == pytest.approx(first["mean_margin"], abs=1e-6)


def test_rows_that_share_a_picture_and_a_prompt_are_encoded_once(tmp_path: Path):
    rows = preferences(2)
    rows = [rows[0], rows[1], rows[0] | {"chosen": "red it is"}, rows[0] | {"prompt": "??"}]
    trainer = make_reward_trainer(tmp_path, rows, training="full", max_steps=1)
    (inputs,) = list(trainer.get_train_dataloader())
    batch = inputs["batch"].completions
    assert len(batch.rows) == 3
    assert batch.completions.ids.shape[0] == 8


def test_a_margin_asks_for_a_distance(tmp_path: Path):
    rows = [row | {"margin": 2.0} for row in preferences(8)]
    trainer = make_reward_trainer(tmp_path, rows, rows)
    # log(1 + exp(2)) where both rewards are 0
    assert trainer.evaluate()["eval_loss"] == pytest.approx(math.log(1 + math.exp(2)))
    trainer.train()
    assert step_rows(trainer)[0]["loss"] == pytest.approx(math.log(1 + math.exp(2)), abs=1e-4)


def test_centering_keeps_rewards_around_zero(tmp_path: Path):
    means = {}
    for coefficient in (None, 10.0):
        trainer = make_reward_trainer(
            tmp_path,
            preferences(16),
            preferences(16, seed=1),
            max_steps=12,
            lr_scheduler_type="constant",
            center_rewards_coefficient=coefficient,
        )
        with torch.no_grad():
            trainer.reward_model.reward_head.output.bias.fill_(1.0)
        trainer.train()
        means[coefficient] = abs(trainer.evaluate()["eval_mean_reward"])
    assert means[10.0] < 0.5 * means[None]


def test_predictions_are_in_the_unit_of_the_training_ratings(tmp_path: Path):
    rows = ratings(8)
    numbers = [row["rating"] for row in rows]
    trainer = make_reward_trainer(tmp_path, rows, rows, loss_type="mse")
    head = trainer.reward_model.reward_head
    assert head.shift.item() == pytest.approx(np.mean(numbers))
    assert head.scale.item() == pytest.approx(np.std(numbers))
    assert trainer.evaluate()["eval_mse"] == pytest.approx(np.var(numbers))
    trainer.train()
    assert step_rows(trainer)[0]["loss"] == pytest.approx(1.0, abs=0.7)  # of standardised ratings
    raw = make_reward_trainer(tmp_path, rows, rows, loss_type="mse", normalize_ratings=False)
    assert raw.evaluate()["eval_mse"] == pytest.approx(np.mean(np.square(numbers)))


def test_messages_datasets_and_prompt_datasets_are_rows_too(tmp_path: Path):
    rows = preferences(4)
    expected = make_reward_trainer(tmp_path, rows, rows, training="full")
    expected.evaluate()
    chat = [
        row | {name: [{"role": "assistant", "content": row[name]}] for name in ("chosen", "rejected")}
        for row in rows
    ]
    for form in (Dataset.from_list(rows), PromptDataset(rows), chat):
        expected.evaluate(form)
        assert [sample["chosen"] for sample in expected.eval_samples] == [row["chosen"] for row in rows]


def test_a_completion_that_is_too_long_is_cut_and_counted(tmp_path: Path):
    rows = preferences(4)
    rows[1] |= {"chosen": "red and " * 4}
    trainer = make_reward_trainer(tmp_path, rows, rows, max_completion_length=8)
    assert trainer.evaluate()["eval_cut_share"] == 0.25
    assert [sample["cut"] for sample in trainer.eval_samples] == [False, True, False, False]
    assert max(len(ids) for ids in trainer.train_dataset[1].ids) == 8
    trainer.train()
    assert step_rows(trainer)[0]["cut_share"] == 0.25


@pytest.mark.parametrize("training", ["lora", "frozen"])
def test_a_resumed_run_ends_with_the_same_bits(training: str, tmp_path: Path):
    settings = {
        "training": training,
        "lora_dropout": 0.2,
        "dropout": 0.2,
        "loss_type": "heteroscedastic",
        "save_strategy": "steps",
        "save_steps": 2,
    }
    whole = make_reward_trainer(tmp_path / "whole", ratings(24), **settings)
    whole.train()
    resumed = make_reward_trainer(tmp_path / "resumed", ratings(24), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert moved(trained_weights(whole), trained_weights(resumed)) == set()
    assert step_rows(resumed)[-2:] == step_rows(whole)[-2:]


def test_the_best_checkpoint_comes_back(tmp_path: Path):
    settings = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    trainer = make_reward_trainer(
        tmp_path,
        preferences(16),
        preferences(8, seed=1),
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
        **settings,
    )
    trainer.train()
    best = load_file(Path(trainer.state.best_model_checkpoint) / HEAD_FILE)
    head = trainer.reward_model.reward_head.state_dict()
    assert all(torch.equal(head[name.removeprefix("reward_head.")], tensor) for name, tensor in best.items())


def test_a_run_folder_serves_as_a_reward(tmp_path: Path):
    rows = preferences(4)
    trainer = make_reward_trainer(tmp_path, rows, rows, training="full")
    trainer.train()
    trainer.save_model()
    assert (tmp_path / SPEC_FILE).is_file()
    trainer.evaluate()
    rewards = LearnedReward(tmp_path, mc_samples=0)(
        prompts=[row["prompt"] for row in rows],
        completions=[row["chosen"] for row in rows],
        image=[row["image"] for row in rows],
    )
    assert rewards == pytest.approx([sample["chosen_reward"] for sample in trainer.eval_samples], abs=1e-5)


def test_gradient_checkpointing_changes_no_number(tmp_path: Path):
    plain = make_reward_trainer(tmp_path)
    thrifty = make_reward_trainer(tmp_path, activation_checkpointing=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".is_gradient_checkpointing. is", category=FutureWarning)
        for trainer in (plain, thrifty):
            trainer.train()
    for name, weight in trained_weights(plain).items():
        torch.testing.assert_close(trained_weights(thrifty)[name], weight, rtol=0, atol=1e-5, msg=name)


def test_mixed_precision_learns_the_same_thing(tmp_path: Path):
    held_out = preferences(16, seed=1)
    trainer = make_reward_trainer(tmp_path, preferences(16), held_out, bf16=True, max_steps=20, **LEARNING)
    trainer.train()
    assert trainer.inputs.verification.packed
    assert trainer.evaluate()["eval_accuracy"] >= 0.9
    assert {p.dtype for p in trainer.reward_model.parameters()} == {torch.float32}


# What is refused


def test_a_loss_that_is_not_finite_stops_before_the_update(tmp_path: Path):
    trainer = make_reward_trainer(tmp_path)
    with torch.no_grad():
        trainer.reward_model.reward_head.output.bias.fill_(math.nan)
    start = trained_weights(trainer)
    with pytest.raises(NonFiniteError, match=r"step 0: the loss is nan on rows \[.*\]. Nothing was updated"):
        trainer.train()
    assert all(
        torch.equal(
            start[n],
            w,
        )
        or w.isnan().any()
        for n, w in trained_weights(trainer).items()
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"chosen": None},
            "row 2 of 'train': `chosen`: a completion is text or a list of messages; got None",
        ),
        ({"rejected": 3}, "row 2 of 'train': `rejected`: a completion is text or a list of messages; got 3"),
        ({"rejected": "red"}, "row 2 of 'train': `chosen` and `rejected` are both 'red'. Drop the row."),
        ({"margin": math.nan}, "row 2 of 'train': `margin` must be a finite number; got nan"),
    ],
)
def test_a_bad_preference_is_named(change: dict[str, Any], message: str, tmp_path: Path):
    rows = [row | {"margin": 0.0} for row in preferences(4)]
    rows[2] |= change
    with pytest.raises(DataError, match=message):
        make_reward_trainer(tmp_path, rows)


@pytest.mark.parametrize("rating", [None, "good", True, math.inf])
def test_a_bad_rating_is_named(rating: Any, tmp_path: Path):
    rows = ratings(4)
    rows[3] |= {"rating": rating}
    with pytest.raises(DataError, match="row 3 of 'train': `rating` must be a finite number; got "):
        make_reward_trainer(tmp_path, rows, loss_type="mse")


def test_a_broken_picture_is_named(tmp_path: Path):
    rows = preferences(4)
    rows[1] |= {"image": b"no picture"}
    trainer = make_reward_trainer(tmp_path, rows)
    with pytest.raises(DataError, match="row 1 of 'train'"):
        trainer.train()


def test_columns_must_fit_the_loss(tmp_path: Path):
    with pytest.raises(ConfigError, match="the split 'train' has no `chosen` column; preferences"):
        make_reward_trainer(tmp_path, ratings(4))
    with pytest.raises(ConfigError, match="the split 'eval' has no `completion` column; ratings"):
        make_reward_trainer(tmp_path, ratings(4), preferences(4), loss_type="mse")


def test_ratings_without_variance_teach_nothing(tmp_path: Path):
    rows = [row | {"rating": 2} for row in ratings(4)]
    with pytest.raises(ConfigError, match=r"every `rating` is 2.0"):
        make_reward_trainer(tmp_path, rows, loss_type="mse")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss_type": "hinge"}, "`loss_type` must be one of .*; got 'hinge'"),
        ({"dropout": 1.0}, "`dropout` must be at least 0 and below 1; got 1.0"),
        ({"mc_samples": 4, "dropout": 0.0}, "`mc_samples=4` draws networks by dropout, and `dropout` is 0"),
        ({"mc_samples": -1}, "`mc_samples` must be >= 0; got -1"),
        ({"head_width": 0}, "`head_width` must be >= 1; got 0"),
        ({"max_completion_length": 0}, "`max_completion_length` must be >= 1; got 0"),
        ({"loss_type": "mse", "center_rewards_coefficient": 0.1}, "`center_rewards_coefficient` is for"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=message):
        RewardModelConfig(output_dir=str(tmp_path), use_cpu=True, **settings)


def test_models_that_do_not_fit_the_arguments_are_refused(tmp_path: Path):
    from peft import LoraConfig

    args = RewardModelConfig(output_dir=str(tmp_path), **SETTINGS)
    model, processor = zoo.build_model("llava"), zoo.build_processor("llava")
    with pytest.raises(ConfigError, match="`processing_class` is missing"):
        RewardModelTrainer(model, args, preferences(4))
    backbone = make_backbone(model, processor, trainable=())
    with pytest.raises(ConfigError, match="`peft_config` is given beside a Backbone"):
        RewardModelTrainer(backbone, args, preferences(4), peft_config=LoraConfig())
    rated = VLMRewardModel(backbone, loss_type="mse")
    with pytest.raises(
        ConfigError, match="`loss_type` is 'bradley_terry'; the reward model was made for 'mse'"
    ):
        RewardModelTrainer(rated, args, preferences(4))
    with pytest.raises(ConfigError, match="`eval_dataset` is missing; `evaluate` needs held-out rows"):
        RewardModelTrainer(backbone, args, preferences(4)).evaluate()
