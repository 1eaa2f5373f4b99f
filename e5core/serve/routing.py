"""Which dialect and which function answers a request."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from e5core.serve.errors import RefusedError
from e5core.serve.fields import Fields
from e5core.serve.http import Answer, Call
from e5core.serve.service import Service

Handler = Callable[[Service, Call, Fields], Awaitable[Answer]]


@dataclass(frozen=True)
class Dialect:
    """The form of another server's interface.

    error     the JSON of a refusal, as its clients read it
    statuses  those that it has for others
    """

    name: str
    error: Callable[[RefusedError], Any]
    statuses: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Route:
    """A function that answers, and the dialect that it speaks."""

    dialect: Dialect
    handler: Handler


@dataclass(frozen=True)
class Fork:
    """A path that several dialects have.

    before  the dialect by the request's headers, for errors of its body
    choose  the route by headers and body
    """

    before: Callable[[Call], Dialect]
    choose: Callable[[Call, Fields], Route]


Routes = Mapping[tuple[str, str], Route | Fork]
