"""A stand-in for the hub: the part of its HTTP API that huggingface_hub asks for a model."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Hub:
    """Repositories as {id: {revision: folder}}; a revision's commit is made from its name."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, Path]] = {}
        self.tokens: dict[str, str] = {}  # a private repository's token
        self.gated: set[str] = set()
        self.broken: set[str] = set()  # files of which only half is sent
        self.requests: list[str] = []  # "METHOD path" of everything asked for
        self.url = ""

    def commit(self, repository: str, revision: str) -> str:
        return hashlib.sha1(f"{repository}@{revision}".encode()).hexdigest()

    def find(self, repository: str, revision: str) -> tuple[str, Path] | None:
        for name, folder in self.repositories[repository].items():
            if revision in (name, self.commit(repository, name)):
                return self.commit(repository, name), folder
        return None

    def fetched(self) -> set[str]:
        """The files of which the content was asked for."""
        return {
            line.split("/", 5)[5]
            for line in self.requests
            if line.startswith("GET") and "resolve" in line
        }


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def reply(self, status: int, body: bytes, send: int | None = None, **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[:send])
                if send is not None:
                    self.close_connection = True

        def refuse(self, status: int, code: str) -> None:
            self.reply(status, b"{}", X_Error_Code=code)

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"{self.command} {path}")
            parts = path.strip("/").split("/")
            if parts[:2] == ["api", "models"]:
                repository, rest = "/".join(parts[2:4]), parts[4:]
                kind, revision = (rest[0], rest[1]) if len(rest) > 1 else ("revision", "main")
            else:
                repository, kind, revision = "/".join(parts[:2]), parts[2], parts[3]
            if repository not in hub.repositories:
                return self.refuse(404, "RepoNotFound")
            expected = hub.tokens.get(repository)
            if expected and self.headers.get("Authorization") != f"Bearer {expected}":
                return self.refuse(401, "RepoNotFound")
            if repository in hub.gated:
                return self.refuse(403, "GatedRepo")
            found = hub.find(repository, revision)
            if found is None:
                return self.refuse(404, "RevisionNotFound")
            commit, folder = found
            if kind == "resolve":
                return self.send_file(folder, "/".join(parts[4:]), commit)
            listing: object = [
                {
                    "type": "file",
                    "path": name,
                    "size": (folder / name).stat().st_size,
                    "oid": hashlib.sha1((folder / name).read_bytes()).hexdigest(),
                }
                for name in files(folder)
            ]
            if kind == "revision":
                siblings = [{"rfilename": name} for name in files(folder)]
                listing = {"id": repository, "sha": commit, "siblings": siblings}
            self.reply(200, json.dumps(listing).encode(), Content_Type="application/json")

        do_HEAD = do_GET  # noqa: N815 (http.server's name)

        def send_file(self, folder: Path, name: str, commit: str) -> None:
            if not (folder / name).is_file():
                return self.refuse(404, "EntryNotFound")
            content = (folder / name).read_bytes()
            etag = f'"{hashlib.sha1(content).hexdigest()}"'
            half = len(content) // 2 if name in hub.broken else None
            self.reply(200, content, half, ETag=etag, X_Repo_Commit=commit)

    return Handler


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
