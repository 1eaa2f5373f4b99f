"""Thin adapters to the interfaces of other libraries, one file each.

Each imports its library; `e5core` imports none of them. Prefixes are the adapter's business:
queries and documents get theirs wherever an interface tells them apart, and where it does not,
the docstring says what is done.
"""

from pathlib import Path
from typing import Any

from e5core.model import E5


def as_model(model: E5 | str | Path, options: dict[str, Any]) -> E5:
    """A loaded model as it is, or what `E5.from_pretrained` makes of a folder or hub id.

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
