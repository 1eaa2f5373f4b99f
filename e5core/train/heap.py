"""glibc's heap, which keeps what is freed for later: a gigabyte and more after long texts."""

import ctypes
import mmap
import os
from functools import cache
from pathlib import Path
from typing import Any

# Free memory that chunks may leave for the next ones. Texts of many lengths leave holes of many
# sizes: a step of 512 pairs of e5-small peaked at 2.5 to 2.7 GB without a bound, at 1.7 GB with
# 640 MB and at 1.5 GB with 448. What goes back is fetched again, page by page, so the bound is
# above the 400 to 550 MB that the graphs of equal chunks leave (2026-11).
FREE = 576 << 20


class _Mallinfo(ctypes.Structure):
    """What mallinfo2() returns; `uordblks` and `hblkhd` are the bytes in use."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
            "fordblks", "keepcost",
        )
    )  # fmt: skip


def give_back(above: int = 0) -> None:
    """Give memory back to the system that is free and takes room, if it is more than so many bytes.

    Where the C library is another, or older than glibc 2.33, this does nothing.
    """
    library = _glibc()
    if library is None:
        return
    info = library.mallinfo2()
    # What went back stays free for glibc, so its own count of free bytes says too much.
    taken = _anonymous() - info.uordblks - info.hblkhd
    if taken > above:
        library.malloc_trim(0)


def _anonymous() -> int:
    """Bytes in memory that are of no file."""
    _, resident, shared, *_ = Path("/proc/self/statm").read_text().split()
    return (int(resident) - int(shared)) * mmap.PAGESIZE


@cache
def _glibc() -> Any:
    """The C library, if it tells how much is free."""
    library = ctypes.CDLL(None) if os.name == "posix" else None
    if not hasattr(library, "mallinfo2") or not hasattr(library, "malloc_trim"):
        return None
    library.mallinfo2.restype = _Mallinfo  # type: ignore[union-attr]
    return library
