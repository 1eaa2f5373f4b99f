"""A cross-encoder against transformers, against published scores, and against a copy."""

import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from e5core.checkpoint.folder import ModelFolder
from e5core.formats.sentencepiece import CHARSMAP
from e5core.parity.cases import Case, at_least, at_most, error_case, worst
from e5core.parity.pairs import (
    Pair,
    load_reranker,
    pairs_to_compare,
    rank_correlation,
    sample_pairs,
    score,
    score_bound,
    score_ids,
)
from e5core.parity.published import Scores
from e5core.parity.samples import QUERIES, SENTENCES, spread
from e5core.parity.tolerances import (
    RANK_BOUNDS,
    SCORE_BATCHES_FLOAT32,
    SCORE_FLOAT64_ERROR_FACTOR,
)
from e5core.texts.pairs import fit_pair
from e5core.tokenizer import BOS, EOS

BATCH_SIZES = (1, 2, 7, 64)


def reranker_ids(model: Any, pairs: Sequence[Pair]) -> list[list[int]]:
    """The ids of pairs as e5core lays them out and cuts them by "longest"."""
    pieces = model.tokenizer.encode_pieces
    return [
        fit_pair(pieces(query), pieces(passage), model.max_length, "longest", index)
        for index, (query, passage) in enumerate(pairs)
    ]


def reranker_against_transformers(
    oracle: Any, folder: ModelFolder, sample: int, limit: int, kernels: dict[str, list[str]]
) -> Iterator[Case]:
    """Compare ids, logits and batches with those of AutoModelForSequenceClassification.

    kernels  those that run here, by the attention of transformers that they are held against
    """
    fast = oracle.fast_tokenizer(folder.path, CHARSMAP)
    exact = load_reranker(folder, dtype="float64", device="cpu", kernels="plain", max_length=limit)
    pairs = [*sample_pairs(sample), *pairs_to_compare(exact.tokenizer, limit, sample // 2)]
    ids = oracle.pair_ids(fast, pairs, limit)
    ours = reranker_ids(exact, pairs)
    different = [i for i, (a, b) in enumerate(zip(ours, ids, strict=True)) if a != b]
    note = f", first {pairs[different[0]]!r:.60}" if different else ""
    yield at_most("pairs of other ids", 0, len(different), note)
    truth = score_ids(exact, ids, 8)
    del exact  # in float64 a large model takes 4.5 GB

    # Short and long among each other, and pairs of which one text, or both, are empty.
    mixed = [[BOS, EOS, EOS, EOS], [BOS, ids[0][1], EOS, EOS, EOS], *ids]
    random.Random(0).shuffle(mixed)
    for attention, matching in kernels.items():
        reference = oracle.load_classifier(folder.path, attention)
        theirs = oracle.reference_logits(reference, ids, 8)[:, 0]
        alone = oracle.reference_logits(reference, mixed, 1)[:, 0]
        del reference
        for name in matching:
            model = load_reranker(folder, device="cpu", kernels=name, max_length=limit)
            found = score(model, pairs)
            note = f" (spread {truth.std():.3g})"
            case = f"logits, kernels {name}, against {attention}"
            yield at_most(case, score_bound(truth), worst(found, theirs), note)
            numbers = (found[:, None], theirs[:, None], truth[:, None])
            yield error_case(name, *numbers, SCORE_FLOAT64_ERROR_FACTOR)
            packed = {size: score_ids(model, mixed, size) for size in BATCH_SIZES}
            for size, logits in packed.items():
                case = f"batches of {size}, kernels {name}"
                yield at_most(case, score_bound(truth), worst(logits, alone))
            apart = max(worst(packed[size], packed[1]) for size in BATCH_SIZES[1:])
            bound = SCORE_BATCHES_FLOAT32[name] * score_bound(truth)
            yield at_most(f"packed against one at a time, kernels {name}", bound, apart)


def reranker_against_published(
    folder: ModelFolder, expectations: Sequence[Scores], dtype: str
) -> Iterator[Case]:
    """Scores that others have published, logits or sigmoids as they were printed."""
    model = load_reranker(folder, dtype=dtype, device="cpu")
    for expected in expectations:
        found = model.score_pairs(
            expected.pairs, normalize=expected.normalized, show_progress=False
        )
        yield at_most(expected.source, expected.tolerance, worst(found, expected.numbers))


def reranker_against_copy(
    folders: Sequence[ModelFolder], dtypes: Sequence[str], sample: int | None, bounds: str
) -> Iterator[Case]:
    """The order in which two copies put the same passages, over all queries and within each.

    bounds  the dtype in RANK_BOUNDS
    """
    sentences = SENTENCES if sample is None else spread(SENTENCES, sample)
    if len(sentences) < 2:
        raise ValueError("--sample is 1, but one passage has no order; give 2 or more")
    queries = QUERIES[:8]
    pairs = [(query, sentence) for query in queries for sentence in sentences]
    scores = []
    for folder, precision in zip(folders, dtypes, strict=True):
        model = load_reranker(folder, dtype=precision, device="cpu")
        scores.append(score(model, pairs))
        del model  # before the next one takes its memory
    limits = RANK_BOUNDS[bounds]
    note = f" (spread {scores[1].std():.3g})"
    if limits.exact:
        bound = score_bound(scores[1])
        yield at_most("largest difference", bound, worst(*scores), note)
        # Scores that are nearer to each other than rounding may change places.
        scores[0] = np.where(abs(scores[0] - scores[1]) <= bound, scores[1], scores[0])
    yield at_least("rank correlation", limits.correlation, rank_correlation(*scores))
    rows = np.stack(scores).reshape(2, len(queries), len(sentences))
    each = [rank_correlation(a, b) for a, b in zip(*rows, strict=True)]
    yield at_least("rank correlation, worst query", limits.worst_query, min(each))
    first = float((rows[0].argmax(axis=1) == rows[1].argmax(axis=1)).mean())
    yield at_least("queries with the same first passage", limits.first_share, first)
