"""Ctrl-C while torch is imported, which takes seconds: one line, as at any other time.

This is imported before torch. It changes something only if the process is the program itself: a
library leaves signals to its user.
"""

import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

INTERRUPTED = 130  # what a shell makes of SIGINT


def is_program() -> bool:
    """Whether this process was started as `e5core` or as `python -m e5core`."""
    name = Path(sys.argv[0] if sys.argv else "")
    if name.name == "-m":  # it stands there until the package is imported
        return "e5core" in sys.orig_argv
    return name.stem == "e5core" or (name.stem == "__main__" and name.parent.name == "e5core")


def end(*_: object) -> NoReturn:
    # Nothing is begun yet that would have to be put in order.
    os.write(2, b"e5core: interrupted\n")
    os._exit(INTERRUPTED)


def restore() -> None:
    """Let an interrupt be a KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def ignore() -> None:
    """Let no interrupt reach a program that is done: the interpreter, ending, has no handler."""
    if is_program():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


if is_program() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, end)
