"""Find the passages that answer queries.

With --reranker a cross-encoder scores the best of them anew. Scores are cosines, or the logits of
the cross-encoder.
"""

from argparse import Namespace
from dataclasses import replace

from e5core.cli.options import add_model_options, load_options
from e5core.cli.passages import add_passages, naming_texts, print_hits, read_passages
from e5core.cli.program import Parser
from e5core.cli.rerank import TRUNCATE, rank_hits
from e5core.model import E5
from e5core.reranker import Reranker
from e5core.vectors.search import search

RERANK_TOP = 100


def add_arguments(parser: Parser) -> None:
    add_model_options(parser)
    add_passages(parser)
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
    top = check_reranking(options)
    passages = read_passages(options)
    load = load_options(options)
    model = E5.from_pretrained(options.model, **vars(load))
    reranker = None
    if options.reranker is not None:  # loaded before any work, which an error would waste
        load = replace(load, revision=None, prompts=None, max_length=None)
        reranker = Reranker.from_pretrained(options.reranker, **vars(load))
    limit = options.max_tokens_per_batch
    with naming_texts("query {}".format):
        queries = model.encode_query(options.query, task=options.task, max_tokens_per_batch=limit)
    with naming_texts(passages.name):
        vectors = model.encode_passage(passages.texts, max_tokens_per_batch=limit)
    found = search(queries, vectors, top)
    hits = list(zip(found.indices, found.scores, strict=True))
    if reranker is not None:
        how = options.truncate or "passage"
        ranked = rank_hits(reranker, options, passages, list(found.indices), truncate=how)
        hits = [(best.indices, best.scores) for best in ranked]
    for query, (indices, scores) in zip(options.query, hits, strict=True):
        print_hits(query, indices, scores, passages)
    return 0


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
