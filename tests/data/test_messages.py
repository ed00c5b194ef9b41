"""Prompts become messages with one image block per picture."""

from __future__ import annotations

from typing import Any

import pytest

from mmft.data.messages import prompt_text, to_messages
from mmft.errors import DataError

IMAGE = {"type": "image"}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def test_text_becomes_a_user_message_with_its_pictures_first():
    assert to_messages("Describe.", 2) == [user([IMAGE, IMAGE, text("Describe.")])]
    assert to_messages("Say hello.", 0) == [user([text("Say hello.")])]


def test_pictures_go_to_the_first_user_message():
    prompt = [
        {"role": "system", "content": "Be brief."},
        user("What is it?"),
        {"role": "assistant", "content": "A cat."},
        user("Sure?"),
    ]
    assert to_messages(prompt, 1) == [
        {"role": "system", "content": [text("Be brief.")]},
        user([IMAGE, text("What is it?")]),
        {"role": "assistant", "content": [text("A cat.")]},
        user([text("Sure?")]),
    ]
    assert prompt[1] == user("What is it?"), "the row's own prompt must not change"


def test_image_blocks_stay_where_the_prompt_has_them():
    content = [text("Compare"), IMAGE, text("and"), IMAGE]
    assert to_messages([user(content)], 2) == [user(content)]


def test_the_unused_keys_that_arrow_adds_are_dropped():
    content = [{"type": "image", "text": None}, {"type": "text", "text": "What?"}]
    assert to_messages([user(content)], 1) == [user([IMAGE, text("What?")])]


def test_a_system_prompt_comes_first_unless_the_row_has_its_own():
    own = [{"role": "system", "content": "Own."}, user("Hi")]
    assert to_messages("Hi", 0, "Be kind.")[0] == {"role": "system", "content": [text("Be kind.")]}
    assert to_messages(own, 0, "Be kind.")[0] == {"role": "system", "content": [text("Own.")]}


@pytest.mark.parametrize(
    ("prompt", "num_images", "message"),
    [
        (3, 0, r"`prompt` must be text or a list of messages; got 3"),
        ([], 0, r"`prompt` must be text or a list of messages; got \[\]"),
        ("  ", 1, r"`prompt` is empty \('  '\)|`prompt` is empty"),
        ([user([IMAGE])], 1, r"`prompt` is empty"),
        (
            ["Hi"],
            0,
            r"`prompt` holds 'Hi'; a message is a dict with `content` and a `role`, one of system, user",
        ),
        ([{"role": "human", "content": "Hi"}], 0, r"`prompt` holds {'role': 'human'"),
        ([{"role": "user"}], 0, r"`prompt` holds {'role': 'user'}"),
        (
            [user([{"type": "image", "image": "a.png"}])],
            1,
            r"the pictures themselves go to the column `image`",
        ),
        ([user([{"type": "video"}])], 1, r"`prompt` holds the block {'type': 'video'}"),
        ([user(["Hi"])], 0, r"`prompt` holds the block 'Hi'"),
        ([user([IMAGE, text("Hi")])], 2, r"`prompt` has 1 image blocks and the row has 2 pictures"),
        ([user([IMAGE, text("Hi")])], 0, r"`prompt` has 1 image blocks and the row has 0 pictures"),
        ([{"role": "tool", "content": "Hi"}], 1, r"`prompt` has 0 image blocks and the row has 1 pictures"),
        (
            [user("Hi"), {"role": "assistant", "content": "Ho"}],
            0,
            r"must end with a message of the user; it ends with role 'assistant'. Move the answer",
        ),
    ],
)
def test_a_prompt_that_cannot_be_used_is_named(prompt: Any, num_images: int, message: str):
    with pytest.raises(DataError, match=message):
        to_messages(prompt, num_images)


def test_the_words_of_a_prompt_are_told_with_who_says_them_where_several_do():
    assert prompt_text("a: b") == "a: b"
    assert prompt_text([user("what: now")]) == "what: now"
    assert prompt_text([user([IMAGE, text("one"), text("two")])]) == "one two"
    told = [{"role": "system", "content": "Be brief."}, user([IMAGE, text("what")])]
    assert prompt_text(told) == "system: Be brief.\nuser: what"
    # Arrow gives every block of a list the same keys; a message may have no content.
    assert prompt_text([user([{"type": "image", "text": None}, text("a")])]) == "a"
    assert prompt_text([{"role": "assistant", "content": None}, user("b")]) == "assistant: \nuser: b"
