"""The judge reward against a server on this machine that fails, stalls and lies."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest

from rewards.judge import JudgeError
from tests.rewards.judge_calls import JSON, ask, ask_logged, by_word, for_caption, judge
from tests.rewards.judge_server import KEY, Reply, always, chat, failure, in_turn, serve

pytestmark = pytest.mark.usefixtures("judge_environment")


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port of this machine where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


# It fails.


def test_a_server_error_is_tried_again():
    with serve(in_turn(failure(500), failure(503), chat("7"))) as server:
        values, log = ask_logged(judge(server, max_concurrency=1), completions=["A dog."])
    assert values == [0.7]
    assert len(server.requests) == 3
    assert (log["judge/requests"], log["judge/retries"]) == (1, 2)


def test_retries_end_and_the_sample_is_not_judged():
    with serve(for_caption("cat", failure(500), chat("7"))) as server:
        reward = judge(server, max_retries=2)
        values, log = ask_logged(reward)
    assert values == [0.7, None, 0.7]
    assert sum("cat" in request.text for request in server.requests) == 3
    assert log["judge/failed_share"] == pytest.approx(1 / 3)
    assert log["judge/failed/server_error"] == pytest.approx(1 / 3)
    assert log["failure"] == ["", "server_error", ""]
    assert log["reason"][1].endswith("after 3 attempts")


def test_retry_after_goes_before_the_back_off():
    with serve(in_turn(failure(429, retry_after="0.2"), chat("7"))) as server:
        start = time.perf_counter()
        assert ask(judge(server), ["A dog."]) == [0.7]
        assert time.perf_counter() - start >= 0.2


# Named, for test processes that are started in different seconds must collect the same tests.
@pytest.mark.parametrize(
    "said", ["30", formatdate(time.time() + 3600, usegmt=True)], ids=["seconds", "in an hour"]
)
def test_a_wait_that_is_too_long_is_not_begun(said: str):
    with serve(always(failure(429, retry_after=said))) as server:
        start = time.perf_counter()
        with pytest.raises(JudgeError, match="rate_limit"):
            ask(judge(server, max_retry_after=20), ["A dog."])
        assert time.perf_counter() - start < 10
        assert len(server.requests) == 1


def test_a_date_in_the_past_asks_for_no_wait():
    with serve(in_turn(failure(503, retry_after=formatdate(0, usegmt=True)), chat("7"))) as server:
        assert ask(judge(server, backoff=20), ["A dog."]) == [0.7]


def test_a_retry_after_that_is_nonsense_is_not_obeyed():
    with serve(
        in_turn(
            failure(429, retry_after="soon"),
            failure(429, retry_after="nan"),
            failure(429, retry_after="Mon, 01 Jan 2024 00:00:00 +99999999999999999999"),
            chat("7"),
        )
    ) as server:
        assert ask(judge(server, max_concurrency=1), ["A dog."]) == [0.7]


def test_the_back_off_doubles_and_is_jittered():
    with serve(in_turn(failure(500), failure(500), failure(500), chat("7"))) as server:
        start = time.perf_counter()
        ask(judge(server, backoff=0.04), ["A dog."])
        # 0.04 + 0.08 + 0.16, each shortened by up to half
        assert time.perf_counter() - start >= 0.14


def test_a_refused_key_is_one_clear_error_and_is_not_tried_again():
    with serve(always(failure(401, f"Incorrect API key provided: {KEY}"))) as server:
        with pytest.raises(
            JudgeError, match=r"3 of 3 completions got no answer .* the first: auth, "
        ) as caught:
            ask(judge(server))
        assert len(server.requests) == 3
    assert "Check `base_url`, `model` and the key in OPENAI_API_KEY" in str(caught.value)
    assert KEY not in str(caught.value)
    assert "***" in str(caught.value)


def test_nobody_listening_is_one_clear_error(silent_port: int):
    with pytest.raises(JudgeError, match=r"the first: connection, .*after 2 attempts"):
        ask(judge(f"http://127.0.0.1:{silent_port}/v1", max_retries=1))


def test_a_batch_that_nobody_answers_is_given_up_early():
    with serve(always(failure(500))) as server:
        reward = judge(server, max_retries=1, max_concurrency=2)
        with pytest.raises(JudgeError, match="20 of 20 completions"):
            ask(reward, [f"caption {index}" for index in range(20)])
    # Two side by side, and one more that starts when the first of them is lost; two attempts each.
    assert len(server.requests) <= 6


def test_failures_after_an_answer_end_nothing():
    replies = [chat("7"), failure(400), failure(400), failure(400), chat("7")]
    with serve(in_turn(*replies)) as server:
        values = ask(judge(server, max_concurrency=1), [f"caption {index}" for index in range(5)])
    assert len(server.requests) == 5
    assert values.count(0.7) == 2


def test_one_failure_among_answers_raises_only_if_so_wished():
    with serve(for_caption("cat", failure(400), chat("7"))) as server:
        assert ask(judge(server)) == [0.7, None, 0.7]
        with pytest.raises(JudgeError, match=r"1 of 3 completions got no answer.*rejected"):
            ask(judge(server, on_failure="raise"))
    assert sum("cat" in request.text for request in server.requests) == 2, "a 400 is not tried again"


# It stalls.


def test_a_slow_server_is_left_after_the_timeout():
    with serve(for_caption("cat", Reply(delay=3.0), chat("7"))) as server:
        start = time.perf_counter()
        values, log = ask_logged(judge(server, timeout=0.5, max_retries=0))
        assert time.perf_counter() - start < 3
    assert values == [0.7, None, 0.7]
    assert log["failure"] == ["", "timeout", ""]
    assert log["reason"][1] == "no answer within 0.5 s"


def test_a_slow_answer_is_asked_for_again():
    with serve(in_turn(Reply(delay=3.0), chat("7"))) as server:
        assert ask(judge(server, timeout=0.5), ["A dog."]) == [0.7]
    assert len(server.requests) == 2


# It lies.


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (Reply(b"not json", headers=JSON), "malformed"),
        (Reply(b"{", headers=JSON), "malformed"),
        (Reply(b"", headers=JSON), "malformed"),
        (Reply(b"[]", headers=JSON), "malformed"),
        (Reply(b'"7"', headers=JSON), "malformed"),
        (Reply(b'{"choices": []}', headers=JSON), "malformed"),
        (Reply(b'{"choices": [null]}', headers=JSON), "malformed"),
        (Reply(b'{"choices": [{"message": "7"}]}', headers=JSON), "malformed"),
        (Reply(b'{"choices": [{"message": {"content": 7}}]}', headers=JSON), "malformed"),
        (Reply(b"<html>7</html>", headers={"Content-Type": "text/html"}), "malformed"),
        (Reply(b"\xff\xfe7", headers={"Content-Type": "application/octet-stream"}), "malformed"),
        (Reply(b"[" * 100_000, headers=JSON), "malformed"),
        (chat(None), "empty"),
        (chat([{"text": None}, {"text": {"score": 7}}]), "empty"),
        (Reply(b"7", headers={"Content-Type": "application/json; charset=utf-16"}), "malformed"),
        (chat("70%"), "other_scale"),
        (chat(""), "empty"),
        (chat("no idea"), "no_number"),
        (chat("7 or 8"), "conflicting"),
        (chat("70"), "out_of_range"),
        (chat("I'm sorry, I can't."), "refusal"),
        (chat(None, message={"refusal": "No."}), "refusal"),
        (chat("7", finish_reason="content_filter"), "refusal"),
        (chat("Score: 1", finish_reason="length"), "cut_off"),
    ],
)
def test_a_lie_is_not_a_score(reply: Reply, kind: str):
    with serve(for_caption("cat", reply, chat("7"))) as server:
        reward = judge(server, max_retries=0)
        values, log = ask_logged(reward)
    assert values == [0.7, None, 0.7]
    assert log["failure"] == ["", kind, ""]
    assert reward.failures == {kind: 1}


def test_a_body_that_breaks_off_is_tried_again():
    whole = chat("7")
    with serve(in_turn(Reply(whole.body[:40], missing=50, headers=JSON), whole)) as server:
        assert ask(judge(server), ["A dog."]) == [0.7]
    assert len(server.requests) == 2


@pytest.mark.parametrize("said", ["text/html", "application/json; charset=base64"])
def test_the_right_json_under_a_wrong_content_type_is_read(said: str):
    with serve(always(Reply(chat("7").body, headers={"Content-Type": said}))) as server:
        assert ask(judge(server)) == [0.7] * 3


def test_an_endpoint_that_only_lies_is_no_judge():
    with (
        serve(always(Reply(b"<html>login</html>", headers={"Content-Type": "text/html"}))) as server,
        pytest.raises(
            JudgeError, match="the first: malformed, the endpoint sent no chat completion but '<html>"
        ),
    ):
        ask(judge(server))


def test_a_judge_that_only_babbles_has_judged_nothing_and_is_no_error():
    with serve(always(chat("no idea"))) as server:
        assert ask(judge(server)) == [None, None, None]


def test_half_a_character_in_an_answer_harms_nothing(tmp_path: Path):
    body = chat("Score: 7 X").body.replace(b"X", b"\\ud800")
    with serve(always(Reply(body, headers=JSON))) as server:
        assert ask(judge(server, cache_path=tmp_path / "answers.sqlite")) == [0.7] * 3


def test_each_kind_of_failure_is_logged_once_with_an_example(caplog: pytest.LogCaptureFixture):
    with serve(by_word({"dog": "no idea", "cat": "no clue", "hat": "70"})) as server:
        reward = judge(server)
        with caplog.at_level(logging.WARNING, logger="rewards.judge"):
            ask(reward)
            ask(reward)
    messages = [record.getMessage() for record in caplog.records if record.name == "rewards.judge"]
    assert len(messages) == 2
    assert "(no_number): the answer was 'no idea'" in messages[0]
    assert "(out_of_range): the answer was '70'" in messages[1]
    assert reward.failures == {"no_number": 4, "out_of_range": 2}
