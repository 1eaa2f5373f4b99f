"""Files as blocks of bytes, unpacked where they are compressed, and the lines of these blocks."""

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import IO, Any

from e5core.bulk.kinds import check_kind

BLOCK = 1 << 16  # bytes that are read at a time; so many decide what kind a file is

# The decompressor for each suffix. It unpacks a stream, or one member of a stream.
UNPACKERS: dict[str, Callable[[], Any]] = {
    ".gz": lambda: zlib.decompressobj(wbits=31),
    ".bz2": bz2.BZ2Decompressor,
    ".xz": lzma.LZMADecompressor,
    ".zst": lambda: _zstandard().ZstdDecompressor().decompressobj(),
}


class Blocks:
    """The bytes of a file of text, in its first line ends: LF, CR LF, or CR where there is no LF.

    Raises ValueError if the file is of another kind, or a packed one is damaged.
    """

    def __init__(self, opened: IO[bytes], file: str, count: Callable[[int], object]) -> None:
        """Read the first bytes.

        count  is called with the number of bytes that were read from the file itself
        """
        blocks = _read(opened, count)
        suffix = packed_suffix(file)
        if suffix is not None:
            blocks = _unpack(blocks, file, UNPACKERS[suffix])
        head = b""
        while len(head) < BLOCK and (block := next(blocks, None)) is not None:
            head += block
        check_kind(file, head, whole=len(head) < BLOCK)
        self._head = head
        self._blocks = chain([head], blocks)
        self._end = b"\r" if b"\r" in head and b"\n" not in head else b"\n"

    def begins_with(self, start: bytes) -> bool:
        """Whether these bytes come first, behind a mark and spaces; can be asked before reading."""
        return self._head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(start)

    def __iter__(self) -> Iterator[bytes]:
        """All bytes, once; use either this or `lines`."""
        return self._blocks

    def lines(self) -> Iterator[bytes]:
        """Lines with their ends, once. Only the last one may have none."""
        left: list[bytes] = []
        for block in self._blocks:
            *lines, rest = block.split(self._end)
            for line in lines:
                yield b"".join((*left, line, self._end))
                left.clear()
            if rest:
                left.append(rest)
        if left:
            yield b"".join(left)


def packed_suffix(file: str) -> str | None:
    """The suffix of a compressed file, None of any other."""
    suffix = Path(file).suffix.lower()
    return suffix if suffix in UNPACKERS else None


def _read(opened: IO[bytes], count: Callable[[int], object]) -> Iterator[bytes]:
    while block := opened.read(BLOCK):
        count(len(block))
        yield block


def _unpack(blocks: Iterator[bytes], file: str, new: Callable[[], Any]) -> Iterator[bytes]:
    """Members one after another, as `cat a.gz b.gz` leaves them; zeros may pad their end."""
    member, begun, at_end = new(), False, False
    try:
        for block in blocks:
            while block:
                if at_end and not (block := block.lstrip(b"\0")):
                    break
                if at_end:
                    member, at_end = new(), False
                begun = True
                if unpacked := member.decompress(block):
                    yield unpacked
                at_end = member.eof
                block = member.unused_data if at_end else b""
    except (zlib.error, lzma.LZMAError, EOFError, OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be unpacked: {error}; get the file again") from error
    except Exception as error:  # zstandard's own kind is no kind of these
        if type(error).__module__.partition(".")[0] != "zstandard":
            raise
        raise ValueError(f"{file} cannot be unpacked: {error}; get the file again") from error
    if not (begun and at_end):
        raise ValueError(f"{file} ends in the middle of its compressed data; get the file again")


def _zstandard() -> Any:
    try:
        return import_module("zstandard")
    except ImportError as error:
        raise ImportError(
            "reading .zst needs zstandard; pip install 'e5core[bulk]'", name="zstandard"
        ) from error
