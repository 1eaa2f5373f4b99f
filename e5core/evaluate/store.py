"""Vectors of texts on the disk, so that a text is embedded once and a stopped run goes on."""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt

from e5core.formats.durable import GrowingFile, write_json_durably
from e5core.formats.files import lock_folder, read_json_object

KEYS, VECTORS, MADE_FROM = "keys.bin", "vectors.bin", "made_from.json"
_KEY_BYTES = 16


class VectorStore:
    """The vectors of a model, by the texts that they are of.

    A vector is there when its key is: vectors are written first. Whatever a killed run has left
    behind the last key is overwritten.
    """

    def __init__(self, folder: Path, size: int, made_from: Mapping[str, object]) -> None:
        """Open a folder, or make it.

        size       numbers of a vector
        made_from  what the vectors depend on beside the texts

        Raises ValueError if the folder holds vectors that were made from something else, OSError
        if another process has it open.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = ExitStack()
        if not self._lock.enter_context(lock_folder(folder)):
            self._lock.close()
            raise OSError(
                f"another run is writing to {folder}; wait for it, or name another output "
                "(--output)"
            )
        with self._lock.pop_all() as lock:  # given back if the folder is refused
            noted = folder / MADE_FROM
            if noted.is_file():
                _check_same(noted, read_json_object(noted), made_from)
            else:
                write_json_durably(noted, made_from)
            self._lock = lock.pop_all()
        self._size = size
        keys, vectors = folder / KEYS, folder / VECTORS
        whole = keys.stat().st_size // _KEY_BYTES if keys.is_file() else 0
        self._keys = GrowingFile(keys, whole * _KEY_BYTES)
        self._vectors = GrowingFile(vectors, whole * self._row_bytes)
        content = keys.read_bytes()
        self._places = {
            content[start : start + _KEY_BYTES]: place
            for place, start in enumerate(range(0, whole * _KEY_BYTES, _KEY_BYTES))
        }

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, text: str) -> bool:
        return _key(text) in self._places

    def add(self, texts: Sequence[str], vectors: npt.NDArray[np.float32]) -> None:
        """Keep vectors [texts, size] of texts that are not there yet; on the disk at return."""
        if vectors.shape != (len(texts), self._size):
            raise ValueError(
                f"vectors have the shape {vectors.shape}, expected {(len(texts), self._size)}"
            )
        keys = [_key(text) for text in texts]
        self._vectors.append(np.ascontiguousarray(vectors, dtype="<f4").tobytes())
        self._keys.append(b"".join(keys))
        for key in keys:
            self._places[key] = len(self._places)

    def get(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """The vectors [texts, size] of texts that are all there; KeyError for one that is not."""
        places = [self._places[_key(text)] for text in texts]
        if not places:
            return np.empty((0, self._size), dtype=np.float32)
        shape = (len(self._places), self._size)
        return np.asarray(np.memmap(self._vectors.path, "<f4", "r", shape=shape)[places])

    def close(self) -> None:
        self._keys.close()
        self._vectors.close()
        self._lock.close()

    @property
    def _row_bytes(self) -> int:
        return 4 * self._size


def _key(text: str) -> bytes:
    """Sixteen bytes of SHA-256: two of ten million texts share them once in 10^24 runs."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:_KEY_BYTES]


def _check_same(noted: Path, before: Mapping[str, object], now: Mapping[str, object]) -> None:
    changed = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    if changed:
        name = changed[0]
        raise ValueError(
            f"{noted.parent} holds vectors of another model or of other options: {name} was "
            f"{before.get(name)!r:.60}, is {now.get(name)!r:.60}; name another output (--output), "
            "or remove that folder"
        )
