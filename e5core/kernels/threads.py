"""How many threads the C++ takes: what torch is set to, and no more than the system allows.

torch starts with a thread for each CPU. It neither sees that a container may use two CPUs' time
on a machine of 64, where it would be stopped most of the time, nor an affinity that is set later.
"""

import math
import os
from functools import cache
from pathlib import Path

import torch

CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def thread_count() -> int:
    """The threads of a call: those of torch.set_num_threads, within affinity and quota."""
    limits = (affinity(), quota())
    return min([torch.get_num_threads(), *(math.ceil(limit) for limit in limits if limit)])


def affinity() -> int | None:
    """The CPUs on which this process may run; None if it may run on all, or nobody tells."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    allowed = len(os.sched_getaffinity(0))
    return allowed if allowed < (cpu_count() or allowed) else None


@cache
def cpu_count() -> int | None:
    """os.cpu_count(), which reads a file each time: 40 µs, where one query takes 1,100."""
    return os.cpu_count()


@cache
def quota(cgroups: Path = CGROUPS, own: Path = OWN_CGROUPS) -> float | None:
    """The CPUs' time that the control groups of this process grant it; None if there is no limit.

    Source: cpu.max of Linux' cgroup-v2.rst; cpu.cfs_quota_us of its sched-bwc.rst in version 1.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:  # no Linux
        return None
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = cgroups / "cpu" if controllers else cgroups
        # A container often sees its own group as the root, whatever it is called outside.
        group = Path(path.lstrip("/"))
        for folder in (root, *(root / part for part in (group, *group.parents))):
            found += _limit(folder)
    return min(found, default=None)


def _limit(folder: Path) -> list[float]:
    """The limit of one control group, in CPUs, if it has one."""
    try:
        if (folder / "cpu.max").exists():
            granted, period = (folder / "cpu.max").read_text().split()
        else:
            granted, period = (
                (folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period")
            )
        return [] if granted in ("max", "-1") else [int(granted) / int(period)]
    except (OSError, ValueError):
        return []
