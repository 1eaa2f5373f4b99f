"""What the tests of the command line share."""

from pathlib import Path
from typing import Any

import pytest

from e5core.cli import main

LINES = ["the query", "", "a passage: ß я", "日本", "x " * 30, "  ", "z"]
# Those that a search sees, and their lines.
PLACES = [number for number, line in enumerate(LINES, 1) if line.strip()]
SEEN = [LINES[number - 1] for number in PLACES]
LONG = "a b c " * 40  # more than the 64 tokens of the tiny models


def run_embed(file: object, model: Path, output: Path, *options: str, kind: str = "query") -> int:
    arguments = ["embed", str(file), "--model", str(model), "--output", str(output)]
    return main([*arguments, "--input-type", kind, "--keep-blank", *options])


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that must fail; returns the one line that it says."""
    try:
        code: Any = main([str(argument) for argument in arguments])
    except SystemExit as left:  # argparse leaves this way
        code = left.code
    printed = capsys.readouterr()
    assert code == 2
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("e5core")
    return printed.err
