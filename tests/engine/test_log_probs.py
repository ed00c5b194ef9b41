"""Log-probs of chosen tokens: three routes through the head are one function, and logits stay in chunks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from mmft.engine import log_probs
from mmft.engine.log_probs import token_log_probs
from mmft.models.heads import LanguageHead

TOKENS, WIDTH, VOCAB = 11, 6, 13
FORBIDDEN = frozenset({2, 7})


def make_head(
    *,
    trains: bool = False,
    bias: bool = False,
    softcap: float | None = None,
    dtype: torch.dtype = torch.float32,
) -> LanguageHead:
    projection = nn.Linear(WIDTH, VOCAB, bias=bias, dtype=dtype)
    with torch.no_grad():
        projection.weight.normal_(generator=torch.Generator().manual_seed(1))
    return LanguageHead(projection.requires_grad_(trains), softcap, FORBIDDEN)


def make_inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(TOKENS, WIDTH, generator=generator).to(dtype).requires_grad_()
    allowed = torch.tensor(sorted(set(range(VOCAB)) - FORBIDDEN))
    return hidden, allowed[torch.randint(len(allowed), (TOKENS,), generator=generator)]


def definition(hidden: Tensor, ids: Tensor, head: LanguageHead, temperature: float) -> tuple[Tensor, Tensor]:
    """In double precision, token by token, over the allowed tokens only."""
    logps, entropies = [], []
    allowed = [token for token in range(VOCAB) if token not in FORBIDDEN]
    for state, token in zip(hidden.double(), ids.tolist(), strict=True):
        logits = head.projection.weight.double() @ state
        if head.projection.bias is not None:
            logits = logits + head.projection.bias.double()
        if head.softcap is not None:
            logits = head.softcap * torch.tanh(logits / head.softcap)
        probs = torch.softmax(logits[allowed] / temperature, 0)
        logps.append(probs[allowed.index(token)].log())
        entropies.append(-(probs * probs.log()).sum())
    return torch.stack(logps), torch.stack(entropies)


@pytest.fixture(params=[1, 4 * VOCAB * 4, 2**26], ids=["one token", "four tokens", "one chunk"])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(log_probs, "CHUNK_BYTES", request.param)
    return int(request.param)


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("temperature", [1.0, 0.4, 3.0])
@pytest.mark.parametrize(
    "settings",
    [{}, {"trains": True}, {"bias": True}, {"softcap": 2.0}],
    ids=["frozen", "trains", "bias", "softcap"],
)
def test_every_route_gives_the_values_and_gradients_of_the_definition(
    settings: dict[str, object], temperature: float
) -> None:
    head, (hidden, ids) = make_head(**settings), make_inputs()
    weights = torch.randn(TOKENS, generator=torch.Generator().manual_seed(3))
    logps, entropies = token_log_probs(hidden, ids, head, temperature=temperature)
    (logps * weights).sum().backward()
    actual = hidden.grad.clone()
    trained = head.projection.weight.grad
    head.projection.weight.grad = hidden.grad = None

    expected_logps, expected_entropies = definition(hidden, ids, head, temperature)
    (expected_logps * weights).sum().backward()
    torch.testing.assert_close(logps.double(), expected_logps, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(entropies.double(), expected_entropies, atol=1e-5, rtol=0)
    torch.testing.assert_close(actual, hidden.grad, atol=1e-6, rtol=1e-4)
    assert (trained is None) == ("trains" not in settings)
    if trained is not None:
        torch.testing.assert_close(trained, head.projection.weight.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("temperature", [1.0, 0.4, 3.0])
@pytest.mark.parametrize(
    "settings",
    [{}, {"trains": True}, {"bias": True}, {"softcap": 2.0}],
    ids=["frozen", "trains", "bias", "softcap"],
)
def test_every_route_gives_the_entropy_gradients_of_the_definition(
    settings: dict[str, object], temperature: float
) -> None:
    head, (hidden, ids) = make_head(**settings), make_inputs()
    weights = torch.randn(2, TOKENS, generator=torch.Generator().manual_seed(3))
    leaves = [hidden, *(p for p in head.projection.parameters() if p.requires_grad)]
    scores = token_log_probs(hidden, ids, head, temperature=temperature, entropy_gradients=True)
    truth = definition(hidden, ids, head, temperature)
    torch.testing.assert_close(torch.stack(scores).double(), torch.stack(truth), atol=1e-5, rtol=1e-5)
    # Of the entropies alone, then of both under weights of their own.
    for share in (torch.tensor([[0.0], [1.0]]), torch.ones(2, 1)):
        losses = [(share * weights * torch.stack(each)).sum() for each in (scores, truth)]
        actual, expected = (torch.autograd.grad(loss, leaves, retain_graph=True) for loss in losses)
        assert expected[0].norm() > 0.1
        for one, other in zip(actual, expected, strict=True):
            # log p = z - logsumexp z has the rounding of z, which a low temperature makes large.
            torch.testing.assert_close(one, other, atol=1e-5 / temperature, rtol=1e-4)


def test_entropy_gradients_hand_computed() -> None:
    # z = (h, 0, -1e30): p = sigmoid(h), H' = -h p (1 - p). At h = ln 3: -ln 3 * 3/4 * 1/4.
    projection = nn.Linear(1, 3, bias=False).requires_grad_(False)
    projection.weight.copy_(torch.tensor([[1.0], [0.0], [5.0]]))
    head, hidden = LanguageHead(projection, None, frozenset({2})), torch.tensor([[math.log(3)]])
    hidden.requires_grad_()
    _, entropies = token_log_probs(hidden, torch.tensor([0]), head, entropy_gradients=True)
    entropies.sum().backward()
    torch.testing.assert_close(hidden.grad, torch.tensor([[-math.log(3) * 3 / 16]]))


@pytest.mark.parametrize("trains", [False, True])
def test_a_uniform_policy_has_an_entropy_without_slope(trains: bool) -> None:
    hidden, ids = make_inputs()
    head = make_head(trains=trains)
    _, entropies = token_log_probs(hidden * 0, ids, head, entropy_gradients=True)
    entropies.sum().backward()
    torch.testing.assert_close(entropies.detach(), torch.full((TOKENS,), math.log(VOCAB - len(FORBIDDEN))))
    assert hidden.grad.abs().max() < 1e-6


@pytest.mark.parametrize("trains", [False, True])
def test_asking_for_entropy_gradients_changes_no_score_and_no_gradient_of_a_log_prob(trains: bool) -> None:
    head, (hidden, ids) = make_head(trains=trains), make_inputs()
    for temperature in (1.0, 0.4):
        plain = token_log_probs(hidden, ids, head, temperature=temperature)
        asked = token_log_probs(hidden, ids, head, temperature=temperature, entropy_gradients=True)
        assert torch.equal(plain[0], asked[0])
        assert torch.equal(plain[1], asked[1])
        grads = [torch.autograd.grad(logps.sum(), hidden)[0] for logps, _ in (plain, asked)]
        assert torch.equal(*grads)


@pytest.mark.parametrize("trains", [False, True])
def test_entropy_gradients_of_huge_logits_and_of_certain_tokens_stay_finite(trains: bool) -> None:
    hidden, ids = make_inputs()
    _, entropies = token_log_probs(hidden * 1e4, ids, make_head(trains=trains), entropy_gradients=True)
    entropies.sum().backward()
    assert hidden.grad.isfinite().all()


@pytest.mark.parametrize("trains", [False, True])
def test_entropy_gradients_of_bfloat16_heads_are_those_of_float32_rounded(trains: bool) -> None:
    head, (hidden, ids) = make_head(trains=trains, dtype=torch.bfloat16), make_inputs(torch.bfloat16)
    _, entropies = token_log_probs(hidden, ids, head, entropy_gradients=True)
    (actual,) = torch.autograd.grad(entropies.sum(), hidden)
    (expected,) = torch.autograd.grad(definition(hidden, ids, head, 1.0)[1].sum(), hidden)
    assert entropies.dtype == torch.float32
    assert actual.dtype == torch.bfloat16
    torch.testing.assert_close(actual.float(), expected.float(), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("trains", [False, True])
def test_nothing_has_a_gradient_where_gradients_are_switched_off(trains: bool) -> None:
    hidden, ids = make_inputs()
    with torch.no_grad():
        logps, entropies = token_log_probs(hidden, ids, make_head(trains=trains), entropy_gradients=True)
    assert not logps.requires_grad
    assert not entropies.requires_grad


def test_gradients_of_entropies_that_are_not_wanted_are_refused() -> None:
    hidden, ids = make_inputs()
    with pytest.raises(ValueError, match="`entropy_gradients` is True, but `entropies` is False"):
        token_log_probs(hidden, ids, make_head(), entropies=False, entropy_gradients=True)


@pytest.mark.parametrize("entropy_gradients", [False, True])
@pytest.mark.parametrize("trains", [False, True])
def test_the_logits_never_exist_whole(
    monkeypatch: pytest.MonkeyPatch, trains: bool, entropy_gradients: bool
) -> None:
    monkeypatch.setattr(log_probs, "CHUNK_BYTES", 3 * VOCAB * 4)
    head, (hidden, ids) = make_head(trains=trains), make_inputs()
    sizes: list[int] = []
    head.projection.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    logps, entropies = token_log_probs(hidden, ids, head, entropy_gradients=entropy_gradients)
    assert sizes == [3, 3, 3, 2]
    sizes.clear()
    (logps - entropies).sum().backward()
    # Chunks of a head that trains are not kept but computed again; a frozen head has its gradient already.
    assert sorted(sizes) == ([2, 3, 3, 3] if trains else [])


@pytest.mark.parametrize("trains", [False, True])
def test_only_a_frozen_plain_head_takes_the_fused_route(trains: bool) -> None:
    hidden, ids = make_inputs()
    logps, entropies = token_log_probs(hidden, ids, make_head(trains=trains))
    assert ("FrozenHead" in type(logps.grad_fn).__name__) == (not trains)
    assert not entropies.requires_grad


def test_a_frozen_head_under_frozen_states_builds_no_graph() -> None:
    hidden, ids = make_inputs()
    logps, entropies = token_log_probs(hidden.detach(), ids, make_head())
    assert not logps.requires_grad
    assert not entropies.requires_grad


def test_log_probs_hand_computed() -> None:
    # p = (1/2, 1/4, 1/4) next to a token that may not be said: H = 1/2 ln 2 + 1/2 ln 4 = 1.5 ln 2.
    projection = nn.Linear(1, 4, bias=False).requires_grad_(False)
    projection.weight.copy_(torch.tensor([[math.log(2)], [0.0], [5.0], [0.0]]))
    head = LanguageHead(projection, None, frozenset({2}))
    logps, entropies = token_log_probs(torch.ones(2, 1), torch.tensor([0, 3]), head)
    torch.testing.assert_close(logps, torch.tensor([0.5, 0.25]).log())
    torch.testing.assert_close(entropies, torch.full((2,), 1.5 * math.log(2)))


@pytest.mark.parametrize("trains", [False, True])
def test_entropies_are_left_out_where_not_wanted(trains: bool) -> None:
    hidden, ids = make_inputs()
    head = make_head(trains=trains)
    logps, entropies = token_log_probs(hidden, ids, head, entropies=False)
    assert entropies is None
    assert torch.equal(logps, token_log_probs(hidden, ids, head)[0])
    assert token_log_probs(hidden[:0], ids[:0], head, entropies=False)[1] is None


def test_log_probs_are_normalised_over_the_tokens_that_may_be_said() -> None:
    hidden, _ = make_inputs()
    head = make_head()
    total = torch.zeros(TOKENS)
    for token in set(range(VOCAB)) - FORBIDDEN:
        total += (
            token_log_probs(hidden, torch.full((TOKENS,), token), head, temperature=0.6)[0].detach().exp()
        )
    torch.testing.assert_close(total, torch.ones(TOKENS))
    forbidden, _ = token_log_probs(hidden.detach(), torch.full((TOKENS,), 7), head)
    assert (forbidden.exp() == 0).all()


def test_huge_logits_stay_finite() -> None:
    hidden, ids = make_inputs()
    logps, entropies = token_log_probs(hidden * 1e4, ids, make_head())
    logps.sum().backward()
    assert logps.isfinite().all()
    assert entropies.isfinite().all()
    assert hidden.grad.isfinite().all()


@pytest.mark.parametrize("trains", [False, True])
def test_bfloat16_heads_give_float32_log_probs_and_bfloat16_gradients(trains: bool) -> None:
    head, (hidden, ids) = make_head(trains=trains, dtype=torch.bfloat16), make_inputs(torch.bfloat16)
    logps, entropies = token_log_probs(hidden, ids, head)
    logps.sum().backward()
    assert logps.dtype == entropies.dtype == torch.float32
    assert hidden.grad.dtype == torch.bfloat16
    expected, _ = definition(hidden, ids, head, 1.0)
    torch.testing.assert_close(logps.double(), expected, atol=0.05, rtol=0)


@pytest.mark.parametrize("trains", [False, True])
def test_autocast_changes_neither_the_dtype_nor_the_result_much(trains: bool) -> None:
    head, (hidden, ids) = make_head(trains=trains), make_inputs()
    expected, _ = token_log_probs(hidden.detach(), ids, head)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logps, _ = token_log_probs(hidden, ids, head)
    logps.sum().backward()
    assert logps.dtype == hidden.grad.dtype == torch.float32
    torch.testing.assert_close(logps.detach(), expected.detach(), atol=0.05, rtol=0)


def test_no_tokens_give_no_log_probs() -> None:
    logps, entropies = token_log_probs(torch.zeros(0, WIDTH), torch.zeros(0, dtype=torch.long), make_head())
    assert logps.shape == entropies.shape == (0,)
