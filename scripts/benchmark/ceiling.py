"""The ceiling: the fastest matrix product of the layers' shapes on this machine."""

import ctypes
import multiprocessing
import statistics
import subprocess
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from contestants import seconds_of

from e5core import EncoderConfig
from e5core.kernels.native import build

# Twelve sums, as many as keep both multipliers of a core busy, of eight numbers each. Each is a
# variable of its own: an array of them would lie in memory, at half the speed.
PEAK = """
typedef float Vector __attribute__((vector_size(32)));
#define ALL(do) do(0) do(1) do(2) do(3) do(4) do(5) do(6) do(7) do(8) do(9) do(10) do(11)
#define ZERO(k) Vector sum##k = {};
#define MULTIPLY_ADD(k) __asm__ volatile("vfmadd231ps %1, %1, %0" : "+x"(sum##k) : "x"(x));
#define TOTAL(k) total += sum##k;
extern "C" float multiply_add(long times) {
    Vector x = Vector{} + 1e-9f, total = {};
    ALL(ZERO)
    for (long i = 0; i < times; i++) { ALL(MULTIPLY_ADD) }
    ALL(TOTAL)
    return total[0];
}
"""
PEAK_OPTIONS = ["-O2", "-mavx2", "-mfma"]
PEAK_TIMES = 5_000_000
PEAK_COST = 2.0 * 12 * 8 * PEAK_TIMES  # FLOP of a thread


class Ceiling:
    """A process of its own that measures whenever it is asked for a precision.

    instructions  if given, the ceiling of float32 is that of multiply-add on vectors of AVX2
    """

    def __init__(
        self, config: EncoderConfig, threads: int, device: str, instructions: str | None = None
    ) -> None:
        h, f = config.hidden_size, config.intermediate_size
        shapes = [(h, 3 * h), (h, h), (h, f), (f, h)]
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        options = (theirs, threads, device, shapes, instructions)
        context.Process(target=measure_ceiling, args=options, daemon=True).start()

    def __call__(self, precision: str) -> float:
        """GFLOP/s of the fastest product."""
        self.connection.send(precision)
        rate: float = self.connection.recv()
        return rate


def measure_ceiling(
    connection: Connection, threads: int, device: str, shapes: Any, instructions: str | None
) -> None:
    """A worker's life: GFLOP/s of the fastest product, whenever asked for a precision."""
    import torch

    torch.set_num_threads(threads)
    peak = avx2_peak() if instructions else None
    while True:
        try:
            precision = connection.recv()
        except EOFError:
            return
        if peak and precision == "float32":
            connection.send(gflops((partial(in_threads, peak, threads), threads * PEAK_COST)))
            continue
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


def avx2_peak() -> Callable[[], Any]:
    """What one thread can reach with AVX2 and FMA: PEAK, compiled."""
    with tempfile.TemporaryDirectory() as scratch:
        library = f"{scratch}/peak.so"
        options = [*PEAK_OPTIONS, "-shared", "-fPIC", "-x", "c++", "-", "-o", library]
        subprocess.run([*build.compiler_command(), *options], input=PEAK.encode(), check=True)
        multiply_add = ctypes.CDLL(library).multiply_add
    multiply_add.argtypes, multiply_add.restype = (ctypes.c_long,), ctypes.c_float
    return partial(multiply_add, PEAK_TIMES)


def in_threads(call: Callable[[], Any], count: int) -> None:
    """The same call in several threads at a time. One into C lets the others run."""
    threads = [threading.Thread(target=call) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def gflops(product: tuple[Callable[[], Any], float]) -> float:
    call, cost = product
    seconds = [seconds_of(call) for _ in range(8)]
    return cost / statistics.median(seconds[2:]) / 1e9
