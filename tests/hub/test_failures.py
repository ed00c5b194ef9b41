"""Whatever the client raises is one error that says why and what to do."""

from __future__ import annotations

import pytest

from mmft.errors import ConfigError, HubError
from mmft.hub.failures import told_clearly
from tests.hub.server import TOKEN


def told(error: BaseException) -> str:
    with (
        pytest.raises(HubError) as caught,
        told_clearly("ada/x", "cannot write to", "http://hub", "a secret"),
    ):
        raise error
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__, "a traceback would repeat what the message leaves out"
    return str(caught.value)


class Response:
    status_code = 403


def wrapped(inner: BaseException) -> RuntimeError:
    """As the client's threads wrap an error."""
    outer = RuntimeError("Error while uploading 'x' to the Hub.")
    outer.__cause__ = inner
    return outer


def test_the_reason_is_found_under_what_it_was_wrapped_in():
    inner = OSError("forbidden")
    inner.response = Response()  # type: ignore[attr-defined]
    assert told(wrapped(inner)) == (
        "cannot write to ada/x: this token may not write there. Check the name, and that the token has write "
        "permission for it."
    )
    assert "http://hub cannot be reached" in told(wrapped(ConnectionResetError()))


def test_an_error_that_nobody_expects_is_told_by_its_own_words():
    assert told(wrapped(ValueError("Malformed\nresponse"))) == (
        "cannot write to ada/x: ValueError: Malformed response. Run the same command again: what is there "
        "already is not sent again."
    )


def test_secrets_in_somebody_else_s_words_are_left_out():
    assert told(ValueError(f"a secret {TOKEN}")).startswith("cannot write to ada/x: ValueError: *** ***. Run")


@pytest.mark.parametrize("error", [HubError("mine"), ConfigError("mine"), KeyboardInterrupt()])
def test_errors_of_ours_and_ctrl_c_pass(error: BaseException):
    with pytest.raises(type(error)) as caught, told_clearly("ada/x", "cannot write to", "http://hub"):
        raise error
    assert caught.value is error
