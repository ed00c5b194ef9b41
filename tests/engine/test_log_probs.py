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


@pytest.mark.parametrize("trains", [False, True])
def test_the_logits_never_exist_whole(monkeypatch: pytest.MonkeyPatch, trains: bool) -> None:
    monkeypatch.setattr(log_probs, "CHUNK_BYTES", 3 * VOCAB * 4)
    head, (hidden, ids) = make_head(trains=trains), make_inputs()
    sizes: list[int] = []
    head.projection.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    logps, _ = token_log_probs(hidden, ids, head)
    assert sizes == [3, 3, 3, 2]
    sizes.clear()
    logps.sum().backward()
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
