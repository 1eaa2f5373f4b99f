"""Fields of a JSON object, read with their types. An explicit null is a field left out."""

from collections.abc import Mapping, Sequence
from typing import Any

from e5core.serve.errors import RefusedError, bad

TOKENS_WAY_OUT = (
    "token arrays are not accepted, since ids of another tokenizer would give wrong vectors; send "
    "strings (with LangChain's OpenAIEmbeddings set check_embedding_ctx_length=False)"
)


class Fields:
    """A JSON object. Fields that nobody asks for are ignored, as every hosted interface does.

    Every method raises RefusedError (400) with the field, what was found and what is expected.
    """

    def __init__(self, values: Any, name: str = "the body") -> None:
        if not isinstance(values, Mapping):
            raise bad(f"{name} is {kind(values)}, expected a JSON object")
        self._values = values
        self._name = "" if name == "the body" else f"{name}."

    def has(self, name: str) -> bool:
        return self._values.get(name) is not None

    def value(self, name: str) -> Any:
        """The field, whatever it holds; RefusedError if it is missing."""
        found = self._values.get(name)
        if found is None:
            raise bad(f"{self._name}{name} is missing", name)
        return found

    def text(self, name: str, default: str | None = None) -> str | None:
        found = self._values.get(name)
        if found is not None and not isinstance(found, str):
            raise self._wrong(name, found, "a string")
        return default if found is None else found

    def needed_text(self, name: str) -> str:
        self.value(name)
        return str(self.text(name))

    def flag(self, name: str, default: bool) -> bool:
        found = self._values.get(name)
        if found is not None and not isinstance(found, bool):
            raise self._wrong(name, found, "true or false")
        return default if found is None else found

    def count(self, name: str) -> int | None:
        """A whole number of 1 or more, or None."""
        found = self._values.get(name)
        if found is None:
            return None
        if isinstance(found, bool) or not isinstance(found, int) or found < 1:
            raise self._wrong(name, found, "a whole number of 1 or more")
        return found

    def choice(self, name: str, choices: Sequence[str], default: str | None = None) -> str | None:
        found = self.text(name, default)
        if found is not None and found not in choices:
            raise bad(f"{self._name}{name} is {found!r:.60}, expected {either(choices)}", name)
        return found

    def inner(self, name: str) -> "Fields":
        """An object within this one; an empty one if it is missing."""
        found = self._values.get(name)
        return Fields({} if found is None else found, f"{self._name}{name}")

    def items(self, name: str) -> list[Any]:
        found = self.value(name)
        if not isinstance(found, list):
            raise self._wrong(name, found, "a list")
        return found

    def texts(self, name: str, one: bool = True) -> list[str]:
        """A list of strings, or a single one; token arrays are refused with the way out."""
        found = self.value(name)
        if one and isinstance(found, str):
            return [found]
        if not isinstance(found, list):
            raise self._wrong(name, found, "a string or a list of strings" if one else "a list")
        for index, item in enumerate(found):
            if isinstance(item, str):
                continue
            ids = item if isinstance(item, list) else [item]
            if ids and all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
                raise bad(TOKENS_WAY_OUT, name, "token_input")
            raise self._wrong(f"{name}[{index}]", item, "a string")
        return found

    def _wrong(self, name: str, found: Any, expected: str) -> RefusedError:
        field = name.partition("[")[0]
        return bad(f"{self._name}{name} is {kind(found)}, expected {expected}", field)


def kind(value: Any) -> str:
    """What errors call a JSON value: its kind, and itself where it is short."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value!r:.60}"


def either(choices: Sequence[str]) -> str:
    """Choices as errors list them."""
    return " or ".join(map(repr, choices))
