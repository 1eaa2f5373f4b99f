"""HTTP as uvicorn speaks it, with limits on what comes before and behind a body."""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# Bytes of a request line with its headers, or of what else is no body.
MOST_HEAD = 65_536


class Protocol(HttpToolsProtocol):  # type: ignore[misc, unused-ignore]
    """One connection. uvicorn would keep headers of any length, and wait for them for ever.

    Nobody has shown a key before the headers are complete, and the application, which bounds
    bodies, does not know of the request yet.
    """

    def __init__(self, *arguments: Any, head_seconds: float, **options: Any) -> None:
        """Begin with a connection that has sent nothing.

        head_seconds  in which the request line and the headers must arrive
        """
        super().__init__(*arguments, **options)
        self._head_seconds = head_seconds
        self._timer: asyncio.TimerHandle | None = None
        self._pending = 0  # bytes since the last end of headers or part of a body

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._pending += len(data)
        super().data_received(data)
        if self._pending > MOST_HEAD and not self.transport.is_closing():
            self.send_400_response(
                f"The request line and headers have more than {MOST_HEAD} bytes."
            )

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._expect_head()

    def on_headers_complete(self) -> None:
        self._stop_timer()
        self._pending = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._pending = 0
        super().on_body(body)

    def _expect_head(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self._head_seconds, self._give_up)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        if self.cycle is not None and not self.cycle.response_complete:
            self._expect_head()  # a request before this one is not answered yet
        else:
            self.transport.close()
