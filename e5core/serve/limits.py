"""What a server takes, and what it refuses."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """The limits of a server. Everything beyond them is refused, with the limit named.

    max_wait        seconds that a request may have to wait; the client of Pinecone gives up at 30
    timeout         seconds after which a request is answered 504, whatever it waits for
    max_body        bytes of a body
    max_texts       texts or documents of a request
    max_characters  characters of a text
    body_seconds    seconds that the headers of a request may take to arrive, and then its body
    hang_seconds    seconds of a forward pass after which the worker counts as lost
    """

    max_wait: float = 20.0
    timeout: float = 600.0
    max_body: int = 32 * 2**20
    max_texts: int = 2048
    max_characters: int = 1_000_000
    body_seconds: float = 60.0
    hang_seconds: float = 60.0
