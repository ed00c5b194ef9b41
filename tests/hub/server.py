"""A hub on localhost: as much of its HTTP interface as pushing and loading a model repository need.

Written from what the client asks and reads. Repositories live in memory; every request is kept, and any of
them can be made to fail. Not offered: Xet storage, pull requests, other repositories than models'.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_" + "AbCdEfGhIj" * 3 + "Xy42"
USER = "ada"
LFS_SUFFIXES = (".safetensors", ".gif", ".png", ".jpg")


@dataclass(frozen=True)
class File:
    """A file of a commit."""

    content: bytes
    lfs: bool

    @property
    def git_oid(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.git_oid


@dataclass
class Repo:
    """A repository: branches, each a list of commits, each a mapping of paths to files."""

    private: bool
    branches: dict[str, list[tuple[str, dict[str, File]]]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, File], message: str) -> str:
        history = self.branches.setdefault(branch, [])
        sha = hashlib.sha1(f"{branch}{len(history)}{message}".encode()).hexdigest()
        history.append((sha, files))
        self.messages.append(message)
        return sha

    def at(self, revision: str) -> tuple[str, dict[str, File]] | None:
        """The commit of a branch's end, or of that name."""
        if revision in self.branches:
            return self.branches[revision][-1]
        every = [commit for history in self.branches.values() for commit in history]
        return next((commit for commit in every if commit[0] == revision), None)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        found = self.at(revision)
        return {} if found is None else {path: file.content for path, file in found[1].items()}


@dataclass(frozen=True)
class Request:
    """What a client sent."""

    method: str
    path: str
    body: bytes
    token: str | None

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Failure:
    """Requests to be failed: those of a method and a path, after some that pass, for a while."""

    method: str
    path: str
    status: int
    """0 closes the connection without an answer."""
    skip: int = 0
    times: int = 1_000_000
    message: str = ""

    def strikes(self, request: Request) -> bool:
        if request.method != self.method or not re.search(self.path, request.path):
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.times -= 1
        return self.times >= 0


class Answer(Exception):
    """What is sent back."""

    def __init__(self, status: int, body: Any = b"", **headers: str) -> None:
        self.status, self.headers = status, {name.replace("_", "-"): text for name, text in headers.items()}
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()


