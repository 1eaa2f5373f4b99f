"""Every bound of the tests and checks, with its reason."""

from dataclasses import dataclass

# Two correct float32 encoders differ by the order in which they add. The numbers of unit vectors
# are about 0.05. Over lengths 1 to 512 they were measured to differ by at most 3e-7 (ONNX Runtime
# at large geometry: 7e-7). Wrong positions, a tanh GELU or a lost bias change them by 1e-4 or more.
UNIT_VECTOR_FLOAT32 = 2e-6

# A text's vector alone and in a batch comes from the same sums, but the matrix library may block
# them differently for another number of rows. Measured: at most 2e-7.
BATCH_INVARIANCE_FLOAT32 = 2e-6

# FlashAttention's rule: the error of a kernel against float64 is at most twice that of the plain
# kernels in the same dtype, plus a floor of a few roundings for values near zero.
KERNEL_ERROR_FACTOR = 2.0
KERNEL_ERROR_FLOOR = {"float32": 1e-6, "bfloat16": 2e-2, "float16": 2e-3, "float64": 1e-14}

# Two float32 runs of one computation have the same mean error against float64, with two exceptions.
# Attention may add in another order; a tenth is ample for that. And there is chance; three standard
# errors of the mean over the texts are allowed for it. Both matter only if the model is tiny or the
# texts are few. oneDNN's products add in longer chains than MKL's: their error was measured to be
# 1.18 times as large on e5-small.
FLOAT64_ERROR_FACTOR = {"plain": 1.1, "sdpa": 1.1, "onednn": 1.5, "native": 1.1}
FLOAT64_ERROR_STANDARD_ERRORS = 3.0

# A logit is a sum over the hidden size of products with the head's weights, so its error grows with
# the spread of the logits, their standard deviation over many pairs. transformers' logits of one
# pair alone and in a padded batch differ by 1.1e-5 times that. Of a model whose scores are all
# nearly alike the spread counts as 1. Without the head's tanh, with a separator missing, or pooled
# over another token, logits change by a tenth of the spread or more.
SCORE_SPREAD_FLOAT32 = 2e-5

# The share of that bound within which a pair's logit alone and in a batch has to lie. "native" and
# "onednn" add in the same order in every batch: their bits are the same.
SCORE_BATCHES_FLOAT32 = {"plain": 1.0, "sdpa": 1.0, "onednn": 0.0, "native": 0.0, "cuda": 1.0}

# The same as FLOAT64_ERROR_FACTOR, for logits. They come from the state of one token, where the
# vector of a text is the mean of many. "native" adds their products in stretches of 128, MKL in
# longer ones: measured under random weights, against transformers in padded batches, it has .75
# to .95 of transformers' error. "onednn" adds each product in one long chain, which keeps its bits
# in every batch: 1.3 to 1.6 (six layers, two seeds). "sdpa" and "plain": 0.9 to 1.1.
SCORE_FLOAT64_ERROR_FACTOR = {"plain": 1.1, "sdpa": 1.1, "onednn": 1.7, "native": 1.1}

# The stored references are in float64 and come from weights that are exact in float32. Two float64
# runs that add in another order were measured to differ by up to 1.4e-14. The smallest mutation,
# BERT's LayerNorm eps of 1e-12 times 0.01, changes hidden states by more than 1e-13.
STORED_FLOAT64 = 1e-13

# The same references against a float32 run. Hidden states reach 4 and gradients 2. Measured: at
# most 5e-6.
STORED_FLOAT32 = 3e-5


@dataclass(frozen=True)
class CopyBounds:
    """How far two copies of one model may differ.

    largest_difference  the largest difference of a number of a unit vector; None if only cosines
                        are bounded
    worst_cosine        the lowest cosine of a text's two vectors
    mean_cosine         the mean of these cosines over all texts
    first_share         the share of queries for which both copies find the same passage first
    top_overlap         the share of the first ten passages that both have, mean over queries
    """

    largest_difference: float | None
    worst_cosine: float
    mean_cosine: float
    first_share: float
    top_overlap: float


# The coarser of the two precisions decides; the order is from fine to coarse. Measured on real
# multilingual-e5-small with 192 sentences and 16 queries, against float32.
COPY_BOUNDS = {
    # Numbers within 2e-6 of each other in 1,024 dimensions make a cosine of 1 - 2e-9. Only
    # passages of equal score up to rounding can change places.
    "float64": CopyBounds(UNIT_VECTOR_FLOAT32, 1 - 2e-9, 1 - 2e-9, 1.0, 0.99),
    "float32": CopyBounds(UNIT_VECTOR_FLOAT32, 1 - 2e-9, 1 - 2e-9, 1.0, 0.99),
    # Measured: worst 1 - 2.8e-7, mean 1 - 1.4e-7, all ranks equal. A lost tensor costs 1e-2.
    "float16": CopyBounds(None, 0.99999, 0.999995, 1.0, 0.98),
    # Measured: worst 1 - 3.3e-5, mean 1 - 1.6e-5. Among 192 sentences all ranks are equal; among
    # 40 of them 14 of 16 first ranks are, because translations of one sentence score nearly alike
    # and some change places. Deeper models round more often.
    "bfloat16": CopyBounds(None, 0.9998, 0.9999, 13 / 16, 0.95),
    # The quality gate for a quantised copy, which may be stored as floats. Dynamic int8 is known to
    # ruin multilingual models (microsoft/onnxruntime#9599).
    "int8": CopyBounds(None, 0.998, 0.999, 12 / 16, 0.9),
}


@dataclass(frozen=True)
class RankBounds:
    """How far the orders of two copies of one cross-encoder may differ.

    exact        whether the logits themselves are bounded, by SCORE_SPREAD_FLOAT32
    correlation  Spearman's rank correlation over all pairs of all queries
    worst_query  the same over the passages of one query, the worst of all queries
    first_share  the share of queries for which both copies put the same passage first
    """

    exact: bool
    correlation: float
    worst_query: float
    first_share: float


# The coarser of the two precisions decides. Measured with random heads, whose logits spread by 1.1
# to 1.6, on real multilingual-e5-small, 8 queries and 48 sentences, against float32: trained heads
# spread further, and keep the order better.
RANK_BOUNDS = {
    # Scores that differ by no more than rounding count as equal; no others may change places.
    "float64": RankBounds(True, 0.999999, 0.99999, 1.0),
    "float32": RankBounds(True, 0.999999, 0.99999, 1.0),
    # Measured: .99999, worst query .9998, the same first passages. Tiny models: .9999 and .998.
    "float16": RankBounds(False, 0.9998, 0.995, 7 / 8),
    # Measured: .9998, worst query .9980, 7 of 8 first passages. Tiny models: .9989 and .993.
    "bfloat16": RankBounds(False, 0.995, 0.98, 5 / 8),
    # Measured: .9940 to .9971, worst query .984, 6 of 8 first passages. Tiny models: .993 and .975.
    "int8": RankBounds(False, 0.98, 0.95, 4 / 8),
}

# int8 against float32 on real e5-small: the kernels have to reach these. Measured: a mean of .9997
# and a worst of .9993 or .9994. With one scale for all tokens, the usual way, .992 and .981.
INT8_MEAN_COSINE = 0.999
INT8_WORST_COSINE = 0.998

# The share of translations found first that int8 may lose in a language: two of its 176 sentence
# pairs, so that one pair of nearly equal scores decides nothing.
INT8_RANKING_LOSS = 2 / 176
