"""Rewards that judge one by one, and pictures and columns as the command line names them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmft.cli.lone_pictures import (
    CANNOT_JUDGE,
    REASON_LENGTH,
    Part,
    Scores,
    is_tuned,
    judge,
    named_rewards,
    open_run,
    read_columns,
    read_picture,
    run_rewards,
)
from mmft.engine.judging import RewardSuite
from mmft.engine.reward_calls import IsolatedReward
from mmft.errors import ConfigError
from mmft.runs import Run
from mmft.types import PromptRow
from rewards import BleuReward, CaptioningReward

CAPTION = "a red circle."


def row(**columns: Any) -> PromptRow:
    return PromptRow(("given", 0), "what?", [], [Image.new("RGB", (4, 4))], columns)


def words(completions: list[str], **columns: Any) -> list[float]:
    return [float(len(each.split())) for each in completions]


def colour(completions: list[str], colour: list[str], **columns: Any) -> list[float]:
    return [float(each in text) for each, text in zip(colour, completions, strict=True)]


def looked_up(completions: list[str], **columns: Any) -> list[float]:
    return [len(columns["answer"][0]) for _ in completions]


def broken(completions: list[str], **columns: Any) -> list[float]:
    raise RuntimeError("no\nluck " + "x" * 500)


def silent(completions: list[str], **columns: Any) -> list[None]:
    return [None for _ in completions]


class PerToken:
    """Pays for tokens too."""

    def __call__(self, completions: list[str], **columns: Any) -> list[float]:
        return [9.0 for _ in completions]

    def token_rewards(self, completions: list[str], **columns: Any) -> list[list[float]]:
        return [[9.0] for _ in completions]


def test_each_reward_judges_alone_and_what_misses_a_column_is_named():
    suite = RewardSuite(
        [words, BleuReward(), colour, looked_up, CaptioningReward(references_column="captions")],
        [2.0, 1.0, 1.0, 1.0, 0.0],
    )
    found = judge(suite, row(), CAPTION)
    assert [part.value for part in found.parts] == [3.0, None, None, None, None]
    assert [part.needs for part in found.parts] == ["", "references", "colour", "answer", "captions"]
    assert [part.why for part in found.parts[1:3]] == ["needs references", "needs colour"]
    assert [part.weight for part in found.parts] == [2.0, 1.0, 1.0, 1.0, 0.0]
    assert found.total == 6.0  # 2 * 3 words; the others are left out


def test_with_every_column_the_total_is_that_of_training():
    suite = RewardSuite([words, BleuReward(), CaptioningReward(), colour], [0.5, 2.0, 1.0, 0.0])
    given = row(references=["a red circle and a blue square"], colour="red")
    found = judge(suite, given, CAPTION)
    whole = suite.score([given], [[CAPTION]], training=False)
    assert found.total == pytest.approx(float(whole.total[0]))
    assert [part.value for part in found.parts] == pytest.approx(whole.rewards[0].tolist())
    captioning = found.parts[2].details
    assert set(captioning) == {f"captioning/{part}" for part in ("bleu", "detail", "length")}
    assert captioning["captioning/detail"] == pytest.approx(whole.components["captioning/detail"][0])


def test_a_failure_is_told_in_one_short_line_whatever_the_policy():
    suite = RewardSuite([IsolatedReward(broken, on_error="mask"), silent])
    found = judge(suite, row(), CAPTION)
    assert [part.value for part in found.parts] == [None, None]
    assert found.parts[0].why.startswith("reward 'broken' failed on row ('given', 0), completion")
    assert len(found.parts[0].why) == REASON_LENGTH
    assert "\n" not in found.parts[0].why
    assert (found.parts[0].needs, found.parts[1].why) == ("", CANNOT_JUDGE)
    assert found.total is None


def test_what_pays_for_tokens_is_the_score_only_alone():
    beside = judge(RewardSuite([words, PerToken()]), row(), CAPTION)
    assert (beside.total, [part.weight for part in beside.parts]) == (3.0, [1.0, 0.0])
    assert judge(RewardSuite([PerToken()]), row(), CAPTION).total == 9.0
    # What is only reported is no score beside it.
    assert judge(RewardSuite([words, PerToken()], [0.0, 1.0]), row(), CAPTION).total == 9.0


def test_statistics_of_rewards_stay_as_they_were_trained():
    class Gathers:
        trained: bool | None = None

        def evidence(self, completions: list[str], **columns: Any) -> list[float]:
            return [0.5 for _ in completions]

        def settle(self, evidence: list[float], *, gather: Any, training: bool) -> list[float]:
            self.trained = training
            return gather(evidence)[0]

        def __call__(self, completions: list[str], **columns: Any) -> list[float]:
            return [0.0 for _ in completions]

    reward = Gathers()
    assert judge(RewardSuite([reward]), row(), CAPTION).total == 0.5
    assert reward.trained is False


def test_a_total_of_nothing_is_none():
    assert Scores([]).total is None
    assert Scores([Part("a", 1.0, None), Part("b", 0.0, 3.0)]).total is None
    assert Scores([Part("a", 1.0, 0.0)]).total == 0.0


def test_columns_are_json_and_references(tmp_path: Path):
    assert read_columns(None, None) == {}
    assert read_columns('{"answer": "4"}', ["one", "two"]) == {"answer": "4", "references": ["one", "two"]}
    for text, message in (
        ("{answer: 4}", r"`--columns` is no JSON: '\{answer: 4\}'"),
        ("[1]", r'`--columns` must be a JSON object such as \{"answer": "4"\}; got \'\[1\]\''),
    ):
        with pytest.raises(ConfigError, match=message):
            read_columns(text, None)
    with pytest.raises(ConfigError, match="`--columns` holds `references`, and `--references` is given too"):
        read_columns('{"references": ["a"]}', ["b"])


def test_pictures_are_read_as_data_is(tmp_path: Path):
    transparent = Image.new("RGBA", (4, 2), (255, 0, 0, 0))
    transparent.save(tmp_path / "picture.png")
    found = read_picture(str(tmp_path / "picture.png"), "it")
    assert (found.mode, found.getpixel((0, 0))) == ("RGB", (255, 255, 255))
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ConfigError, match=r"^it cannot be read as a picture \(UnidentifiedImageError\)"):
        read_picture(str(tmp_path / "text.png"), "it")
    with pytest.raises(ConfigError, match=r"^it is no file. Give the path"):
        read_picture(str(tmp_path / "missing.png"), "it")


def test_rewards_are_named_as_in_a_config():
    suite = named_rewards(["bleu", "{name: captioning, gamma: 0.2}"])
    assert (suite.names, suite.weights) == (("bleu_reward", "captioning"), [1.0, 1.0])
    with pytest.raises(ConfigError, match=r"`--reward_funcs` is no YAML or JSON: .\{name: "):
        named_rewards(["{name: "])


def test_rewards_that_cannot_be_made_here_are_a_remark(tmp_path: Path):
    assert run_rewards(Run(tmp_path, "run")) == (None, "")
    suite, remark = run_rewards(Run(tmp_path, "run", {"reward_funcs": ["not_here:reward"]}))
    assert suite is None
    assert remark.startswith("the rewards of the run cannot be made here, so nothing is judged:")
    assert "not_here" in remark


def test_the_packaged_model_is_no_run_and_an_adapter_is_tuned(tmp_path: Path):
    captioner = open_run("mmft/tiny-captioner")
    assert (captioner.prompt, is_tuned(captioner)) == ("Describe the picture.", False)
    (tmp_path / "adapter_config.json").write_text("{}")
    assert is_tuned(open_run(str(tmp_path)))


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("agent.json", "trained an agent, which acts and writes no text"),
        ("reward_model.json", "trained a reward model, which judges and writes no text"),
    ],
)
def test_what_writes_no_text_is_refused(tmp_path: Path, file: str, message: str):
    (tmp_path / file).write_text("{}")
    with pytest.raises(ConfigError, match=message):
        open_run(str(tmp_path))
