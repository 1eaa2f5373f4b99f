"""Find the passages that answer queries.

With --index they are embedded already: queries are embedded as the index was made, by its model.
With --reranker a cross-encoder scores the best of them anew. Scores are cosines, or the logits of
the cross-encoder.
"""

from argparse import Namespace

from e5core.cli.options import DEFAULT_MODEL, add_model_options, load_options
from e5core.cli.passages import Passages, add_passages, naming_texts, print_hits, read_passages
from e5core.cli.program import Parser
from e5core.cli.rerank import TRUNCATE, rank_hits
from e5core.cli.search_index import search_index
from e5core.model import E5
from e5core.reranker import Reranker
from e5core.vectors.search import SearchResult, search

RERANK_TOP = 100


def add_arguments(parser: Parser) -> None:
    add_model_options(parser)
    add_passages(parser, or_index=True)
    parser.set_defaults(model=None)  # that of the index, or the default one
    parser.add_argument(
        "--by-document", action="store_true", help="of an index the best passage of each text alone"
    )
    parser.add_argument(
        "--input-type",
        choices=("query", "passage", "none"),
        help="what queries to an index are embedded as (default: what its vectors are made for)",
    )
    parser.add_argument("--task", help="the instruction of an instruct model's queries")
    parser.add_argument(
        "--reranker",
        metavar="MODEL",
        help="a cross-encoder, a folder or a hub id, that scores the hits anew; it runs with the "
        "same --dtype, --device and --kernels",
    )
    parser.add_argument(
        "--rerank-top", type=int, metavar="N", help=f"hits that it scores (default: {RERANK_TOP})"
    )
    parser.add_argument(
        "--truncate", choices=TRUNCATE, help="how it cuts long pairs, see e5core rerank"
    )
    parser.set_defaults(run=run)


def run(options: Namespace) -> int:
    if options.passages is None and options.index is None:
        raise ValueError(
            "the following arguments are required: --passages, or --index with the output of "
            "e5core embed; see e5core search --help"
        )
    top = check_reranking(options)
    passages = None if options.index is not None else read_passages(options)
    reranker = None
    if options.reranker is not None:  # loaded before any work, which an error would waste
        load = load_options(options).for_another()
        reranker = Reranker.from_pretrained(options.reranker, **vars(load))
    if passages is None:
        found, passages = search_index(options, top)
    else:
        found = search_passages(options, passages, top)
    hits = list(zip(found.indices, found.scores, strict=True))
    if reranker is not None:
        how = options.truncate or "passage"
        ranked = rank_hits(reranker, options, passages, list(found.indices), truncate=how)
        hits = [(best.indices, best.scores) for best in ranked]
    for query, (indices, scores) in zip(options.query, hits, strict=True):
        print_hits(query, indices, scores, passages)
    return 0


def search_passages(options: Namespace, passages: Passages, top: int) -> SearchResult:
    """The `top` hits of each query among passages that are embedded for it."""
    if options.by_document or options.input_type is not None:
        flag = "--by-document" if options.by_document else "--input-type"
        raise ValueError(f"{flag} says nothing without --index; leave it out")
    name = DEFAULT_MODEL if options.model is None else options.model
    model = E5.from_pretrained(name, **vars(load_options(options)))
    limit = options.max_tokens_per_batch
    with naming_texts("query {}".format):
        queries = model.encode_query(options.query, task=options.task, max_tokens_per_batch=limit)
    with naming_texts(passages.name):
        vectors = model.encode_passage(passages.texts, max_tokens_per_batch=limit)
    return search(queries, vectors, top)


def check_reranking(options: Namespace) -> int:
    """The hits that are searched for; ValueError for options that contradict each other."""
    if options.reranker is None:
        for name in ("rerank_top", "truncate"):
            if getattr(options, name) is not None:
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag} says nothing without --reranker; leave it out")
        return int(options.top_k)
    top = RERANK_TOP if options.rerank_top is None else options.rerank_top
    if top < options.top_k:
        raise ValueError(
            f"--rerank-top is {top}, expected --top-k, which is {options.top_k}, or more"
        )
    return int(top)
