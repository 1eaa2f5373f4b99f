"""Files that are on the disk itself when a call returns, so that a run can go on from them.

files.py swaps whole files too, but leaves it to the system when the disk gets them. Here they are
on the disk at once: after a power cut a file is the old one or the new one, and a growing file
holds everything that was appended.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def sync(path: Path) -> None:
    """Return once the disk has the content of a file, or the names in a folder."""
    if path.is_dir() and os.name == "nt":  # Windows opens no folders
        return
    # Windows flushes only what it can write to.
    number = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def temporary_name(path: Path) -> Path:
    """Where the next content of a file is written; a process that is killed leaves it behind."""
    return path.with_name(f"{path.name}.temporary")


@contextmanager
def replace_durably(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; the disk has it as `path` when the block has ended.

    Raises OSError naming the temporary file, which stays where it is if anything goes wrong.
    """
    temporary = temporary_name(path)
    with name_in_errors(temporary):
        yield temporary
        sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def write_json_durably(path: Path, content: object) -> None:
    """Replace a file by a JSON value."""
    with replace_durably(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


class GrowingFile:
    """A file that is appended to, and whose size is known elsewhere to be good.

    A stopped run may have left more behind `size`; the next append cuts that off.
    """

    def __init__(self, path: Path, size: int) -> None:
        """Open a file, or make it; ValueError if it has fewer bytes than `size`."""
        self.path = path
        self.size = size
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        found = os.fstat(self._file).st_size
        if found < size:
            os.close(self._file)
            raise ValueError(
                f"{path} has {found} bytes, expected {size} or more: it was changed from outside"
            )

    def append(self, content: bytes) -> None:
        """Write to the disk itself; on an error `size` stays, and so does what it covers."""
        self._write(content, self.size)
        self.size += len(content)

    def complete(self, start: bytes = b"") -> None:
        """Replace the first bytes, and cut off what lies behind `size`."""
        self._write(start, 0)

    def close(self) -> None:
        os.close(self._file)

    def _write(self, content: bytes, place: int) -> None:
        with name_in_errors(self.path):
            os.ftruncate(self._file, self.size)
            os.lseek(self._file, place, os.SEEK_SET)
            left = memoryview(content)
            while left:
                left = left[os.write(self._file, left) :]
            os.fsync(self._file)


@contextmanager
def name_in_errors(path: Path) -> Iterator[None]:
    """Name the file in an error of writing to it, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
