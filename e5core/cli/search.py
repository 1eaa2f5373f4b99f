"""Find the passages that answer queries."""

from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from e5core.bulk.sources import read_texts
from e5core.cli.options import add_model_options, load_options
from e5core.cli.program import Parser
from e5core.model import E5
from e5core.texts.errors import TextError
from e5core.vectors.search import SearchResult, search


def add_arguments(parser: Parser) -> None:
    add_model_options(parser)
    parser.add_argument("--task", help="the instruction of an instruct model's queries")
    parser.add_argument("--max-tokens-per-batch", type=int, help="tokens of one forward pass")
    parser.add_argument("query", nargs="+", metavar="QUERY")
    parser.add_argument("--passages", required=True, help="UTF-8 text, one passage a line")
    parser.add_argument("--top-k", type=int, default=5)
    parser.set_defaults(run=run)


def run(options: Namespace) -> int:
    if options.top_k < 1:
        raise ValueError(f"--top-k is {options.top_k}, expected 1 or more")
    passages = list(read_texts([options.passages]))
    if not passages:
        raise ValueError(f"{options.passages} has no lines to search")
    model = E5.from_pretrained(options.model, **vars(load_options(options)))
    limit = options.max_tokens_per_batch
    with naming_texts("query {}".format):
        queries = model.encode_query(options.query, task=options.task, max_tokens_per_batch=limit)
    with naming_texts((options.passages + ", line {}").format):
        vectors = model.encode_passage(passages, max_tokens_per_batch=limit)
    print_hits(options.query, passages, search(queries, vectors, options.top_k))
    return 0


@contextmanager
def naming_texts(name: Callable[[int], str]) -> Iterator[None]:
    """Let an error call the texts at fault what `name` makes of their numbers, from 1."""
    try:
        yield
    except TextError as error:
        raise ValueError(error.naming(lambda index: name(index + 1))) from error


def print_hits(queries: Sequence[str], passages: Sequence[str], result: SearchResult) -> None:
    for query, indices, scores in zip(queries, result.indices, result.scores, strict=True):
        print(query)
        for rank, (index, score) in enumerate(zip(indices, scores, strict=True), 1):
            print(f"{rank:5}. {score:.4f}  line {index + 1}: {passages[index]}")
