"""`e5core search --index`: queries to what `e5core embed` wrote."""

from argparse import Namespace
from pathlib import Path

import numpy as np

from e5core.bulk.queries import QueryOptions, query_model, read_passages
from e5core.cli.options import load_options
from e5core.cli.passages import Passages, naming_texts
from e5core.cli.program import check_counts
from e5core.vectors.index import Index
from e5core.vectors.search import SearchResult

NO_TEXT = "(the text cannot be read any more where it was)"


def search_index(options: Namespace, top: int) -> tuple[SearchResult, Passages]:
    """The `top` hits of each query, and the passages among them, by which the hits count."""
    check_counts(options, "top_k")
    path = Path(options.index)
    index = Index.open(path)
    if options.by_document and index.rows is None:
        raise ValueError(f"there is no {path}.ids.jsonl to tell --by-document what is of one text")
    asked = QueryOptions(options.model, options.input_type, options.task, load_options(options))
    model, arguments = query_model(index, path, asked)
    limit = options.max_tokens_per_batch
    with naming_texts("query {}".format):
        queries = model.embed(options.query, max_tokens_per_batch=limit, **arguments).vectors
    found = index.search(queries, top, by_document=options.by_document)
    places, hits = np.unique(found.indices, return_inverse=True)
    reading = {name: getattr(options, name) for name in ("format", "column", "delimiter")}
    texts = read_passages(index, path, places.tolist(), **reading)
    if options.reranker is not None and len(texts) < len(places):
        raise ValueError(
            f"--reranker reads {len(places)} passages, of which {len(places) - len(texts)} cannot "
            f"be read any more where {path} says that they were; leave it out"
        )
    passages = Passages(
        [" ".join(texts.get(place, NO_TEXT).split()) for place in places.tolist()],
        [describe(index, place) for place in places.tolist()],
        str(path),
    )
    return SearchResult(hits.reshape(found.indices.shape), found.scores), passages


def describe(index: Index, place: int) -> str:
    """What a vector stands for: its id, and its part of a longer text."""
    if index.ids is None or index.rows is None:
        return f"vector {place}"
    row, name = index.rows[place], str(index.ids[place])
    if row.get("passage") is None:
        return name
    return f"{name}, passage {row['passage']} (characters {row['start']} to {row['end']})"
