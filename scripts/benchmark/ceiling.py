"""The ceiling: the fastest matrix product of the layers' shapes on this machine."""

import multiprocessing
import statistics
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from contestants import seconds_of

from e5core import EncoderConfig


class Ceiling:
    """A process of its own that measures whenever it is asked for a precision."""

    def __init__(self, config: EncoderConfig, threads: int, device: str) -> None:
        h, f = config.hidden_size, config.intermediate_size
        shapes = [(h, 3 * h), (h, h), (h, f), (f, h)]
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        options = (theirs, threads, device, shapes)
        context.Process(target=measure_ceiling, args=options, daemon=True).start()

    def __call__(self, precision: str) -> float:
        """GFLOP/s of the fastest product."""
        self.connection.send(precision)
        rate: float = self.connection.recv()
        return rate


def measure_ceiling(connection: Connection, threads: int, device: str, shapes: Any) -> None:
    """A worker's life: GFLOP/s of the fastest product, whenever asked for a precision."""
    import torch

    torch.set_num_threads(threads)
    while True:
        try:
            precision = connection.recv()
        except EOFError:
            return
        with torch.inference_mode():
            connection.send(max(gflops(rate) for rate in products(precision, device, shapes)))


def products(precision: str, device: str, shapes: Any) -> list[tuple[Callable[[], Any], float]]:
    """Products to time and their FLOP."""
    import torch

    if device != "cpu":
        dtype = {"int8": torch.bfloat16}.get(precision) or getattr(torch, precision)
        a, b = torch.randn(2, 8192, 8192, device=device).to(dtype)

        def multiply() -> None:
            a @ b
            torch.cuda.synchronize()

        return [(multiply, 2 * 8192**3)]
    found = []
    for inputs, outputs in shapes:
        x, weight = torch.randn(1024, inputs), torch.randn(outputs, inputs)
        cost = 2.0 * 1024 * inputs * outputs
        if precision == "int8":
            q, i = (t.mul(40).clamp(-127, 127).to(torch.int8) for t in (x, weight))
            found.append((partial(torch._int_mm, q, i.t()), cost))
            continue
        dtype = getattr(torch, precision)
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype), 1024)
        linear = torch.ops.mkldnn._linear_pointwise
        found.append((partial(linear, x.to(dtype), packed, None, "none", [], ""), cost))
    return found


def gflops(product: tuple[Callable[[], Any], float]) -> float:
    call, cost = product
    seconds = [seconds_of(call) for _ in range(8)]
    return cost / statistics.median(seconds[2:]) / 1e9
