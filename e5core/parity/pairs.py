"""Pairs to check a cross-encoder with, and the logits that it gives to pairs and to ids."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from e5core import Reranker, SentencePieceTokenizer
from e5core.checkpoint.folder import ModelFolder
from e5core.checkpoint.options import LoadOptions
from e5core.parity.samples import QUERIES, SENTENCES, spread, text_of_length
from e5core.parity.tolerances import SCORE_SPREAD_FLOAT32
from e5core.texts.pairs import PAIR_SPECIALS

Pair = tuple[str, str]
Logits = npt.NDArray[Any]

SHORTEST = PAIR_SPECIALS + 2  # tokens: the fast tokenizers drop a text that is empty


def load_reranker(folder: ModelFolder, **options: Any) -> Reranker:
    return Reranker.from_folder(folder, LoadOptions(**options))


def score(model: Reranker, pairs: Sequence[Pair]) -> Logits:
    """The logits [pairs] by the public path, long pairs cut as transformers cuts them."""
    return model.score_pairs(pairs, truncate="longest", show_progress=False)


def score_ids(model: Reranker, ids: Sequence[Sequence[int]], batch_size: int) -> Logits:
    """The logits of tokenized pairs in the model's precision, packed `batch_size` at a time."""
    with torch.inference_mode():
        logits = [
            model.pipeline.run(ids[start : start + batch_size], max_tokens=10**9)
            for start in range(0, len(ids), batch_size)
        ]
    return torch.cat(logits).cpu().numpy()


def sample_pairs(count: int) -> list[Pair]:
    """Queries with sentences of all languages and topics; always the same ones."""
    sentences = spread(SENTENCES, min(count, len(SENTENCES)))
    return [
        (QUERIES[(i + i // len(sentences)) % len(QUERIES)], sentences[i % len(sentences)])
        for i in range(count)
    ]


def pair_of_length(tokenizer: SentencePieceTokenizer, tokens: int, seed: int = 0) -> Pair:
    """A pair with `tokens` tokens, the four special ones included; the query has a quarter to
    three quarters of them, by the seed."""
    pieces = tokens - PAIR_SPECIALS
    query = max(1, pieces * (1 + seed % 3) // 4)
    lengths = query, pieces - query
    # A text alone has two special tokens.
    first, second = (
        text_of_length(tokenizer, length + 2, seed=seed + side)
        for side, length in enumerate(lengths)
    )
    return first, second


def pairs_to_compare(tokenizer: SentencePieceTokenizer, limit: int, count: int) -> list[Pair]:
    """Pairs of every length up to the limit, `count` of them, and six over it."""
    lengths = np.linspace(SHORTEST, limit, count).round().astype(int).tolist()
    pairs = [pair_of_length(tokenizer, length, seed) for seed, length in enumerate(lengths)]
    # Over the limit: by a token, by much, and on either side alone.
    over = [pair_of_length(tokenizer, limit + more, seed=more) for more in (1, 2, limit // 3)]
    long = text_of_length(tokenizer, limit + 50, seed=7)
    return [*pairs, *over, (QUERIES[0], long), (long, QUERIES[0]), (long, long)]


def score_bound(logits: Logits) -> float:
    """How far two float32 runs' logits may be apart: see SCORE_SPREAD_FLOAT32."""
    return SCORE_SPREAD_FLOAT32 * max(1.0, float(logits.std()))


def rank_correlation(scores: Logits, reference: Logits) -> float:
    """Spearman's: the correlation of the two orders. Equal scores share the mean of their ranks."""
    ranks = []
    for values in (scores, reference):
        _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
        ends = sizes.cumsum()
        mean_rank = (ends - (sizes - 1) / 2)[group]
        ranks.append(mean_rank - mean_rank.mean())
    first, second = ranks
    return float((first @ second) / np.sqrt((first @ first) * (second @ second)))
