"""From rows to rewards: pictures encoded once, frozen readings kept, the shared prompt verified once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mmft.engine.reward_inputs import RewardInputs
from mmft.engine.reward_model import VLMRewardModel
from mmft.engine.scoring import last_states_plain
from tests.engine.reward_support import picture_batch, real_reward_model


def count_encodings(model: VLMRewardModel) -> list[int]:
    """A list that grows whenever the vision tower runs."""
    calls: list[int] = []
    tower = next(m for name, m in model.backbone.base.named_modules() if name.endswith("vision_tower"))
    tower.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


def test_a_picture_is_encoded_once_for_all_its_completions_and_calls() -> None:
    model = real_reward_model()
    batch, inputs = picture_batch(model), RewardInputs(model, 2**20)
    inputs.estimate(batch)  # verification reads the first prompt by itself
    calls = count_encodings(model)
    inputs.estimate(batch, 4)
    assert calls == []
    inputs.estimate(picture_batch(model, seed=1))
    assert len(calls) == 2
    uncached = RewardInputs(model, 0)
    uncached.verification = inputs.verification
    calls.clear()
    uncached.estimate(batch)
    assert len(calls) == 2


def test_a_frozen_backbone_reads_a_completion_once() -> None:
    model = real_reward_model()
    batch = picture_batch(model)
    fresh, keeping = RewardInputs(model, 2**20), RewardInputs(model, 2**20, reread=True)
    expected = fresh.estimate(batch, 3)
    keeping.estimate(batch)
    reads: list[int] = []
    model.backbone.text_model.register_forward_pre_hook(lambda *_: reads.append(1))
    again = keeping.estimate(batch, 3)
    assert reads == []
    torch.testing.assert_close(again.mean, expected.mean, atol=1e-5, rtol=0)
    torch.testing.assert_close(again.epistemic, expected.epistemic, atol=1e-5, rtol=0)
    ids = batch.completions.ids.clone()
    ids[0, 0] += 1
    changed = replace(batch, completions=replace(batch.completions, ids=ids))
    difference = (keeping.estimate(changed, 3).mean - again.mean).abs()
    assert len(reads) == 1
    assert difference[0] > 1e-4
    assert difference[1:].max() < 1e-5


def test_a_backbone_that_trains_is_read_anew() -> None:
    model = real_reward_model("lora")
    batch, inputs = picture_batch(model), RewardInputs(model, 2**20, reread=True)
    before = inputs.estimate(batch).mean
    assert not inputs.keeps_readings
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(0.1 if "lora_B" in name else 0.0)
    assert (inputs.estimate(batch).mean - before).abs().min() > 1e-5


def test_rewards_come_back_in_the_order_in_which_completions_were_given() -> None:
    model = real_reward_model()
    batch, inputs = picture_batch(model), RewardInputs(model, 2**20)
    scores = model([inputs.encoder.inputs(row) for row in batch.rows], batch.completions).mean
    torch.testing.assert_close(inputs.estimate(batch).mean, scores[[0, 2, 1, 3]])


def test_packed_reading_is_trusted_after_it_agreed_with_the_plain_forward(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = real_reward_model()
    batch, inputs = picture_batch(model), RewardInputs(model, 2**20)
    expected = inputs.estimate(batch)
    assert inputs.verification.packed
    assert "agree" in inputs.verification.reason

    broken = real_reward_model()
    monkeypatch.setattr(
        "mmft.engine.reward_inputs.last_states_packed",
        lambda *args: last_states_plain(broken.backbone, [inputs.encoder.inputs(batch.rows[1])], args[2]),
    )
    careful = RewardInputs(broken, 2**20)
    actual = careful.estimate(batch)
    assert not broken.packed
    assert "hidden states differ from the plain forward" in caplog.text
    torch.testing.assert_close(actual.mean, expected.mean, atol=1e-5, rtol=0)
    careful.estimate(batch)
    assert caplog.text.count("which is slow") == 1


def test_a_process_follows_another_one_that_disagrees() -> None:
    model = real_reward_model()
    inputs = RewardInputs(model, 2**20, anyone=lambda flag: True)
    inputs.estimate(picture_batch(model))
    assert not model.packed
    assert "another process" in inputs.verification.reason
