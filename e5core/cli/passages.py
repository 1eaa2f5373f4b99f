"""Passages and hits of all commands that search: where passages stand, how hits are printed."""

import re
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from e5core.bulk.sources import FORMATS, Source, read_rows
from e5core.cli.program import Parser, check_counts
from e5core.texts.containers import is_blank
from e5core.texts.errors import TextError

# A hit is one line, whatever its text is.
_LINE_ENDS = re.compile(r"[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]+")


@dataclass(frozen=True)
class Passages:
    """The passages that a command was given.

    texts   one a row
    places  where each stands: its line, behind the name of its file if there are several
    source  the file or folder that they come from
    """

    texts: list[str]
    places: list[str]
    source: str

    def name(self, number: int) -> str:
        """What errors call a passage, by its number from 1 on."""
        place = self.places[number - 1]
        return f"{self.source}, {place}" if place.startswith("line ") else place


def add_passages(parser: Parser, or_index: bool = False) -> None:
    """Where the passages are; with `or_index` an index of their vectors may take their place."""
    parser.add_argument("query", nargs="+", metavar="QUERY")
    kinds = ", ".join(FORMATS)
    source = parser.add_mutually_exclusive_group() if or_index else parser
    source.add_argument(
        "--passages",
        required=not or_index,
        help=f"a file, a folder, or - for standard input: {kinds}",
    )
    if or_index:
        source.add_argument(
            "--index",
            metavar="VECTORS",
            help="in place of passages what e5core embed wrote of them: .npy, .safetensors or "
            ".parquet",
        )
    parser.add_argument("--format", choices=FORMATS, help="in place of what the suffix says")
    parser.add_argument("--column", help="the field that holds the passage (default: text)")
    parser.add_argument("--delimiter", help="between the fields of CSV and TSV, such as ';' or tab")
    parser.add_argument("--top-k", type=int, default=5, help="hits a query (default: %(default)s)")
    parser.add_argument("--max-tokens-per-batch", type=int, help="tokens of one forward pass")


def read_passages(options: Namespace) -> Passages:
    """The rows of --passages but for blank ones.

    Raises ValueError if there are none, if one holds no text, or if no hits are asked for.
    """
    check_counts(options, "top_k")
    source = Source(
        [options.passages],
        column=options.column,
        format=options.format,
        delimiter=options.delimiter,
    )
    rows = [row for row in read_rows(source) if not is_blank(row.text)]
    if not rows:
        raise ValueError(f"{options.passages} has no lines to search")
    one_file = source.files == [options.passages]
    places = [f"line {row.line}" if one_file else f"{row.file}, line {row.line}" for row in rows]
    return Passages([row.text for row in rows], places, options.passages)


@contextmanager
def naming_texts(name: Callable[[int], str]) -> Iterator[None]:
    """Let an error call the texts at fault what `name` makes of their numbers, from 1."""
    try:
        yield
    except TextError as error:
        raise ValueError(error.naming(lambda index: name(index + 1))) from error


def print_hits(
    query: str, indices: npt.NDArray[np.int64], scores: npt.NDArray[np.float32], passages: Passages
) -> None:
    print(query)
    for rank, (index, score) in enumerate(zip(indices, scores, strict=True), 1):
        text = _LINE_ENDS.sub(" ", passages.texts[index])
        print(f"{rank:5}. {score:.4f}  {passages.places[index]}: {text}")
