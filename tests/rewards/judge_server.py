"""A chat endpoint on this machine that a test scripts: it answers, fails, stalls and lies, and counts."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

KEY = "sk-0123456789-not-for-logs"
"""What the clients of the tests present."""


@dataclass(slots=True)
class Reply:
    """What the server sends back."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})
    delay: float = 0.0
    """Seconds before the first byte."""
    missing: int = 0
    """Bytes that the header promises and that never come."""


@dataclass(slots=True)
class Request:
    """What came in."""

    path: str
    headers: dict[str, str]
    """By lower-case name."""
    body: dict[str, Any]

    @property
    def text(self) -> str:
        """The text of the user's message."""
        content = self.body["messages"][-1]["content"]
        return content if isinstance(content, str) else content[-1]["text"]

    @property
    def pictures(self) -> list[Image.Image]:
        """The pictures of the user's message, decoded."""
        content = self.body["messages"][-1]["content"]
        urls = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
        return [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) for url in urls]


Script = Callable[[Request, int], Reply]
"""From a request and how many came before it to the reply."""


@dataclass(slots=True)
class JudgeServer:
    """What the server saw so far."""

    script: Script
    base_url: str = ""
    requests: list[Request] = field(default_factory=list)
    most_at_once: int = 0
    _at_once: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def enter(self, request: Request) -> int:
        """Count a request in; returns how many came before."""
        with self._lock:
            self.requests.append(request)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            return len(self.requests) - 1

    def leave(self) -> None:
        """Count a request out."""
        with self._lock:
            self._at_once -= 1


def chat(content: Any, **choice: Any) -> Reply:
    """A well-formed chat completion."""
    message = {"role": "assistant", "content": content} | choice.pop("message", {})
    whole = {"index": 0, "message": message, "finish_reason": "stop"} | choice
    completion = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [whole]}
    return Reply(json.dumps(completion).encode())


def failure(status: int, message: str = "no", **headers: str) -> Reply:
    """An error as OpenAI's API words it."""
    body = json.dumps({"error": {"message": message, "type": "error", "code": None}}).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(body, status, {"Content-Type": "application/json", **named})


def always(reply: Reply) -> Script:
    """The same reply to everything."""
    return lambda _request, _before: reply


def in_turn(*replies: Reply) -> Script:
    """One reply after the other, the last for all that follow."""
    return lambda _request, before: replies[min(before, len(replies) - 1)]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keeps connections open, as real endpoints do
    server: _Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.path, headers, body)
        judge = self.server.judge
        before = judge.enter(request)
        try:
            reply = judge.script(request, before)
            time.sleep(reply.delay)
        finally:
            judge.leave()
        # A client that lost patience has gone.
        with contextlib.suppress(ConnectionError):
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply.body) + reply.missing))
            self.end_headers()
            self.wfile.write(reply.body)
        if reply.missing:
            self.close_connection = True

    def log_message(self, *args: Any) -> None:
        """Stay quiet."""


class _Server(ThreadingHTTPServer):
    judge: JudgeServer
    daemon_threads = True

    def handle_error(self, *args: Any) -> None:
        """Stay quiet about clients that hang up."""


@contextlib.contextmanager
def serve(script: Script) -> Iterator[JudgeServer]:
    """Run a server for the time of a `with`."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.judge = JudgeServer(script, f"http://127.0.0.1:{server.server_address[1]}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.judge
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
