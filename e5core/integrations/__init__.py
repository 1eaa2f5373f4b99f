"""Thin adapters to the interfaces of other libraries, one file each.

Each adapter imports its library, and the rest of e5core imports no adapter. An adapter adds the
prefixes: wherever an interface tells queries and documents apart, each gets its own. Where an
interface does not, the adapter's docstring says which prefix its texts get.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from e5core.model import E5


@contextmanager
def extra(name: str, *libraries: str) -> Iterator[None]:
    """Import the libraries of an extra; ImportError names the extra where one is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in libraries:
            raise  # a library is there and lacks something of its own
        raise ImportError(
            f"e5core.integrations.{name.replace('-', '_')} needs {error.name}; "
            f"pip install 'e5core[{name}]'",
            name=error.name,
        ) from error


def as_model(model: E5 | str | Path, options: dict[str, Any]) -> E5:
    """Return a loaded model as it is, or load it from a folder or hub id.

    options  for E5.from_pretrained

    Raises TypeError if there are options for a model that is loaded already.
    """
    if not isinstance(model, E5):
        return E5.from_pretrained(model, **options)
    if options:
        raise TypeError(
            f"the model is loaded already, {', '.join(options)} cannot change it; give them to "
            "E5.from_pretrained"
        )
    return model
