"""Rewards by name: short names, TRL's, and the user's own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from trl.rewards import think_format_reward

from mmft.engine.judging import RewardSuite
from mmft.engine.reward_calls import IsolatedReward, Isolation, reward_names
from mmft.errors import ConfigError
from mmft.resolve import SHORT_NAMES, MessageForm, resolve_reward, resolve_rewards
from mmft.types import PromptRow
from rewards import BleuReward, CaptioningReward, detail_reward

OWN_REWARDS = """
LIMIT = 3

def brevity(completions, *, limit=LIMIT, **columns):
    return [float(len(text) <= limit) for text in completions]

class Keyword:
    def __init__(self, word):
        if not word:
            raise ValueError("word is empty")
        self.word = word

    def __call__(self, completions, **columns):
        return [float(self.word in text) for text in completions]

class NoReward:
    pass
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a module of rewards, made the current one."""
    (tmp_path / "own_rewards.py").write_text(OWN_REWARDS)
    (tmp_path / "broken_rewards.py").write_text("import no_such_package\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for module in ("own_rewards", "broken_rewards"):
        monkeypatch.delitem(sys.modules, module, raising=False)


def call(reward: Any, completions: list[Any], **columns: Any) -> Any:
    return reward(prompts=["p"] * len(completions), completions=completions, **columns)


def test_a_short_name_is_the_reward_of_the_package():
    reward = resolve_reward({"name": "captioning", "alpha": 2.0, "beta": 0.0})
    assert isinstance(reward, CaptioningReward)
    assert (reward.alpha, reward.beta, reward.gamma) == (2.0, 0.0, 0.1)
    assert isinstance(resolve_reward(" captioning "), CaptioningReward)
    assert isinstance(resolve_reward("bleu"), BleuReward)


NEEDED: dict[str, dict[str, Any]] = {
    "clip_score": {"model": "some/clip"},
    "composite": {"parts": {"text": "bleu"}},
    "judge": {"base_url": "http://localhost:1/v1", "model": "some-model"},
    "length": {"max_length": 10},
    "potential_shaping": {"potential": "bleu"},
    "ref_clip_score": {"model": "some/clip"},
    "regex": {"pattern": "cat"},
    "shaped": {"reward": "bleu", "potential": "detail"},
}
"""Arguments without which a reward cannot be made."""


@pytest.mark.parametrize("name", sorted(SHORT_NAMES.keys() - {"reward_model"}))  # needs a trained one
def test_every_short_name_makes_a_reward(name: str):
    reward = resolve_reward({"name": name} | NEEDED.get(name, {}))
    assert callable(reward)
    (metric,) = reward_names([reward])
    assert metric.isidentifier(), "it names metrics"


def test_rewards_inside_of_rewards_are_resolved():
    reward: Any = resolve_reward(
        {
            "name": "shaped",
            "reward": {
                "name": "composite",
                "parts": {"text": {"name": "bleu", "max_order": 2, "weight": 3.0}, "words": "detail"},
            },
            "potential": "length_penalty",
            "beta": 2.0,
        }
    )
    # BLEU and Detail are 1 each; four words and signs against two cost all of Length.
    (score,) = call(reward, ["a cat a cat"], references=[["a cat"]])
    (alone,) = call(reward, ["a cat"], references=[["a cat"]])
    assert alone == pytest.approx(3.0 + 1.0)
    assert score < alone - 2.0 + 1e-9


@pytest.mark.usefixtures("own")
def test_limits_stand_beside_the_arguments():
    reward: Any = resolve_reward(
        {"name": "own_rewards:brevity", "limit": 4, "time_limit": 2.0, "on_error": "mask"}
    )
    assert isinstance(reward, IsolatedReward)
    assert reward.isolation(Isolation()) == Isolation(2.0, "mask")
    assert call(reward, ["abcd"]) == [1.0]
    assert resolve_rewards([{"name": "own_rewards:brevity", "on_error": "mask"}])[1] == ["brevity"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "bleu", "on_error": "skip"}, "`on_error` must be 'raise' or 'mask'; got 'skip'"),
        (
            {"name": "shaped", "reward": {"name": "bleu", "time_limit": 1}, "potential": "bleu"},
            "outer reward",
        ),
        ({"name": "composite", "parts": {"text": {"name": "blue"}}}, "Did you mean 'bleu'"),
    ],
)
def test_what_is_wrong_inside_is_named(spec: Any, message: str):
    with pytest.raises(ConfigError, match=message):
        resolve_reward(spec)


def test_arguments_of_a_function_are_bound_and_it_keeps_its_name():
    reward: Any = resolve_reward({"name": "length_penalty", "target_length": 1})
    assert reward.__name__ == "length_penalty"
    assert call(reward, ["one two"]) == [-1.0]


@pytest.mark.parametrize("name", ["trl:think_format_reward", "trl.rewards.think_format_reward"])
def test_a_reward_of_trl_takes_text_and_messages(name: str):
    reward: Any = resolve_reward(name)
    good, bad = "<think>\nBecause.\n</think>\nYes.", "Yes."
    messages = [[{"role": "assistant", "content": text}] for text in (good, bad)]
    assert call(reward, [good, bad]) == call(reward, messages) == think_format_reward(messages) == [1.0, 0.0]
    assert reward.__name__ == "think_format_reward"


def test_a_reward_that_trl_makes_gets_its_arguments():
    reward = resolve_reward(
        {"name": "trl:get_repetition_penalty_reward", "ngram_size": 2, "max_penalty": -1.0}
    )
    assert call(reward, ["x", "y"], completion_ids=[[1, 2, 3, 4], [5, 5, 5, 5, 5]]) == [0.0, -0.75]


def test_rewards_of_trl_and_of_the_package_judge_together():
    rewards, names = resolve_rewards(
        ["captioning", "trl:think_format_reward", {"name": "captioning", "alpha": 0}]
    )
    assert names == ["captioning", "think_format_reward", "captioning_2"]
    row = PromptRow(("train", 0), "p", [{"role": "user", "content": "p"}], [], {"references": ["a cat"]})
    judgement = RewardSuite(rewards, [1.0, 2.0, 1.0], names).score([row], [["a cat", "<think>a</think>"]])
    # The second caption has more than twice the words and signs of the reference: Length 1, at weight 0.1.
    torch.testing.assert_close(judgement.rewards, torch.tensor([[1.5, 0.0, 0.5], [-0.1, 1.0, -0.1]]))
    torch.testing.assert_close(judgement.total, torch.tensor([2.0, 1.8]))


def test_one_reward_needs_no_list():
    assert resolve_rewards("detail") == ([detail_reward], ["detail_reward"])
    assert resolve_rewards({"name": "captioning"})[1] == ["captioning"]


@pytest.mark.usefixtures("own")
def test_own_rewards_come_from_the_current_folder():
    assert call(resolve_reward("own_rewards:brevity"), ["abc", "abcd"]) == [1.0, 0.0]
    assert call(resolve_reward("own_rewards.brevity"), ["abcd"]) == [0.0]
    longer: Any = resolve_reward({"name": "own_rewards:brevity", "limit": 4})
    assert (call(longer, ["abcd"]), longer.__name__) == ([1.0], "brevity")
    assert call(resolve_reward({"name": "own_rewards:Keyword", "word": "cat"}), ["a cat", "a dog"]) == [
        1.0,
        0.0,
    ]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "captionin",
            r"names 'captionin', which is no known reward. Did you mean 'captioning'\? Your own is written",
        ),
        ("zzz", r"no known reward. Known are bleu, captioning, "),
        ("trl:think_format", r"trl.rewards has no 'think_format'. Did you mean 'think_format_reward'\?"),
        ("trl:zzz", r"trl.rewards has no 'zzz'. Known are accuracy_reward, get_cosine"),
        (
            {"name": "trl:get_repetition_penalty_reward", "max_penalty": 1.0},
            r"cannot be made from .*should not be pos",
        ),
        ({"name": "trl:get_repetition_penalty_reward", "n": 2}, r"has no argument 'n'"),
        (
            "no_such_module:reward",
            r"No module named 'no_such_module'. Run from the folder that holds no_such_module",
        ),
        (
            "broken_rewards:reward",
            r"No module named 'no_such_package'. It is there, but its own imports fail",
        ),
        ("own_rewards:brevty", r"own_rewards \(.*own_rewards.py\) has no 'brevty'. Did you mean 'brevity'\?"),
        ("own_rewards:LIMIT", r"names 'own_rewards:LIMIT', which is 3 and cannot be called"),
        (
            "own_rewards:NoReward",
            r"names 'own_rewards:NoReward'; its instances cannot be called. Give it `__call__`",
        ),
        ("own_rewards:Keyword", r"reward 'own_rewards:Keyword' cannot be made from {}: .*word"),
        ({"name": "own_rewards:Keyword", "word": ""}, r"cannot be made from {'word': ''}: word is empty"),
        (
            {"name": "captioning", "alfa": 1.0},
            r"reward 'captioning' has no argument 'alfa'. Did you mean 'alpha'\?",
        ),
        ({"name": "composite", "parts": ["bleu"]}, r"reward 'composite' cannot be made from .*'bleu'"),
        ({"name": "cider_d", "document_frequencies": "/none.json"}, r"cannot be made from .*No such file"),
        ({"name": "captioning", "alpha": -1.0}, r"cannot be made from {'alpha': -1.0}: `alpha` must be"),
        ({"name": "own_rewards:brevity", "lmit": 1}, r"has no argument 'lmit'. Did you mean 'limit'\?"),
        ({"alpha": 1.0}, r"a reward is a name, or a mapping with `name` and arguments; got {'alpha': 1.0}"),
        (3, r"a reward is a name, or a mapping with `name` and arguments; got 3"),
        (":reward", r"names ':reward', which is no known reward"),
    ],
)
@pytest.mark.usefixtures("own")
def test_what_cannot_be_resolved_is_named(spec: Any, message: str):
    with pytest.raises(ConfigError, match=message):
        resolve_reward(spec)


def test_a_package_that_a_reward_lacks_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(sys.modules, "rewards.judge", raising=False)
    monkeypatch.delitem(sys.modules, "rewards.judging_endpoint", raising=False)
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ConfigError, match="names 'judge': the judge reward needs the `openai` package"):
        resolve_reward("judge")


def test_message_form_hands_on_prompts_and_columns():
    seen: dict[str, Any] = {}

    def my_reward(**arguments: Any) -> list[float]:
        seen.update(arguments)
        return [0.0, 0.0]

    given = [{"role": "assistant", "content": "b"}]
    call(MessageForm(my_reward), ["a", given], score=[1, 2])
    assert seen == {
        "prompts": ["p", "p"],
        "completions": [[{"role": "assistant", "content": "a"}], given],
        "score": [1, 2],
    }
