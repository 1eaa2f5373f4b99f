"""How many threads the C++ takes: those of torch, within what the system allows."""

import os
import subprocess
import sys

import pytest
import torch
from support.models import CPU, ROOT

from e5core.kernels import BACKENDS, threads, why_not

missing = why_not(BACKENDS["native"], CPU, torch.float32)
usable = pytest.mark.skipif(missing is not None, reason=str(missing))


@pytest.fixture(autouse=True)
def any_number_of_threads():
    """The limits of the system hold here, see conftest.py."""
    threads.quota.cache_clear()
    yield
    threads.quota.cache_clear()


@pytest.fixture
def groups(tmp_path):
    """Write control groups: the lines of /proc/self/cgroup, and files by their path."""

    def write(lines, **files):
        own = tmp_path / "cgroup"
        own.write_text("\n".join(lines) + "\n")
        for path, text in files.items():
            file = tmp_path / "fs" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text + "\n")
        return tmp_path / "fs", own

    return write


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, None),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu.max": "150000 100000"}, 1.5),  # as a container sees its own group
        ({"a/b/cpu.max": "200000 100000"}, 2),
        ({"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000"}, 3),
        ({"a/b/cpu.max": "400000 100000", "a/cpu.max": "50000 100000"}, 0.5),
        ({"a/c/cpu.max": "50000 100000"}, None),  # another group's
        ({"a/b/cpu.max": "nonsense"}, None),
    ],
)
def test_the_quota_of_control_groups(groups, files, limit):
    assert threads.quota(*groups(["0::/a/b"], **files)) == limit


@pytest.mark.parametrize(
    ("quota", "limit"), [("-1", None), ("50000", 0.5), ("800000", 8), ("", None)]
)
def test_the_quota_of_the_first_version(groups, quota, limit):
    files = {"cpu/a/cpu.cfs_quota_us": quota, "cpu/a/cpu.cfs_period_us": "100000"}
    files["memory/a/cpu.cfs_quota_us"] = "1"
    assert threads.quota(*groups(["4:memory:/a", "1:cpu,cpuacct:/a", "0::/"], **files)) == limit


def test_without_control_groups_there_is_no_quota(tmp_path):
    assert threads.quota(tmp_path, tmp_path / "none") is None


@pytest.mark.parametrize(
    ("torch_threads", "affinity", "quota", "expected"),
    [(4, None, None, 4), (4, 2, None, 2), (4, None, 1.5, 2), (4, None, 0.1, 1), (1, 3, 2, 1)],
)
def test_the_least_limit_holds(monkeypatch, torch_threads, affinity, quota, expected):
    monkeypatch.setattr(torch, "get_num_threads", lambda: torch_threads)
    monkeypatch.setattr(threads, "affinity", lambda: affinity)
    monkeypatch.setattr(threads, "quota", lambda: quota)
    assert threads.thread_count() == expected


# Prints how many threads an encoder of several texts, and then of few tokens, has started.
COUNT = """
import os, sys, torch
from support.models import tiny_encoder
from e5core import pack
from e5core.kernels import threads

threads.quota = lambda: float(sys.argv[2]) or None
threads.affinity = lambda: None
torch.set_num_threads(int(sys.argv[1]))
encoder = tiny_encoder("bert").prepare_for_inference(kernels="native")
for texts in (40, 1):
    batch = pack([[0, *range(5, 25), 2]] * texts, encoder.config)
    with torch.inference_mode():
        x = encoder.embeddings(batch.input_ids, batch.position_ids, encoder.kernels)
        before = len(os.listdir("/proc/self/task"))
        encoder.stack(x, batch.cu_seqlens, batch.max_seqlen)
        print(len(os.listdir("/proc/self/task")) - before, end=" ")
"""


@usable
@pytest.mark.skipif(sys.platform != "linux", reason="the threads of a process are in /proc")
@pytest.mark.parametrize(
    ("torch_threads", "quota", "started"),
    [(3, 0, "2 0"), (3, 1.5, "1 0"), (3, 1, "0 0"), (1, 0, "0 0")],
)
def test_as_many_threads_start_as_are_allowed(torch_threads, quota, started):
    """The caller is one of them, and those of the first call serve the next."""
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, "-c", COUNT, str(torch_threads), str(quota)]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == started


AFFINITY = """
import os, torch
from e5core.kernels.threads import thread_count

torch.set_num_threads(4)
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
print(thread_count())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="there is no affinity")
@pytest.mark.skipif(os.cpu_count() == 1, reason="there is one CPU")
def test_an_affinity_that_is_set_later_counts():
    done = subprocess.run([sys.executable, "-c", AFFINITY], capture_output=True, text=True)
    assert done.stdout.strip() == "1", done.stderr
