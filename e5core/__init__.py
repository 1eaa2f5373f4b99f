"""multilingual-E5 text embeddings in pure PyTorch: exact, fast, small."""

import e5core.formats.interrupts  # noqa: F401 (before torch)
from e5core.batching import PackedBatch, pack
from e5core.checkpoint.headers import CheckpointError
from e5core.checkpoint.load import load_checkpoint
from e5core.checkpoint.options import LoadOptions
from e5core.checkpoint.save import save_checkpoint
from e5core.config import EncoderConfig
from e5core.encoder import Encoder
from e5core.model import E5, EmbedResult
from e5core.pipeline import Pipeline
from e5core.pooling import cls_pool, l2_normalize, mean_pool
from e5core.reranker import RankResult, Reranker, ScoreResult
from e5core.texts.errors import TextError
from e5core.texts.passages import Passage
from e5core.tokenizer import SentencePieceTokenizer
from e5core.vectors.compress import quantize_vectors
from e5core.vectors.cosine import similarity
from e5core.vectors.index import Index
from e5core.vectors.search import SearchResult, search

__version__ = "0.1.0"

__all__ = [
    "E5",
    "CheckpointError",
    "EmbedResult",
    "Encoder",
    "EncoderConfig",
    "Index",
    "LoadOptions",
    "PackedBatch",
    "Passage",
    "Pipeline",
    "RankResult",
    "Reranker",
    "ScoreResult",
    "SearchResult",
    "SentencePieceTokenizer",
    "TextError",
    "cls_pool",
    "l2_normalize",
    "load_checkpoint",
    "mean_pool",
    "pack",
    "quantize_vectors",
    "save_checkpoint",
    "search",
    "similarity",
]
