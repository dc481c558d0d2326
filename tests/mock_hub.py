"""A hub of the tests: a server on 127.0.0.1 with the endpoints that huggingface_hub uses, and faults on request."""

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

TOKEN = "hf_of_the_tests"


@dataclass
class Repo:
    """Commits, and the branches that name them."""

    private: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        text = f"{len(self.commits)} {sorted((name, hashlib.sha1(data).hexdigest()) for name, data in files.items())}"
        sha = hashlib.sha1(text.encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        return sha

    def resolve(self, revision: str) -> str | None:
        return self.branches.get(revision) or (revision if revision in self.commits else None)


@dataclass
class Hub:
    """Repositories by kind and name.

    Attributes:
        repos: by ("model", "user/name").
        objects: contents of large files by SHA-256.
        requests: method and path of each request.
        tokens: of the requests, each once.
        large: suffix of files that are sent apart.
        sizes: sizes that the hub states instead of the true ones, by file.
        sent: what it sends instead of the contents of a file, by its name.
        cut: files whose connection breaks in the middle, and how often.
        refuse: status of uploads that are refused; 0 for none.
    """

    repos: dict[tuple[str, str], Repo] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    large: str = ".safetensors"
    sizes: dict[str, int] = field(default_factory=dict)
    sent: dict[str, bytes] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)
    refuse: int = 0
    url: str = ""

    def add(self, name: str, files: dict[str, bytes], kind: str = "model", branch: str = "main") -> Repo:
        """A repository with a commit."""
        repo = self.repos.setdefault((kind, name), Repo())
        repo.commit(branch, files)
        return repo

    def files(self, name: str, kind: str = "model", branch: str = "main") -> dict[str, bytes]:
        """The files of a branch."""
        repo = self.repos[kind, name]
        return repo.commits[repo.branches[branch]]


@contextmanager
def mock_hub() -> Iterator[Hub]:
    """A hub that listens while the block runs."""
    hub = Hub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


