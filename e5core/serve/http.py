"""A request and its answer, as ASGI hands them over."""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from e5core.serve.errors import RefusedError
from e5core.serve.fields import Fields

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

JSON = "application/json"
# Bytes of JSON that are parsed in a thread of their own: this takes about 0.1 ms.
PARSED_AT_ONCE = 65_536


class ClientGoneError(Exception):
    """The client hung up: nobody reads the answer."""


@dataclass
class Answer:
    """What a client gets.

    parts  the bytes of the body. Making the next part may take long where there are several
    wide   whether the parts are made in a thread
    """

    parts: Iterable[bytes]
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str = JSON
    wide: bool = False


def json_answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    return Answer([orjson.dumps(value)], status, headers or {})


def text_answer(text: str, status: int = 200, content_type: str = "text/plain") -> Answer:
    return Answer([text.encode()], status, content_type=f"{content_type}; charset=utf-8")


class Call:
    """One request: what the client sent, and what the access log says of it.

    path      percent-decoded, below the path at which the application is mounted
    headers   by lower-case names; of several the last one counts
    held      bytes that it has in memory, see Memory
    log       fields of its line in the access log
    """

    def __init__(self, scope: Message, receive: Receive) -> None:
        self.method: str = "GET" if scope["method"] == "HEAD" else scope["method"]
        self.head = scope["method"] == "HEAD"
        self.path = _path(scope)
        self.headers = {
            name.decode("latin-1").lower(): value.decode("latin-1")
            for name, value in scope["headers"]
        }
        self.query: bytes = scope.get("query_string", b"")
        self.client: str | None = (scope.get("client") or [None])[0]
        self.id = uuid.uuid4().hex
        self.started = time.perf_counter()
        self.receive = receive
        self.held = 0
        self.log: dict[str, Any] = {}

    @property
    def is_pinecone(self) -> bool:
        """Whether one of Pinecone's clients sent it: all since 5.4 send this header."""
        return "x-pinecone-api-version" in self.headers

    async def body(self, limit: int, seconds: float, hold: Callable[["Call", int], None]) -> bytes:
        """The body; RefusedError if it has more than `limit` bytes or does not end in time.

        hold  called with the size of each part as it comes; it may raise RefusedError
        """
        encoding = self.headers.get("content-encoding", "identity").lower()
        if encoding != "identity":
            raise RefusedError(415, f"the body is {encoding!r:.40}-encoded, expected it plain")
        length = self.headers.get("content-length", "")
        if length.isdigit() and int(length) > limit:
            raise _too_large(f"{int(length):,}", limit)
        # A timer rather than asyncio.wait_for, which makes a task for every request.
        task, late = asyncio.current_task(), []
        assert task is not None, "every server of ASGI runs requests in tasks"

        def give_up() -> None:
            late.append(True)
            task.cancel()

        timer = asyncio.get_running_loop().call_later(seconds, give_up)
        try:
            return await self._read(limit, hold)
        except asyncio.CancelledError:
            if not late:
                raise
            if hasattr(task, "uncancel"):  # since Python 3.11
                task.uncancel()
            message = f"the body did not end within {seconds:g} s"
            raise RefusedError(408, message, close=True) from None
        finally:
            timer.cancel()

    async def _read(self, limit: int, hold: Callable[["Call", int], None]) -> bytes:
        rest, size = bytearray(), 0
        while True:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            part: bytes = message.get("body", b"")
            hold(self, len(part))
            size += len(part)
            if size > limit:
                raise _too_large(f"more than {limit:,}", limit)
            more = message.get("more_body", False)
            if not more and not rest:
                return part  # the common case: one part, not copied
            rest += part
            if not more:
                return bytes(rest)


def _path(scope: Message) -> str:
    """The path of a request without the one at which the application is mounted.

    ASGI's `path` begins with `root_path`; Starlette before 0.33 had taken it off.
    """
    path: str = scope["path"]
    root = scope.get("root_path", "").rstrip("/")
    return path[len(root) :] or "/" if f"{path}/".startswith(f"{root}/") else path


def _too_large(found: str, limit: int) -> RefusedError:
    message = f"the body has {found} bytes, this server takes {limit:,}; send fewer texts a request"
    return RefusedError(413, message, code="body_too_large", close=True)


def parse(body: bytes) -> Fields:
    """The JSON object of a body; RefusedError (400) says what is wrong with it."""
    try:
        return Fields(orjson.loads(body))
    except ValueError as error:
        reason = "it is empty" if not body else str(error)
        raise RefusedError(
            400, f"the body is not valid JSON: {reason}", code="invalid_json"
        ) from None
