"""Texts to vectors: the whole path in one class."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from e5core.checkpoint.folder import ModelFolder
from e5core.checkpoint.options import LoadOptions
from e5core.encoder import Encoder
from e5core.kernels.cuda.copies import queue_to_cpu
from e5core.pipeline import Pipeline, Reduction
from e5core.pooling import l2_normalize
from e5core.progress import progress_bar
from e5core.prompts import check_prompts, prefix_for
from e5core.texts.containers import note_blank, one, several
from e5core.texts.cutting import check_truncate, cut_all, describe_limit
from e5core.texts.errors import TextError
from e5core.texts.passages import Passage, split_text
from e5core.texts.slices import one_behind
from e5core.texts.tokenizing import tokenized
from e5core.texts.windows import Windows, windows
from e5core.tokenizer import SentencePieceTokenizer
from e5core.vectors.stack import kept, stack

Vectors = npt.NDArray[np.float32]
InputType = Literal["query", "passage"] | None
Truncate = Literal["end", "none", "window"]

_CHOOSE: Any = object()  # embed's input_type when the caller leaves it out


@dataclass(frozen=True)
class EmbedResult:
    """What `E5.embed` returns.

    vectors       [texts, dimension] float32; [dimension] for a single str
    token_counts  [texts] int64  tokens of each text before any cut, with prefix, `<s>`, `</s>`
    truncated     [texts] bool   whether the end of the text was cut off
    blank         [texts] bool   whether nothing of the text can be seen: such vectors are near
                                 many queries and mean nothing
    """

    vectors: Vectors
    token_counts: npt.NDArray[np.int64]
    truncated: npt.NDArray[np.bool_]
    blank: npt.NDArray[np.bool_]


class E5:
    """A multilingual E5 model: tokenizer, encoder, pooling and prompts.

    One model can be shared between threads, and pickled for other processes. On a CPU a forked
    process can use it too, on one thread; spawn processes that are to have several each.
    """

    def __init__(
        self,
        encoder: Encoder,
        tokenizer: SentencePieceTokenizer,
        *,
        pooling: str | Reduction = "mean",
        prompts: str | Mapping[str, str] | None = None,
        max_length: int | None = None,
        truncate_dim: int | None = None,
    ) -> None:
        """Put a model together from its parts; `from_pretrained` does it from files.

        pooling     "mean" or "cls", or a reduction as Pipeline takes it
        prompts     "e5", "e5-instruct", "none" or the prefixes of "query" and "passage"; None
                    if they are not known
        max_length  tokens a text may have; None takes the encoder's limit
        truncate_dim  numbers of a vector that are kept, before it gets unit length; None for all
        """
        self.encoder = encoder
        self.config = encoder.config
        self.tokenizer = tokenizer
        self.pooling = pooling
        self.pipeline = Pipeline(encoder, pooling)
        self.prompts = None if prompts is None else check_prompts(prompts)
        self.max_length = self.config.max_length if max_length is None else max_length
        if self.max_length not in range(3, self.config.max_length + 1):
            raise ValueError(
                f"max_length is {max_length!r}, this model takes 3 to {self.config.max_length}"
            )
        self.max_length, self.truncate_dim = int(self.max_length), truncate_dim
        kept(truncate_dim, self.pipeline.size)  # raises for what is none
        tokenizer.check_rows(self.config.vocab_size)

    @classmethod
    def from_pretrained(cls, model: str | Path, **options: Any) -> "E5":
        """Load a model from a folder in Hugging Face layout or from the hub.

        model    a folder, or an id like "intfloat/multilingual-e5-large"
        options  fields of LoadOptions: revision, cache_dir, token and local_files_only say where
                 the model comes from, dtype, device and kernels what it runs on and in, prompts
                 and max_length stand in place of the model's own

        Raises OSError if files are missing, ValueError if they are not what they should be.
        """
        chosen = LoadOptions(**options)
        return cls.from_folder(ModelFolder.open(model, chosen), chosen)

    @classmethod
    def from_folder(cls, folder: ModelFolder, options: LoadOptions = LoadOptions()) -> "E5":
        """Load a model from a folder that was opened and read already."""
        folder.check_embeds()
        prompts = folder.prompts if options.prompts is None else check_prompts(options.prompts)
        limit = folder.max_length if options.max_length is None else options.max_length
        size = folder.truncate_dim if options.truncate_dim is None else options.truncate_dim
        encoder = folder.load_encoder(options.dtype, options.device, options.kernels)
        return cls(
            encoder,
            folder.load_tokenizer(),
            pooling=folder.load_pooling(encoder.device),
            prompts=prompts,
            max_length=limit,
            truncate_dim=size,
        )

    @property
    def dimension(self) -> int:
        """The numbers of a vector."""
        return kept(self.truncate_dim, self.pipeline.size)

    def encode_query(
        self, texts: str | Iterable[str], *, task: str | None = None, **options: Any
    ) -> Vectors:
        """Vectors of queries: search requests, or all texts of a symmetric task."""
        return self.embed(texts, input_type="query", task=task, **options).vectors

    def encode_passage(self, texts: str | Iterable[str], **options: Any) -> Vectors:
        """Vectors of passages: the texts that queries look for."""
        return self.embed(texts, input_type="passage", **options).vectors

    def encode(
        self, texts: str | Iterable[str], *, input_type: InputType = _CHOOSE, **options: Any
    ) -> Vectors:
        """`embed(...).vectors`"""
        return self.embed(texts, input_type=input_type, **options).vectors

    def embed(
        self,
        texts: str | Iterable[str],
        *,
        input_type: InputType = _CHOOSE,
        task: str | None = None,
        truncate: Truncate = "end",
        normalize: bool = True,
        truncate_dim: int | None = None,
        max_tokens_per_batch: int | None = None,
        show_progress: bool | None = None,
    ) -> EmbedResult:
        """Embed texts, in the caller's order.

        texts       a str, or any iterable of str, read as it is needed
        input_type  must be given: "query", "passage", or None for text without a prefix
        task        the instruction of a large-instruct query
        truncate    what happens to a text over `max_length` tokens: "end" cuts it off, "none"
                    raises before any work, naming all such texts, "window" embeds it in
                    windows and averages their vectors by token count before normalisation;
                    every window has the prefix
        normalize   scale each vector to unit length
        truncate_dim  numbers of a vector that are kept before that; None takes the model's own
        max_tokens_per_batch  tokens of a pass, fewer if the device has no memory; no text is split
        show_progress  None shows a bar on a terminal and none elsewhere

        Raises TypeError or ValueError naming the text at fault.
        """
        if input_type is _CHOOSE:
            raise TypeError(
                "input_type is missing: the models embed queries and passages differently. Choose "
                "'query' (search requests, and every text of a symmetric task such as similarity "
                "or clustering), 'passage' (the texts to be found) or None (text as it is)"
            )
        prefix = prefix_for(self.prompts, input_type, task)
        check_truncate(truncate)
        max_tokens = self.pipeline.budget(max_tokens_per_batch)
        size = self.dimension if truncate_dim is None else kept(truncate_dim, self.pipeline.size)
        single = isinstance(texts, str)
        texts = [texts] if isinstance(texts, str) else several(texts)
        if truncate == "none":
            texts = list(texts)
            self._refuse_long(texts, prefix)

        vectors: deque[Vectors] = deque()
        counts: list[int] = []
        blank: list[bool] = []
        total = len(texts) if isinstance(texts, Sequence) else None
        with progress_bar(total, show_progress) as advance, torch.inference_mode():
            slices = self._tokenized(note_blank(texts, blank), prefix)
            rows = ((ids, self._pool(ids, prefix, truncate, max_tokens, advance)) for ids in slices)
            for ids, wait in one_behind(rows, self.encoder.device):
                pooled = wait()[:, :size]
                self._check_vectors(pooled, first=len(counts))
                vectors.append((l2_normalize(pooled) if normalize else pooled).numpy())
                counts += map(len, ids)
        token_counts = np.array(counts, dtype=np.int64)
        truncated = (token_counts > self.max_length) & (truncate == "end")
        shaped = stack(vectors, len(counts), size)[0 if single else ...]
        return EmbedResult(shaped, token_counts, truncated, np.array(blank, dtype=np.bool_))

    def split(
        self, text: str, tokens: int = 256, overlap: int = 32, *, input_type: InputType = "passage"
    ) -> list[Passage]:
        """Split a long text into passages of at most `tokens` tokens, as `split_text` says."""
        prefix = prefix_for(self.prompts, input_type)
        return split_text(one(text), self.tokenizer, prefix, tokens, overlap, self.max_length)

    def _tokenized(self, texts: Iterable[str], prefix: str) -> Iterator[Sequence[Sequence[int]]]:
        return tokenized(self.tokenizer, self.encoder.device, texts, prefix)

    def _pool(
        self,
        ids: Sequence[Sequence[int]],
        prefix: str,
        truncate: str,
        max_tokens: int,
        advance: Any,
    ) -> Callable[[], Tensor]:
        """Pooled states [texts, hidden_size] of one slice, not normalised, on the CPU later."""
        if truncate != "window":
            sequences = cut_all(ids, self.max_length)
            rows = self.pipeline.run(
                sequences, max_tokens, lambda done: advance(len(done)), halve=True
            )
            return queue_to_cpu(rows.float())
        lead = self.tokenizer.encode_pieces(prefix)
        parts = Windows([windows(text_ids, self.max_length, lead) for text_ids in ids])
        rows = self.pipeline.run(
            parts.sequences, max_tokens, lambda done: advance(parts.count_texts(done)), halve=True
        )
        wait = queue_to_cpu(rows.float())
        return lambda: parts.average(wait())

    def _refuse_long(self, texts: list[str], prefix: str) -> None:
        slices = self._tokenized(texts, prefix)
        counts = enumerate(len(ids) for ids in chain.from_iterable(slices))
        long = {index: tokens for index, tokens in counts if tokens > self.max_length}
        if long:
            found = ", ".join(f"{{}} has {tokens} tokens" for tokens in long.values())
            raise TextError(f"{found}; {describe_limit(self.max_length)}", *long)

    def _check_vectors(self, pooled: Tensor, first: int) -> None:
        """Raise TextError if a vector is zero, or has a NaN or an infinity."""
        rows = pooled.numpy()  # whose calls take less time than torch's for one text
        bad = np.flatnonzero(~(np.isfinite(rows).all(axis=1) & rows.any(axis=1)))
        if len(bad):
            raise TextError(
                f"the vectors of {len(bad)} texts, the first of them {{}}, are zero or not finite "
                f"in {self.encoder.dtype}; check the weights, or load them with "
                'dtype="float32" (--dtype float32)',
                first + int(bad[0]),
            )
