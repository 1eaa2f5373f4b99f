"""Embed the texts of Parquet files into Parquet files with Ray Data.

    python scripts/ray_embed.py texts/ vectors/ --model MODEL --input-type passage

On one machine it starts Ray by itself. On a cluster run it there with --address auto (or through
`ray job submit`), with a model and folders that all machines see. All columns are kept, and one
of vectors is added; the order of the rows is not kept.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from e5core.checkpoint import hub
from e5core.checkpoint.options import AUTO, DTYPES
from e5core.cli.program import Parser, run_program
from e5core.integrations.ray import BATCH_ROWS, Embedder, check_columns


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser("ray_embed.py", description=__doc__)
    parser.add_argument("input", help="a Parquet file or a folder of them; a path or a URI")
    parser.add_argument("output", help="a folder that is empty or not there")
    parser.add_argument("--model", required=True, help="a folder or a hub id")
    parser.add_argument("--input-type", required=True, choices=("query", "passage", "none"))
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--vector-column", default="vector")
    parser.add_argument("--dtype", default=AUTO, choices=(AUTO, *DTYPES))
    parser.add_argument("--workers", type=int, default=1, help="processes with a model each")
    parser.add_argument("--cpus", type=int, default=1, help="CPUs, and threads, of a worker")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of a worker")
    parser.add_argument("--address", help="of a Ray cluster; auto for the one this runs on")
    parser.set_defaults(run=run)
    return run_program(parser, arguments)


def run(options: argparse.Namespace) -> int:
    local = "://" not in options.output
    if local and Path(options.output).is_dir() and any(Path(options.output).iterdir()):
        raise ValueError(
            f"{options.output} is not empty, and its files would mix with the new ones"
        )
    if "://" not in options.input and not Path(options.input).exists():
        raise FileNotFoundError(f"{options.input} does not exist; give a Parquet file or a folder")
    if options.address is None:
        hub.resolve(options.model)  # said before Ray starts, and downloaded once

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when ray is imported
    import ray

    start = {}
    if options.address is None:
        # Reading and writing want a CPU beside the workers', or they wait for ever.
        start = {"include_dashboard": False, "num_cpus": options.workers * options.cpus + 1}
    ray.init(address=options.address, logging_level="ERROR", log_to_driver=False, **start)
    ray.data.DataContext.get_current().enable_progress_bars = sys.stderr.isatty()
    try:
        embed(ray, options)
    finally:
        ray.shutdown()
    return 0


def embed(ray: Any, options: argparse.Namespace) -> None:
    from ray.util.queue import Queue

    rows = ray.data.read_parquet(options.input)
    check_columns(rows.schema().names, options.text_column, options.vector_column)
    failures = Queue()
    constructor = {
        "failures": failures,
        "model": options.model,
        "input_type": None if options.input_type == "none" else options.input_type,
        "text_column": options.text_column,
        "vector_column": options.vector_column,
        "dtype": options.dtype,
    }
    try:
        rows.map_batches(
            Worker,
            fn_constructor_kwargs=constructor,
            compute=ray.data.ActorPoolStrategy(size=options.workers),
            batch_format="pyarrow",
            batch_size=BATCH_ROWS,
            num_cpus=options.cpus,
            num_gpus=options.gpus,
        ).write_parquet(options.output)
    except ray.exceptions.RayError as error:
        if failures.empty():
            raise
        raise ValueError(f"a worker failed: {failures.get()}") from error


class Worker:
    """An Embedder that tells why it failed: Ray's own errors hold text from many processes."""

    def __init__(self, failures: Any, **options: Any) -> None:
        self.failures = failures
        self.embedder: Any = self.call(Embedder, **options)

    def __call__(self, rows: Any) -> Any:
        return self.call(self.embedder, rows)

    def call(self, function: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return function(*arguments, **options)
        except Exception as error:
            self.failures.put(str(error))
            raise


if __name__ == "__main__":
    sys.exit(main())
