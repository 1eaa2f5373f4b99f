"""The options of loading, which every command has that runs a model."""

from argparse import Namespace
from dataclasses import fields
from pathlib import Path
from typing import Any

from e5core.checkpoint.options import AUTO, DTYPES, LoadOptions
from e5core.cli.program import Parser
from e5core.kernels import BY_NAME
from e5core.prompts import PROMPTS_BY_NAME

DEFAULT_MODEL = "intfloat/multilingual-e5-small"

# A flag for each field of LoadOptions but the token: a command line can be read by everybody on
# the machine, and huggingface_hub finds the token where its login has left it.
HUB_FLAGS: dict[str, dict[str, Any]] = {
    "revision": {"help": "branch, tag or commit on the hub"},
    "cache_dir": {"type": Path, "help": "in place of huggingface_hub's cache"},
    "local_files_only": {"action": "store_true", "help": "never ask the hub, use its cache"},
}
MODEL_FLAGS: dict[str, dict[str, Any]] = {
    "dtype": {"choices": (AUTO, *DTYPES)},
    "device": {"help": "cpu, cuda, … (default: the GPU if there is one)"},
    "kernels": {"choices": ("auto", *BY_NAME)},
    "prompts": {"choices": PROMPTS_BY_NAME, "help": "in place of the model's own prefixes"},
    "max_length": {"type": int, "help": "tokens a text may have"},
    "truncate_dim": {"type": int, "help": "numbers of a vector that are kept (Matryoshka)"},
}
# What a cross-encoder has no use for: it puts no prefix and gives no vector.
NOT_OF_RERANKERS = ("prompts", "truncate_dim")


def add_hub_options(parser: Parser) -> None:
    """Where a model comes from."""
    add_flags(parser, HUB_FLAGS)


def add_model_options(parser: Parser) -> None:
    """Which model is loaded, where it comes from, and what it runs on and in."""
    parser.add_argument(
        "--model", default=DEFAULT_MODEL, help=f"a folder or a hub id (default: {DEFAULT_MODEL})"
    )
    add_flags(parser, HUB_FLAGS | MODEL_FLAGS)


def add_reranker_options(parser: Parser) -> None:
    """The same for a cross-encoder, which reads texts without prefixes and in pairs."""
    parser.add_argument("--model", required=True, help="a cross-encoder: a folder or a hub id")
    flags = {name: flag for name, flag in MODEL_FLAGS.items() if name not in NOT_OF_RERANKERS}
    flags["max_length"] = {
        "type": int,
        "help": "tokens a pair may have, four special ones included",
    }
    add_flags(parser, HUB_FLAGS | flags)


def load_options(options: Namespace) -> LoadOptions:
    """The options of loading as they were given. One that the command lacks has its default."""
    names = [field.name for field in fields(LoadOptions)]
    return LoadOptions(**{name: getattr(options, name) for name in names if name in options})


def add_flags(parser: Parser, flags: dict[str, dict[str, Any]]) -> None:
    """Options of loading, with the defaults of LoadOptions."""
    for name, settings in flags.items():
        default = getattr(LoadOptions, name)
        parser.add_argument("--" + name.replace("_", "-"), default=default, **settings)
