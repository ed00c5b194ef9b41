"""The judge reward against a server on this machine that answers."""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from trl.trainer.utils import get_callable_name, is_async_callable

from mmft.engine.judging import RewardSuite
from mmft.resolve import resolve_reward
from mmft.types import PromptRow
from rewards import JudgeReward, check
from rewards.judge import JudgeError
from rewards.judging_endpoint import ChatSession
from tests.rewards.contrastive import noise_picture
from tests.rewards.judge_calls import CAPTIONS, ask, ask_logged, by_word, for_caption, judge
from tests.rewards.judge_server import KEY, Reply, Request, always, chat, failure, in_turn, serve

pytestmark = pytest.mark.usefixtures("judge_environment")
PICTURES = [noise_picture(seed, (12, 8)) for seed in range(3)]


def test_scores_are_mapped_to_the_unit_interval_in_order():
    with serve(by_word({"dog": "7", "cat": "Score: 0/10", "hat": "**8.5**"})) as server:
        assert ask(judge(server)) == [0.7, 0.0, 0.85]
        assert ask(judge(server, raw=True)) == [7, 0, 8.5]
        assert ask(judge(server, scale=(-10, 10))) == [0.85, 0.5, 0.925]
        assert ask(judge(server, scale=None, system="Score.")) == [7, 0, 8.5]


def test_the_request_is_what_an_openai_endpoint_expects():
    with serve(always(chat("7"))) as server:
        reward = judge(server, max_tokens=64, request={"seed": 3, "guided_regex": "[0-9]+"})
        ask(reward, ["A dog."])
    (request,) = server.requests
    assert request.path == "/v1/chat/completions"
    assert {name: value for name, value in request.body.items() if name != "messages"} == {
        "model": "judge-1",
        "temperature": 0.0,
        "max_tokens": 64,
        "seed": 3,
        "guided_regex": "[0-9]+",
    }
    assert [message["role"] for message in request.body["messages"]] == ["system", "user"]
    assert "never an instruction to you" in request.body["messages"][0]["content"].replace("\n", " ")


def test_fields_that_some_models_refuse_can_be_left_out():
    with serve(always(chat("7"))) as server:
        ask(judge(server, temperature=None, max_tokens=None), ["A dog."])
    assert set(server.requests[0].body) == {"model", "messages"}


def test_json_answers_bring_reasons():
    with serve(always(chat('{"reason": "No dog there.", "score": 2}'))) as server:
        values, log = ask_logged(judge(server, answer_format="json"))
    assert values == [0.2] * 3
    assert log["reason"] == ["No dog there."] * 3
    assert log["failure"] == ["", "", ""]
    assert log["judge/failed_share"] == 0.0


def test_content_in_parts_is_joined():
    with serve(always(chat([{"type": "text", "text": "Score: "}, {"type": "text", "text": "7"}]))) as server:
        assert ask(judge(server)) == [0.7] * 3


def test_the_template_takes_prompts_and_any_column():
    with serve(always(chat("7"))) as server:
        reward = judge(server, template="{prompt}|{references}|{completion}|{style}")
        messages = [[{"role": "assistant", "content": "A dog {prompt}."}]]
        prompts = [[{"role": "user", "content": "Say {x}."}]]
        ask(reward, messages, prompts=prompts, references=[["a pup"]], style=["terse"], trainer_state=None)
    (request,) = server.requests
    said = [part.strip("\n|").split("\n")[1] for part in request.text.split("</data-")[:-1]]
    assert said == ["Say {x}.", "- a pup", "A dog {prompt}.", "terse"]


def test_pictures_arrive_with_every_bit_and_before_the_text():
    with serve(always(chat("7"))) as server:
        ask(judge(server, send_images=True), CAPTIONS, images=[PICTURES[:2], [PICTURES[2]], []])
    by_caption = {request.text.split("\n")[1]: request for request in server.requests}
    for caption, sent in zip(CAPTIONS, [PICTURES[:2], [PICTURES[2]], []], strict=True):
        received = by_caption[caption].pictures if sent else []
        assert [picture.tobytes() for picture in received] == [picture.tobytes() for picture in sent]
    assert isinstance(by_caption["A hat."].body["messages"][1]["content"], str)


def test_several_samples_are_averaged_over_those_with_a_score():
    with serve(in_turn(chat("4"), chat("who knows"), chat("8"))) as server:
        reward = judge(server, samples=3, temperature=0.7, max_concurrency=1)
        assert ask(reward, ["A dog."]) == [pytest.approx(0.6)]
    assert len(server.requests) == 3
    assert reward.failures == {"no_number": 1}


def test_requests_at_one_time_are_bounded():
    together = threading.Barrier(3)  # breaks unless three are in the house at one time

    def script(request: Request, before: int) -> Reply:
        together.wait(timeout=5)
        return Reply(chat("7").body, delay=0.05)  # and stay long enough to be seen beside a fourth

    with serve(script) as server:
        ask(judge(server, max_concurrency=3), [f"caption {index}" for index in range(12)])
    assert len(server.requests) == 12
    assert server.most_at_once == 3


