"""Models in a process that was forked after they were loaded.

OpenMP's threads do not survive a fork: a child that computes on two threads, of a parent that
has, waits for ever for threads that are not there. On one thread it works, and gives the same
bits. (GNU OpenMP with torch 2.13; parent on 1 or 2 threads, used or unused, child on 1 or 2:
the child on 2 of a parent on 2 hangs, all others are right. 2026-11)
"""

import os

import torch

_forks = 0  # of this process since it imported e5core, those of its parents included


def _count() -> None:
    global _forks
    _forks += 1


if hasattr(os, "register_at_fork"):  # Windows cannot fork
    os.register_at_fork(after_in_child=_count)


def forks() -> int:
    """A number to keep when a model is loaded, for `one_thread_if_forked`."""
    return _forks


def one_thread_if_forked(since: int) -> None:
    """Set torch to one thread if this process was forked off after `forks()` gave `since`."""
    if since != _forks and torch.get_num_threads() > 1:
        torch.set_num_threads(1)
