"""One query on a GPU without its launch overhead: all layers as one CUDA graph.

A layer launches about ten kernels, each of which takes the CPU longer than a short text takes
the GPU. A graph is recorded once for a number of tokens and replayed with new content, so a
text is filled up to the next size in SIZES by a second text that nobody reads.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from e5core.kernels.plain import Kernels, Layer

SIZES = (16, 32, 64, 128, 256, 512)
WARM_UPS = 3  # runs before recording, as torch.cuda.CUDAGraph asks for


def fill(x: Tensor, cu_seqlens: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """The states of one text with a second text behind it, `tokens` tokens together.

    x           [own, hidden_size]
    cu_seqlens  [2] int32
    returns     [tokens, hidden_size] and [3] int32; the second text repeats the first token of
                the first one, and may be empty
    """
    own = x.shape[0]
    filled = torch.cat([x, x[:1].expand(tokens - own, -1)])
    return filled, torch.tensor([0, own, tokens], dtype=torch.int32).to(cu_seqlens)


@dataclass(frozen=True)
class Recorded:
    graph: torch.cuda.CUDAGraph
    x: Tensor
    cu_seqlens: Tensor
    output: Tensor


class RecordedStack:
    """Layers on a GPU that take one text as a recorded graph, and several as always.

    Graphs are recorded when their size first occurs. Safe to share between threads.
    """

    def __init__(self, layers: Sequence[Layer], kernels: Kernels) -> None:
        self._layers = layers
        self._kernels = kernels
        self._recorded: dict[int, Recorded] = {}
        self._lock = threading.Lock()

    def __call__(self, x: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        """The hidden states behind the last layer, from those before the first one.

        x and the result are [tokens, hidden_size].
        """
        own = x.shape[0]
        size = next((size for size in SIZES if own <= size), None)
        if size is None or cu_seqlens.shape[0] != 2:
            return self._run(x, cu_seqlens, max_seqlen)
        filled = fill(x, cu_seqlens, size)
        with self._lock:
            recorded = self._recorded.get(size)
            if recorded is None:
                recorded = self._recorded[size] = self._record(*filled)
            recorded.x.copy_(filled[0])
            recorded.cu_seqlens.copy_(filled[1])
            recorded.graph.replay()
            return recorded.output[:own].clone()

    def _run(self, x: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        for layer in self._layers:
            x = layer(x, cu_seqlens, max_seqlen, self._kernels)
        return x

    def _record(self, x: Tensor, cu_seqlens: Tensor) -> Recorded:
        tokens = x.shape[0]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                self._run(x, cu_seqlens, tokens)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = self._run(x, cu_seqlens, tokens)
        return Recorded(graph, x, cu_seqlens, output)