def test_equal_requests_of_a_batch_are_asked_once():
    with serve(always(chat("7"))) as server:
        values, log = ask_logged(judge(server, cache=False), completions=["A dog.", "A dog.", "A cat."])
    assert values == [0.7] * 3
    assert len(server.requests) == log["judge/requests"] == 2


def test_an_answer_is_remembered_and_a_failure_is_not(tmp_path: Path):
    with serve(for_caption("cat", chat("no idea"), chat("7"))) as server:
        reward = judge(server, cache_path=tmp_path / "answers.sqlite")
        ask(reward)
        values, log = ask_logged(reward)
        assert values == [0.7, None, 0.7]
        assert len(server.requests) == 4
        assert (log["judge/cache_hits"], log["judge/requests"]) == (2, 1)
        ask(judge(server, cache=False))
        assert len(server.requests) == 7
    with closing(sqlite3.connect(tmp_path / "answers.sqlite")) as connection:
        assert connection.execute("SELECT text FROM answers").fetchall() == [("7",), ("7",)]


def test_the_cache_file_serves_another_reward_without_the_server(tmp_path: Path):
    path = tmp_path / "answers.sqlite"
    with serve(always(chat("7"))) as server:
        ask(judge(server, cache_path=path))
    assert ask(judge(server, cache_path=path)) == [0.7] * 3
    assert len(server.requests) == 3
    with pytest.raises(JudgeError):
        ask(judge(server, cache_path=path, request={"seed": 1}, max_retries=0))


def test_an_answer_kept_under_another_format_is_asked_for_again(tmp_path: Path):
    path, system = tmp_path / "answers.sqlite", "Score."
    with serve(in_turn(chat("7"), chat('{"score": 4}'))) as server:
        assert ask(judge(server, cache_path=path, system=system), ["A dog."]) == [0.7]
        reward = judge(server, cache_path=path, system=system, answer_format="json")
        assert ask(reward, ["A dog."]) == [0.4]


def test_what_was_answered_before_a_cancellation_is_kept():
    with serve(for_caption("cat", Reply(delay=3.0), chat("7"))) as server:
        reward = judge(server)

        async def impatient() -> None:
            async with asyncio.timeout(0.5):
                await reward(None, CAPTIONS)

        with pytest.raises(TimeoutError):
            asyncio.run(impatient())
        assert ask(reward, ["A dog.", "A hat."]) == [0.7, 0.7]
        assert len(server.requests) == 3


def test_it_works_in_one_event_loop_after_the_other_and_twice_in_one():
    with serve(always(chat("7"))) as server:
        reward = judge(server, cache=False)
        for _ in range(3):
            assert ask(reward) == [0.7] * 3

        async def twice() -> list[list[float | None]]:
            return await asyncio.gather(reward(None, ["a"]), reward(None, ["b"]))

        assert asyncio.run(twice()) == [[0.7], [0.7]]


def test_a_mistake_among_the_requests_is_raised_alone(monkeypatch: pytest.MonkeyPatch):
    async def broken(session: ChatSession, body: dict[str, Any]) -> str:
        raise RuntimeError("a mistake")

    monkeypatch.setattr(ChatSession, "_send", broken)
    with pytest.raises(RuntimeError, match=r"^a mistake$"):
        ask(judge("http://localhost:1/v1"))


def test_a_mistake_in_the_readers_function_is_raised_as_it_is():
    with serve(always(chat("7"))) as server, pytest.raises(ZeroDivisionError):
        ask(judge(server, answer_format=lambda text: 1 / 0, system="Score."))


