"""Tokens and keys: names of settings that hold them, their shapes, and where they stand in files.

No message here repeats a secret: it says the file, the line and the kind.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NAMES = re.compile(
    r"(.*_)?(api|access|secret|private|openai)_?key|token"
    r"|(.*_)?(hub|hf|judge|private|access|refresh|auth|bearer|api)_?token"
    r"|(.*_)?(password|passwd|secret|bearer|authorization)"
)
"""Of settings that hold a secret, in small letters with `_`. Tokenizers have a `pad_token`, judges an
`api_key_env`: those are none."""
SHAPES = {
    "a token of the hub": re.compile(r"hf_[A-Za-z0-9]{30,}"),
    "an API key": re.compile(r"(?<![A-Za-z0-9])sk-(?=[A-Za-z0-9_-]*\d)[A-Za-z0-9_-]{20,}"),
    "a GitHub token": re.compile(r"gh[pousr]_[A-Za-z0-9]{36}"),
    "a URL with a password": re.compile(r"://[^/\s:@\"'<>]+:[^/\s@\"'<>]+@"),
    "an AWS key": re.compile(r"(?<![A-Za-z0-9])AKIA[0-9A-Z]{16}(?![A-Za-z0-9])"),
}
IN_ENVIRONMENT = re.compile(r".*(api_?key|token|secret|password)")
"""Of environment variables beside those, of which more is suspicious: nobody trains with them."""
SHORTEST = 8
"""Shorter values are looked for nowhere: "EMPTY", as servers without keys are told, is a word."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A secret in a file."""

    path: str
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.path}, line {self.line}: {self.what}"


def is_secret_name(name: str) -> bool:
    """Whether a setting of that name holds a secret."""
    return NAMES.fullmatch(_plain(name)) is not None


def _plain(name: str) -> str:
    return name.replace("-", "_").lower()


def without_secrets(value: Any) -> Any:
    """The same settings, however nested, without those whose name says that they hold a secret."""
    if isinstance(value, Mapping):
        return {
            name: without_secrets(each)
            for name, each in value.items()
            if not (is_secret_name(str(name)) and isinstance(each, str))
        }
    if isinstance(value, list):
        return [without_secrets(each) for each in value]
    return value


def named_secrets(value: Any) -> Iterator[tuple[str, str]]:
    """(name, value) of the secrets in settings, however nested."""
    if isinstance(value, Mapping):
        for name, each in value.items():
            if isinstance(each, str) and each and is_secret_name(str(name)):
                yield str(name), each
            else:
                yield from named_secrets(each)
    elif isinstance(value, list):
        for each in value:
            yield from named_secrets(each)


def referred_secrets(value: Any) -> Iterator[tuple[str, str]]:
    """(name, value) of the environment variables that settings such as `api_key_env` refer to."""
    if isinstance(value, Mapping):
        for name, each in value.items():
            if isinstance(each, str) and str(name).endswith("_env") and os.environ.get(each):
                yield each, os.environ[each]
            else:
                yield from referred_secrets(each)
    elif isinstance(value, list):
        for each in value:
            yield from referred_secrets(each)


def known_secrets(token: str | None, settings: Any) -> dict[str, str]:
    """What is secret here and now, by value: the token, keys in settings and in environment variables."""
    found = {value: f"`{name}`" for name, value in named_secrets(settings)}
    suspicious = {
        name: value
        for name, value in os.environ.items()
        if (is_secret_name(name) or IN_ENVIRONMENT.fullmatch(_plain(name))) and len(value) >= 2 * SHORTEST
    }
    for name, value in (*referred_secrets(settings), *suspicious.items()):
        found[value] = f"the value of the environment variable {name}"
    if token:
        found[token] = "the token that this push uses"
    return {value: what for value, what in found.items() if len(value) >= SHORTEST}


def find_secrets(path: str, text: str, known: Mapping[str, str]) -> list[Finding]:
    """The secrets in a text, by value or by shape; one finding a line."""
    suspicious = any(value in text for value in known) or any(each.search(text) for each in SHAPES.values())
    if not suspicious:  # most files, some of which are one line of megabytes
        return []
    return [
        Finding(path, number, what)
        for number, line in enumerate(text.splitlines(), start=1)
        if (what := _what(line, known)) is not None
    ]


def _what(line: str, known: Mapping[str, str]) -> str | None:
    for value, what in known.items():
        if value in line:
            return what
    return next((what for what, shape in SHAPES.items() if shape.search(line)), None)


def find_named(path: str, text: str, settings: Any) -> list[Finding]:
    """Settings in a file that hold a secret, by their name alone, however short."""
    names = [name for name, _ in named_secrets(settings)]
    lines = text.splitlines()
    return [
        Finding(path, number, f"`{name}`")
        for name in dict.fromkeys(names)
        for number, line in enumerate(lines, start=1)
        if re.match(rf"[\s\-{{]*(.*[\s{{,])?[\"']?{re.escape(name)}[\"']?\s*:", line)
    ]


def redacted(text: str, secrets: Sequence[str | None]) -> str:
    """A message without the secrets that somebody else's error may repeat."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, "***")
    for shape in SHAPES.values():
        text = shape.sub("***", text)
    return text