_API = re.compile(r"/api/(model|dataset)s/([^/]+/[^/]+)(?:/(.*))?")
_RESOLVE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_LFS = re.compile(r"/(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch")


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    # Answers

    def _answer(self, values: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = values if isinstance(values, bytes) else json.dumps(values).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _missing(self, code: str, status: int = 404) -> None:
        self._answer({"error": code}, status, {"X-Error-Code": code, "X-Error-Message": code})

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _handle(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if token := self.headers.get("Authorization"):
            self.hub.tokens.add(token.removeprefix("Bearer "))
        body = self._body()
        routes: tuple[tuple[re.Pattern[str], Callable[..., None]], ...] = (
            (re.compile(r"/api/repos/create"), self._create),
            (re.compile(r"/api/validate-yaml"), self._validate),
            (re.compile(r"/objects/(\w+)"), self._object),
            (_API, self._api),
            (_LFS, self._batch),
            (_RESOLVE, self._resolve),
        )
        for pattern, answer in routes:
            if match := pattern.fullmatch(path):
                answer(body, *match.groups())
                return
        self._missing("EntryNotFound")

    do_GET = do_HEAD = do_POST = do_PUT = _handle  # noqa: N815 - names of http.server

    # Endpoints

    def _create(self, body: bytes) -> None:
        values = json.loads(body)
        owner = values.get("organization") or "anna"
        name, kind = f"{owner}/{values['name']}", values.get("type") or "model"
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer({"error": "Invalid username or password."}, 401)
        elif owner != "anna":
            self._answer({"error": "You don't have the rights to create a model under this namespace"}, 403)
        elif (kind, name) in self.hub.repos:
            self._answer({"error": "You already created this repo", "url": f"{self.hub.url}/{name}"}, 409)
        else:
            repo = self.hub.repos[kind, name] = Repo(
                bool(values.get("private")) or values.get("visibility") == "private"
            )
            repo.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"})
            self._answer({"url": f"{self.hub.url}/{name}", "name": name, "id": name})

    def _validate(self, body: bytes) -> None:
        front = json.loads(body)["content"].split("---")[1]
        errors = [] if "license:" in front else [{"message": "no license"}]
        self._answer({"errors": errors, "warnings": []}, 400 if errors else 200)

    def _api(self, body: bytes, kind: str, name: str, rest: str | None) -> None:
        repo = self.hub.repos.get((kind, name))
        if repo is None or (repo.private and not self.headers.get("Authorization")):
            self._missing("RepoNotFound")
            return
        action, _, argument = (rest or "revision/main").partition("/")
        if action == "branch":
            status = 409 if argument in repo.branches else 200
            repo.branches.setdefault(argument, repo.branches["main"])
            self._answer({"error": "Reference already exists"} if status == 409 else {}, status)
            return
        revision = argument.partition("/")[0] if action == "tree" else argument
        sha = repo.resolve(revision)
        if sha is None:
            self._missing("RevisionNotFound")
            return
        files = repo.commits[sha]
        if action == "revision":
            siblings = [self._entry(each, data, "rfilename") for each, data in files.items()]
            self._answer({"id": name, "sha": sha, "private": repo.private, "siblings": siblings, "tags": []})
        elif action == "tree":
            self._answer([{"type": "file", **self._entry(each, data, "path")} for each, data in files.items()])
        elif action == "preupload":
            each = [file["path"] for file in json.loads(body)["files"]]
            modes = {path: "lfs" if path.endswith(self.hub.large) else "regular" for path in each}
            self._answer({"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]})
        elif action == "commit":
            self._commit(repo, name, revision, dict(files), body)
        else:
            self._missing("EntryNotFound")

    def _entry(self, name: str, data: bytes, key: str) -> dict[str, Any]:
        size = self.hub.sizes.get(name, len(data))
        entry = {key: name, "size": size, "oid": _blob(data), "blobId": _blob(data)}
        if name.endswith(self.hub.large):
            digest = hashlib.sha256(data).hexdigest()
            entry["lfs"] = {"oid": digest, "sha256": digest, "size": size, "pointerSize": 130}
        return entry

    def _commit(self, repo: Repo, name: str, branch: str, files: dict[str, bytes], body: bytes) -> None:
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif item["key"] == "deletedFile":
                del files[value["path"]]
        sha = repo.commit(branch, files)
        self._answer({"commitUrl": f"{self.hub.url}/{name}/commit/{sha}", "commitOid": sha, "success": True})

    def _batch(self, body: bytes, prefix: str | None, name: str) -> None:
        objects = []
        for each in json.loads(body)["objects"]:
            actions = {"actions": {"upload": {"href": f"{self.hub.url}/objects/{each['oid']}"}}}
            objects.append({**each, **({} if each["oid"] in self.hub.objects else actions)})
        self._answer({"transfer": "basic", "objects": objects})

    def _object(self, body: bytes, digest: str) -> None:
        if self.hub.refuse:
            self._answer({"error": "storage is not available"}, self.hub.refuse)
            return
        assert hashlib.sha256(body).hexdigest() == digest
        self.hub.objects[digest] = body
        self._answer({})

    def _resolve(self, body: bytes, prefix: str | None, name: str, revision: str, path: str) -> None:
        repo = self.hub.repos.get(("dataset" if prefix else "model", name))
        sha = repo and repo.resolve(revision)
        if repo is None or sha is None:
            self._missing("RevisionNotFound" if repo else "RepoNotFound")
            return
        if path not in repo.commits[sha]:
            self._answer({"error": "EntryNotFound"}, 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
            return
        data = repo.commits[sha][path]
        etag = hashlib.sha256(data).hexdigest() if path.endswith(self.hub.large) else _blob(data)
        data = self.hub.sent.get(path, data)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        start = 0
        if match := re.fullmatch(r"bytes=(\d+)-.*", self.headers.get("Range") or ""):
            start = int(match[1])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if self.command == "GET" and self.hub.cut.get(path, 0) > 0:
            self.hub.cut[path] -= 1
            self.send_response(206 if start else 200)
            for key, value in {**headers, "Content-Length": str(len(data) - start)}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(data[start : start + (len(data) - start) // 2])
            self.close_connection = True
            return
        self._answer(data[start:], 206 if start else 200, headers)


def _blob(data: bytes) -> str:
    """Git's name of a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
