"""The head of reward models: its unit, its dropout networks, and the description beside the weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmft.errors import ConfigError
from mmft.models.packaged import CAPTIONER_NAME, model_path
from mmft.models.reward_model import (
    LOG_VARIANCE_BOUND,
    SPEC_FILE,
    RewardEstimate,
    RewardHead,
    RewardModelSpec,
)

WIDTH, UNITS, DROPOUT = 6, 5, 0.4


def make_head(*, states_variance: bool = False, dropout: float = DROPOUT) -> RewardHead:
    """A head with an opinion."""
    head = RewardHead(WIDTH, width=UNITS, dropout=dropout, states_variance=states_variance)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(parameter.numel()))
    return head.eval()


def slow_reward(head: RewardHead, features: Tensor, inputs: Tensor, units: Tensor) -> Tensor:
    """(outputs,) of one completion under given dropout masks, by the equation."""
    hidden = head.hidden.weight @ (inputs * features) + head.hidden.bias
    gelu = 0.5 * hidden * (1 + torch.erf(hidden / 2**0.5))
    return head.output.weight @ (units * gelu) + head.output.bias


def test_a_new_head_gives_zero_and_learns() -> None:
    head = RewardHead(WIDTH, width=UNITS, dropout=0.0, states_variance=True)
    reward, log_variance = head(torch.randn(3, WIDTH))
    assert (reward == 0).all()
    assert (log_variance == 0).all()
    reward.sum().backward()
    assert head.output.weight.grad.abs().sum() > 0


@torch.no_grad()
def test_the_head_is_its_equation() -> None:
    head, features = make_head(states_variance=True), torch.randn(4, WIDTH)
    reward, log_variance = head(features)
    ones = torch.ones(WIDTH), torch.ones(UNITS)
    expected = torch.stack([slow_reward(head, each, *ones) for each in features])
    torch.testing.assert_close(reward, expected[:, 0])
    bounded = LOG_VARIANCE_BOUND * torch.tanh(expected[:, 1] / LOG_VARIANCE_BOUND)
    torch.testing.assert_close(log_variance, bounded)
    assert make_head()(features)[1] is None


@torch.no_grad()
def test_rewards_come_in_the_unit_of_the_ratings() -> None:
    head, features = make_head(states_variance=True), torch.randn(4, WIDTH)
    plain, plain_log_variance = head(features)
    head.set_unit([10.0, 30.0])  # mean 20, standard deviation 10
    reward, log_variance = head(features)
    torch.testing.assert_close(reward, 20 + 10 * plain)
    torch.testing.assert_close(log_variance.exp(), 100 * plain_log_variance.exp())


@pytest.mark.parametrize("ratings", [[3.0, 3.0], [0.1] * 3, [1e6 + 0.1] * 7])
def test_ratings_that_are_all_the_same_have_no_unit(ratings: list[float]) -> None:
    """Three times 0.1 differ from their rounded mean by 1e-17, which is no unit."""
    with pytest.raises(ConfigError, match=rf"every `rating` is {ratings[0]}; there is nothing to learn"):
        make_head().set_unit(ratings)


@torch.no_grad()
def test_dropout_acts_in_training_and_not_in_evaluation() -> None:
    head, features = make_head(), torch.randn(1, WIDTH).repeat(50, 1)
    assert head(features)[0].std() < 1e-5
    head.train()
    assert head(features)[0].std() > 0.05


@torch.no_grad()
def test_a_sample_is_one_network_applied_to_every_completion() -> None:
    head, features = make_head(states_variance=True), torch.randn(4, WIDTH)
    rewards, log_variances = head.sample(features, 3, torch.Generator().manual_seed(5))
    assert rewards.shape == log_variances.shape == (3, 4)
    generator = torch.Generator().manual_seed(5)
    for t in range(3):
        inputs = (torch.rand(WIDTH, generator=generator) >= DROPOUT) / (1 - DROPOUT)
        units = (torch.rand(UNITS, generator=generator) >= DROPOUT) / (1 - DROPOUT)
        expected = torch.stack([slow_reward(head, each, inputs, units)[0] for each in features])
        torch.testing.assert_close(rewards[t], expected)
    assert rewards.std(0).min() > 0.05


@torch.no_grad()
def test_samples_do_not_depend_on_the_batch_or_on_other_random_numbers() -> None:
    head, features = make_head(), torch.randn(4, WIDTH)
    before = torch.get_rng_state()
    whole, _ = head.sample(features, 5, torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), before)
    torch.randn(3)
    alone, _ = head.train().sample(features[2:3], 5, torch.Generator().manual_seed(1))
    torch.testing.assert_close(alone, whole[:, 2:3])
    other, _ = head.sample(features, 5, torch.Generator().manual_seed(2))
    assert not torch.allclose(other, whole)


@torch.no_grad()
def test_without_dropout_every_network_is_the_same() -> None:
    head, features = make_head(dropout=0.0), torch.randn(3, WIDTH)
    rewards, _ = head.sample(features, 2, torch.Generator())
    torch.testing.assert_close(rewards, head(features)[0].expand(2, -1))


@torch.no_grad()
def test_rewards_are_float32_and_not_rounded_by_mixed_precision() -> None:
    head, features = make_head(states_variance=True), torch.randn(4, WIDTH)
    expected = head(features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for actual, number in zip(head(features), expected, strict=True):
            assert torch.equal(actual, number)
    assert head(features.to(torch.bfloat16))[0].dtype == torch.float32


def test_a_log_variance_stays_within_bounds_and_keeps_a_gradient() -> None:
    head = make_head(states_variance=True)
    with torch.no_grad():
        head.output.bias[1] = -40.0
    _, log_variance = head(torch.zeros(1, WIDTH))
    log_variance.sum().backward()
    assert -LOG_VARIANCE_BOUND <= log_variance.item() < -0.9 * LOG_VARIANCE_BOUND
    assert head.output.bias.grad[1] > 0


def test_variances_add_up() -> None:
    estimate = RewardEstimate(*torch.tensor([[1.0], [2.0], [3.0]]))
    assert estimate.total == 5
    assert [estimate.variance(kind).item() for kind in ("total", "epistemic", "aleatoric")] == [5, 2, 3]


SPEC = RewardModelSpec(
    loss_type="mse",
    hidden_size=8,
    head_width=4,
    dropout=0.25,
    max_completion_length=16,
    backbone="adapter",
    base="some/model",
    dtype="bfloat16",
)


def test_a_spec_is_what_was_saved(tmp_path: Path) -> None:
    SPEC.save(tmp_path)
    assert RewardModelSpec.load(tmp_path) == SPEC


def test_a_folder_without_a_reward_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"{tmp_path}.* holds no reward_model.json; give the output"):
        RewardModelSpec.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"novelty": 1}, "novelty"),
        (
            {"loss_type": "hinge"},
            "`loss_type` must be one of bradley_terry, mse, heteroscedastic; got 'hinge'",
        ),
        ({"dropout": 1.0}, "`dropout` must be at least 0 and below 1; got 1.0"),
        ({"head_width": 0}, "`head_width` must be >= 1; got 0"),
    ],
)
def test_a_spec_that_cannot_be_is_refused(change: dict[str, object], message: str, tmp_path: Path) -> None:
    SPEC.save(tmp_path)
    path = tmp_path / SPEC_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigError, match=message):
        RewardModelSpec.load(tmp_path)


def test_packaged_names_become_folders_and_others_stay() -> None:
    assert (Path(model_path(CAPTIONER_NAME)) / "model.safetensors").is_file()
    assert model_path("Qwen/Qwen2.5-VL-3B-Instruct") == "Qwen/Qwen2.5-VL-3B-Instruct"
