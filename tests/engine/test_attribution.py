"""What answers hang on, in every family: finite differences, packed and plain, what must stay as it is."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from peft import PromptTuningConfig
from torch import Tensor

from mmft.engine.actor_critic import VLMActorCritic
from mmft.engine.attribution import Attribution, explain_completions
from mmft.engine.packing import Completions
from mmft.engine.prompt_encoder import PromptEncoder, process_row
from mmft.errors import ConfigError, DataError, NonFiniteError, UnsupportedModelError
from mmft.models import patch_grids
from mmft.models.backbone import make_backbone
from mmft.types import PromptRow
from tests import zoo
from tests.engine.reward_support import TRAININGS
from tests.engine.support import EVERY_FAMILY, lora, perturb_critic
from tests.engine.test_prompt_encoder import make_row, picture

# numpy 2 warns about the processors' own `np.array(tensor)`.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
ANSWERS = ("Un chat.", "No", "two pictures")
METHODS = ("gradient", "relative", "gradient_x_input")


def make(family: str, training: str = "frozen", **settings: Any) -> VLMActorCritic:
    """The family's model behind its real processor, with a critic that has an opinion."""
    torch.manual_seed(0)  # PEFT draws from the global generator
    chosen = {"trainable": ()} | TRAININGS[training] | settings
    backbone = make_backbone(zoo.build_model(family), zoo.build_processor(family), **chosen)
    actor_critic = VLMActorCritic(backbone, reference=False).eval()
    perturb_critic(actor_critic)
    return actor_critic


@functools.cache
def frozen(family: str) -> VLMActorCritic:
    """One per family and process, for tests that change nothing in it."""
    return make(family)


def rows(family: str) -> list[PromptRow]:
    """One picture, none where the processor takes such a prompt, two."""
    none = [] if family.startswith("paligemma") else [make_row("none", "Say anything at all.")]
    one = make_row("one", "What is this?", picture(0))
    return [one, *none, make_row("two", "Compare.", picture(1), picture(2, 50, 50))]


def explain(family: str, **options: Any) -> list[Attribution]:
    some = rows(family)
    return explain_completions(frozen(family), some, ANSWERS[: len(some)], **options)


def numbers(found: Attribution) -> Tensor:
    """Everything that an attribution says, in one vector."""
    patches = [each for shown in found.pictures for each in (shown.importance, *shown.patches)]
    tokens = [token.importance for token in found.tokens]
    return torch.tensor([found.value, *found.importance.values(), *found.shares.values(), *tokens, *patches])


def assert_same(one: Sequence[Attribution], other: Sequence[Attribution], rtol: float = 2e-4) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(numbers(a), numbers(b), rtol=rtol, atol=1e-5)
        assert [(token.text, token.part) for token in a.tokens] == [(t.text, t.part) for t in b.tokens]


# One way or another


