"""A stand-in for the Hugging Face hub on this machine: the four kinds of request that a
download makes, and the ways in which they fail."""

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]  # path in the repository → content


def read_files(folder: Path) -> Files:
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@dataclass
class Repository:
    """Commits and the names that point to them; a hidden or gated one wants a token."""

    commits: dict[str, Files] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    token: str | None = None
    gated: bool = False

    def commit(self, files: Files, *refs: str) -> str:
        """Add a commit and let refs point to it; returns its hash."""
        content = json.dumps({name: _digest(data) for name, data in files.items()})
        commit = _digest(content.encode())
        self.commits[commit] = files
        self.refs |= dict.fromkeys(refs or ("main",), commit)
        return commit


class HubServer:
    """A server in a thread. `answer_all` replaces every answer; `breaks` cuts downloads off."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.log: list[tuple[str, str]] = []  # method, path
        self.answer_all: tuple[int, bytes] | None = None
        # File → after how many bytes the connection closes, one entry a GET.
        self.breaks: dict[str, list[int]] = {}
        # File → bytes that GET serves as if they were all.
        self.shortened: dict[str, int] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.hub = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def add(self, name: str, files: Files, **options: Any) -> Repository:
        repository = self.repositories[name] = Repository(**options)
        repository.commit(files)
        return repository

    def fetched(self) -> list[str]:
        """The files whose content was asked for, in that order."""
        return [
            path.split("/resolve/")[1].split("/", 1)[1]
            for method, path in self.log
            if method == "GET" and "/resolve/" in path
        ]

    def stop(self) -> None:
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    # HTTP/1.0, this class's default, ends the connection after each answer: nothing answers
    # any more once the server has stopped.

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, with_body: bool) -> None:
        hub: HubServer = self.server.hub  # type: ignore[attr-defined]
        path = unquote(urlsplit(self.path).path)
        hub.log.append((self.command, path))
        if hub.answer_all is not None:
            return self._send(hub.answer_all[0], hub.answer_all[1] if with_body else b"")
        name, action, rest = _parse(path)
        repository = hub.repositories.get(name)
        allowed = repository and self.headers.get("Authorization") == f"Bearer {repository.token}"
        if repository is None or (repository.token and not allowed and not repository.gated):
            return self._refuse(404, "RepoNotFound", "Repository not found")
        revision, _, file = (rest or "main").partition("/")
        commit = repository.refs.get(revision, revision)
        if commit not in repository.commits:
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        files = repository.commits[commit]
        if action == "info":  # the hub shows what a gated repository holds, as it shows its page
            return self._json({"id": name, "sha": commit, "siblings": _siblings(files)})
        if action == "tree":
            return self._json([_tree_entry(file, data) for file, data in files.items()])
        if repository.gated and not allowed:
            return self._refuse(403, "GatedRepo", f"Access to model {name} is restricted")
        if file not in files:
            return self._refuse(404, "EntryNotFound", "Entry not found")
        self._file(hub, file, files[file], commit, with_body)

    def _file(self, hub: HubServer, file: str, data: bytes, commit: str, with_body: bool) -> None:
        headers = {"ETag": f'"{_digest(data)}"', "X-Repo-Commit": commit}
        if not with_body:
            return self._send(200, b"", {**headers, "Content-Length": str(len(data))})
        data = data[: hub.shortened.get(file, len(data))]
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        headers["Content-Length"] = str(len(data) - start)
        body = data[start:]
        breaks = hub.breaks.get(file)
        if breaks:
            body = body[: breaks.pop(0)]
        self._send(206 if start else 200, body, headers)

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": message})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)


def _parse(path: str) -> tuple[str, str, str]:
    """Repository, action and the rest of the path: "revision" or "revision/file"."""
    if path.startswith("/api/models/"):
        name = path.removeprefix("/api/models/")
        for action, word in (("info", "/revision/"), ("tree", "/tree/")):
            if word in name:
                name, _, rest = name.partition(word)
                return name, action, rest
        return name, "info", ""
    name, _, rest = path.strip("/").partition("/resolve/")
    return name, "file", rest


def _siblings(files: Files) -> list[dict[str, str]]:
    return [{"rfilename": name} for name in files]


def _tree_entry(name: str, data: bytes) -> dict[str, Any]:
    return {"type": "file", "path": name, "size": len(data), "oid": _digest(data)}


def _digest(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
