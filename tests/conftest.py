"""Fixtures: the real model, and tiny seeded checkpoints of each dialect."""

import os
import signal
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import HealthCheck, settings
from support.models import (
    REAL_MODEL,
    TINY,
    write_tiny_model,
    write_tiny_reranker,
)

from e5core import E5
from e5core.kernels import threads

# Started in the background by a shell, pytest would ignore interrupts, and so would the programs
# whose end by Ctrl-C is tested.
signal.signal(signal.SIGINT, signal.default_int_handler)


# A machine may be as busy as it likes.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

# What the lines that tests measured go by, from the test to the end of the run.
MEASURED = "measured"

# Cases of an exhaustive test that run without --exhaustive, spread over all of them; a marker with
# sample=1 takes the first one alone.
SAMPLED_CASES = 3


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--exhaustive",
        action="store_true",
        help="run every case of the tests marked exhaustive, as .ci/run does, not a sample",
    )
    parser.addoption(
        "--gpu",
        action="store_true",
        help="let tests see the NVIDIA GPU, for tests/gpu and the tests of its kernels: all others "
        "are about a CPU, and e5core takes a GPU that it finds",
    )


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("--gpu"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if not torch.cuda.is_available():
        # Triton reads it when it is imported: its kernels then run on CPU tensors.
        os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without --exhaustive, a sample of the cases of each exhaustive test runs."""
    if config.getoption("--exhaustive"):
        return
    cases: dict[tuple[str, int], list[pytest.Item]] = {}
    for item in items:
        if marker := item.get_closest_marker("exhaustive"):
            sample = marker.kwargs.get("sample", SAMPLED_CASES)
            cases.setdefault((item.nodeid.split("[")[0], sample), []).append(item)
    left_out: set[pytest.Item] = set()
    for (_, sample), group in cases.items():
        step = (len(group) - 1) / max(1, sample - 1)
        left_out |= set(group) - {group[round(i * step)] for i in range(min(sample, len(group)))}
    if left_out:
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture
def exhaustive(request: pytest.FixtureRequest) -> bool:
    """Whether a loop within a test is to take every step and not a sample of them."""
    return bool(request.config.getoption("--exhaustive"))


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Call with a line to print at the end of the run, whether the test passes or not."""
    properties = request.node.user_properties  # which come back from other processes
    return lambda line: properties.append((MEASURED, line))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = chain.from_iterable(terminalreporter.stats.values())
    ended = (report for report in reports if getattr(report, "when", None) == "teardown")
    lines = [line for r in ended for name, line in r.user_properties if name == MEASURED]
    if lines:
        terminalreporter.section(MEASURED)
        for line in lines:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def oracle() -> ModuleType:
    """e5core/parity/oracle.py, the reference side of comparisons with transformers."""
    return pytest.importorskip(
        "e5core.parity.oracle", reason="transformers, the oracle, is not installed"
    )


@pytest.fixture(autouse=True)
def any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work is split among as many threads as a test says, however few CPUs it may use."""
    monkeypatch.setattr(threads, "affinity", lambda: None)
    monkeypatch.setattr(threads, "quota", lambda: None)


@pytest.fixture(params=sorted(TINY))
def dialect(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def tiny_folder(tmp_path: Path, dialect: str) -> Path:
    """A fresh folder that a test may damage; comes in both dialects."""
    return write_tiny_model(tmp_path / "tiny", dialect)


@pytest.fixture
def make_tiny(tmp_path: Path) -> Callable[..., Path]:
    """write_tiny_model for a test that wants one dialect or several models."""
    return lambda dialect="bert", seed=0, name="model": write_tiny_model(
        tmp_path / name, dialect, seed
    )


@pytest.fixture
def reranker_folder(tmp_path: Path, dialect: str) -> Path:
    """A fresh tiny cross-encoder that a test may damage; comes in both dialects."""
    return write_tiny_reranker(tmp_path / "tiny", dialect)


@pytest.fixture(scope="session")
def real_folder() -> Path:
    if not (REAL_MODEL / "model.safetensors").is_file():
        pytest.fail(f"{REAL_MODEL} is missing; scripts/test.sh builds it")
    return REAL_MODEL


@pytest.fixture(scope="session")
def real_model(real_folder: Path) -> E5:
    return E5.from_pretrained(real_folder)
