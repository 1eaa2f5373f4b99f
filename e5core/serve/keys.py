"""The keys that open the server."""

import hashlib
import hmac
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

KEY_VARIABLE = "E5CORE_API_KEY"


class Keys:
    """Keys, of which only the digests are kept.

    >>> Keys(["secret"]).open({"authorization": "Bearer secret"})
    True
    """

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._digests = [_digest(key.encode("utf-8", "surrogateescape")) for key in keys]

    def __len__(self) -> int:
        return len(self._digests)

    def open(self, headers: Mapping[str, str]) -> bool:
        """Whether a request's headers hold a key; always if there are none.

        headers  by lower-case names; the values are ASGI's bytes, decoded as Latin-1

        A key comes as `Authorization: Bearer KEY`, `Authorization: KEY` (LlamaIndex's
        TextEmbeddingInference reranker), `Api-Key: KEY` (Pinecone) or `X-API-Key: KEY`.
        """
        if not self._digests:
            return True
        authorization = headers.get("authorization", "")
        scheme, _, rest = authorization.partition(" ")
        given = (
            (rest if scheme.lower() == "bearer" else authorization).strip(" \t"),
            headers.get("api-key", ""),
            headers.get("x-api-key", ""),
        )
        # Every comparison is made, whatever the one before it found, so that time tells nothing.
        # Outside of ASCII most clients send UTF-8, and http.client of Python sends Latin-1.
        forms = [_digest(key.encode(form)) for key in given for form in ("latin-1", "utf-8")]
        matches = [hmac.compare_digest(form, known) for form in forms for known in self._digests]
        return any(matches)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def read_keys(file: Path | None) -> list[str]:
    """The keys of the environment and of a file, one a line; empty lines and # lines are none.

    Raises ValueError if the file holds none: the server would be open to everybody.
    """
    keys = os.environ.get(KEY_VARIABLE, "").split()
    if file is not None:
        lines = map(str.strip, file.read_text("utf-8").splitlines())
        found = [line for line in lines if line and not line.startswith("#")]
        if not found:
            raise ValueError(f"{file} holds no key, expected one a line")
        keys += found
    return keys
