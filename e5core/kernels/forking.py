"""Models in a process that was forked off one that had loaded torch.

OpenMP's threads do not survive a fork: a child that computes on two threads, of a parent that
has, waits for ever for threads that are not there. On one thread it works, and gives the same
bits. (GNU OpenMP with torch 2.13; parent on 1 or 2 threads, used or unused, child on 1 or 2:
the child on 2 of a parent on 2 hangs, all others are right. 2026-11)

Loading computes too, so whatever loads, makes or runs an encoder calls `one_thread_if_forked`.
"""

import os
import sys
import warnings
from pathlib import Path

import torch

FORKED_WITHOUT_EXEC = 0x40  # PF_FORKNOEXEC of Linux' include/linux/sched.h


def torch_came_with_a_fork(proc: Path = Path("/proc/self")) -> bool:
    """Whether an older process loaded the torch of this one, by what Linux tells of it.

    This is for a process that was forked before it imported e5core. A library's pages that the
    loader has written are shared by a process and what is forked off it, so torch is older than
    a fork if its pages are shared. If no library shares any, the older processes have ended and
    nobody can tell: then torch counts as theirs unless e5core loaded it, for slow is better than
    stuck.
    """
    try:
        # The name of the program stands in brackets and may hold any character.
        flags = int((proc / "stat").read_text().rpartition(")")[2].split()[6])
        if not flags & FORKED_WITHOUT_EXEC:
            return False
        lines = (proc / "smaps").read_text(errors="replace").splitlines()
    except OSError:  # no Linux, or one that hides this
        return False
    libraries, shared = [""], set()
    for line in lines:
        name, *values = line.split()
        if "-" in name:
            libraries.append(values[-1].rpartition("/")[2])
        elif name == "Shared_Dirty:" and values[0] != "0":
            shared.add(libraries[-1])
    if any(".so" in name for name in shared):
        return any("torch" in name for name in shared)
    modules = list(sys.modules)  # in the order in which their imports began
    return modules.index("torch") < modules.index("e5core")


def _note_fork() -> None:
    global _forked, _said
    _forked, _said = True, False


_forked = torch_came_with_a_fork()
_said = False

if hasattr(os, "register_at_fork"):  # Windows cannot fork
    os.register_at_fork(after_in_child=_note_fork)


def one_thread_if_forked() -> None:
    """Set torch to one thread in a forked process, and say so once."""
    global _said
    if not _forked or torch.get_num_threads() == 1:
        return
    torch.set_num_threads(1)
    if not _said:
        _said = True
        warnings.warn(
            "this process was forked off one that had loaded torch, whose threads do not survive "
            "a fork: e5core computes on one thread here. For several, start processes with the "
            'method "spawn", or import torch and e5core in the child alone',
            stacklevel=3,
        )


def allow_threads() -> None:
    """Let this forked process use several threads; its parent must have used one alone."""
    global _forked
    _forked = False
