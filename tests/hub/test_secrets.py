"""Tokens and keys are found by name, by value and by shape, and no message repeats them."""

from __future__ import annotations

import pytest

from mmft.hub.secrets import (
    find_named,
    find_secrets,
    is_secret_name,
    known_secrets,
    named_secrets,
    redacted,
    without_secrets,
)
from tests.hub.server import TOKEN

SETTINGS = {
    "hub_token": "mine",
    "reward_funcs": ["bleu", {"name": "m:judge", "api_key": "letters", "api_key_env": "THE_KEY", "k": 1}],
    "env_kwargs": {"deep": [{"password": "word"}]},
    "pad_token": "<pad>",
    "token": None,
}


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("THE_KEY", "HF_TOKEN", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("hub_token", True), ("push_to_hub_token", True), ("api_key", True), ("openai_api_key", True),
        ("apikey", True), ("API_KEY", True), ("token", True), ("password", True), ("client_secret", True),
        ("authorization", True), ("api_key_env", False), ("pad_token", False), ("eos_token", False),
        ("max_tokens", False), ("tokenizer", False), ("secretary", False),
        ("X-Api-Key", True), ("aws_secret_access_key", True), ("access-key", True), ("secret_key", True),
        ("private_key", True), ("OPENAI_KEY", True), ("judge_token", True), ("private_token", True),
        ("Access-Token", True), ("refresh_token", True), ("auth_token", True), ("bearer_token", True),
        ("passwd", True), ("db_password", True), ("Bearer", True), ("Authorization", True),
        ("max_token", False), ("max_token_length", False), ("num_tokens", False), ("image_token", False),
        ("token_type", False), ("token_type_ids", False), ("bos_token", False), ("unk_token", False),
        ("key", False), ("keys_and_values", False), ("split_column", False), ("cache_key", False),
    ],
)  # fmt: skip
def test_secrets_have_names(name: str, secret: bool):
    assert is_secret_name(name) is secret


def test_settings_lose_their_secrets_however_deep_and_nothing_else():
    assert without_secrets(SETTINGS) == {
        "reward_funcs": ["bleu", {"name": "m:judge", "api_key_env": "THE_KEY", "k": 1}],
        "env_kwargs": {"deep": [{}]},
        "pad_token": "<pad>",
        "token": None,
    }
    assert dict(named_secrets(SETTINGS)) == {"hub_token": "mine", "api_key": "letters", "password": "word"}


def test_a_secret_is_found_by_its_value_with_its_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("THE_KEY", "key-in-the-environment")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef" * 2)
    known = known_secrets("the-token-itself", SETTINGS | {"api_key": "a long password"})
    lines = ["first", "second the-token-itself", "key-in-the-environment", "0123456789abcdef" * 2]
    text = "\n".join([*lines, "a long password"])
    assert [str(each) for each in find_secrets("metrics.jsonl", text, known)] == [
        "metrics.jsonl, line 2: the token that this push uses",
        "metrics.jsonl, line 3: the value of the environment variable THE_KEY",
        "metrics.jsonl, line 4: the value of the environment variable WANDB_API_KEY",
        "metrics.jsonl, line 5: `api_key`",
    ]
    assert find_secrets("metrics.jsonl", "first\nsecond", known) == []


@pytest.mark.parametrize(
    "name", ["AWS_SECRET_ACCESS_KEY", "STORE_PASSWD", "PROXY_AUTHORIZATION", "SOME_TOKEN"]
)
def test_environment_variables_are_known_by_the_same_names(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(name, "0123456789abcdef")
    known = known_secrets(None, {})
    assert known["0123456789abcdef"] == f"the value of the environment variable {name}"


def test_words_are_no_secrets_to_look_for():
    assert known_secrets(None, {"api_key": "EMPTY"}) == {}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (f"x {TOKEN} y", "a token of the hub"),
        ("Bearer sk-proj-0123456789abcdefghijklmn", "an API key"),
        ("ghp_" + "a1B2" * 9, "a GitHub token"),
        ("AKIA" + "ABCD0123" * 2, "an AWS key"),
        ("base_url: https://ada:letters@host/v1", "a URL with a password"),
        ("base_url: https://host:8080/v1/@ada", None),
        ("https://ada@host/v1", None),
        ('{"://":1,"a:":2,"@":3}', None),
        ("hf_short", None),
        ("a task-force-of-0123456789-people-and-more", None),
        ("sk-learn-is-a-library-of-estimators", None),
    ],
)
def test_a_secret_is_found_by_its_shape(text: str, what: str | None):
    found = find_secrets("a.json", f"\n{text}\n", {})
    assert [(each.line, each.what) for each in found] == ([] if what is None else [(2, what)])


@pytest.mark.parametrize(
    "line",
    ["api_key: EMPTY", "- name: x\n  api_key: 'EMPTY'", "- {name: x, api_key: EMPTY}", '"api_key": "EMPTY"'],
)
def test_a_named_secret_is_found_however_short(line: str):
    text = f"a: 1\napi_key_env: X\n{line}\n"
    (finding,) = find_named("config.yaml", text, {"x": [{"api_key": "EMPTY"}]})
    assert (finding.line, finding.what) == (3 + line.count("\n"), "`api_key`")


def test_messages_lose_what_is_secret():
    text = redacted(f"token my-token, {TOKEN}!", ["my-token", None])
    assert text == "token ***, ***!"
