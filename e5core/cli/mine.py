"""Find hard negatives for rows of training data, with a teacher's scores on request.

    e5core mine --model my-e5 --data pairs.jsonl --passages corpus.jsonl --output mined.jsonl

The output has the fields that `e5core train` reads: query, pos, neg and, with --teacher,
pos_scores and neg_scores.
"""

from argparse import ArgumentTypeError, Namespace
from pathlib import Path

from e5core.cli.options import add_model_options, load_options
from e5core.cli.program import Parser
from e5core.train.mining import DEPTH, TEACHER_DEPTH, mine


def add_arguments(parser: Parser) -> None:
    add_model_options(parser)
    parser.add_argument(
        "--data", nargs="+", required=True, metavar="FILE", help="rows with query and pos"
    )
    parser.add_argument(
        "--passages",
        nargs="+",
        metavar="FILE",
        help="texts to find negatives among (default: the positives of the data)",
    )
    parser.add_argument("--column", help="the field that holds their text (default: text)")
    parser.add_argument("--output", required=True, type=Path, help="a .jsonl file")
    parser.add_argument("--negatives", type=int, default=7, help="a query (default: 7)")
    parser.add_argument(
        "--depth",
        type=int,
        help=f"candidates that are looked at (default: {DEPTH}, with a teacher {TEACHER_DEPTH})",
    )
    parser.add_argument("--skip", type=int, default=0, help="the first candidates to pass over")
    parser.add_argument(
        "--margin",
        type=_margin,
        default=0.05,
        help="how much of the way from a usual candidate to the positive must lie between a "
        "negative and the positive; none if all answers are marked (default: 0.05)",
    )
    parser.add_argument(
        "--teacher", metavar="MODEL", help="a cross-encoder, whose scores decide and are written"
    )
    parser.set_defaults(run=run)


def run(options: Namespace) -> int:
    mined = mine(
        options.model,
        options.data,
        options.output,
        passages=options.passages,
        column=options.column,
        negatives=options.negatives,
        depth=options.depth,
        skip=options.skip,
        margin=options.margin,
        teacher=options.teacher,
        **vars(load_options(options)),
    )
    print(
        f"{options.output}: {mined.negatives} negatives of {mined.queries} queries among "
        f"{mined.passages} passages; {mined.short} queries have fewer than {options.negatives}; "
        f"{mined.near} candidates were too near"
    )
    return 0


def _margin(text: str) -> float | None:
    try:
        return None if text == "none" else float(text)
    except ValueError:
        expected = "none or a number from 0 to below 1"
        raise ArgumentTypeError(f"{text!r} is found, expected {expected}") from None
