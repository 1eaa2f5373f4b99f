"""Training on packed batches: contrastive learning, distillation, rerankers, mining.

`train` is the whole of it. The pieces that it is made of are public: what a batch holds, how an
epoch is planned, the losses, and rows whose graph takes the memory of one chunk.
"""

from e5core.train.cached import cached_rows
from e5core.train.data import Batch, Data, Example, read_data
from e5core.train.loop import Summary, train
from e5core.train.losses import (
    above_positive,
    distillation,
    group_cross_entropy,
    group_divergence,
    info_nce,
)
from e5core.train.mining import Mined, far_enough, mine
from e5core.train.plan import Plan
from e5core.train.settings import Settings

__all__ = [
    "Batch",
    "Data",
    "Example",
    "Mined",
    "Plan",
    "Settings",
    "Summary",
    "above_positive",
    "cached_rows",
    "distillation",
    "far_enough",
    "group_cross_entropy",
    "group_divergence",
    "info_nce",
    "mine",
    "read_data",
    "train",
]