@pytest.mark.parametrize("target", ["completion", "value"])
@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_packed_is_plain_and_a_padded_batch_is_its_rows_one_by_one(
    family: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert frozen(family).packed
    together = explain(family, target=target)
    assert_same(explain(family, target=target, batch_size=1), together)
    monkeypatch.setattr(frozen(family), "packed", False)
    assert_same(explain(family, target=target), together)


def test_the_same_question_gets_the_same_answer_to_the_bit() -> None:
    for one, other in zip(explain("llava"), explain("llava"), strict=True):
        assert torch.equal(numbers(one), numbers(other))


def test_other_pixels_make_another_attribution() -> None:
    (before,), (after,) = (
        explain_completions(frozen("llava"), [make_row(0, "What?", picture(seed))], ["Un chat."])
        for seed in (0, 1)
    )
    assert (numbers(before) - numbers(after)).abs().max() > 0.05
    assert before.pictures[0].patches != after.pictures[0].patches


def test_rows_that_share_a_key_are_still_two_rows_and_an_encoder_goes_by_keys() -> None:
    some = [make_row("same", "What?", picture(0)), make_row("same", "What?", picture(1))]
    apart = [explain_completions(frozen("llava"), [row], ["Un chat."])[0] for row in some]
    assert_same(explain_completions(frozen("llava"), some, ["Un chat."] * 2), apart)
    encoder = PromptEncoder(frozen("llava").backbone, cache_bytes=2**20)
    row = make_row("own", "What?", picture(0))
    for _ in range(2):
        found = explain_completions(frozen("llava"), [row, row], ["Un chat.", "No"], encoder=encoder)
        assert_same(found, explain_completions(frozen("llava"), [row, row], ["Un chat.", "No"]))
    assert encoder.cache.hits == 1


# What is explained


@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "paligemma"])
def test_the_number_is_what_the_policy_says(family: str) -> None:
    row, ids = rows(family)[0], [90, 130, 77, 2]
    actor_critic = frozen(family)
    (whole,) = explain_completions(actor_critic, [row], [ids], temperature=0.7)
    places = [0, 1, 2, -1]
    tokens = explain_completions(
        actor_critic, [row] * 4, [ids] * 4, target="token", position=places, temperature=0.7
    )
    assert sum(each.value for each in tokens) == pytest.approx(whole.value, rel=1e-4)
    (mean,) = explain_completions(actor_critic, [row], [ids], target="value")
    values = explain_completions(actor_critic, [row] * 4, [ids] * 4, target="value", position=places)
    assert sum(each.value for each in values) / 4 == pytest.approx(mean.value, rel=1e-4)
    assert [each.of for each in (whole, tokens[0], mean)] == ["completion", "token", "value"]
    with torch.no_grad():
        prompts = [actor_critic.backbone.encode(process_row(actor_critic.backbone.processor, row))]
        completions = Completions(torch.tensor([ids]), torch.ones(1, 4, dtype=torch.bool), torch.tensor([0]))
        scores = actor_critic(prompts, completions, temperature=0.7)
    assert [each.value for each in tokens] == pytest.approx(scores.logps[0].tolist(), rel=1e-4)
    assert [each.value for each in values] == pytest.approx(scores.values[0].tolist(), rel=1e-4)


@pytest.mark.parametrize("target", ["token", "value"])
@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_nothing_hangs_on_what_comes_later(family: str, target: str) -> None:
    answer = [90, 130, 77, 201, 145]
    for position in (0, 3):
        (found,) = explain_completions(
            frozen(family), rows(family)[:1], [answer], target=target, position=position
        )
        said = [token.importance for token in found.tokens if token.part == "answer"]
        assert all(each > 1e-3 for each in said[:position])
        assert said[position:] == [0.0] * (5 - position)
        assert found.importance["image"] > 1e-3


def test_the_last_token_is_said_and_never_read() -> None:
    (found,) = explain_completions(frozen("llava"), rows("llava")[:1], [[90, 130, 77]])
    assert found.tokens[-1].importance == 0
    assert all(token.importance > 0 for token in found.tokens[:-1])


@pytest.mark.parametrize("method", METHODS)
def test_parts_add_up(method: str) -> None:
    for family in ("llava", "internvl", "smolvlm"):
        for found in explain(family, method=method):
            assert sum(found.shares.values()) == pytest.approx(1)
            assert found.image_share + found.text_share == pytest.approx(1)
            sums: dict[str, float] = {}
            for token in found.tokens:
                sums[token.part] = sums.get(token.part, 0) + token.importance
            sums |= {"image": sum(each.importance for each in found.pictures)} if found.pictures else {}
            assert sums == pytest.approx(found.importance, rel=1e-4)
            for shown in found.pictures:
                assert shown.grid is not None
                assert len(shown.patches) == shown.grid[0] * shown.grid[1]
                assert sum(shown.patches) == pytest.approx(shown.importance, rel=1e-4)


