"""The captioning reward: its arithmetic, its protocol, and that degenerate captions lose."""

from __future__ import annotations

import pickle

import pytest

from rewards import CaptioningReward, caption_detail, excess_length, sentence_bleu
from tests.rewards.captions import PICTURES, degenerate

REFERENCES = ["a red circle and a blue square"]
CONTENT_FREE = ("empty", "articles", "more articles", "function words", "punctuation", "unrelated words")


def score(caption: str, references: list[str], **arguments: float) -> float:
    (reward,) = CaptioningReward(**arguments)(None, [caption], [references])
    assert reward is not None
    return reward


def test_reward_is_the_weighted_sum_of_its_parts():
    caption = "a shiny red circle and a blue square on a table"
    bleu, detail = sentence_bleu(caption, REFERENCES), caption_detail(caption, REFERENCES)
    length = excess_length(caption, REFERENCES)
    assert 0 < bleu < 1
    assert 0 < detail < 1
    assert 0 < length < 1
    value = score(caption, REFERENCES, alpha=2.0, beta=3.0, gamma=5.0)
    assert value == pytest.approx(2 * bleu + 3 * detail - 5 * length)


def test_reward_of_a_short_caption_hand_computed():
    # BLEU: all n-grams match, brevity exp(1 - 7/3). Detail: 3 of 6 units. Length: none.
    assert score("a red circle", REFERENCES) == pytest.approx(2.718281828459045 ** (1 - 7 / 3) + 0.5 * 3 / 6)


def test_reward_of_a_perfect_and_of_an_empty_caption():
    assert score(REFERENCES[0], REFERENCES) == 1.5
    assert score("", REFERENCES) == 0.0


def test_reward_stays_within_its_bounds():
    for references in PICTURES:
        for caption in [*references, *degenerate(references).values()]:
            assert -0.1 <= score(caption, references) <= 1.5


@pytest.mark.parametrize("references", PICTURES, ids=lambda references: references[0])
def test_every_degenerate_caption_scores_below_every_human_one(references: list[str]):
    lowest = min(score(caption, references) for caption in references)
    for kind, caption in degenerate(references).items():
        assert score(caption, references) < 0.75 * lowest, f"{kind}: {caption}"


@pytest.mark.parametrize("references", PICTURES, ids=lambda references: references[0])
def test_captions_without_content_score_below_a_new_human_caption(references: list[str]):
    """A person's caption is scored against the other people's captions, as a good model's would be."""
    for index, caption in enumerate(references):
        others = references[:index] + references[index + 1 :]
        human = score(caption, others)
        for kind in CONTENT_FREE:
            assert score(degenerate(others)[kind], others) < human, f"{kind} beats {caption!r}"


def test_bleu_counts_only_for_a_caption_that_says_something():
    def bleu(caption: str, references: list[str], keywords: list[str] | None = None) -> float | None:
        return CaptioningReward().components([caption], [references], [keywords])["bleu"][0]

    assert sentence_bleu("a a a .", ["a red circle ."]) > 0.18
    assert bleu("a a a .", ["a red circle ."]) == 0.0
    assert bleu("a green one", ["a red circle ."]) == 0.0
    assert bleu("a green one", ["a red circle ."], ["green"]) == sentence_bleu(
        "a green one", ["a red circle ."]
    )
    assert bleu("a red square", ["a red circle ."]) == sentence_bleu("a red square", ["a red circle ."])
    assert bleu("it is", ["it is that"]) == sentence_bleu("it is", ["it is that"])  # nothing to know


def test_more_true_detail_pays_and_a_wrong_binding_costs():
    references = ["a red circle and a blue square", "a large red circle left of a small blue square"]
    ordered = [
        "a blue circle and a red square",
        "a red circle",
        "a red circle and a blue square",
        "a large red circle left of a small blue square",
    ]
    scores = [score(caption, references) for caption in ordered]
    assert scores == sorted(set(scores))


def test_parts_are_available_apart_and_lie_in_zero_to_one():
    parts = CaptioningReward().components(["a red circle", "x " * 40], [REFERENCES, REFERENCES])
    assert list(parts) == ["bleu", "detail", "length"]
    assert parts["detail"] == [0.5, 0.0]
    assert parts["length"] == [0.0, 1.0]
    assert parts["bleu"][0] == pytest.approx(2.718281828459045 ** (1 - 7 / 3))


