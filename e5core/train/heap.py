"""glibc's heap, which keeps what is freed for later: a gigabyte and more after long texts."""

import ctypes
import os
from functools import cache
from typing import Any

# Free memory that chunks may leave for the next ones. Texts of many lengths leave holes of many
# sizes: a step of 512 pairs of e5-small peaked at 2.5 to 2.7 GB without a bound. The graph of a
# chunk takes 400 MB, and with 640 MB here a tenth of the time went to pages that came anew.
FREE = 1 << 30


class _Mallinfo(ctypes.Structure):
    """What mallinfo2() returns; `fordblks` are the free bytes."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
            "fordblks", "keepcost",
        )
    )  # fmt: skip


def give_back(above: int = 0) -> None:
    """Give free memory back to the system if there is more than so many bytes of it.

    Where the C library is another, or older than glibc 2.33, this does nothing.
    """
    library = _glibc()
    if library is not None and library.mallinfo2().fordblks > above:
        library.malloc_trim(0)


@cache
def _glibc() -> Any:
    """The C library, if it tells how much is free."""
    library = ctypes.CDLL(None) if os.name == "posix" else None
    if not hasattr(library, "mallinfo2") or not hasattr(library, "malloc_trim"):
        return None
    library.mallinfo2.restype = _Mallinfo  # type: ignore[union-attr]
    return library