def test_pictures_come_in_their_order_and_text_without_them() -> None:
    one, none, two = explain("llava")
    assert [len(each.pictures) for each in (one, none, two)] == [1, 0, 2]
    assert [each.grid for each in two.pictures] == [(4, 6), (4, 4)]
    assert set(none.shares) == {"prompt", "answer"}
    assert none.image_share == 0
    assert "".join(token.text for token in two.tokens) == "<s>user: Compare.\nassistant: two pictures</s>"
    assert [token.text for token in one.tokens if token.part == "answer"] == [*ANSWERS[0], "</s>"]
    # Marks around a picture stand for no row of it, and count as text.
    marks = [token.text for token in explain("qwen2_vl")[0].tokens]
    assert "<|vision_start|>" in marks
    assert "<|image_pad|>" not in marks


def test_a_picture_whose_layout_is_unknown_still_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    known = explain("gemma3")[0]
    monkeypatch.delitem(patch_grids.READERS, "gemma3")
    (shown,) = explain("gemma3")[0].pictures
    assert (shown.grid, shown.patches) == (None, [])
    assert shown.importance == pytest.approx(known.importance["image"])


# What must not count


@torch.no_grad()
def zeroed(actor_critic: VLMActorCritic, part: str) -> VLMActorCritic:
    found = [p for name, p in actor_critic.backbone.base.named_parameters() if part in name]
    assert found
    for parameter in found:
        parameter.zero_()
    return actor_critic


@pytest.mark.parametrize("target", ["completion", "value"])
def test_a_projector_of_zeros_leaves_nothing_of_the_picture_but_a_gradient(target: str) -> None:
    blind = zeroed(make("llava"), "multi_modal_projector")
    row = rows("llava")[:1]
    for method in ("relative", "gradient_x_input"):
        (found,) = explain_completions(blind, row, ["No"], target=target, method=method)
        assert found.image_share == 0
        assert found.pictures[0].patches == [0.0] * 24
        assert found.text_share == pytest.approx(1)
    # A norm divides a row by its size: the first step away from zero would change most of all.
    (found,) = explain_completions(blind, row, ["No"], target=target)
    assert found.image_share > 0.5


@pytest.mark.parametrize("method", METHODS)
def test_a_text_model_that_looks_back_at_nothing_has_no_image_share(method: str) -> None:
    blind = zeroed(make("llava"), "language_model.layers.0.self_attn.o_proj")
    blind = zeroed(blind, "language_model.layers.1.self_attn.o_proj")
    (found,) = explain_completions(blind, rows("llava")[:1], ["No"], method=method)
    assert found.importance["image"] == 0
    assert found.shares["answer"] > 0


def test_a_value_that_never_changes_hangs_on_nothing() -> None:
    actor_critic = make("llava")
    torch.nn.init.zeros_(actor_critic.value_head.weight)
    (found,) = explain_completions(actor_critic, rows("llava")[:1], ["No"], target="value")
    assert found.value == pytest.approx(float(actor_critic.value_head.bias.detach()))
    assert found.shares == {"image": 0, "prompt": 0, "answer": 0}


# What must stay as it is


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("training", TRAININGS)
def test_the_model_stays_as_it_was(training: str, packed: bool) -> None:
    actor_critic = make("llava", training)
    expected = explain_completions(actor_critic, rows("llava"), ANSWERS)
    actor_critic.packed = packed
    actor_critic.train()
    actor_critic.backbone.base.model.vision_tower.eval()
    before = {name: x.clone() for name, x in actor_critic.state_dict().items()}
    flags = [p.requires_grad for p in actor_critic.parameters()]
    modes = [module.training for module in actor_critic.modules()]
    for parameter in actor_critic.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    state = torch.get_rng_state()
    with torch.no_grad():
        assert_same(explain_completions(actor_critic, rows("llava"), ANSWERS), expected)
    assert torch.equal(torch.get_rng_state(), state)
    assert [p.requires_grad for p in actor_critic.parameters()] == flags
    assert [module.training for module in actor_critic.modules()] == modes
    assert all((p.grad == 1).all() for p in actor_critic.parameters() if p.grad is not None)
    for name, weight in actor_critic.state_dict().items():
        assert torch.equal(weight, before[name]), name
    assert not actor_critic.backbone.text_model._forward_pre_hooks