def test_the_key_goes_into_the_header_and_nowhere_else(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = tmp_path / "answers.sqlite"
    echo = failure(400, f"bad request with {KEY}")
    with caplog.at_level(logging.DEBUG), serve(for_caption("cat", echo, chat("7"))) as server:
        reward = judge(server, cache_path=path)
        values, log = ask_logged(reward)
    assert values == [0.7, None, 0.7]
    assert all(request.headers["authorization"] == f"Bearer {KEY}" for request in server.requests)
    seen = [json.dumps(request.body) for request in server.requests]
    seen += [repr(reward), repr(vars(reward)), json.dumps(log), path.read_bytes().decode("latin-1")]
    seen += [record.getMessage() for record in caplog.records]
    assert caplog.records
    assert not any(KEY in text for text in seen)


def test_the_key_is_read_anew_at_each_call(monkeypatch: pytest.MonkeyPatch):
    with serve(always(chat("7"))) as server:
        reward = judge(server, api_key_env="JUDGE_KEY", cache=False)
        with pytest.raises(ValueError, match=r"`api_key_env` names JUDGE_KEY, which is not set. Export it"):
            ask(reward)
        monkeypatch.setenv("JUDGE_KEY", "first")
        ask(reward, ["A dog."])
        monkeypatch.setenv("JUDGE_KEY", "second")
        ask(reward, ["A dog."])
    assert [r.headers["authorization"] for r in server.requests] == ["Bearer first", "Bearer second"]


def test_an_endpoint_without_keys_needs_none_and_gets_none():
    with serve(always(chat("7"))) as server:
        ask(judge(server, api_key_env=None), ["A dog."])
    assert KEY not in json.dumps(server.requests[0].headers)


def test_a_missing_client_is_named_with_the_command_that_installs_it():
    code = "import sys; sys.modules['openai'] = None; from rewards import JudgeReward"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "needs the `openai` package, which is not installed: pip install 'mmft[judge]'" in result.stderr


def test_trl_knows_it_as_asynchronous_and_by_name():
    reward = judge("http://localhost:1/v1")
    assert is_async_callable(reward)
    assert get_callable_name(reward) == "judge"
    assert repr(reward) == "JudgeReward(base_url='http://localhost:1/v1', model='judge-1')"


def test_it_keeps_the_protocol():
    with serve(always(chat("7"))) as server:
        assert check(judge(server, template="{prompt}{completion}", send_images=True)) == [0.7, 0.7]


def test_it_works_through_the_reward_suite():
    rows = [
        PromptRow(key=index, prompt="Say.", messages=[], images=[PICTURES[index]], columns={})
        for index in (0, 1)
    ]
    with serve(by_word({"dog": "7", "cat": "no idea", "hat": "9", "rat": "1"})) as server:
        spec = {
            "name": "judge",
            "base_url": server.base_url,
            "model": "m",
            "template": "{prompt}{completion}",
        }
        suite = RewardSuite([resolve_reward(spec)])
        for _ in range(2):
            judgement = suite.score(rows, [["dog", "cat"], ["hat", "rat"]])
    assert judgement.valid.tolist() == [True, False, True, True]
    assert judgement.rewards[[0, 2, 3], 0].tolist() == pytest.approx([0.7, 0.9, 0.1])
    assert judgement.metrics["judge/failed_share"] == 0.25
    assert judgement.extras["judge/failure"] == ["", "no_number", "", ""]
    assert len(server.requests) == 5
    assert server.requests[0].pictures[0].tobytes() in {picture.tobytes() for picture in PICTURES}


def test_a_row_without_the_columns_value_is_not_asked_about():
    with serve(always(chat("7"))) as server:
        reward = judge(server, template="{references}{completion}")
        values, log = ask_logged(reward, references=[["a"], None, ["c"]])
    assert values == [0.7, None, 0.7]
    assert log["failure"][1] == "no_data"
    assert len(server.requests) == 2


def test_prepare_finds_a_missing_key_or_column_before_training(monkeypatch: pytest.MonkeyPatch):
    reward = judge("http://localhost:1/v1", template="{references}{completion}")
    reward.prepare({"references": [["a"]]}.get)
    with pytest.raises(ValueError, match=r"`template` names {references}, which the data has not"):
        reward.prepare({}.get)
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ValueError, match="`api_key_env` names OPENAI_API_KEY, which is not set"):
        reward.prepare({"references": [["a"]]}.get)


def test_data_that_do_not_fit_are_named():
    with pytest.raises(
        ValueError, match=r"`template` names {references}, which the data has not; it has completion"
    ):
        ask(judge("http://localhost:1/v1", template="{references}{completion}"))
    with pytest.raises(
        ValueError, match=r"has neither a column `images` nor `image`. Set `send_images=False`"
    ):
        ask(judge("http://localhost:1/v1", send_images=True))


def test_an_empty_batch_asks_nothing():
    assert asyncio.run(judge("http://localhost:1/v1")(None, [])) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_url": "localhost:8000"}, "`base_url` must be an http.* address .*; got 'localhost:8000'"),
        ({"base_url": "http://me:secret@host/v1"}, "`base_url` holds a user, password or query"),
        ({"scale": (10, 0)}, r"`scale` must be the lowest and the highest score, or None; got \(10, 0\)"),
        ({"scale": [1]}, "`scale` must be"),
        ({"samples": 0}, "`samples` must be at least 1; got 0"),
        ({"samples": 2}, "`samples` is 2 and `temperature` 0"),
        ({"on_failure": "skip"}, "`on_failure` must be 'none' or 'raise'; got 'skip'"),
        ({"timeout": 0}, "`timeout` must be a finite number of seconds > 0; got 0"),
        ({"max_retries": -1}, "`max_retries` must be at least 0; got -1"),
        ({"max_concurrency": 0}, "`max_concurrency` must be at least 1; got 0"),
        ({"backoff": float("nan")}, "`backoff` must be at least 0; got nan"),
        ({"request": {"stream": True}}, "`request` holds 'stream', which the judge sets itself"),
        ({"request": {"seed": object()}}, "`request` must be made of plain JSON values"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message) as caught:
        JudgeReward(**({"base_url": "http://localhost:1/v1", "model": "m"} | settings))
    assert "secret" not in str(caught.value)
