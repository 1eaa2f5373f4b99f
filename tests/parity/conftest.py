"""The fixtures of the tests of `e5core check`."""

from collections.abc import Callable, Iterator

import pytest
import torch

from e5core.cli import main

Run = Callable[..., tuple[int, dict[str, str], str]]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """On a busy machine, threads that wait for each other cost a tiny model most of its time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], one_thread: None) -> Run:
    """Run the command: its exit code, the verdicts by case, and standard error."""

    def run(*arguments: object) -> tuple[int, dict[str, str], str]:
        code = main(["check", *map(str, arguments)])
        out, err = capsys.readouterr()
        lines = out.partition("\n\n")[0].splitlines()[1:]
        return code, {line.split("  ")[0]: line.split()[-1] for line in lines}, err

    return run
