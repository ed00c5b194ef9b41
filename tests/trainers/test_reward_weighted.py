"""Reward-weighted likelihood: its weights, what they leave out, passes over given rows, checkpoints."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from mmft.engine.verify import Verification
from mmft.errors import ConfigError, DataError, RewardError
from mmft.models.prompts import PromptEncoding, PromptInputs
from mmft.trainers import collector
from mmft.trainers.experience import Experience
from mmft.trainers.reward_weighted import RewardWeightedConfig, RewardWeightedTrainer
from tests.trainers.support import (
    EVERY_ATTENTION,
    LENGTH,
    make_rows,
    make_trainer,
    moved,
    random_experience,
    step_rows,
    token_reward,
    trained_weights,
    without_cache,
)


def online(folder: Path, **arguments: Any) -> RewardWeightedTrainer:
    return make_trainer(
        folder, trainer_class=RewardWeightedTrainer, config_class=RewardWeightedConfig, **arguments
    )


def judged_rows(prompts: int = 5, answers: int = 3) -> list[dict[str, Any]]:
    """Fewer answers to later prompts; answers of one prompt far apart; a reward of its own for each."""
    shown = make_rows(prompts)
    return [
        shown[prompt] | {"completion": "abcde"[: 1 + (prompt + n) % 4], "reward": (n + prompt / 8) / answers}
        for n in range(answers)
        for prompt in range(prompts)
        if n == 0 or prompt + n < prompts
    ]


def offline(
    folder: Path, rows: list[dict[str, Any]] | None = None, **arguments: Any
) -> RewardWeightedTrainer:
    """Chunks of up to 2 answers, 2 chunks per micro-batch, 4 per batch."""
    rows = judged_rows() if rows is None else rows
    return online(folder, rows=rows, offline=True, **({"rewards": ()} | arguments))


def targets(trainer: RewardWeightedTrainer, scores: list[float]) -> Experience:
    experience = random_experience(num_prompts=2, num_generations=len(scores) // 2)
    return trainer.add_targets(experience.with_tensors(scores=torch.tensor(scores)))


# Weights


def test_exponential_weights_have_mean_one_and_the_ratio_of_their_rewards(tmp_path: Path):
    weights = targets(online(tmp_path, tau=0.5), [0.0, 1.0, 0.5, 0.5]).weights
    # exp of 0, 2, 1, 1 over their mean (1 + 7.389 + 2.718 + 2.718) / 4 = 3.456
    torch.testing.assert_close(weights, torch.tensor([0.2893, 2.1378, 0.7865, 0.7865]), rtol=0, atol=1e-4)


def test_a_group_baseline_compares_the_answers_of_a_prompt(tmp_path: Path):
    trainer = online(tmp_path, weighting="baseline", baseline="group")
    assert targets(trainer, [1.0, 3.0, 10.0, 14.0]).weights.tolist() == [-1.0, 1.0, -2.0, 2.0]
    trainer = online(tmp_path, weighting="baseline", baseline="batch")
    assert targets(trainer, [1.0, 3.0, 10.0, 14.0]).weights.tolist() == [-6.0, -4.0, 3.0, 7.0]


def test_samples_that_were_not_taken_leave_the_likelihood(tmp_path: Path):
    experience = targets(online(tmp_path, weighting="top_fraction", top_fraction=0.5), [0.3, 0.1, 0.2, 0.4])
    assert experience.weights.tolist() == [1.0, 0.0, 0.0, 1.0]
    lengths = experience.completions.lengths
    assert experience.train_mask.sum(1).tolist() == [int(lengths[0]), 0, 0, int(lengths[3])]


def test_unjudged_samples_weigh_nothing_and_count_nowhere(tmp_path: Path):
    trainer = online(tmp_path, weighting="baseline", baseline="batch")
    assert targets(trainer, [1.0, math.nan, 3.0, math.nan]).weights.tolist() == [-1.0, 0.0, 1.0, 0.0]
    assert trainer.metric_log.flush()["weights/max"] == 1.0


def test_what_dense_rewards_pay_for_tokens_counts_as_well(tmp_path: Path):
    trainer = online(tmp_path, weighting="baseline", baseline="batch")
    experience = random_experience(num_prompts=2, dense=True)
    earned = experience.scores + experience.token_rewards.sum(1)
    torch.testing.assert_close(trainer.add_targets(experience).weights, earned - earned.mean())


def test_the_log_tells_how_many_samples_count(tmp_path: Path):
    trainer = online(tmp_path, weighting="reward")
    targets(trainer, [1.0, 0.0, 3.0, math.nan])
    logged = trainer.metric_log.flush()
    assert logged["weights/mean"] == pytest.approx(4 / 3)
    assert logged["weights/max"] == 3.0
    assert logged["weights/effective_share"] == pytest.approx(16 / (3 * 10))
    assert "weights/zero_rollouts" not in logged
    trainer = online(tmp_path, weighting="baseline", baseline="batch")
    targets(trainer, [1.0, 0.0, 3.0, math.nan])
    assert "weights/effective_share" not in trainer.metric_log.flush()  # of negative weights it says nothing


def test_a_rollout_without_any_reward_teaches_nothing_and_is_counted(tmp_path: Path):
    def nothing(prompts: list[Any], **columns: Any) -> list[float]:
        return [0.0] * len(prompts)

    trainer = online(tmp_path, rewards=nothing, weighting="reward", max_steps=8)
    before = trained_weights(trainer)
    trainer.train()
    assert moved(before, trained_weights(trainer)) == set()
    counted = [row.get("weights/zero_rollouts") for row in step_rows(trainer)]
    assert counted == [1.0, None, None, None, 1.0, None, None, None]


def test_a_rollout_that_nobody_judged_teaches_nothing(tmp_path: Path):
    def silent(prompts: list[Any], **columns: Any) -> list[None]:
        return [None] * len(prompts)

    trainer = online(tmp_path, rewards=silent, max_steps=4)
    before = trained_weights(trainer)
    trainer.train()
    assert moved(before, trained_weights(trainer)) == set()


def test_a_negative_reward_is_refused_with_its_row(tmp_path: Path):
    with pytest.raises(
        ConfigError,
        match=r"row 11 of 'train' has the reward -0\.5, and `weighting: reward` .*exponential.*allow_neg",
    ):
        targets(online(tmp_path, weighting="reward"), [1.0, 0.0, 3.0, -0.5])
    allowed = online(tmp_path, weighting="reward", allow_negative_rewards=True)
    assert targets(allowed, [1.0, 0.0, 3.0, -0.5]).weights.tolist() == [1.0, 0.0, 3.0, -0.5]


def test_neither_critic_nor_reference_is_built(tmp_path: Path):
    trainer = online(tmp_path)
    assert trainer.actor_critic.value_head is None
    assert trainer.collect(0).ref_logps is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weighting": "best"}, r"`weighting` must be one of reward, .*got 'best'"),
        ({"baseline": "mean"}, r"`baseline` must be one of none, batch, group; got 'mean'"),
        ({"weighting": "baseline"}, r"`weighting: baseline` subtracts a baseline, but `baseline` is 'none'"),
        ({"tau": 0.0}, r"`tau` must be a number > 0; got 0"),
        ({"top_fraction": 1.5}, r"`top_fraction` must be above 0 and at most 1; got 1.5"),
        ({"baseline": "group", "num_generations": 1}, r"`baseline: group` compares .*`num_generations` is 1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=message):
        online(tmp_path, **settings)


def test_settings_are_needed():
    with pytest.raises(ConfigError, match="`args` is missing; give a `RewardWeightedConfig`"):
        RewardWeightedTrainer("model")


# Online updates


def test_equal_rewards_are_plain_likelihood_of_the_samples(tmp_path: Path):
    """Whatever the weighting, weights are then 1; several passes are allowed."""

    def same(prompts: list[Any], **columns: Any) -> list[float]:
        return [1.0] * len(prompts)

    runs = []
    for settings in (
        {"weighting": "reward"},
        {"tau": 0.3},
        {"weighting": "top_fraction", "top_fraction": 1.0},
    ):
        runs.append(online(tmp_path, rewards=same, max_steps=4, **settings))
        start = trained_weights(runs[-1])
        runs[-1].train()
        assert moved(start, trained_weights(runs[-1])) == start.keys()
    for run in runs[1:]:
        assert moved(trained_weights(runs[0]), trained_weights(run)) == set()


def test_the_loss_is_the_weighted_mean_over_tokens(tmp_path: Path):
    trainer = online(tmp_path, gradient_accumulation_steps=2)
    batches = [trainer._prepare_inputs({"micro_batch": number}) for number in range(2)]
    losses = [trainer.compute_loss(trainer.actor_critic, batch) for batch in batches]
    total, tokens = 0.0, 0
    for batch in (each["batch"] for each in batches):
        logps = trainer.actor_critic(batch.prompts, batch.completions).logps.detach()
        for sample in range(len(batch.scores)):
            for step in range(int(batch.completions.lengths[sample])):
                total -= float(batch.weights[sample] * logps[sample, step])
                tokens += 1
    assert float(sum(losses).detach()) == pytest.approx(total / tokens, abs=1e-6)


# Scoring


def test_the_plain_path_gives_the_same_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    packed = offline(tmp_path, max_steps=4)
    packed.train()
    assert packed.collector.verification.packed
    assert packed.collector.verification.sampler_difference is None
    refused = Verification(False, "packed log-probs differ from the plain forward", 1.0)
    monkeypatch.setattr(collector, "verify_packed", lambda *_: refused)
    plain = offline(tmp_path, max_steps=4)
    plain.train()
    assert not plain.actor_critic.packed
    assert isinstance(plain.experience.prompts[0], PromptInputs)
    expected = trained_weights(packed)
    for name, weight in trained_weights(plain).items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-4, msg=name)


def test_vision_that_trains_is_encoded_in_the_graph(tmp_path: Path):
    trainer = offline(tmp_path, lora_targets=EVERY_ATTENTION, max_steps=2)
    before = trained_weights(trainer)
    trainer.train()
    changed = moved(before, trained_weights(trainer))
    assert any("vision" in name for name in changed)


# Offline batches


def seen(trainer: RewardWeightedTrainer) -> list[list[float]]:
    """Trains; the rewards of the samples that train, batch by batch."""
    batches, collect = [], trainer.collect

    def watched(number: int) -> Experience:
        experience = collect(number)
        batches.append(experience.scores[experience.train_mask.any(1)].tolist())
        return experience

    trainer.collect = watched
    trainer.train()
    return batches


@pytest.mark.parametrize("size", [4, 8, 64])
def test_one_epoch_sees_every_row_exactly_once(size: int, tmp_path: Path):
    rows = judged_rows()
    trainer = offline(
        tmp_path, rows, per_device_train_batch_size=size, num_mini_batches=1, num_ppo_epochs=1, max_steps=-1,
        num_train_epochs=2,
    )  # fmt: skip
    batches = seen(trainer)
    expected = sorted(float(torch.tensor(row["reward"])) for row in rows)
    half = len(batches) // 2
    for epoch in (batches[:half], batches[half:]):
        assert sorted(reward for batch in epoch for reward in batch) == pytest.approx(expected)


def test_passes_over_a_batch_and_over_the_data_are_two_things(tmp_path: Path):
    trainer = offline(tmp_path, num_mini_batches=1, num_ppo_epochs=3, max_steps=-1, num_train_epochs=1)
    batches = seen(trainer)
    assert trainer.state.global_step == 3 * len(batches)


def test_a_micro_batch_holds_as_many_completions_as_it_has_room_for(tmp_path: Path):
    rows = [row | {"completion": "a", "reward": 1.0} for row in make_rows(9)]  # no prompt twice
    trainer = offline(tmp_path, rows, per_device_train_batch_size=4, num_generations=4)
    assert trainer.plan.groups_per_micro_batch == 4
    assert offline(tmp_path).plan.groups_per_micro_batch == 2


def test_pictures_are_encoded_once_in_a_run(tmp_path: Path):
    trainer = offline(tmp_path, max_steps=16)
    trainer.train()
    cache = trainer.collector.encoder.cache
    assert (len(cache), cache.misses) == (5, 5)
    assert isinstance(trainer.experience.prompts[0], PromptEncoding)


def test_weights_are_relative_to_the_whole_data_set(tmp_path: Path):
    rows = judged_rows()
    trainer = offline(tmp_path, rows, tau=0.5)
    rewards = torch.tensor([row["reward"] for row in rows])
    expected = (rewards / 0.5).exp() / (rewards / 0.5).exp().mean()
    experience = trainer.collect(0)
    for reward, weight in zip(experience.scores, experience.weights, strict=True):
        torch.testing.assert_close(weight, expected[(rewards - reward).abs().argmin()])
    assert trainer.metric_log.flush()["weights/mean"] == pytest.approx(1.0)


def test_rows_that_were_not_taken_cost_nothing(tmp_path: Path):
    rows = judged_rows()
    trainer = offline(tmp_path, rows, weighting="top_fraction", top_fraction=0.25)
    kept = sum(len(chunk) for chunk in trainer._chunks)
    assert kept == math.ceil(len(rows) / 4)
    assert trainer.collect(0).weights.eq(1).all()


def test_an_offline_batch_tells_what_it_holds(tmp_path: Path):
    rows = [row | {"completion": "abcdefgh" if n else "a"} for n, row in enumerate(judged_rows(4, 1))]
    trainer = offline(tmp_path, rows, num_mini_batches=1, per_device_train_batch_size=8)
    experience = trainer.collect(0)
    logged = trainer.metric_log.flush()
    assert logged["cut_share"] == 0.75
    assert logged["completions/mean_length"] == (3 * LENGTH + 2) / 4
    assert logged["reward"] == pytest.approx(sum(row["reward"] for row in rows) / 4)
    assert int((~experience.ended[experience.train_mask.any(1)]).sum()) == 3


@pytest.mark.parametrize(
    ("changes", "settings", "error", "message"),
    [
        ({"reward": 0.0}, {"weighting": "reward"}, RewardError, "every reward is 0 or missing"),
        ({"reward": 1.0}, {"weighting": "baseline", "baseline": "batch"}, RewardError, "every reward equals"),
        ({"reward": -1.0}, {"weighting": "reward"}, ConfigError, r"row 0 of 'train' has the reward -1"),
        ({"reward": math.nan}, {}, DataError, r"row 0 of 'train': `reward` must be a finite number; got nan"),
    ],
)
def test_rewards_that_teach_nothing_are_refused_before_training(
    changes: dict[str, Any], settings: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
):
    with pytest.raises(error, match=message):
        offline(tmp_path, [row | changes for row in judged_rows()], **settings)


def test_held_out_rows_are_sampled_with_and_without_rewards(tmp_path: Path):
    bare = offline(tmp_path, eval_rows=make_rows(3)).evaluate()
    assert "eval_reward" not in bare
    assert bare["eval_completions/mean_length"] > 0
    judged = offline(tmp_path, eval_rows=make_rows(3), rewards=token_reward).evaluate()
    assert judged["eval_reward"] > 0


def test_shards_that_would_wait_for_each_other_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Prompts have 1 to 3 completions, so that processes would run different numbers of plain forwards."""
    trainer = offline(tmp_path)
    trainer.actor_critic.packed = False
    monkeypatch.setattr(RewardWeightedTrainer, "_is_sharded", True)
    with pytest.raises(ConfigError, match="`num_generations` is 2: this model scores completions one by one"):
        trainer.collect(0)


