"""What the tests of several rewards share."""

from __future__ import annotations

import functools
import ssl

import pytest

from tests.rewards.judge_server import KEY

# Every client makes one, which takes longer than the requests of a test.
_tls = functools.cache(ssl.create_default_context)


@pytest.fixture
def judge_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key, no proxy on the way to this machine, and one TLS context for all clients."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(ssl, "create_default_context", lambda *args, **settings: _tls())
