"""The access log: a line of JSON for every request. No text and no key ever stands in it."""

import sys
import time
from datetime import datetime, timezone
from typing import TextIO

import orjson

from e5core.serve.http import Call

# The longest path that is logged; a client may send any.
LONGEST = 200


class AccessLog:
    """Writes to a stream, such as standard output; None writes nothing."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream

    def write(self, call: Call, status: int) -> None:
        """A line for a request that is done.

        status  that was sent; 499 if the client had gone
        """
        if self._stream is None:
            return
        line = {
            "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            "id": call.id,
            "client": call.client,
            "method": call.method,
            "path": call.path[:LONGEST],
            "status": status,
            "ms": round((time.perf_counter() - call.started) * 1000, 3),
            **call.log,
        }
        try:
            self._stream.write(orjson.dumps(line).decode() + "\n")
            self._stream.flush()
        except (OSError, ValueError):  # nobody reads it any more
            self._stream = None
            print("the access log cannot be written any more", file=sys.stderr)