class Hub:
    """The state of the server.

    Attributes:
        repos: by `user/name`.
        requests: all that came.
        failures: what is to fail.
        objects: large files, by their SHA-256, whether committed or not.
        read_only: tokens that may not write.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.requests: list[Request] = []
        self.failures: list[Failure] = []
        self.objects: dict[str, bytes] = {}
        self.users = {TOKEN: USER}
        self.read_only: set[str] = set()
        self.url = ""
        self._lock = threading.Lock()
        self.routes: list[tuple[str, str, Callable[..., Answer]]] = [
            ("GET", r"/api/whoami-v2", self.whoami),
            ("POST", r"/api/repos/create", self.create),
            ("POST", r"/api/validate-yaml", self.validate),
            ("GET", r"/api/models/([^/]+/[^/]+)/auth-check(/write)?", self.auth_check),
            ("GET", r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", self.info),
            ("GET", r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", self.tree),
            ("POST", r"/api/models/([^/]+/[^/]+)/branch/([^/]+)", self.branch),
            ("POST", r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)", self.preupload),
            ("POST", r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", self.commit),
            ("POST", r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", self.batch),
            ("PUT", r"/objects/([0-9a-f]+)", self.put_object),
            ("POST", r"/objects/([0-9a-f]+)/verify", self.verify),
            ("HEAD", r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.resolve),
            ("GET", r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.resolve),
        ]

    def counted(self, method: str, path: str) -> int:
        """How many such requests came."""
        return sum(each.method == method and re.search(path, each.path) is not None for each in self.requests)

    def answer(self, request: Request) -> Answer | None:
        """What to say; None is to hang up."""
        with self._lock:
            self.requests.append(request)
            for failure in self.failures:
                if failure.strikes(request):
                    told = {"error": failure.message or "made to fail"}
                    return Answer(failure.status, told) if failure.status else None
            for method, pattern, work in self.routes:
                found = re.fullmatch(pattern, urlsplit(request.path).path)
                if method == request.method and found:
                    try:
                        return work(request, *(each and unquote(each) for each in found.groups()))
                    except Answer as answer:
                        return answer
            return Answer(404, {"error": f"no such route: {request.method} {request.path}"})

    # Who

    def user(self, request: Request) -> str:
        if request.token not in self.users:
            raise Answer(401, {"error": "Invalid username or password."})
        return self.users[request.token]

    def visible(self, request: Request, name: str) -> Repo:
        repo = self.repos.get(name)
        if repo is None or (repo.private and self.users.get(request.token or "") != name.split("/")[0]):
            status = 404 if request.token in self.users else 401
            raise Answer(status, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        return repo

    def writable(self, request: Request, name: str) -> Repo:
        user = self.user(request)
        repo = self.visible(request, name)
        if user != name.split("/")[0] or request.token in self.read_only:
            raise Answer(403, {"error": "You don't have the rights to write here."})
        return repo

    def whoami(self, request: Request) -> Answer:
        return Answer(200, {"type": "user", "name": self.user(request), "orgs": []})

    # Repositories

    def create(self, request: Request) -> Answer:
        user, asked = self.user(request), request.json()
        name = f"{asked.get('organization') or user}/{asked['name']}"
        told = {"url": f"{self.url}/{name}"}
        if name.split("/")[0] != user or request.token in self.read_only:
            raise Answer(403, {"error": f"You don't have the rights to create a model under {name}."})
        if name in self.repos:
            return Answer(409, told | {"error": "You already created this model repo"})
        self.repos[name] = Repo(private=asked.get("visibility") == "private")
        self.repos[name].commit("main", {}, "initial commit")
        return Answer(200, told)

    def validate(self, request: Request) -> Answer:
        block = re.match(r"\s*---\n(.*?)\n---", request.json()["content"], re.DOTALL)
        try:
            data = yaml.safe_load(block.group(1)) if block else None
        except yaml.YAMLError as error:
            return Answer(400, {"errors": [{"message": str(error)}], "warnings": []})
        if not isinstance(data, dict):
            return Answer(400, {"errors": [{"message": "no metadata"}], "warnings": []})
        return Answer(200, {"errors": [], "warnings": []})

    def auth_check(self, request: Request, name: str, write: str | None) -> Answer:
        (self.writable if write else self.visible)(request, name)
        return Answer(200, {})

    def _commit(self, request: Request, name: str, revision: str | None) -> tuple[str, dict[str, File]]:
        found = self.visible(request, name).at(revision or "main")
        if found is None:
            raise Answer(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
        return found

    def info(self, request: Request, name: str, revision: str | None) -> Answer:
        sha, files = self._commit(request, name, revision)
        siblings = [{"rfilename": path} for path in files]
        told = {"id": name, "modelId": name, "sha": sha, "private": self.repos[name].private}
        return Answer(200, told | {"siblings": siblings, "tags": []})

    def tree(self, request: Request, name: str, revision: str) -> Answer:
        _, files = self._commit(request, name, revision)
        return Answer(200, [_entry(path, file) for path, file in files.items()])

    def branch(self, request: Request, name: str, branch: str) -> Answer:
        repo = self.writable(request, name)
        if branch in repo.branches:
            return Answer(409, {"error": "Reference already exists"})
        repo.branches[branch] = [repo.branches["main"][-1]]
        return Answer(200, {})

    # Uploads

    def preupload(self, request: Request, name: str, revision: str) -> Answer:
        self.writable(request, name)
        _, files = self._commit(request, name, revision)
        told = []
        for each in request.json()["files"]:
            mode = "lfs" if each["path"].endswith(LFS_SUFFIXES) else "regular"
            known = files[each["path"]].etag if each["path"] in files else None
            told.append({"path": each["path"], "uploadMode": mode, "shouldIgnore": False, "oid": known})
        return Answer(200, {"files": told})

    def batch(self, request: Request, name: str) -> Answer:
        self.writable(request, name)
        told = []
        for each in request.json()["objects"]:
            place = f"{self.url}/objects/{each['oid']}"
            actions = {"upload": {"href": place}, "verify": {"href": f"{place}/verify"}}
            told.append(each | ({} if each["oid"] in self.objects else {"actions": actions}))
        return Answer(200, {"transfer": "basic", "objects": told})

    def put_object(self, request: Request, oid: str) -> Answer:
        if hashlib.sha256(request.body).hexdigest() != oid:
            return Answer(400, {"error": "the content is another one"})
        self.objects[oid] = request.body
        return Answer(200)

    def verify(self, request: Request, oid: str) -> Answer:
        self.user(request)
        return Answer(200 if len(self.objects.get(oid, b"")) == request.json()["size"] else 404, {})

    def commit(self, request: Request, name: str, revision: str) -> Answer:
        repo = self.writable(request, name)
        files = dict(self._commit(request, name, revision)[1])
        message = ""
        for line in request.body.splitlines():
            entry = json.loads(line)
            key, value = entry["key"], entry["value"]
            if key == "header":
                message = value["summary"]
            elif key == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]), lfs=False)
            elif key == "lfsFile":
                if value["oid"] not in self.objects:
                    return Answer(400, {"error": f"{value['path']} was not uploaded"})
                files[value["path"]] = File(self.objects[value["oid"]], lfs=True)
            elif key == "deletedFile":
                del files[value["path"]]
        sha = repo.commit(revision, files, message)
        return Answer(200, {"commitUrl": f"{self.url}/{name}/commit/{sha}", "commitOid": sha})

    # Downloads

    def resolve(self, request: Request, name: str, revision: str, path: str) -> Answer:
        sha, files = self._commit(request, name, revision)
        if path not in files:
            return Answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound", X_Repo_Commit=sha)
        file = files[path]
        headers = {"ETag": f'"{file.etag}"', "X-Repo-Commit": sha}
        if file.lfs:
            headers |= {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(len(file.content))}
        return Answer(200, file.content, **headers)


def _entry(path: str, file: File) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": len(file.content), "oid": file.git_oid}
    if file.lfs:
        entry["lfs"] = {"oid": file.sha256, "size": len(file.content), "pointerSize": 130}
    return entry


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = b"".join(iter(self._chunk, b""))
            else:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            given = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
            answer = hub.answer(Request(self.command, self.path, body, given))
            if answer is None:
                self.close_connection = True
                self.connection.close()
                return
            self.send_response(answer.status)
            for name, text in answer.headers.items():
                self.send_header(name, text)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body)

        do_GET = do_HEAD = do_POST = do_PUT = _serve

        def _chunk(self) -> bytes:
            size = int(self.rfile.readline().split(b";")[0], 16)
            chunk = self.rfile.read(size)
            self.rfile.readline()
            return chunk

        def log_message(self, format: str, *args: Any) -> None:
            """The requests are kept; nothing is printed."""

    return Handler


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub that serves on a free port until the block ends."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
