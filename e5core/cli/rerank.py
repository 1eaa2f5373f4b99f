"""Score passages with a cross-encoder and print the best of each query.

    e5core rerank --model BAAI/bge-reranker-v2-m3 --passages FILE QUERY

Scores are logits: they order the passages of a query, and only their order counts.
"""

import sys
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from e5core.cli.options import add_reranker_options, load_options
from e5core.cli.passages import Passages, add_passages, naming_texts, print_hits, read_passages
from e5core.cli.program import Parser
from e5core.reranker import RankResult, Reranker

TRUNCATE = ("passage", "longest", "none")


def add_arguments(parser: Parser) -> None:
    add_reranker_options(parser)
    add_passages(parser)
    parser.add_argument(
        "--truncate",
        default="passage",
        choices=TRUNCATE,
        help="what becomes of a pair that is too long: its passage is cut, the longer of the two "
        "is, or it is an error (default: %(default)s)",
    )
    parser.add_argument(
        "--normalize", action="store_true", help="print the sigmoid of the logits, from 0 to 1"
    )
    parser.set_defaults(run=run)


def run(options: Namespace) -> int:
    passages = read_passages(options)
    reranker = Reranker.from_pretrained(options.model, **vars(load_options(options)))
    everything = [np.arange(len(passages.texts))] * len(options.query)
    ranked = rank_hits(
        reranker,
        options,
        passages,
        everything,
        truncate=options.truncate,
        normalize=options.normalize,
    )
    for query, found in zip(options.query, ranked, strict=True):
        print_hits(query, found.indices, found.scores, passages)
    return 0


def rank_hits(
    reranker: Reranker,
    options: Namespace,
    passages: Passages,
    hits: Sequence[npt.NDArray[np.int64]],
    **how: Any,
) -> list[RankResult]:
    """The best --top-k of each query's hits; says on standard error if pairs were cut.

    hits  the places of each query's passages among all, which the results' indices are too
    how   for Reranker.rank
    """
    ranked, cut = [], 0
    for number, (query, places) in enumerate(zip(options.query, hits, strict=True), 1):
        with naming_texts(partial(_name_pair, number, passages, places)):
            found = reranker.rank(
                query,
                [passages.texts[place] for place in places],
                max_tokens_per_batch=options.max_tokens_per_batch,
                **how,
            )
        cut += int(found.truncated.sum())
        k = options.top_k
        best = RankResult(places[found.indices[:k]], found.scores[:k], found.truncated[:k])
        ranked.append(best)
    if cut:
        pairs, limit = sum(map(len, hits)), reranker.max_length
        print(f"{options.prog}: {cut} of {pairs} pairs were cut to {limit} tokens", file=sys.stderr)
    return ranked


def _name_pair(query: int, passages: Passages, places: npt.NDArray[np.int64], number: int) -> str:
    """What errors call a pair, by the numbers of its query and of its passage."""
    return f"query {query} with {passages.name(places[number - 1] + 1)}"
