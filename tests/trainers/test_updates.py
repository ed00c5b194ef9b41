"""What a setting does to a real run: sampling, scoring, reference, accumulation, frozen and trained parts."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmft.engine.verify import Verification
from mmft.models.prompts import PromptEncoding, PromptInputs
from mmft.trainers import collector
from mmft.trainers.experience import Experience
from mmft.trainers.ppo import PPOTrainer
from tests.trainers.support import (
    END_IDS,
    EVERY_ATTENTION,
    LENGTH,
    make_rows,
    make_trainer,
    moved,
    step_rows,
    trained_weights,
)


def trained(folder: Path, **arguments: Any) -> PPOTrainer:
    trainer = make_trainer(folder, **arguments)
    trainer.train()
    return trainer


def assert_same_weights(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert actual.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(actual[name], weight, rtol=0, atol=tolerance, msg=name)


def test_a_run_moves_adapters_and_critic_and_nothing_else(tmp_path: Path):
    trainer = make_trainer(tmp_path)
    frozen = {n: p.clone() for n, p in trainer.actor_critic.named_parameters() if not p.requires_grad}
    before = trained_weights(trainer)
    trainer.train()
    assert moved(before, trained_weights(trainer)) == before.keys()
    assert {name.split(".")[-2] for name in before if "lora" in name} == {"default"}
    assert {"value_head.weight", "value_head.bias"} < before.keys()
    assert moved(frozen, dict(trainer.actor_critic.named_parameters())) == set()


def test_equal_settings_give_equal_bits_and_another_seed_does_not(tmp_path: Path):
    runs = [trained(tmp_path / str(i), seed=seed, max_steps=5) for i, seed in enumerate([3, 3, 4])]
    weights = [trained_weights(run) for run in runs]
    assert moved(weights[0], weights[1]) == set()
    assert moved(weights[0], weights[2]) == weights[0].keys()
    assert step_rows(runs[0]) == step_rows(runs[1])


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.6}, {"temperature": 1.5, "top_k": 20}])
def test_the_first_update_of_a_rollout_starts_from_the_policy_that_sampled(
    settings: dict[str, float], tmp_path: Path
):
    trainer = trained(tmp_path, num_mini_batches=1, max_steps=4, **settings)
    for number, logged in enumerate(step_rows(trainer)):
        if number % 2 == 0:
            assert logged["approx_kl"] < 1e-10
            assert logged["clip_fraction"] == 0
        else:
            assert logged["approx_kl"] > 1e-6


def scored(trainer: PPOTrainer, experience: Experience, temperature: float) -> Tensor:
    trainer.actor_critic.eval()
    with torch.no_grad():
        return trainer.actor_critic(experience.prompts, experience.completions, temperature=temperature).logps


def test_sampled_log_probs_are_scored_log_probs_at_the_temperature(tmp_path: Path):
    trainer = trained(tmp_path, temperature=0.6, max_steps=4)
    experience = trainer.collect(1)
    mask = experience.completions.mask
    torch.testing.assert_close(scored(trainer, experience, 0.6)[mask], experience.old_logps[mask])
    assert (scored(trainer, experience, 1.0) - experience.old_logps)[mask].abs().max() > 0.1


def test_values_are_those_of_the_critic_when_it_sampled(tmp_path: Path):
    trainer = trained(tmp_path, max_steps=4)
    experience = trainer.collect(1)
    with torch.no_grad():
        values = trainer.actor_critic(experience.prompts, experience.completions).values
    assert values.abs().max() > 0.01
    torch.testing.assert_close(values, experience.values)


@pytest.mark.parametrize("packed", [True, False])
def test_log_probs_of_the_rollout_are_drawn_without_dropout(packed: bool, tmp_path: Path):
    trainer = trained(tmp_path, lora_dropout=0.5, max_steps=4)
    trainer.actor_critic.packed = packed  # the plain path scores once more what it sampled
    trainer.actor_critic.train()
    experience = trainer.collect(1)
    assert trainer.actor_critic.training
    torch.testing.assert_close(scored(trainer, experience, 1.0), experience.old_logps)
    trainer.train()
    assert step_rows(trainer)[-1]["approx_kl"] > 1e-6  # while the update itself drops


def test_without_kl_no_reference_exists_or_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    trainer = make_trainer(tmp_path, lora=False, kl_coef=0.0, max_steps=2)
    assert trainer.actor_critic._frozen_copy == []
    monkeypatch.setattr(trainer.actor_critic, "_reference", lambda: pytest.fail("a reference was asked for"))
    trainer.train()
    assert trainer.experience.ref_logps is None
    assert "kl" not in step_rows(trainer)[0]


@pytest.mark.parametrize("lora", [True, False])
def test_the_reference_stays_the_pretrained_policy(lora: bool, tmp_path: Path):
    trainer = make_trainer(tmp_path, lora=lora, max_steps=4, num_mini_batches=1)
    first = trainer.collect(0)
    mask = first.completions.mask
    torch.testing.assert_close(first.ref_logps[mask], first.old_logps[mask])  # nothing has moved yet
    trainer.train()
    again = trainer.actor_critic.reference_logps(first.prompts, first.completions)
    torch.testing.assert_close(again, first.ref_logps)
    assert (scored(trainer, first, 1.0) - first.ref_logps)[mask].abs().max() > 1e-3
    assert step_rows(trainer)[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert abs(step_rows(trainer)[2]["kl"]) > 1e-3


def test_kl_holds_the_policy_near_its_reference(tmp_path: Path):
    def drift(kl_coef: float) -> float:
        trainer = trained(tmp_path / str(kl_coef), kl_coef=kl_coef, max_steps=17, rewards=count_zero)
        return step_rows(trainer)[16]["kl"]

    assert drift(5.0) < 0.5 * drift(0.01)


def count_zero(completion_ids: list[list[int]], **columns: Any) -> list[float | None]:
    return [sum(token % 2 for token in ids) / LENGTH for ids in completion_ids]


def test_cut_completions_pay_the_penalty(tmp_path: Path):
    settings = {"kl_coef": 0.0, "lam": 1.0, "gamma": 1.0}
    free = make_trainer(tmp_path / "free", **settings).collect(0)
    paying = make_trainer(tmp_path / "paying", missing_eos_penalty=3.0, **settings).collect(0)
    assert 0 < int(free.ended.sum()) < len(free.ended)
    mask = free.completions.mask
    expected = torch.where(free.ended, 0.0, 3.0)[:, None].expand_as(mask)
    torch.testing.assert_close((free.returns - paying.returns)[mask], expected[mask])


def test_one_completion_per_prompt_is_enough(tmp_path: Path):
    trainer = trained(tmp_path, num_generations=1)
    logged = step_rows(trainer)
    assert logged[0]["reward_std_in_group"] == 0
    assert len(trainer.experience.rows) == 8
    assert all(row["grad_norm"] > 0 for row in logged)


@pytest.mark.parametrize("lora", [True, False])
def test_accumulated_micro_batches_equal_one_batch(lora: bool, tmp_path: Path):
    whole = trained(tmp_path / "whole", lora=lora)
    parts = trained(
        tmp_path / "parts", lora=lora, per_device_train_batch_size=2, gradient_accumulation_steps=2
    )
    # Adam divides by gradients that all but vanish: on some CPUs one weight is 1.1e-5 apart.
    assert_same_weights(trained_weights(parts), trained_weights(whole), 2e-5)
    for mine, expected in zip(step_rows(parts), step_rows(whole), strict=True):
        assert mine == pytest.approx(expected, abs=1e-4)


def test_a_rollout_decoded_in_parts_is_the_same_rollout(tmp_path: Path):
    whole = make_trainer(tmp_path / "whole").collect(0)
    parts = make_trainer(tmp_path / "parts", rollout_batch_size=3).collect(0)  # one prompt at a time
    assert torch.equal(parts.completions.ids, whole.completions.ids)
    torch.testing.assert_close(parts.old_logps, whole.old_logps)
    torch.testing.assert_close(parts.advantages, whole.advantages)


@pytest.mark.parametrize("num_rows", [1, 3, 5])
def test_fewer_or_odd_rows_than_a_rollout_needs(num_rows: int, tmp_path: Path):
    trainer = trained(tmp_path, rows=make_rows(num_rows))
    experience = trainer.collect(0)
    assert set(experience.rows) <= set(range(num_rows))
    assert len(experience.rows) == 4
    # A prompt that comes twice is answered anew.
    assert len({str(ids) for ids in experience.completions.ids.tolist()}) > 4


def test_every_mini_batch_of_a_pass_is_another_part_of_the_rollout(tmp_path: Path):
    trainer = make_trainer(tmp_path, num_mini_batches=4, per_device_train_batch_size=2)
    seen: list[list[int]] = []
    compute = trainer.compute_policy_loss

    def watch(scores: Any, batch: Experience, num_tokens: Tensor) -> Tensor:
        assert int(num_tokens) == int(batch.train_mask.sum())
        seen.append(batch.rows)
        return compute(scores, batch, num_tokens)

    trainer.compute_policy_loss = watch  # type: ignore[method-assign]
    trainer.train()
    rollout = sorted(trainer.plan.rows(0, 0))
    assert [len(rows) for rows in seen] == [1] * 8
    assert sorted(chain(*seen[:4])) == rollout
    assert sorted(chain(*seen[4:])) == rollout
    assert seen[:4] != seen[4:]


def count_encodings(trainer: PPOTrainer) -> list[None]:
    """One entry per picture that passes the vision tower, from now on."""
    calls: list[None] = []
    trainer.actor_critic.backbone.base.model.vision_tower.register_forward_hook(lambda *_: calls.append(None))
    return calls


@pytest.mark.parametrize(("cache_mb", "encoded", "hit_rate"), [(64, 4, 20 / 28), (0, 24, 0)])
def test_pictures_are_encoded_once_however_many_epochs(
    cache_mb: int, encoded: int, hit_rate: float, tmp_path: Path
):
    settings = {"max_steps": 24, "feature_cache_mb": cache_mb, "importance_steps": 0}
    trainer = make_trainer(tmp_path, rows=make_rows(8), **settings)
    trainer.collect(0)  # verifies the first batch, encodes 4 of the 8 rows
    calls = count_encodings(trainer)
    trainer.train()  # 6 rollouts of 4 prompts
    assert len(calls) == encoded
    assert step_rows(trainer)[-4]["cache/hit_rate"] == pytest.approx(hit_rate)


def test_the_cache_changes_no_number(tmp_path: Path):
    cached = trained(tmp_path / "cached", rows=make_rows(4))
    fresh = trained(tmp_path / "fresh", rows=make_rows(4), feature_cache_mb=0)
    assert moved(trained_weights(cached), trained_weights(fresh)) == set()


@pytest.mark.parametrize("trainable", [("vision",), ("projector",), ("vision", "projector", "language")])
def test_a_part_that_trains_moves_and_no_other(trainable: tuple[str, ...], tmp_path: Path):
    trainer = make_trainer(tmp_path, lora=False, trainable=trainable)
    before = trained_weights(trainer)
    trainer.train()
    changed = moved(before, trained_weights(trainer))
    parts = {
        "vision": any("vision_tower.encoder" in name or "vision_model.encoder" in name for name in changed),
        "projector": any("multi_modal_projector" in name for name in changed),
        "language": any("language_model" in name for name in changed),
    }
    assert {part for part, has_moved in parts.items() if has_moved} == set(trainable)
    assert "value_head.weight" in changed
    # Encodings would be stale after a step: prompts stay raw, and nothing is cached.
    assert all(isinstance(prompt, PromptInputs) for prompt in trainer.experience.prompts)
    assert len(trainer.collector.encoder.cache) == 0


def test_adapters_in_the_vision_tower_train(tmp_path: Path):
    trainer = make_trainer(tmp_path, lora_targets=EVERY_ATTENTION)
    before = trained_weights(trainer)
    trainer.train()
    changed = moved(before, trained_weights(trainer))
    assert any("vision" in name and "lora_B" in name for name in changed)
    assert all(isinstance(prompt, PromptInputs) for prompt in trainer.experience.prompts)


def test_frozen_vision_hands_out_encodings(tmp_path: Path):
    experience = make_trainer(tmp_path).collect(0)
    assert all(isinstance(prompt, PromptEncoding) for prompt in experience.prompts)


def refuse(*args: Any) -> Verification:
    return Verification(False, "packed log-probs differ from the plain forward by 1.0e+00", 1.0)


@pytest.mark.parametrize("lora", [True, False])
def test_the_plain_path_gives_the_same_update(
    lora: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    packed = trained(tmp_path / "packed", lora=lora, max_steps=4)
    assert packed.collector.verification.packed
    assert packed.collector.verification.difference < 1e-4
    monkeypatch.setattr(collector, "verify_packed", refuse)
    plain = trained(tmp_path / "plain", lora=lora, max_steps=4)
    assert not plain.collector.verification.packed
    assert plain.collector.verification.difference == 1.0
    assert not plain.actor_critic.packed
    assert [record.message for record in caplog.records if "differ" in record.message] == [
        "packed log-probs differ from the plain forward by 1.0e+00: every completion is scored on its own, "
        "which is slow."
    ]
    assert_same_weights(trained_weights(plain), trained_weights(packed), 1e-4)


def test_the_plain_path_can_be_asked_for(tmp_path: Path):
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.actor_critic.packed = False
    trainer.train()
    assert trainer.collector.verification == Verification(False, "the plain path was asked for")


def test_processes_agree_on_the_path(tmp_path: Path):
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.collector.anyone = lambda flag: True  # another process saw a difference
    trainer.train()
    assert not trainer.actor_critic.packed
    assert trainer.collector.verification.reason == "packed log-probs differ on another process"


def test_gradient_checkpointing_changes_no_update(tmp_path: Path):
    plain = trained(tmp_path / "plain", max_steps=4)
    saving = trained(
        tmp_path / "saving",
        max_steps=4,
        activation_checkpointing=True,
    )
    assert_same_weights(trained_weights(saving), trained_weights(plain), 1e-6)


def test_a_second_training_draws_its_own_rollouts(tmp_path: Path):
    trainer = make_trainer(tmp_path, max_steps=2)
    trainer.train()
    stale = trainer.experience.old_logps
    trainer.train()
    assert trainer.experience.number == 0
    assert not torch.equal(trainer.experience.old_logps, stale)


def test_completions_end_with_the_end_tokens_of_the_model(tmp_path: Path):
    experience = make_trainer(tmp_path, end_ids=END_IDS).collect(0)
    last = experience.completions.ids[range(8), experience.completions.lengths - 1]
    assert [int(token) in END_IDS for token in last] == experience.ended.tolist()


# PaliGemma's processor makes an array of tensors.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("family", ["smolvlm", "qwen2_5_vl", "gemma3", "paligemma"])
def test_other_families_train(family: str, tmp_path: Path):
    target = r".*text_model.*\.(q|v)_proj" if family == "smolvlm" else r".*language_model.*\.(q|v)_proj"
    trainer = make_trainer(tmp_path, family=family, lora_targets=target, max_steps=4)
    before = trained_weights(trainer)
    trainer.train()
    assert moved(before, trained_weights(trainer)) == before.keys()
    assert trainer.collector.verification.packed
