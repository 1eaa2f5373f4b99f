"""Train in several processes that Ray Train starts, with the options of `e5core train`.

    python scripts/ray_train.py --workers 2 --model MODEL --data pairs.jsonl --output my-e5

On one machine it starts Ray by itself. On a cluster run it there with --address auto (or through
`ray job submit`), with data and an output that all machines see. The result is that of one
process, to rounding, and after a stop the same command goes on.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from e5core.cli import train
from e5core.cli.program import Parser, run_program


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser("ray_train.py", description=__doc__)
    parser.add_argument("--workers", type=int, default=1, help="processes with a model each")
    parser.add_argument("--cpus", type=int, default=1, help="CPUs, and threads, of a worker")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs of a worker, 0 or 1")
    parser.add_argument("--address", help="of a Ray cluster; auto for the one this runs on")
    train.add_arguments(parser)
    parser.set_defaults(run=run)
    return run_program(parser, arguments)


def run(options: argparse.Namespace) -> int:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when ray is imported
    # The class of workers' errors, which version 2 of Ray Train wraps by their ranks.
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.util.queue import Queue

    start = {}
    if options.address is None:
        # Trainer and queue take one CPU each.
        start = {"include_dashboard": False, "num_cpus": options.workers * options.cpus + 2}
    ray.init(address=options.address, logging_level="ERROR", **start)
    failures = Queue()
    resources = {"CPU": options.cpus, "GPU": options.gpus}
    try:
        with tempfile.TemporaryDirectory() as storage:  # of Ray; ours is beside the output
            TorchTrainer(
                work,
                train_loop_config={
                    "options": vars(options) | {"run": None, "hint": None},
                    "folder": str(Path.cwd()),
                    "failures": failures,
                },
                torch_config=TorchConfig(backend="nccl" if options.gpus else "gloo"),
                scaling_config=ScalingConfig(
                    num_workers=options.workers,
                    use_gpu=options.gpus > 0,
                    resources_per_worker={name: n for name, n in resources.items() if n},
                ),
                run_config=RunConfig(storage_path=storage),
            ).fit()
    except Exception as error:
        if failures.empty():
            raise RuntimeError(f"Ray failed: {str(error).splitlines()[0]}") from error
        raise ValueError(f"a worker failed: {failures.get()}") from error
    finally:
        ray.shutdown()
    return 0


def work(config: dict[str, Any]) -> None:
    """What each process does: the command, in the process group that Ray has made."""
    from ray.train.torch import get_device

    os.chdir(config["folder"])
    options = argparse.Namespace(**config["options"])
    options.device = options.device or str(get_device())
    try:
        train.run(options)
    except Exception as error:
        config["failures"].put(str(error))
        raise


if __name__ == "__main__":
    sys.exit(main())
