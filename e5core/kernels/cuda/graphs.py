"""One query on a GPU without its launch overhead: the whole encoder as one CUDA graph.

A layer launches about ten kernels, each of which takes the CPU longer than a short text takes
the GPU. A graph is recorded once for a number of tokens and replayed with new content, so a
text is filled up to the next size in SIZES by a second text that nobody reads.
"""

import threading
from dataclasses import dataclass

import torch
from torch import Tensor

from e5core.batching import PackedBatch
from e5core.encoder import Encoder

SIZES = (16, 32, 64, 128, 256, 512)
WARM_UPS = 3  # runs before recording, as torch.cuda.CUDAGraph asks for


def filled(batch: PackedBatch, tokens: int) -> PackedBatch:
    """A batch of one text with a second one behind it, `tokens` tokens together.

    The second text repeats the first token; it may be empty.
    """
    own = batch.input_ids.shape[0]
    more = tokens - own
    first = batch.position_ids[:1]
    return PackedBatch(
        input_ids=torch.cat([batch.input_ids, batch.input_ids[:1].expand(more)]),
        position_ids=torch.cat([batch.position_ids, first + torch.arange(more).to(first)]),
        cu_seqlens=torch.tensor([0, own, tokens], dtype=torch.int32).to(batch.cu_seqlens),
        max_seqlen=tokens,
    )


@dataclass(frozen=True)
class Recorded:
    graph: torch.cuda.CUDAGraph
    batch: PackedBatch
    output: Tensor


class GraphedEncoder:
    """An encoder on a GPU that takes batches of one text as recorded graphs, others as always.

    Graphs are recorded when their size first occurs. Safe to share between threads.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self._recorded: dict[int, Recorded] = {}
        self._lock = threading.Lock()

    def __call__(self, batch: PackedBatch) -> Tensor:
        """The last hidden states [tokens, hidden_size], as Encoder.forward gives them."""
        own = batch.input_ids.shape[0]
        size = next((size for size in SIZES if own <= size <= self.encoder.config.max_length), None)
        if size is None or batch.cu_seqlens.shape[0] != 2:
            states: Tensor = self.encoder(batch)
            return states
        with self._lock:
            recorded = self._recorded.get(size)
            if recorded is None:
                recorded = self._recorded[size] = self._record(filled(batch, size))
            content = filled(batch, size)
            for name in ("input_ids", "position_ids", "cu_seqlens"):
                getattr(recorded.batch, name).copy_(getattr(content, name))
            recorded.graph.replay()
            return recorded.output[:own].clone()

    def _record(self, batch: PackedBatch) -> Recorded:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                self.encoder(batch)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = self.encoder(batch)
        return Recorded(graph, batch, output)
