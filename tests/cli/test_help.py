"""What every command says of itself, and that no command imports what it does not need."""

import subprocess
import sys

import pytest
from support.models import ROOT

from e5core.cli import SUMMARIES, main
from e5core.cli.convert import CONVERSIONS

COMMANDS = [*([name] for name in SUMMARIES), *(["convert", name] for name in CONVERSIONS)]


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as left:
        main([*arguments, "--help"])
    assert left.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    if command == ["convert", "onnx"]:
        pytest.importorskip("onnx", reason="onnx is not installed")
    text = shown(capsys, *command)
    assert text.startswith(f"usage: e5core {' '.join(command)} ")
    assert len(text.splitlines()) > 5


def test_every_command_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert all(f"\n    {name}" in shown(capsys) for name in SUMMARIES)
    assert all(f"\n    {name}" in shown(capsys, "convert") for name in CONVERSIONS)


def test_help_imports_no_command() -> None:
    code = (
        "import sys\n"
        "from e5core.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "names = ('e5core.bulk', 'e5core.convert', 'e5core.parity', 'e5core.cli.embed')\n"
        "print(*[name for name in sys.modules if name.startswith(names)], file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stderr.strip() == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convert"], "e5core convert: the following arguments are required: conversion; see"),
        (["convert", "gguf"], "invalid choice: 'gguf'"),
        (["convert", "dtype", "a"], "required: folder, --dtype; see e5core convert dtype --help"),
        (["convert", "dtype", "./no", "out", "--dtype", "int8"], "e5core convert dtype: ./no: "),
        (["check"], "e5core check: the following arguments are required: model; see"),
    ],
)
def test_errors_name_the_whole_command(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(arguments)
    except SystemExit as left:  # argparse leaves this way
        code = int(str(left.code))
    printed = capsys.readouterr()
    assert (code, printed.out) == (2, "")
    assert printed.err.count("\n") == 1
    assert message in printed.err
