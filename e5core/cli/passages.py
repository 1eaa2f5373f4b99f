"""What the commands share that find passages: where they stand, and how hits are printed."""

from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from e5core.bulk.sources import read_rows
from e5core.cli.program import Parser
from e5core.texts.errors import TextError


@dataclass(frozen=True)
class Passages:
    """The passages that a command was given.

    texts   one a line
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


def add_passages(parser: Parser) -> None:
    parser.add_argument("query", nargs="+", metavar="QUERY")
    parser.add_argument("--passages", required=True, help="UTF-8 text, one passage a line")
    parser.add_argument("--top-k", type=int, default=5, help="hits a query (default: %(default)s)")
    parser.add_argument("--max-tokens-per-batch", type=int, help="tokens of one forward pass")


def read_passages(options: Namespace) -> Passages:
    """The lines of --passages; ValueError if there are none, or if no hits are asked for."""
    if options.top_k < 1:
        raise ValueError(f"--top-k is {options.top_k}, expected 1 or more")
    rows = list(read_rows([options.passages]))
    if not rows:
        raise ValueError(f"{options.passages} has no lines to search")
    one_file = all(row.file == options.passages for row in rows)
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
        print(f"{rank:5}. {score:.4f}  {passages.places[index]}: {passages.texts[index]}")
