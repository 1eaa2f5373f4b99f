"""The command line: e5core embed | search | rerank | evaluate | …, a file for each command."""

import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module

import e5core
from e5core.cli.program import Command, Parser, add_commands, run_program
from e5core.formats.interrupts import ignore

SUMMARIES = {
    "embed": "embed files of any size; stopped, the same command goes on",
    "search": "find the passages that answer queries",
    "rerank": "score passages with a cross-encoder",
    "serve": "answer the clients of hosted embedding services over HTTP",
    "evaluate": "measure a model on mteb's tasks, beside the published figures",
    "train": "train a model, or a cross-encoder; stopped, the same command goes on",
    "mine": "find hard negatives for training",
    "map": "draw languages, meanings or any corpus as a picture",
    "info": "describe a model",
    "convert": "change a model's precision, vocabulary or layout",
    "check": "hold a model against transformers, published outputs or a copy",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; an error is one line on standard error and the exit code 2."""
    parser = Parser(prog="e5core", description="multilingual E5 embeddings")
    parser.add_argument("--version", action="version", version=f"e5core {e5core.__version__}")
    commands = {
        name: Command(summary, partial(_complete, name)) for name, summary in SUMMARIES.items()
    }
    add_commands(parser, "command", commands)
    code = run_program(parser, arguments)
    ignore()
    return code


def _complete(name: str, parser: Parser) -> None:
    """Give a command's parser what its file says: the docstring is the text of its --help."""
    module = import_module(f"e5core.cli.{name}")
    parser.description = module.__doc__
    module.add_arguments(parser)


if __name__ == "__main__":
    sys.exit(main())
