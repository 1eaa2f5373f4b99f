"""The libraries that score pairs: each loads a cross-encoder and gives the logit of each pair."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from engines import Engine, OnnxRuntime, fast
from exports import LIMIT, peer_folder

Pair = tuple[str, str]
Logits = npt.NDArray[np.float32]


class PairEngine(Engine):
    """One library in one precision; its batches are padded to their longest pair."""

    precisions: tuple[str, ...] = ("float32",)
    first: Sequence[Pair] = (("a first query", "a first passage"),)

    def encode(self, texts: Sequence[Pair], batch_size: int) -> Logits:
        """The logit of each pair, in batches of the pairs as they come."""
        parts = [texts[i : i + batch_size] for i in range(0, len(texts), batch_size)]
        found: Logits = np.concatenate([self.encode_batch(part) for part in parts])
        return found.astype(np.float32)


def padded_pairs(tokenizer: Any, pairs: Sequence[Pair], tensors: str) -> Any:
    queries, passages = map(list, zip(*pairs, strict=True))
    batch = tokenizer(
        queries,
        passages,
        padding=True,
        truncation="longest_first",
        max_length=LIMIT,
        return_tensors=tensors,
    )
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


class E5coreReranker(PairEngine):
    name = "e5core"
    package = "e5core"
    precisions = ("float32", "bfloat16", "int8", "float16")
    batch_sizes = (0,)  # packed batches have a budget of tokens

    def __init__(self, folder: Path, precision: str, threads: int, device: str) -> None:
        import torch

        from e5core import Reranker

        torch.set_num_threads(threads)
        self.model = Reranker.from_pretrained(folder, dtype=precision, device=device)

    def encode(self, texts: Sequence[Pair], batch_size: int) -> Logits:
        return self.model.score_pairs(texts, truncate="longest", show_progress=False)


class TransformersReranker(PairEngine):
    """Batches of 32 as they come, which is what most code does."""

    name = "transformers"
    package = "transformers"
    batch_sizes = (32,)

    @classmethod
    def export(cls, folder: Path, precision: str) -> None:
        peer_folder(folder)

    def __init__(self, folder: Path, precision: str, threads: int, device: str) -> None:
        import torch
        import transformers

        torch.set_num_threads(threads)
        self.device = device
        self.tokenizer = fast(folder)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            peer_folder(folder), attn_implementation="sdpa", dtype=getattr(torch, precision)
        )
        self.model = model.eval().to(device)

    def encode_batch(self, texts: Sequence[Pair]) -> npt.NDArray[Any]:
        import torch

        batch = padded_pairs(self.tokenizer, texts, "pt")
        with torch.inference_mode():
            logits = self.model(**{name: value.to(self.device) for name, value in batch.items()})
            found: npt.NDArray[Any] = logits.logits[:, 0].float().cpu().numpy()
            return found


class TransformersOneByOne(TransformersReranker):
    """No padding at all, at the price of small products."""

    name = "transformers-single"
    batch_sizes = (1,)


class OnnxRuntimeReranker(PairEngine, OnnxRuntime):
    """Sorted by length: as little padding as batches can have."""

    precisions = ("float32",)
    batch_sizes = (8, 32)

    def encode(self, texts: Sequence[Pair], batch_size: int) -> Logits:
        order = sorted(range(len(texts)), key=lambda i: -sum(map(len, texts[i])))
        found = super().encode([texts[i] for i in order], batch_size)
        return found[np.argsort(order)]

    def encode_batch(self, texts: Sequence[Pair]) -> npt.NDArray[Any]:
        batch = padded_pairs(self.tokenizer, texts, "np")
        logits: npt.NDArray[Any] = self.session.run(None, batch)[0][:, 0]
        return logits


RERANKERS: dict[str, type[PairEngine]] = {
    engine.name: engine
    for engine in (
        E5coreReranker,
        TransformersReranker,
        TransformersOneByOne,
        OnnxRuntimeReranker,
    )
}
