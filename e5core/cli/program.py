"""The frame of every program of the package: one-line errors and exit codes."""

import argparse
import io
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from e5core.formats.interrupts import INTERRUPTED, restore

USAGE_ERROR = 2  # argparse's own exit code, used for every error of the caller's making


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line and whose description keeps its lines.

    complete  adds the arguments when they are first needed, so that a program imports only what
              its command needs
    """

    def __init__(
        self, *arguments: Any, complete: Callable[["Parser"], None] | None = None, **options: Any
    ) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*arguments, **options)
        self.set_defaults(prog=self.prog)
        self._complete = complete

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self._complete is not None:
            complete, self._complete = self._complete, None
            complete(self)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """One line, as every other error; argparse would print the usage before it."""
        self.exit(USAGE_ERROR, f"{self.prog}: {message}; see {self.prog} --help\n")


class Command(NamedTuple):
    """A command of a program: its line in the program's --help, and what adds its arguments."""

    summary: str
    complete: Callable[[Parser], None]


def add_commands(parser: Parser, name: str, commands: Mapping[str, Command]) -> None:
    """Let the parser take one of the commands; `name` is what errors call the argument."""
    choices = parser.add_subparsers(dest=name, required=True, metavar=name)
    for command, (summary, complete) in commands.items():
        choices.add_parser(command, help=summary, complete=complete)


def run_program(parser: Parser, arguments: Sequence[str] | None) -> int:
    """Parse the arguments and run what they ask for; returns the exit code.

    The parser's defaults say what that is: `run`, which takes the options and returns an exit
    code, and `hint` where there is more to say behind an error. An error is one line on standard
    error.
    """
    _print_everything()
    restore()
    options = argparse.Namespace()
    try:
        options = parser.parse_args(arguments)
        code: int = options.run(options)
        if sys.stdout is not None:  # it may be closed, as under a daemon
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output, such as head, has what it wants. Python would complain
        # again when it flushes standard output at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as error:
        print(f"{parser.prog}: interrupted{_hint(options, error)}", file=sys.stderr)
        return INTERRUPTED
    except (OSError, ValueError, MemoryError, RuntimeError, ImportError) as error:
        # An ImportError names the extra that is missing. torch's error for a full memory is a
        # RuntimeError; any other one is a defect of ours.
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        print(f"{options.prog}: {reason}{_hint(options, error)}", file=sys.stderr)
        return USAGE_ERROR
    return code


def check_counts(options: argparse.Namespace, *names: str) -> None:
    """ValueError for the first of these options that is given and is less than 1."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {value}, expected 1 or more")


def _print_everything() -> None:
    """Let a console that knows fewer characters show the others by their numbers."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def _hint(options: argparse.Namespace, error: BaseException) -> str:
    return str(options.hint(options, error)) if "hint" in options else ""
