"""A model against another copy of it: in another precision, or from another place."""

from collections.abc import Iterator

import numpy as np

from e5core import search
from e5core.checkpoint.folder import ModelFolder
from e5core.parity.cases import Case, at_least, at_most, worst
from e5core.parity.rerankers import reranker_against_copy
from e5core.parity.samples import QUERIES, SENTENCES, spread
from e5core.parity.tolerances import COPY_BOUNDS
from e5core.parity.vectors import embed, load

TOP = 10  # passages of a query that are compared


def against_copy(
    name: str,
    other: str,
    dtype: str = "float32",
    other_dtype: str = "float32",
    sample: int | None = None,
    bounds: str | None = None,
) -> Iterator[Case]:
    folders = [ModelFolder.open(name), ModelFolder.open(other)]
    sizes = [folder.config.hidden_size for folder in folders]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"{name} has hidden size {sizes[0]}, {other} has {sizes[1]}: they cannot be copies of "
            "one model; give two checkpoints of the same"
        )
    if folders[0].config.num_labels != folders[1].config.num_labels:
        raise ValueError(
            f"{name} has a head of {folders[0].config.num_labels} labels, {other} one of "
            f"{folders[1].config.num_labels}: they cannot be copies of one model; give two "
            "checkpoints of the same"
        )
    coarser = max(dtype, other_dtype, key=list(COPY_BOUNDS).index)
    if folders[0].config.num_labels:
        yield from reranker_against_copy(folders, (dtype, other_dtype), sample, bounds or coarser)
        return
    limits = COPY_BOUNDS[bounds or coarser]

    sentences = SENTENCES if sample is None else spread(SENTENCES, sample)
    vectors, ranks = [], []
    for folder, precision in zip(folders, (dtype, other_dtype), strict=True):
        model = load(folder, dtype=precision, device="cpu")
        queries, passages = embed(model, QUERIES, "query"), embed(model, sentences, "passage")
        del model  # before the next one takes its memory
        vectors.append(np.concatenate([queries, passages]))
        ranks.append(search(queries, passages, TOP).indices)

    # In float64, where the cosine of nearly equal vectors does not drown in rounding.
    a, b = (
        v / np.linalg.norm(v, axis=1, keepdims=True) for v in np.asarray(vectors, dtype=np.float64)
    )
    cosines = (a * b).sum(axis=1)
    if limits.largest_difference is not None:
        yield at_most("largest difference", limits.largest_difference, worst(*vectors))
    yield at_least("worst cosine", limits.worst_cosine, float(cosines.min()))
    yield at_least("mean cosine", limits.mean_cosine, float(cosines.mean()))
    same_first = float((ranks[0][:, 0] == ranks[1][:, 0]).mean())
    yield at_least("queries with the same first passage", limits.first_share, same_first)
    overlap = [len({*a} & {*b}) / len(a) for a, b in zip(*ranks, strict=True)]
    yield at_least(f"overlap of the first {TOP}", limits.top_overlap, float(np.mean(overlap)))