def test_dropout_and_checkpointing_are_off_while_it_looks() -> None:
    everywhere = r".*\.(q|v)_proj"  # in the tower too
    plain, dropping = (
        make("llava", "lora", peft_config=lora(target_modules=everywhere, lora_dropout=rate))
        for rate in (0.0, 0.5)
    )
    dropping.activation_checkpointing_enable({"use_reentrant": False})
    dropping.train()
    some = rows("llava")[:1]
    assert_same(explain_completions(dropping, some, ["No"]), explain_completions(plain, some, ["No"]))


def test_adapters_count() -> None:
    adapted = make("llava", "lora")
    some = rows("llava")[:1]
    (with_adapters,) = explain_completions(adapted, some, ["No"])
    with adapted.backbone.without_adapters():
        (without,) = explain_completions(adapted, some, ["No"])
    assert_same([without], explain_completions(frozen("llava"), some, ["No"]))
    assert (numbers(with_adapters) - numbers(without)).abs().max() > 0.05


def test_bfloat16_is_close() -> None:
    actor_critic = make("llava")
    actor_critic.backbone.model.to(torch.bfloat16)
    exact, rough = (
        explain_completions(each, rows("llava")[:1], ["No"])[0] for each in (frozen("llava"), actor_critic)
    )
    assert rough.shares == pytest.approx(exact.shares, abs=0.03)


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "q"}, "`target` must be one of completion, token, value; got 'q'"),
        ({"method": "saliency"}, "`method` must be one of gradient, relative, gradient_x_input; got 'sal"),
        ({"target": "token"}, "`position` is missing: `target` is 'token'"),
        ({"position": 1}, "`position` has no meaning for `target` 'completion'"),
        ({"target": "token", "position": [1, 2]}, "`position` has 2 entries for 1 answers"),
        ({"target": "token", "position": 3}, "`position` is 3, but the answer has 3 tokens"),
        ({"target": "value", "position": -4}, "`position` is -4, but the answer has 3 tokens"),
    ],
)
def test_what_cannot_be_explained_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        explain_completions(frozen("llava"), rows("llava")[:1], [[90, 91, 92]], **options)


def test_a_value_without_a_critic_is_refused() -> None:
    policy = VLMActorCritic(frozen("llava").backbone, critic=False, reference=False)
    with pytest.raises(ConfigError, match="this policy has no critic"):
        explain_completions(policy, rows("llava")[:1], ["No"], target="value")


def test_answers_are_counted_and_have_tokens() -> None:
    with pytest.raises(ValueError, match="`answers` has 2 entries for 1 rows"):
        explain_completions(frozen("llava"), rows("llava")[:1], ["a", "b"])
    with pytest.raises(DataError, match="row two: the answer has no token"):
        explain_completions(frozen("llava"), rows("llava")[-1:], [[]])
    assert explain_completions(frozen("llava"), [], []) == []


def test_what_is_not_finite_is_named() -> None:
    broken = make("llava")
    with torch.no_grad():
        broken.backbone.base.lm_head.weight[5] = torch.nan
    with pytest.raises(NonFiniteError, match="row one: the completion is nan"):
        explain_completions(broken, rows("llava")[:1], ["No"])


def test_tokens_that_an_adapter_adds_are_refused() -> None:
    prompted = make(
        "llava", "lora", peft_config=PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    )
    assert not prompted.packed
    with pytest.raises(UnsupportedModelError, match="without prompt-learning adapters"):
        explain_completions(prompted, rows("llava")[1:2], ["No"])
