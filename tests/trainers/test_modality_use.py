"""Whether a policy reads its pictures: what is measured and warned of, and that looking changes nothing."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch

from mmft.engine.attribution import Attribution
from mmft.errors import ConfigError, DataError, NonFiniteError, UnsupportedModelError
from mmft.trainers import modality_use
from mmft.trainers.a2c import AgentA2CConfig
from mmft.trainers.dqn_config import DQNConfig
from mmft.trainers.metric_log import MetricLog
from mmft.trainers.modality_use import (
    IGNORED,
    ImportanceLog,
    ModalityUse,
    exchange_partners,
    measure_modality_use,
    modality_warnings,
)
from mmft.trainers.ppo import AgentPPOConfig, AgentPPOTrainer, PPOConfig
from mmft.types import PromptRow
from tests.trainers.agent_support import make_agent_trainer
from tests.trainers.modality_support import blinded, captioner, scene_rows, use_of, with_one_answer
from tests.trainers.support import make_rows, make_trainer, moved, step_rows, trained_weights

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


def use(exchanged: float, **changes: float) -> ModalityUse:
    numbers = {"image_share": 0.5, "text_share": 0.5, "image_gradient_share": 0.1, "blanked": 1.0}
    return ModalityUse(rows=8, exchanged=exchanged, **(numbers | changes))


def row(number: int, *colours: str) -> PromptRow:
    images = [PIL.Image.new("RGB", (4, 4), colour) for colour in colours]
    return PromptRow(("test", number), "what", [], images)


def attribution(image: float, text: float) -> Attribution:
    shares = {"image": image, "prompt": text, "answer": 0.0}
    return Attribution("completion", -1.0, dict(shares), shares, [], [])


# Policies that read pictures and others


def test_the_captioner_reads_its_pictures():
    found = use_of(captioner())
    assert found is not None
    assert found.rows == 12
    assert found.exchanged > 1.0  # measured: 2.3 nats per token
    assert found.image_share > 0.5
    assert found.image_share + found.text_share == pytest.approx(1.0)
    assert modality_warnings(found, found) == []


def test_a_projector_of_zeros_is_warned_of():
    found = use_of(blinded())
    assert found is not None
    assert found.exchanged == found.blanked == 0.0
    assert found.image_share == 0.0
    # The plain gradient is largest where nothing arrives, which is why nothing goes by it.
    assert found.image_gradient_share > 0.9
    (text,) = modality_warnings(None, found)
    assert text.startswith("The picture is ignored: with another row's picture")
    assert "0 nats per token, over 12 rows" in text
    assert "share of their gradient is 0%" in text


def test_a_policy_that_says_one_thing_to_every_picture_is_warned_of():
    found = use_of(with_one_answer())
    assert found is not None
    assert found.exchanged < IGNORED
    assert found.image_share > 0.1  # the share alone would not tell
    (text,) = modality_warnings(use(2.0), found)
    assert "(before training 2)" in text


def test_rows_of_text_have_nothing_to_ignore():
    rows = [dataclasses.replace(each, images=[]) for each in scene_rows()[:3]]
    assert measure_modality_use(captioner(), rows, ["a star."] * 3) is None
    assert modality_warnings(None, None) == []
    assert modality_warnings(use(2.0), None) == []


def test_one_picture_for_all_rows_tells_nothing():
    first = scene_rows()[0]
    rows = [dataclasses.replace(first, key=("same", number)) for number in range(3)]
    assert measure_modality_use(captioner(), rows, ["a star."] * 3) is None


def test_the_change_is_a_mean_over_tokens_of_its_size(monkeypatch: pytest.MonkeyPatch):
    """Own log-probs 0; exchanged -1, +2, 0, blanked all -3: means of sizes 1 and 3."""
    answers = iter([torch.zeros(3), torch.tensor([-1.0, 2.0, 0.0]), torch.full((3,), -3.0)])
    monkeypatch.setattr(modality_use, "_token_logps", lambda *args: next(answers))
    monkeypatch.setattr(
        modality_use, "explain_completions", lambda *args, **options: [attribution(0.3, 0.7)] * 2
    )
    found = measure_modality_use(captioner(), scene_rows()[:2], ["a star.", "a cross."])
    assert found == ModalityUse(2, 0.3, 0.7, 0.3, 1.0, 3.0)


def test_pictures_are_exchanged_and_blanked_and_the_prompt_stays(monkeypatch: pytest.MonkeyPatch):
    asked: list[Sequence[PromptRow]] = []
    told: list[list[list[int]]] = []

    def logps(policy: Any, rows: Sequence[PromptRow], ids: Any, temperature: float) -> torch.Tensor:
        asked.append(rows)
        told.append([list(each) for each in ids])
        return torch.zeros(1)

    monkeypatch.setattr(modality_use, "_token_logps", logps)
    monkeypatch.setattr(modality_use, "explain_completions", lambda *args, **options: [attribution(0.3, 0.7)])
    rows = scene_rows()[:2]
    policy = captioner()
    measure_modality_use(policy, rows, ["a star.", "a star."], [True, False])
    own, other, blank = asked
    assert [each.images for each in own] == [each.images for each in rows]
    assert [each.images for each in other] == [rows[1].images, rows[0].images]
    assert all(each.images[0].getcolors() == [(64 * 64, (127, 127, 127))] for each in blank)
    assert all(each.messages == rows[0].messages for each in (*other, *blank))
    # Of an answer that was cut the end token is no part.
    ended, cut = told[0]
    assert ended[:-1] == cut
    assert ended[-1] in policy.backbone.end_ids


def test_partners_differ_and_have_as_many_pictures():
    rows = [row(0, "red"), row(1, "blue"), row(2, "red", "blue"), row(3), row(4, "red"), row(5, "red")]
    partners = exchange_partners(rows)
    assert partners == [1, 4, None, None, 1, 1]
    assert exchange_partners([row(0, "red"), row(1, "red")]) == [None, None]
    colours = ("red", "blue", "green", "black")
    assert exchange_partners([row(n, colour) for n, colour in enumerate(colours)]) == [2, 3, 0, 1]


def test_a_fall_to_a_tenth_is_warned_of_and_not_a_smaller_one():
    (text,) = modality_warnings(use(2.0), use(0.19))
    assert text.startswith("The picture hardly counts any more: ")
    assert "by 0.19 nats per token (before training 2), over 8 rows" in text
    assert modality_warnings(use(2.0), use(0.21)) == []
    assert modality_warnings(None, use(0.06)) == []
    (text,) = modality_warnings(None, use(0.04, image_share=0.31))
    assert text.startswith("The picture is ignored: ")
    assert text.endswith("share of their gradient is 31%.")


@pytest.mark.parametrize("error", [UnsupportedModelError, NotImplementedError, DataError])
def test_what_cannot_be_looked_into_is_said_and_not_measured(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def refuse(*args: Any, **options: Any) -> None:
        raise error("rows are not tokens")

    monkeypatch.setattr(modality_use, "explain_completions", refuse)
    with caplog.at_level(logging.WARNING):
        assert measure_modality_use(captioner(), scene_rows()[:2], ["a star."] * 2) is None
    assert "how much pictures count is not measured: rows are not tokens" in caplog.text


def test_the_record_is_plain_numbers():
    assert use(0.12345678).record() == {
        "rows": 8.0,
        "image_share": 0.5,
        "text_share": 0.5,
        "image_gradient_share": 0.1,
        "exchanged": 0.123457,
        "blanked": 1.0,
    }


# Looks in training


def test_looks_are_taken_at_their_steps_and_averaged():
    log, taken = MetricLog(), []

    def explain() -> list[Attribution]:
        taken.append(len(taken))
        return [attribution(0.2, 0.8), attribution(0.4, 0.6)]

    looks = ImportanceLog(3, log)
    for step in range(7):
        looks.look(step, explain)
    assert len(taken) == 3  # steps 0, 3 and 6
    flushed = log.flush()
    assert flushed["importance/image_share"] == pytest.approx(0.3)
    assert flushed["importance/text_share"] == pytest.approx(0.7)
    assert "seconds/importance" in flushed


@pytest.mark.parametrize("config", [DQNConfig, AgentPPOConfig, AgentA2CConfig])
def test_looks_at_agents_cost_less_than_a_hundredth(config: Any, tmp_path: Path):
    """On one thread a look takes 50 ms and a step with a frozen backbone 16: 3.2 steps, so 320 or more."""
    assert config(output_dir=str(tmp_path), use_cpu=True).importance_steps >= 320


def test_no_looks_are_taken_where_they_are_off():
    looks = ImportanceLog(0, MetricLog())
    looks.look(0, lambda: pytest.fail("looked"))


def test_what_has_no_picture_or_no_gradient_is_not_logged():
    log = MetricLog()
    text = dataclasses.replace(attribution(0.0, 1.0), shares={"prompt": 0.5, "answer": 0.5})
    ImportanceLog(1, log).look(0, lambda: [text, attribution(0.0, 0.0)])
    assert set(log.flush()) == {"seconds/importance"}


def test_sharded_weights_are_not_looked_into_which_is_said_once(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        looks = ImportanceLog(5, MetricLog(), sharded=True)
    looks.look(0, lambda: pytest.fail("looked"))
    assert caplog.text.count("`importance_steps` is 5, but nothing is looked at: weights are sharded") == 1


@pytest.mark.parametrize(
    "error",
    [
        *(UnsupportedModelError, NonFiniteError, torch.OutOfMemoryError),
        *(DataError, NotImplementedError, RuntimeError, ValueError),  # no backward pass, a picture refused
    ],
)
def test_a_look_that_fails_is_the_last_and_training_goes_on(
    error: type[Exception], caplog: pytest.LogCaptureFixture
):
    def explain() -> list[Attribution]:
        raise error("it broke.")

    looks = ImportanceLog(1, MetricLog())
    with caplog.at_level(logging.WARNING):
        looks.look(0, explain)
        looks.look(1, lambda: pytest.fail("looked again"))
    assert caplog.text.count("nothing is looked at: it broke.") == 1


def whole(trainer: Any) -> Any:
    trainer.train()
    return trainer


@pytest.mark.parametrize(("lora", "bf16"), [(True, False), (False, False), (True, True)])
def test_a_policy_that_is_looked_at_trains_to_the_same_bits(lora: bool, bf16: bool, tmp_path: Path):
    """With dropout, whose random numbers a look must not use up, with weights before the seam, and in mixed
    precision."""
    options: dict[str, Any] = {"lora": lora, "lora_dropout": 0.2 if lora else 0.0, "bf16": bf16}
    if not lora:
        options["trainable"] = ("language", "projector")
    plain = whole(make_trainer(tmp_path, importance_steps=0, **options))
    looked = whole(make_trainer(tmp_path, importance_steps=1, **options))
    assert moved(trained_weights(plain), trained_weights(looked)) == set()
    named = [
        {name: value for name, value in line.items() if not name.startswith("importance/")}
        for line in step_rows(looked)
    ]
    assert named == step_rows(plain)
    shares = [line["importance/image_share"] for line in step_rows(looked)]
    assert len(shares) == 8
    assert all(0.0 < share < 1.0 for share in shares)
    assert all(
        line["importance/image_share"] + line["importance/text_share"] == pytest.approx(1.0)
        for line in step_rows(looked)
    )
    assert not any("importance/image_share" in line for line in step_rows(plain))


def test_looks_depend_on_the_step_alone_so_that_a_resumed_run_takes_the_same(tmp_path: Path):
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3, "importance_steps": 2}
    first = whole(make_trainer(tmp_path / "run", **saving))
    again = make_trainer(tmp_path / "again", **saving)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    told = [[line.get("importance/image_share") for line in step_rows(trainer)] for trainer in (first, again)]
    assert told[0] == told[1]
    assert [share is not None for share in told[0]] == [True, False] * 4


def test_rows_without_pictures_train_without_looks(tmp_path: Path):
    rows = [{name: value for name, value in each.items() if name != "image"} for each in make_rows(16)]
    trainer = whole(make_trainer(tmp_path, rows=rows, importance_steps=1, max_steps=2))
    assert not any("importance/image_share" in line for line in step_rows(trainer))


@pytest.mark.parametrize("method", ["gradient", "relative"])
def test_the_method_is_the_configs(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    methods: list[str] = []

    def explain(*args: Any, **options: Any) -> list[Attribution]:
        methods.append(options["method"])
        return [attribution(0.5, 0.5)]

    monkeypatch.setattr(modality_use, "explain_completions", explain)
    whole(make_trainer(tmp_path, importance_steps=1, importance_method=method, max_steps=1))
    assert methods == [method]


@pytest.mark.parametrize("kind", ["dqn", "ppo"])
def test_an_agent_that_is_looked_at_trains_to_the_same_bits(kind: str, tmp_path: Path):
    classes = () if kind == "dqn" else (AgentPPOTrainer, AgentPPOConfig)
    options: dict[str, Any] = {"lora": kind == "ppo", "lora_dropout": 0.1 if kind == "ppo" else 0.0}
    trainers = []
    for steps in (0, 2):
        torch.manual_seed(0)  # adapters are drawn with the model
        trainers.append(whole(make_agent_trainer(tmp_path, *classes, importance_steps=steps, **options)))
    plain, looked = trainers
    named = [dict(trainer.agent.named_parameters()) for trainer in (plain, looked)]
    assert all(torch.equal(parameter, named[1][name]) for name, parameter in named[0].items())
    shares = [line.get("importance/image_share") for line in step_rows(looked)]
    # A policy's first head is 0, and nothing hangs on anything.
    taken = [number % 2 == 0 and (kind == "dqn" or number > 0) for number in range(len(shares))]
    assert [share is not None for share in shares] == taken
    usage = [(t.agent.encoder.num_asked, t.agent.encoder.num_encoded) for t in (plain, looked)]
    assert usage[0] == usage[1]  # looks are not counted, and fill no cache


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"importance_steps": -1}, "`importance_steps` must be >= 0; got -1. 0 is off"),
        ({"importance_method": "gradiant"}, "`importance_method` names 'gradiant'.*Did you mean 'gradient'"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changes: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=message):
        PPOConfig(output_dir=str(tmp_path), use_cpu=True, **changes)
    with pytest.raises(ConfigError, match=message):
        AgentPPOConfig(output_dir=str(tmp_path), use_cpu=True, **changes)
