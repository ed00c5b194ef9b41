"""Heads of decisions: distributions over legal actions, dueling values, networks drawn by dropout."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmft.errors import ConfigError
from mmft.evaluation.uncertainty import mc_variance
from mmft.models.decision_heads import (
    DecisionHead,
    PolicyHead,
    QHead,
    StateValueHead,
    Trunk,
    action_entropies,
    action_log_probs,
    dueling_values,
    mc_samples,
)
from mmft.models.heads import FORBIDDEN

SIZE, NUM_ACTIONS = 6, 3


def head(kind: str, hidden_sizes: tuple[int, ...] = (8, 5), dropout: float = 0.5) -> DecisionHead:
    """A head of each kind, every weight away from its start."""
    options: dict[str, Any] = {"hidden_sizes": hidden_sizes, "dropout": dropout}
    made = {
        "policy": lambda: PolicyHead(SIZE, NUM_ACTIONS, **options),
        "value": lambda: StateValueHead(SIZE, **options),
        "q": lambda: QHead(SIZE, NUM_ACTIONS, **options),
        "dueling": lambda: QHead(SIZE, NUM_ACTIONS, dueling=True, **options),
    }[kind]()
    randomize(made)
    return made


def randomize(module: nn.Module) -> None:
    with torch.no_grad():
        for weight in module.parameters():
            weight.normal_()


every_head = pytest.mark.parametrize("kind", ["policy", "value", "q", "dueling"])


# --- the trunk --------------------------------------------------------------------------------------------


def test_the_trunk_hand_computed() -> None:
    # 2 * 3 + 1 = 7 and -3 -> 0; 10 * 7 + 5 = 75. With units 2 * 7 = 14 and dropped: 145; halved 72.5
    trunk = Trunk(1, [2, 1], dropout=0.5).eval()
    for layer, weight, bias in zip(
        trunk.layers, ([[2.0], [-1.0]], [[10.0, 1.0]]), ([1.0, 0.0], [5.0]), strict=True
    ):
        layer.load_state_dict({"weight": torch.tensor(weight), "bias": torch.tensor(bias)})
    assert trunk(torch.tensor([[3.0]])).tolist() == [[75]]
    masks = [torch.tensor([[2.0, 0.0]]), torch.tensor([[0.5]])]
    assert trunk(torch.tensor([[3.0]]), masks).tolist() == [[72.5]]


def test_without_hidden_sizes_it_is_the_state_with_dropout() -> None:
    hidden, trunk = torch.randn(4, SIZE), Trunk(SIZE, dropout=0.5)
    assert (trunk.size, trunk.dropout_widths, list(trunk.parameters())) == (SIZE, (SIZE,), [])
    masks = trunk.masks(4)
    assert torch.equal(trunk(hidden, masks), hidden * masks[0])
    assert torch.equal(trunk.eval()(hidden), hidden)
    assert torch.equal(Trunk(SIZE)(hidden), hidden)


def test_masks_keep_each_unit_with_its_probability_and_scale_it() -> None:
    trunk = Trunk(SIZE, [50, 40], dropout=0.2)
    masks = trunk.masks(200, torch.Generator().manual_seed(0))
    assert [tuple(mask.shape) for mask in masks] == [(200, 50), (200, 40)]
    for mask in masks:
        assert mask.unique().tolist() == [0, 1.25]
        # 8000 units or more: the share kept, 0.8, has a standard error below 0.0045
        assert (mask > 0).float().mean().item() == pytest.approx(0.8, abs=0.02)
    assert Trunk(SIZE, [50]).masks(2) == []


def test_a_generator_decides_what_is_drawn() -> None:
    trunk = Trunk(SIZE, [50], dropout=0.5)
    first, again, other = (trunk.masks(3, torch.Generator().manual_seed(seed))[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_dropout_acts_in_training_alone() -> None:
    hidden, trunk = torch.randn(4, SIZE), Trunk(SIZE, [50], dropout=0.5)
    assert not torch.equal(trunk(hidden), trunk(hidden))
    trunk.eval()
    assert torch.equal(trunk(hidden), trunk(hidden))


def test_the_trunk_alone_is_not_rounded_by_mixed_precision() -> None:
    hidden, trunk = torch.randn(4, SIZE), Trunk(SIZE, [5])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_mixed_precision = trunk(hidden)
    assert torch.equal(under_mixed_precision, trunk(hidden))
    for each in (trunk, Trunk(SIZE)):
        assert each(hidden.to(torch.bfloat16)).dtype == torch.float32


def test_without_dropout_masks_are_none_to_draw() -> None:
    hidden, trunk = torch.randn(4, SIZE), Trunk(SIZE, [5])
    assert torch.equal(trunk(hidden, trunk.masks(4)), trunk(hidden))


# --- what holds for every head ----------------------------------------------------------------------------


@every_head
@pytest.mark.parametrize("hidden_sizes", [(), (8, 5)])
def test_one_dropout_mask_is_one_network(kind: str, hidden_sizes: tuple[int, ...]) -> None:
    module, hidden = head(kind, hidden_sizes), torch.randn(4, SIZE)
    masks = module.masks(1)
    said = module(hidden, masks=masks)
    assert torch.equal(module(hidden, masks=masks), said)  # in training mode, where dropout acts otherwise
    assert torch.equal(module.eval()(hidden, masks=masks), said)
    rows = torch.cat([module(hidden[row : row + 1], masks=masks) for row in range(4)])
    torch.testing.assert_close(rows, said)
    assert not torch.equal(module(hidden, masks=module.masks(1)), said)


@every_head
def test_rows_can_have_masks_of_their_own(kind: str) -> None:
    module, hidden = head(kind), torch.randn(4, SIZE)
    masks = module.masks(4)
    said = module(hidden, masks=masks)
    for row in range(4):
        own = [mask[row : row + 1] for mask in masks]
        torch.testing.assert_close(module(hidden[row : row + 1], masks=own), said[row : row + 1])


@every_head
def test_without_masks_evaluation_is_deterministic_and_training_is_not(kind: str) -> None:
    module, hidden = head(kind), torch.randn(4, SIZE)
    assert not torch.equal(module(hidden), module(hidden))
    module.eval()
    assert torch.equal(module(hidden), module(hidden))
    plain = head(kind, dropout=0.0)
    plain.load_state_dict(module.state_dict())
    assert torch.equal(plain(hidden), module(hidden))


@every_head
def test_decisions_are_float32_and_not_rounded_by_mixed_precision(kind: str) -> None:
    module, hidden = head(kind).eval(), torch.randn(4, SIZE)
    masks = module.masks(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_mixed_precision = module(hidden, masks=masks)
    assert torch.equal(under_mixed_precision, module(hidden, masks=masks))
    half = hidden.to(torch.bfloat16)
    assert module(half).dtype == torch.float32
    assert torch.equal(module(half), module(half.float()))


@every_head
def test_every_weight_gets_a_gradient(kind: str) -> None:
    module, hidden = head(kind, dropout=0.0), torch.randn(32, SIZE, requires_grad=True)
    module(hidden).square().sum().backward()
    assert hidden.grad is not None
    for label, weight in module.named_parameters():
        assert weight.grad is not None, label
        assert weight.grad.ne(0).any(), label


@every_head
def test_it_survives_saving_and_loading(kind: str) -> None:
    module, other, hidden = head(kind).eval(), head(kind).eval(), torch.randn(4, SIZE)
    assert not torch.equal(module(hidden), other(hidden))
    other.load_state_dict(module.state_dict())
    assert torch.equal(module(hidden), other(hidden))


# --- each of them -----------------------------------------------------------------------------------------


def test_the_policy_starts_uniform_and_the_value_at_zero() -> None:
    hidden = torch.randn(4, SIZE)
    assert PolicyHead(SIZE, 4, hidden_sizes=[8])(hidden).softmax(1).eq(0.25).all()
    assert StateValueHead(SIZE, hidden_sizes=[8])(hidden).eq(0).all()
    assert QHead(SIZE, 4, hidden_sizes=[8])(hidden).std() > 0


def test_the_policy_head_hand_computed() -> None:
    # logits (2 * 1, 2 * 3 + 1): (2, 7); V = 2 * 5 + 4 = 14
    policy, value = PolicyHead(1, 2), StateValueHead(1)
    policy.logits.output.load_state_dict(
        {"weight": torch.tensor([[1.0], [3]]), "bias": torch.tensor([0.0, 1])}
    )
    value.value.output.load_state_dict({"weight": torch.tensor([[5.0]]), "bias": torch.tensor([4.0])})
    assert policy(torch.tensor([[2.0]])).tolist() == [[2, 7]]
    assert value(torch.tensor([[2.0]])).tolist() == [14]


def test_probabilities_add_up_to_one_over_legal_actions() -> None:
    policy, hidden = head("policy", dropout=0.0), torch.randn(3, SIZE)
    legal = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 0]], dtype=torch.bool)
    logits = policy(hidden, legal)
    probs = logits.softmax(1)
    torch.testing.assert_close(torch.where(legal, probs, 0).sum(1), torch.ones(3))
    assert probs[~legal].eq(0).all()
    assert logits[~legal].eq(FORBIDDEN).all()
    assert torch.equal(logits[legal], policy(hidden)[legal])
    assert torch.equal(policy(hidden, legal.int()), logits)


def test_dueling_hand_computed() -> None:
    # V 10, A (1, 2, 6) with mean 3: 10 - 2, 10 - 1, 10 + 3
    assert dueling_values(torch.tensor([10.0]), torch.tensor([[1.0, 2, 6]])).tolist() == [[8, 9, 13]]


def test_the_mean_of_dueling_values_is_the_value() -> None:
    module: Any = head("dueling", dropout=0.0)
    hidden = torch.randn(4, SIZE)
    action_values, advantages = module(hidden), module.actions(hidden, None)
    torch.testing.assert_close(action_values.mean(1), module.value(hidden, None).squeeze(1))
    assert torch.equal(action_values.argmax(1), advantages.argmax(1))
    # a constant added to A changes nothing: eq. 9 makes V and A identifiable
    torch.testing.assert_close(
        dueling_values(action_values.mean(1), advantages + 7), action_values, rtol=1e-4, atol=1e-4
    )


def test_the_gradient_of_dueling_values_is_shared() -> None:
    # dQ_0/dV = 1; dQ_0/dA_0 = 1 - 1/3, dQ_0/dA_1 = -1/3
    values, advantages = torch.zeros(1, requires_grad=True), torch.zeros(1, 3, requires_grad=True)
    dueling_values(values, advantages)[0, 0].backward()
    assert values.grad is not None
    assert advantages.grad is not None
    assert values.grad.tolist() == [1]
    torch.testing.assert_close(advantages.grad, torch.tensor([[2 / 3, -1 / 3, -1 / 3]]))


def test_the_two_streams_of_a_dueling_head_drop_units_of_their_own() -> None:
    module: Any = head("dueling")
    first, second, third, fourth = module.masks(1)
    hidden = torch.randn(4, SIZE)
    expected = dueling_values(
        module.value(hidden, [third, fourth]).squeeze(1), module.actions(hidden, [first, second])
    )
    assert torch.equal(module(hidden, masks=[first, second, third, fourth]), expected)


# --- actions ----------------------------------------------------------------------------------------------


def test_log_probs_and_entropies_hand_computed() -> None:
    # odds 1 : 3 : 0: log 1/4 and log 3/4; H = -(1/4 log 1/4 + 3/4 log 3/4). A single legal action: 0 and 0
    logits = torch.tensor([[0, math.log(3), FORBIDDEN], [FORBIDDEN, 5, FORBIDDEN]])
    log_probs = action_log_probs(logits.expand(2, 3), torch.tensor([0, 1]))
    torch.testing.assert_close(log_probs, torch.tensor([math.log(0.25), 0]))
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    torch.testing.assert_close(action_entropies(logits), torch.tensor([entropy, 0.0]))


def test_log_probs_and_entropies_are_those_of_torchs_categorical() -> None:
    logits, actions = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 3, 1, 2, 0])
    theirs = torch.distributions.Categorical(logits=logits)
    torch.testing.assert_close(action_log_probs(logits, actions), theirs.log_prob(actions))
    torch.testing.assert_close(action_entropies(logits), theirs.entropy())


def test_the_uniform_policy_has_the_largest_entropy() -> None:
    entropies = action_entropies(torch.stack([torch.zeros(4), *torch.randn(20, 4)]))
    torch.testing.assert_close(entropies[0].item(), math.log(4))
    assert entropies[1:].lt(entropies[0]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_forbidden_actions_get_exactly_zero_gradient_and_no_nan(dtype: torch.dtype) -> None:
    leaf = torch.randn(2, 3, requires_grad=True)
    legal = torch.tensor([[1, 0, 1], [0, 0, 0]], dtype=torch.bool)
    logits = leaf.masked_fill(~legal, FORBIDDEN).to(dtype)
    loss = action_log_probs(logits[:1], torch.tensor([2])).sum() + action_entropies(logits[:1]).sum()
    assert loss.dtype == torch.float32
    loss.backward()
    assert leaf.grad is not None
    assert leaf.grad[~legal].eq(0).all()
    assert leaf.grad[0].isfinite().all()
    assert leaf.grad[legal].ne(0).all()


def test_where_nothing_is_legal_there_is_no_entropy() -> None:
    logits = torch.full((1, 3), FORBIDDEN).requires_grad_()
    entropies = action_entropies(logits)
    entropies.sum().backward()
    assert entropies.tolist() == [0]
    assert logits.grad is not None
    assert logits.grad.eq(0).all()


def test_adding_a_constant_to_logits_changes_nothing() -> None:
    logits, actions = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 3, 1, 2, 0])
    torch.testing.assert_close(action_entropies(logits + 100), action_entropies(logits))
    torch.testing.assert_close(action_log_probs(logits + 100, actions), action_log_probs(logits, actions))


# --- Monte Carlo samples ----------------------------------------------------------------------------------


@every_head
def test_samples_are_forwards_with_masks_drawn_in_turn(kind: str) -> None:
    module, hidden = head(kind), torch.randn(4, SIZE)
    samples = mc_samples(module, hidden, 3, torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1)
    expected = [module(hidden, masks=module.masks(1, generator)) for _ in range(3)]
    assert torch.equal(samples, torch.stack(expected))
    assert samples.shape == (3, 4) if kind == "value" else samples.shape == (3, 4, NUM_ACTIONS)
    assert mc_variance(samples).gt(0).all()


@every_head
def test_what_a_row_gets_does_not_depend_on_its_neighbours(kind: str) -> None:
    module, hidden = head(kind).eval(), torch.randn(4, SIZE)
    together = mc_samples(module, hidden, 3, torch.Generator().manual_seed(1))
    alone = mc_samples(module, hidden[2:3], 3, torch.Generator().manual_seed(1))
    torch.testing.assert_close(alone, together[:, 2:3])


def test_the_variance_of_a_linear_head_is_the_analytic_one() -> None:
    # V = sum_i w_i m_i h_i + b with Var m_i = 1/(1-p)^2 * p (1-p): Var V = p/(1-p) sum_i w_i^2 h_i^2
    module: Any = head("value", (), dropout=0.2).eval()
    hidden, num_samples = torch.randn(3, SIZE), 4_000
    samples = mc_samples(module, hidden, num_samples, torch.Generator().manual_seed(0)).detach()
    weight = module.value.output.weight.detach()
    expected = 0.2 / 0.8 * (weight.square() * hidden.square()).sum(1)
    # the relative error of a variance of S samples is about sqrt((kurtosis - 1) / S), here below 2.5 %
    torch.testing.assert_close(mc_variance(samples), expected, rtol=0.08, atol=0)
    error = (samples.mean(0) - module(hidden)).abs()
    assert (error < 4 * (expected / num_samples).sqrt()).all()


# --- what is refused --------------------------------------------------------------------------------------


def test_samples_of_a_head_without_dropout_are_refused() -> None:
    with pytest.raises(
        ValueError, match="`head` has no dropout, so that every sample would be the same; build"
    ):
        mc_samples(head("q", dropout=0.0), torch.randn(1, SIZE), 3)
    with pytest.raises(ValueError, match="`num_samples` must be >= 1; got 0"):
        mc_samples(head("q"), torch.randn(1, SIZE), 0)


@pytest.mark.parametrize(
    ("shapes", "kind"),
    [
        ([(1, 8)], "value"),
        ([(1, 8), (1, 6)], "value"),
        ([(2, 8), (1, 5)], "value"),
        ([(8,), (5,)], "value"),
        ([(1, 8), (1, 5), (1, 8)], "value"),
        ([(1, 8), (1, 5), (1, 8)], "dueling"),
    ],
)
def test_masks_of_another_head_are_refused(shapes: list[tuple[int, ...]], kind: str) -> None:
    message = r"`masks` must have 1 or 4 rows and the widths \[8, 5\]; got shapes .* Draw them with `masks`"
    with pytest.raises(ValueError, match=message):
        head(kind)(torch.randn(4, SIZE), masks=[torch.ones(shape) for shape in shapes])


def test_settings_that_make_no_head_are_refused() -> None:
    for dropout in (-0.1, 1.0):
        with pytest.raises(ConfigError, match=f"`dropout` must be at least 0 and below 1; got {dropout}"):
            Trunk(SIZE, [4], dropout)
    with pytest.raises(ConfigError, match=r"`size` and `hidden_sizes` must be >= 1; got 6 and \(4, 0\)"):
        Trunk(SIZE, [4, 0])
    with pytest.raises(ConfigError, match="`num_actions` must be >= 1; got 0"):
        PolicyHead(SIZE, 0)


def test_wrong_shapes_are_named() -> None:
    def named(message: str, call: Any, *tensors: Tensor) -> None:
        with pytest.raises(ValueError, match=message):
            call(*tensors)

    logits = torch.zeros(4, 3)
    named(r"`hidden` must have dims BxD; got shape \(2, 3, 6\)", head("q"), torch.ones(2, 3, 6))
    named("`legal` has A=2, but earlier .* A=3", head("policy"), torch.ones(4, 6), torch.ones(4, 2))
    named(
        r"`actions` must have dims B; got shape \(4, 1\)", action_log_probs, logits, torch.ones(4, 1).long()
    )
    named(r"`logits` must have dims BxA; got shape \(3,\)", action_entropies, logits[0])
    named("`advantages` has B=4, but earlier .* B=3", dueling_values, torch.ones(3), logits)
