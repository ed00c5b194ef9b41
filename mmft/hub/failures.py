"""What the hub's client raises, as one `HubError` that says what is there and what to do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from mmft.errors import ConfigError, HubError
from mmft.hub.secrets import redacted

AGAIN = "Run the same command again: what is there already is not sent again."
BY_STATUS = {
    401: "the hub knows no valid token. Log in (`hf auth login`), or set HF_TOKEN to a token that may write.",
    403: "this token may not write there. Check the name, and that the token has write permission for it.",
    404: "there is no such repository or branch, or this token may not see it. Check the name and the token.",
    409: f"somebody else is changing the repository. {AGAIN}",
    429: "the hub takes no more requests for now. Wait some minutes and run the same command again: what is "
    "there already is not sent again.",
}


@contextlib.contextmanager
def told_clearly(repo_id: str, doing: str, endpoint: str, *secrets: str | None) -> Iterator[None]:
    """Turns whatever goes wrong inside into a `HubError`; ours pass.

    Args:
        repo_id: of the hub.
        doing: what is tried, for the message.
        endpoint: of the hub.
        *secrets: what no message may repeat.
    """
    try:
        yield
    except (HubError, ConfigError):
        raise
    # The client's own errors, those of its HTTP library, of its threads, of a server that answers nonsense.
    except Exception as error:
        message = redacted(f"{doing} {repo_id}: {reason(error, endpoint)}", secrets)
        raise HubError(message) from None


def reason(error: BaseException, endpoint: str) -> str:
    """Why, and the remedy."""
    from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

    chain = list(_causes(error))
    if any(isinstance(each, LocalTokenNotFoundError) for each in chain):
        return BY_STATUS[401]
    if any(isinstance(each, OfflineModeIsEnabled) for each in chain):
        return "HF_HUB_OFFLINE is set, so nothing is sent. Unset it."
    if any(isinstance(each, HFValidationError) for each in chain):
        return "this is no name of a repository. Give `user/name`, of letters, digits, `-`, `_` and `.`."
    status = next((found for each in chain if (found := _status(each)) is not None), None)
    if status == 400:  # of the card's metadata, most often, and then the client says which line
        return f"{' '.join(str(chain[0]).split())} {AGAIN}"
    if status in BY_STATUS:
        return BY_STATUS[status] + _said(chain)
    if status is not None:
        return f"the hub answered {status}.{_said(chain)} {AGAIN}"
    if any(_is_network(each) for each in chain):
        return f"{endpoint} cannot be reached, or broke off. Check the network. {AGAIN}"
    last = chain[-1]
    return f"{type(last).__name__}: {' '.join(str(last).split())}. {AGAIN}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and what it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _status(error: BaseException) -> int | None:
    response: Any = getattr(error, "response", None)
    return getattr(response, "status_code", None)


def _said(chain: list[BaseException]) -> str:
    """What the server itself says, where it says something."""
    for error in chain:
        message = getattr(error, "server_message", None)
        if message:
            return f" The hub says: {' '.join(str(message).split())}"
    return ""


def _is_network(error: BaseException) -> bool:
    """The HTTP library of the client changes with its version; the names of its errors do not."""
    names = {each.__name__ for each in type(error).__mro__}
    return bool(names & {"TransportError", "ConnectionError", "TimeoutError"})