def test_an_online_run_needs_rewards(tmp_path: Path):
    with pytest.raises(ConfigError, match="`reward_funcs` is empty"):
        online(tmp_path, rewards=())


# Checkpoints

SAVING = {"save_strategy": "steps", "save_steps": 1, "max_steps": 10, "lora_dropout": 0.2}
"""Batches end at steps 4 and 8."""


@pytest.mark.parametrize("make", [online, offline])
def test_a_resumed_run_ends_with_the_same_bits(make: Any, tmp_path: Path):
    whole = make(tmp_path / "whole", **SAVING)
    whole.train()
    for step in (4, 5, 7):
        resumed = make(tmp_path / str(step), **SAVING)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert moved(trained_weights(resumed), trained_weights(whole)) == set()
        assert without_cache(step_rows(resumed)) == without_cache(step_rows(whole))


def test_an_offline_run_that_resumes_with_other_batches_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    settings = {"num_mini_batches": 1, "num_ppo_epochs": 1, "max_steps": 3}
    saving = {"save_strategy": "steps", "save_steps": 1}
    offline(tmp_path / "whole", **settings, **saving).train()
    checkpoint = str(tmp_path / "whole" / "checkpoint-1")
    offline(tmp_path / "same", **settings).train(resume_from_checkpoint=checkpoint)
    assert "may leave rows out" not in caplog.text
    other = offline(tmp_path / "other", **settings, per_device_train_batch_size=2)
    other.train(resume_from_checkpoint=checkpoint)
    assert caplog.text.count("may leave rows out or repeat them") == 1
