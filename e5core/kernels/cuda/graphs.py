"""One text on a GPU without its launch overhead: all layers as one CUDA graph.

A layer launches about ten kernels, each of which takes the CPU longer than a short text takes
the GPU. A graph is recorded once for a number of tokens and replayed with new content, so a
text is filled up to the next size in SIZES by a second text that nobody reads.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from e5core.kernels.plain import Kernels, Layer, Pause, go_on

SIZES = (16, 32, 64, 128, 256, 512)
WARM_UPS = 3  # runs before recording, as torch.cuda.CUDAGraph asks for

_recording = threading.Lock()  # one graph at a time in a process, as torch asks for


class Filled:
    """Where the states of a text lie, with a second text behind it, `size` tokens together.

    x           [size, hidden_size]  the second text has whatever was there before
    cu_seqlens  [3] int32            the second text may be empty
    """

    def __init__(self, size: int, like: Tensor) -> None:
        with torch.inference_mode(False):  # tensors that can be written in any mode
            self.x = torch.zeros(size, like.shape[1], dtype=like.dtype, device=like.device)
            self.cu_seqlens = torch.zeros(3, dtype=torch.int32, device=like.device)
            # A row for each number of tokens, so that no number has to come from the CPU.
            own = torch.arange(size + 1, dtype=torch.int32, device=like.device)
            self._rows = torch.stack([0 * own, own, torch.full_like(own, size)], dim=1)

    def put(self, x: Tensor) -> None:
        """Take the states [own, hidden_size] of a text."""
        self.x[: len(x)].copy_(x)
        self.cu_seqlens.copy_(self._rows[len(x)])


@dataclass(frozen=True)
class Recorded:
    graph: torch.cuda.CUDAGraph
    filled: Filled
    output: Tensor


@dataclass
class Device:
    """What all graphs of a GPU share, so that they run one after another whatever the streams are.

    They have the memory between layers in common, and cuBLAS' workspace, which is one for all that
    is recorded on a stream.

    read  when the output of the last one had been read; None before the first
    """

    stream: torch.cuda.Stream = field(default_factory=torch.cuda.Stream)
    pool: Any = field(default_factory=torch.cuda.graph_pool_handle)
    lock: threading.Lock = field(default_factory=threading.Lock)
    read: torch.cuda.Event | None = None


@cache
def _shared(device: torch.device) -> Device:
    with torch.cuda.device(device):
        return Device()


class RecordedStack:
    """Layers on a GPU that take one text as a recorded graph, and several as always.

    Graphs are recorded when their size first occurs. Safe to share between threads and streams.
    """

    def __init__(self, layers: Sequence[Layer], kernels: Kernels) -> None:
        self._layers = layers
        self._kernels = kernels
        self._recorded: dict[int, Recorded] = {}

    def __call__(
        self, x: Tensor, cu_seqlens: Tensor, max_seqlen: int, pause: Pause = go_on
    ) -> Tensor:
        """The hidden states behind the last layer, from those before the first one.

        x and the result are [tokens, hidden_size]. There is no pause: a GPU works ahead.
        """
        own = x.shape[0]
        size = next((size for size in SIZES if own <= size), None)
        if size is None or cu_seqlens.shape[0] != 2:
            return self._run(x, cu_seqlens, max_seqlen)
        shared = _shared(x.device)
        with shared.lock, torch.cuda.device_of(x):
            if shared.read is not None:  # another stream may still be at work
                torch.cuda.current_stream().wait_event(shared.read)
            recorded = self._recorded.get(size)
            if recorded is None:
                recorded = self._recorded[size] = self._record(size, x, shared)
            recorded.filled.put(x)
            recorded.graph.replay()
            output = recorded.output[:own].clone()
            shared.read = torch.cuda.current_stream().record_event(shared.read)
            return output

    def _run(self, x: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        for layer in self._layers:
            x = layer(x, cu_seqlens, max_seqlen, self._kernels)
        return x

    def _record(self, size: int, x: Tensor, shared: Device) -> Recorded:
        """A graph for texts of up to `size` tokens."""
        filled = Filled(size, x)
        filled.put(x)
        shared.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(shared.stream):
            for _ in range(WARM_UPS):
                self._run(filled.x, filled.cu_seqlens, size)
        torch.cuda.current_stream().wait_stream(shared.stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads may compute meanwhile.
        how: dict[str, Any] = {"pool": shared.pool, "capture_error_mode": "thread_local"}
        with _recording, torch.cuda.graph(graph, stream=shared.stream, **how):
            output = self._run(filled.x, filled.cu_seqlens, size)
        return Recorded(graph, filled, output)
