"""Thin adapters to the interfaces of other libraries, one file each.

Each adapter imports its library, and the rest of e5core imports no adapter. An adapter of vectors
adds the prefixes: wherever an interface tells queries and documents apart, each gets its own.
Where an interface does not, the adapter's docstring says which prefix its texts get. An adapter of
a reranker adds none.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from e5core.model import E5
from e5core.reranker import Reranker

Model = TypeVar("Model", E5, Reranker)


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


def as_model(kind: type[Model], model: Model | str | Path, options: dict[str, Any]) -> Model:
    """Return a loaded model as it is, or load it from a folder or hub id.

    kind     E5 or Reranker
    options  for its from_pretrained

    Raises TypeError if there are options for a model that is loaded already, or if it is of the
    other kind.
    """
    if isinstance(model, (str, Path)):
        return kind.from_pretrained(model, **options)
    if not isinstance(model, kind):
        raise TypeError(
            f"model is {model!r:.80} of type {type(model).__name__}, expected a folder, a hub id "
            f"or a loaded {kind.__name__}; load it with {kind.__name__}.from_pretrained"
        )
    if options:
        raise TypeError(
            f"the model is loaded already, {', '.join(options)} cannot change it; give them to "
            f"{kind.__name__}.from_pretrained"
        )
    return model