def test_parts_are_logged_through_the_helpers_of_the_trainer():
    extra: dict[str, list[float | None]] = {}
    metric: dict[str, float] = {}
    CaptioningReward()(
        prompts=["p"] * 3,
        completions=["a red circle", "", "x"],
        references=[REFERENCES, REFERENCES, None],
        log_extra=extra.__setitem__,
        log_metric=metric.__setitem__,
    )
    assert extra["detail"] == [0.5, 0.0, None]
    assert metric["captioning/detail"] == 0.25
    assert set(metric) == {"captioning/bleu", "captioning/detail", "captioning/length"}


def test_nothing_is_logged_as_a_metric_where_nothing_was_judged():
    metric: dict[str, float] = {}
    rewards = CaptioningReward()(None, ["x"], [None], log_metric=metric.__setitem__)
    assert (rewards, metric) == ([None], {})


def test_strings_messages_and_content_blocks_score_alike():
    text = "a red circle"
    forms = [
        text,
        [{"role": "assistant", "content": text}],
        [{"role": "assistant", "content": [{"type": "text", "text": text}]}],
    ]
    rewards = CaptioningReward()(None, forms, [REFERENCES] * 3)
    assert rewards == [rewards[0]] * 3
    assert CaptioningReward()(None, [[], [{"role": "assistant", "content": None}]], [REFERENCES] * 2) == [
        0.0,
        0.0,
    ]


def test_the_last_message_of_a_completion_is_scored():
    completion = [
        {"role": "assistant", "content": "Let me look."},
        {"role": "assistant", "content": REFERENCES[0]},
    ]
    assert CaptioningReward()(None, [completion], [REFERENCES]) == [1.5]


def test_columns_can_be_named_and_keywords_are_used_if_there():
    reward = CaptioningReward(alpha=0, beta=1, gamma=0, references_column="captions", keywords_column="tags")
    assert reward(None, ["a red tile"], captions=[["a red dragon"]]) == [pytest.approx(1 / 2 * 1 / 3)]
    assert reward(None, ["a red circle"], captions=[["a red dragon"]], tags=[["red circle"]]) == [1.0]
    assert reward(None, ["a red circle"], captions=[["a red circle"]], tags=[[]]) == [1.0]


def test_target_length_replaces_the_longest_reference():
    reward = CaptioningReward(alpha=0, beta=0, gamma=1, target_length=2)
    assert reward(None, ["one two three"], [["one two three four"]]) == [-0.5]


def test_a_copy_made_for_another_process_scores_the_same():
    reward = CaptioningReward(alpha=2.0)
    copy = pickle.loads(pickle.dumps(reward))
    assert copy(None, ["a red circle"], [REFERENCES]) == reward(None, ["a red circle"], [REFERENCES])
    assert copy.__name__ == "captioning"
    assert repr(copy) == "CaptioningReward(alpha=2.0, beta=0.5, gamma=0.1)"


@pytest.mark.parametrize(
    ("references", "message"),
    [
        ([REFERENCES, []], r"row 1: `references` is empty \(\[\]\). Give a phrase at least"),
        ([REFERENCES, ["  "]], r"row 1: `references` is empty"),
        ([REFERENCES, [3]], r"row 1: `references` must be a string or a list of strings; got \[3\]"),
        ([REFERENCES, 3], r"row 1: `references` must be a string or a list of strings; got 3"),
        ([REFERENCES], r"`references` must be a list with an entry per completion \(2\)"),
        ("a red circle", r"`references` must be a list with an entry per completion \(2\)"),
        (None, r"the reward needs a column `references` and the data has none"),
    ],
)
def test_references_that_cannot_be_used_are_named(references: object, message: str):
    with pytest.raises(ValueError, match=message):
        CaptioningReward()(None, ["a", "b"], references)  # type: ignore[arg-type]


@pytest.mark.parametrize("weight", ["alpha", "beta", "gamma"])
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_weights_must_be_finite_and_not_negative(weight: str, value: float):
    with pytest.raises(ValueError, match=f"`{weight}` must be a finite number >= 0; got {value}"):
        CaptioningReward(**{weight: value})


def test_target_length_must_be_positive():
    with pytest.raises(ValueError, match="`target_length` must be at least 1 or None; got 0"):
        CaptioningReward(target_length=0)
