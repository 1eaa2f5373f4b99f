"""What a request is refused with. Every dialect writes it in its own form."""

import math
from collections.abc import Sequence

RETRY_AFTER_LIMIT = 60.0  # seconds: the clients of Pinecone and OpenAI wait no longer


class RefusedError(Exception):
    """A request that gets no answer, and why.

    status   of HTTP
    message  one sentence: the culprit, what was found, what is expected and the way out
    code     a short name, for the dialects that have one
    param    the field of the request that is at fault
    wait     seconds after which it may be tried again
    close    whether the connection ends with this answer
    methods  those that the path takes, if it does not take the request's
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        wait: float | None = None,
        close: bool = False,
        methods: Sequence[str] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.wait = wait
        self.close = close
        self.methods = methods

    @property
    def headers(self) -> dict[str, str]:
        """The headers that the answer needs.

        Retry-After holds whole seconds: urllib3 raises InvalidHeader for a fraction (seen with
        pinecone 7.3). `retry-after-ms` is what the openai and cohere clients prefer.
        """
        headers = {"connection": "close"} if self.close else {}
        if self.methods:  # RFC 9110, section 15.5.6, asks a 405 for it
            headers["allow"] = ", ".join(self.methods)
        if self.wait is not None:
            seconds = min(max(self.wait, 0.1), RETRY_AFTER_LIMIT)
            headers["retry-after"] = str(math.ceil(seconds))
            headers["retry-after-ms"] = str(round(seconds * 1000))
        return headers


def bad(message: str, param: str | None = None, code: str | None = None) -> RefusedError:
    """A request that is wrong in itself."""
    return RefusedError(400, message, code=code, param=param)
