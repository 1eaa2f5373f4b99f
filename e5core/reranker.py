"""A query and passages to scores: a cross-encoder on packed pairs."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from e5core.checkpoint.folder import ModelFolder
from e5core.checkpoint.options import LoadOptions
from e5core.encoder import ClassificationHead, Encoder
from e5core.kernels.cuda.copies import queue_to_cpu
from e5core.pipeline import Pipeline
from e5core.progress import progress_bar
from e5core.texts.errors import PairError
from e5core.texts.pairs import PAIR_SPECIALS, check_truncate_pair, pair_slices, pair_with
from e5core.texts.slices import one_behind
from e5core.tokenizer import SentencePieceTokenizer

Scores = npt.NDArray[np.float32]
TruncatePair = Literal["passage", "longest", "none"]


@dataclass(frozen=True)
class ScoreResult:
    """What `Reranker.compute` returns.

    scores        [pairs] float32  logits, or values from 0 to 1 if they are normalised
    token_counts  [pairs] int64    tokens of each pair before any cut, special ones included
    truncated     [pairs] bool     whether something of the pair was cut off
    """

    scores: Scores
    token_counts: npt.NDArray[np.int64]
    truncated: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class RankResult:
    """The best passages of a query, best first; equal scores in the order of the passages.

    indices    [k] int64    positions in the passages
    scores     [k] float32  logits, or values from 0 to 1 if they are normalised
    truncated  [k] bool     whether something of the pair was cut off
    """

    indices: npt.NDArray[np.int64]
    scores: Scores
    truncated: npt.NDArray[np.bool_]


class Reranker:
    """A cross-encoder such as BAAI/bge-reranker-v2-m3: it reads query and passage together.

    Its scores are logits, which order passages; only the order counts. On a CPU a pair's score
    has the same bits alone, in any batch and in any order.
    """

    def __init__(
        self,
        encoder: Encoder,
        head: ClassificationHead,
        tokenizer: SentencePieceTokenizer,
        *,
        max_length: int | None = None,
    ) -> None:
        """Put a model together from its parts; `from_pretrained` does it from files.

        max_length  tokens a pair may have; None takes the encoder's limit
        """
        self.encoder = encoder
        self.config = encoder.config
        self.tokenizer = tokenizer
        self.head = head.eval()
        self.pipeline = Pipeline(encoder, self._logits, first_only=True)
        self.max_length = self.config.max_length if max_length is None else max_length
        if not PAIR_SPECIALS + 2 <= self.max_length <= self.config.max_length:
            raise ValueError(
                f"max_length is {max_length}, this model takes {PAIR_SPECIALS + 2} to "
                f"{self.config.max_length}"
            )

    @classmethod
    def from_pretrained(cls, model: str | Path, **options: Any) -> "Reranker":
        """Load a model from a folder in Hugging Face layout or from the hub.

        The arguments are those of E5.from_pretrained, without prompts: a cross-encoder reads
        the texts as they are.
        """
        chosen = LoadOptions(**options)
        return cls.from_folder(ModelFolder.open(model, chosen), chosen)

    @classmethod
    def from_folder(cls, folder: ModelFolder, options: LoadOptions = LoadOptions()) -> "Reranker":
        """Load a model from a folder that was opened and read already."""
        for name, found in (("prompts", options.prompts), ("truncate_dim", options.truncate_dim)):
            if found is not None:
                what = "reads texts as they are and gives scores"
                raise ValueError(f"{name} is {found!r}, but a cross-encoder {what}; leave it out")
        head = folder.load_head()  # first, since it says so if the model has none
        encoder = folder.load_encoder(options.dtype, options.device, options.kernels)
        head.to(encoder.device).prepare(encoder.kernels)
        limit = folder.max_length if options.max_length is None else options.max_length
        return cls(encoder, head, folder.load_tokenizer(), max_length=limit)

    def score(self, query: str, passages: Iterable[str], **options: Any) -> Scores:
        """The scores [n] float32 of a query with each of n passages, in the caller's order.

        options  those of `compute`
        """
        return self.compute(pair_with(query, passages), **options).scores

    def score_pairs(self, pairs: Iterable[tuple[str, str]], **options: Any) -> Scores:
        """The scores [n] float32 of n pairs (query, passage); options as in `compute`."""
        return self.compute(pairs, **options).scores

    def rank(
        self, query: str, passages: Iterable[str], top_k: int | None = None, **options: Any
    ) -> RankResult:
        """The `top_k` passages with the highest scores, all if it is None; options as `compute`."""
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k is {top_k}, expected 1 or more")
        normalize = options.pop("normalize", False)  # equal values may come of unequal logits
        found = self.compute(pair_with(query, passages), **options)
        best = np.argsort(-found.scores, kind="stable")[:top_k]
        scores = sigmoid(found.scores[best]) if normalize else found.scores[best]
        return RankResult(best, scores, found.truncated[best])

    def compute(
        self,
        pairs: Iterable[tuple[str, str]],
        *,
        truncate: TruncatePair = "passage",
        normalize: bool = False,
        max_tokens_per_batch: int | None = None,
        show_progress: bool | None = None,
    ) -> ScoreResult:
        """Score pairs of a query and a passage, in the caller's order.

        pairs      (query, passage), read as they are needed
        truncate   what happens to a pair over `max_length` tokens: "passage" cuts the passage,
                   and raises for a query that fills three quarters of them; "longest" cuts the
                   longer of the two, then both; "none" raises
        normalize  return the sigmoid of the logits, from 0 to 1
        max_tokens_per_batch, show_progress  as for E5.embed

        Raises TypeError or ValueError (PairError) naming the pair at fault.
        """
        check_truncate_pair(truncate)
        max_tokens = self.pipeline.budget(max_tokens_per_batch)
        logits: list[Tensor] = []
        counts: list[int] = []
        lengths: list[int] = []
        total = len(pairs) if isinstance(pairs, Sequence) else None
        with progress_bar(total, show_progress, " pairs") as advance, torch.inference_mode():
            slices = pair_slices(pairs, self.tokenizer.encode_pieces, self.max_length, truncate)
            rows = ((ids, whole, self._queue(ids, max_tokens, advance)) for ids, whole in slices)
            for sequences, whole, wait in one_behind(rows, self.encoder.device):
                logits.append(wait())
                self._check_scores(logits[-1], first=len(counts))
                counts += whole
                lengths += map(len, sequences)
        scores: Scores = torch.cat(logits).numpy() if logits else np.empty(0, np.float32)
        token_counts = np.array(counts, dtype=np.int64)
        truncated = np.array(lengths, dtype=np.int64) < token_counts
        return ScoreResult(sigmoid(scores) if normalize else scores, token_counts, truncated)

    def _queue(self, ids: list[list[int]], most: int, advance: Any) -> Callable[[], Tensor]:
        rows = self.pipeline.run(ids, most, lambda done: advance(len(done)), halve=True)
        return queue_to_cpu(rows.float())

    def _logits(self, hidden_states: Tensor, cu_seqlens: Tensor) -> Tensor:
        """The logit [pairs] of each sequence, from the state of its first token."""
        logits: Tensor = self.head(hidden_states[cu_seqlens[:-1].long()])
        return logits[:, 0]

    def _check_scores(self, logits: Tensor, first: int) -> None:
        """Raise PairError if a score is NaN or infinite."""
        bad = (~logits.isfinite()).nonzero().flatten().tolist()
        if bad:
            raise PairError(
                f"the scores of {len(bad)} pairs, the first of them {{}}, are not finite in "
                f'{self.encoder.dtype}; check the weights, or load them with dtype="float32" '
                "(--dtype float32)",
                first + bad[0],
            )


def sigmoid(logits: Scores) -> Scores:
    """1 / (1 + exp(-x)) in float64, in the form in which no logit overflows."""
    values = np.exp(-np.logaddexp(0, -logits.astype(np.float64)))
    return values.astype(np.float32)
