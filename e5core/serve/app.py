"""The ASGI application: every request in, an answer out, in the dialect of its client."""

import asyncio
import sys
import time
import traceback
from collections.abc import Callable, Collection, Sequence
from urllib.parse import urlsplit

from e5core.serve.access import AccessLog
from e5core.serve.errors import RefusedError
from e5core.serve.fields import Fields
from e5core.serve.http import (
    PARSED_AT_ONCE,
    Answer,
    Call,
    ClientGoneError,
    Message,
    Receive,
    Send,
    json_answer,
    parse,
)
from e5core.serve.keys import Keys
from e5core.serve.life import health, metrics
from e5core.serve.page import page
from e5core.serve.routing import Dialect, Fork
from e5core.serve.searcher import Searcher
from e5core.serve.searching import searching
from e5core.serve.service import Service
from e5core.serve.table import find, likely_dialect

GONE = 499  # nginx's status for a client that hung up, in the log alone


class App:
    """An ASGI 3 application; uvicorn, or any other server of ASGI, runs it.

    It can be mounted below another application. Without lifespan events it starts with the first
    request.

    failed  whether the worker is lost, so that the process should end
    """

    def __init__(
        self,
        service: Service,
        keys: Keys | None = None,
        *,
        log: AccessLog | None = None,
        searcher: Searcher | None = None,
        origins: Sequence[str] = (),
        hosts: Collection[str] | None = None,
        on_failure: Callable[[str], None] = lambda reason: None,
    ) -> None:
        """Put the parts together.

        keys        that open the server; it is open to everybody without one
        log         where every request gets a line; None for none
        searcher    the index behind POST /search
        origins     of web pages that may call the server (CORS); none by default
        hosts       whose pages alone may post, where no key keeps other pages out; None for all
        on_failure  called once, with the reason, when the worker is lost
        """
        self.service = service
        self.keys = keys or Keys()
        self.failed = False
        self._log = log or AccessLog()
        about, search = searching(searcher)
        self._own = {("GET", "/search"): about, ("POST", "/search"): search}
        self._origins = frozenset(origins)
        self._hosts = hosts
        self._on_failure = on_failure
        self._watch: asyncio.Task[None] | None = None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            self.start()
            await self._http(Call(scope, receive), send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})

    def start(self) -> None:
        """Start the worker and what watches it, unless they run."""
        if not self.service.running:
            self.service.start()
            self._watch = asyncio.get_running_loop().create_task(self._watch_worker())

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self.start()
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                if self._watch is not None:
                    self._watch.cancel()
                if not self.failed:  # a lost worker is not waited for
                    self.service.stop()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _watch_worker(self) -> None:
        """Fail everything as soon as the worker is lost: it died, or a pass does not end."""
        worker, limit = self.service.worker, self.service.limits.hang_seconds
        while not self.failed:
            await asyncio.sleep(min(0.25, limit / 4))
            while self.service.metrics.failures:
                error = self.service.metrics.failures.popleft()
                text = "".join(traceback.format_exception(error))
                print(f"a batch failed: {text}", file=sys.stderr, flush=True)
            if worker.busy_seconds > limit:
                worker.abandon(RuntimeError(f"a forward pass has not ended for {limit:g} s"))
            if not worker.alive:
                self.failed = True
                self._on_failure(str(worker.failure))

    async def _http(self, call: Call, send: Send) -> None:
        """Answer one request, and log it."""
        origin = call.headers.get("origin")
        status, work = GONE, False
        try:
            answer = health(self.service, call) or self._preflight(call, origin)
            if (call.method, call.path) == ("GET", "/"):
                answer = page()
            if answer is None:
                work = call.method == "POST"
                answer = await self._answer(call)
            status = answer.status
            await self._send(call, answer, send, origin)
        except ClientGoneError:
            status = GONE
        except asyncio.CancelledError:
            status = GONE
            raise
        finally:
            self.service.memory.release(call)
            if work:
                seconds = time.perf_counter() - call.started
                self.service.metrics.note_request(status, seconds, call.log)
            self._log.write(call, status)

    async def _answer(self, call: Call) -> Answer:
        """The answer of the route, or the refusal in the form of its dialect."""
        found, methods = find(call.method, call.path)
        found = found or self._own.get((call.method, call.path))
        dialect = likely_dialect(call)
        if isinstance(found, Fork):
            dialect = found.before(call)
        elif found is not None:
            dialect = found.dialect
        try:
            if not self.keys.open(call.headers):
                raise RefusedError(401, "the API key is missing or wrong", code="invalid_api_key")
            self._check_origin(call)
            if call.method == "GET" and call.path == "/metrics":
                return metrics(self.service)
            if found is None:
                raise _no_route(call, methods)
            fields = await self._fields(call)
            route = found.choose(call, fields) if isinstance(found, Fork) else found
            dialect = route.dialect
            call.log["dialect"] = dialect.name
            return await route.handler(self.service, call, fields)
        except RefusedError as error:
            return self._refused(call, error, dialect)
        except (ClientGoneError, asyncio.CancelledError):
            raise
        except Exception:
            print(traceback.format_exc(), file=sys.stderr, flush=True)
            refusal = RefusedError(
                500, "the server failed on this request; see its log", code="failed"
            )
            return self._refused(call, refusal, dialect)

    def _check_origin(self, call: Call) -> None:
        """RefusedError (403) for a web page that has nothing to do with this server.

        Browsers post for a page of any origin without asking, and name the origin in every POST,
        also where its name has been made to point to this machine (DNS rebinding).
        """
        origin = call.headers.get("origin")
        if self._hosts is None or origin is None or call.method != "POST":
            return
        if origin not in self._origins and _host(origin) not in self._hosts:
            message = (
                f"a web page of {origin!r:.100} may not call this server, which asks for no key; "
                "start it with a key, or with --cors-origin for this page"
            )
            raise RefusedError(403, message, code="foreign_origin")

    async def _fields(self, call: Call) -> Fields:
        """The JSON of a request; there is none in a GET."""
        if call.method == "GET":
            return Fields({})
        limits = self.service.limits
        body = await call.body(limits.max_body, limits.body_seconds, self.service.memory.hold)
        if len(body) <= PARSED_AT_ONCE:
            return parse(body)
        return await self.service.aside(lambda: parse(body))

    def _refused(self, call: Call, refusal: RefusedError, dialect: Dialect) -> Answer:
        call.log["dialect"] = dialect.name
        # Not its message, in which values of the request stand: texts of users, or a key.
        call.log |= {"error": refusal.code or "invalid_request", "param": refusal.param}
        status = dialect.statuses.get(refusal.status, refusal.status)
        return json_answer(dialect.error(refusal), status, refusal.headers)

    def _preflight(self, call: Call, origin: str | None) -> Answer | None:
        """The answer to a browser that asks whether a page may call the server."""
        if call.method != "OPTIONS":
            return None
        allowed = {
            "access-control-allow-methods": "GET, POST",
            "access-control-allow-headers": "authorization, api-key, content-type, "
            "x-pinecone-api-version",
            "access-control-max-age": "600",
        }
        return Answer([b""], 204, allowed if origin in self._origins else {})

    async def _send(self, call: Call, answer: Answer, send: Send, origin: str | None) -> None:
        headers = {"content-type": answer.content_type, "x-request-id": call.id, **answer.headers}
        headers["x-total-time"] = str(round((time.perf_counter() - call.started) * 1000))
        if origin is not None and origin in self._origins:
            headers |= {"access-control-allow-origin": origin, "vary": "origin"}
        if self.service.draining:
            headers["connection"] = "close"
        parts = iter(answer.parts)
        body = b""
        if not answer.wide:
            body = b"".join(parts)
            headers["content-length"] = str(len(body))
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": answer.status, "headers": raw})
        if answer.wide and not call.head:
            while (part := await self.service.aside(lambda: next(parts, None))) is not None:
                await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"" if call.head else body})


def _host(origin: str) -> str | None:
    try:
        return urlsplit(origin).hostname
    except ValueError:
        return None


def _no_route(call: Call, methods: list[str]) -> RefusedError:
    if methods:
        message = f"{call.path!r:.100} takes {' and '.join(methods)}, not {call.method}"
        return RefusedError(405, message, code="method_not_allowed", methods=methods)
    message = f"there is no {call.method} {call.path!r:.100}; docs/serving.md lists the routes"
    return RefusedError(404, message, code="not_found")
