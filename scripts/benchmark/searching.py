"""Speed of an Index beside numpy's product with its top-k, and faiss' flat index.

    python scripts/benchmark search                400,000 vectors of 384 numbers
    python scripts/benchmark search --bars         hold the ratios against the aims

All of them search the same float32 vectors of unit length in one process, in turn, round by round,
on the same threads. A ratio is that of the fastest rounds: whatever else a machine does makes
rounds slower, and never faster. The product is that of numpy,
`queries @ vectors.T`, whose scores `argpartition` and a sort make a top-k of; it neither divides by
lengths nor orders equal scores. faiss is left out where it is not installed (`pip install
'e5core[interfaces]'`).
"""

import argparse
import importlib.util
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from aims import print_verdicts, verdict

from e5core.cli.program import Parser, check_counts, run_program
from e5core.formats.files import write_json

# How many times as fast as the other an Index is to be: by queries, and by contestant.
AIMS = {1: {"numpy": 0.8}, 16: {"numpy": 1.0, "faiss": 1.0}, 256: {"numpy": 1.0, "faiss": 1.0}}
Seconds = dict[str, list[float]]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser("benchmark search", description=__doc__)
    parser.add_argument("--vectors", type=int, default=400_000)
    parser.add_argument("--size", type=int, default=384, help="numbers of a vector")
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 16, 256])
    parser.add_argument("--top-k", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--bars", action="store_true", help="hold the figures against the aims")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the raw figures there")
    parser.set_defaults(run=run)
    return run_program(parser, arguments)


def run(options: argparse.Namespace) -> int:
    check_counts(options, "vectors", "size", "top_k", "rounds", "threads")
    # The libraries read it when they are imported, so that they are in another process.
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(options.threads))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        figures: dict[int, Seconds] = pool.apply(measure, [options])
    title = f"{options.vectors:,} vectors of {options.size}, top {options.top_k}"
    print(f"{title}: ms, the fastest round (the median)\n")
    names = list(next(iter(figures.values())))
    print("queries" + "".join(f"{name:>18}" for name in names) + "   times as fast as them")
    for count, seconds in figures.items():
        cells = (
            f"{1000 * min(s):.1f} ({1000 * statistics.median(s):.1f})" for s in seconds.values()
        )
        ratios = "  ".join(f"{name} {ratio(seconds, name):.2f}" for name in names[1:])
        print(f"{count:7}" + "".join(f"{cell:>18}" for cell in cells) + f"   {ratios}")
    if options.json:
        write_json(options.json, figures)
    if not options.bars:
        return 0
    return print_verdicts(bars(figures))


def measure(options: argparse.Namespace) -> dict[int, Seconds]:
    """The seconds of each round, by the number of queries and by contestant, e5core first."""
    import numpy as np

    from e5core.vectors.index import Index

    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((options.vectors, options.size), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index, k = Index(vectors), min(options.top_k, options.vectors)

    def multiply(queries: Any) -> Any:
        scores = queries @ vectors.T
        rows = np.arange(len(queries))[:, None]
        best = np.argpartition(scores, -k, axis=1)[:, -k:]
        return best[rows, np.argsort(-scores[rows, best], axis=1)]

    contestants: dict[str, Callable[[Any], Any]] = {
        "e5core": lambda queries: index.search(queries, k).indices,
        "numpy": multiply,
    }
    if importlib.util.find_spec("faiss") is not None:
        import faiss

        flat = faiss.IndexFlatIP(options.size)
        flat.add(vectors)
        contestants["faiss"] = lambda queries: flat.search(queries, k)[1]
    figures: dict[int, Seconds] = {}
    for count in options.queries:
        near = generator.integers(0, options.vectors, count)
        noise = generator.standard_normal((count, options.size), dtype=np.float32)
        queries = vectors[near] + 0.02 * noise
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)
        figures[count] = {name: [] for name in contestants}
        for number in range(options.rounds + 1):  # the first one warms up and does not count
            for name, search in contestants.items():
                start = time.perf_counter()
                found = search(queries)
                seconds = time.perf_counter() - start
                if number:
                    figures[count][name].append(seconds)
                elif not np.array_equal(found[:, 0], near):
                    raise ValueError(f"{name} does not find the vectors that queries are made of")
    return figures


def ratio(seconds: Seconds, other: str) -> float:
    """How many times as fast e5core is in the fastest round."""
    return min(seconds[other]) / min(seconds["e5core"])


def bars(figures: dict[int, Seconds]) -> list[str]:
    """A line for each aim that was measured."""
    lines = []
    for count, aims in AIMS.items():
        for other, aim in aims.items():
            if other in figures.get(count, {}):
                what = f"Index : {other}, {count} queries"
                lines.append(verdict(what, ratio(figures[count], other), aim))
    return lines
