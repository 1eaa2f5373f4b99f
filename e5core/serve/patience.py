"""How long a request is worked on: until its client hangs up, or its time is over."""

import asyncio
from contextlib import suppress
from time import perf_counter
from typing import Any, TypeVar

from e5core.serve.errors import RefusedError
from e5core.serve.http import Call, ClientGoneError

Result = TypeVar("Result")


class Patience:
    """Watches the client and the clock of a request from here to `close`."""

    def __init__(self, call: Call, timeout: float) -> None:
        """Begin to watch. Called in the event loop, once the body is read.

        timeout  seconds that the server gives to a request
        """
        loop = asyncio.get_running_loop()
        self._seconds = _allowed(call, timeout)
        self._how: str | None = None  # "gone" or "late" once it has ended
        self._work: asyncio.Future[Any] | None = None
        left = max(self._seconds - (perf_counter() - call.started), 0.0)
        self._timer = loop.call_later(left, self._end, "late")
        self._hung_up = loop.create_task(_hung_up(call))
        self._hung_up.add_done_callback(lambda task: self._end("gone"))

    def _end(self, how: str) -> None:
        if self._how is None:
            self._how = how
            if self._work is not None:
                self._work.cancel()

    @property
    def over(self) -> bool:
        """Whether nobody waits any more; threads may ask too."""
        return self._how is not None

    async def result(self, work: "asyncio.Future[Result]") -> Result:
        """What a future gives. It is cancelled if the patience ends before.

        Raises ClientGoneError, or RefusedError (504) if the time is over.
        """
        self._work = work
        if self.over:
            work.cancel()
        try:
            return await work
        except BaseException:
            if not self.over:  # its own failure, or the server's end cancels this task
                raise
        finally:
            self._work = None
        if self._how == "gone":
            raise ClientGoneError
        message = f"the request was not done within {self._seconds:g} s"
        raise RefusedError(504, message, code="deadline_exceeded")

    def close(self) -> None:
        """Watch no longer."""
        self._timer.cancel()
        self._hung_up.cancel()


def _allowed(call: Call, timeout: float) -> float:
    """Seconds that the request may take: the server's, or the client's where they are less."""
    seconds = timeout
    for name in ("x-request-timeout", "x-stainless-read-timeout"):
        if name in call.headers:
            with suppress(ValueError):
                asked = float(call.headers[name])
                seconds = asked if 0 < asked < seconds else seconds
    return seconds


async def _hung_up(call: Call) -> None:
    """Return when the client hangs up."""
    while (await call.receive())["type"] != "http.disconnect":
        pass
