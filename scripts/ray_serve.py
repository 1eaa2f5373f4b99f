"""Serve models over HTTP from several processes and machines with Ray Serve.

    python scripts/ray_serve.py --model intfloat/multilingual-e5-large --replicas 2 --gpus 1

Every replica loads the models and is the server of `e5core serve`: the same routes, and the same
keys, which this program reads from E5CORE_API_KEY and --api-key-file and of which the replicas get
the digests. On one machine Ray is started by itself; on a cluster
run it there with --address auto. A replica that dies is started anew, and requests that it had are
for clients to send again, which those of Pinecone, OpenAI and Cohere do by themselves.
"""

import argparse
import os
import sys
import time
from collections.abc import Collection, Sequence
from typing import Any

from e5core.checkpoint.options import AUTO, DTYPES
from e5core.cli.program import Parser, run_program
from e5core.cli.serve import add_key_arguments, check_host
from e5core.serve.keys import Keys, read_keys
from e5core.serve.limits import Limits
from e5core.serve.models import INPUT_TYPES

# Ray hands a replica 5 requests at a time by default, of which no batch can be made.
REQUESTS_OF_A_REPLICA = 256


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser("ray_serve.py", description=__doc__)
    parser.add_argument("--model", required=True, help="a folder or a hub id")
    parser.add_argument("--reranker", help="a folder or a hub id")
    parser.add_argument("--dtype", default=AUTO, choices=(AUTO, *DTYPES))
    parser.add_argument("--default-input-type", choices=INPUT_TYPES)
    parser.add_argument("--replicas", type=int, default=1, help="processes with the models each")
    parser.add_argument("--cpus", type=int, default=1, help="CPUs, and threads, of a replica")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of a replica")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    add_key_arguments(parser)
    parser.add_argument("--address", help="of a Ray cluster; auto for the one this runs on")
    parser.set_defaults(run=run)
    return run_program(parser, arguments)


def run(options: argparse.Namespace) -> int:
    # Replicas on other machines do not see this program's environment.
    keys = Keys(read_keys(options.api_key_file))
    hosts = check_host(options.host, keys, options.open)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when ray is imported
    try:
        import ray
        from ray import serve
    except ImportError as error:
        raise ValueError("it needs Ray Serve; pip install 'e5core[ray-serve]'") from error

    start = {}
    if options.address is None:
        # The proxy and the controller of Ray Serve want a CPU beside the replicas'.
        start = {"include_dashboard": False, "num_cpus": options.replicas * options.cpus + 1}
    ray.init(address=options.address, logging_level="ERROR", log_to_driver=False, **start)
    serve.start(
        http_options={
            "host": options.host,
            "port": options.port,
            "keep_alive_timeout_s": 75,
            "request_timeout_s": 600,
        }
    )
    try:
        serve.run(deployment(serve, options, keys, hosts).bind(), name="e5core", route_prefix="/")
        where = f"http://{options.host}:{options.port}"
        print(f"ray_serve.py: {options.replicas} replicas at {where}", file=sys.stderr, flush=True)
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        return 0
    finally:
        serve.shutdown()
        ray.shutdown()


def deployment(
    serve: Any, options: argparse.Namespace, keys: Keys, hosts: Collection[str] | None
) -> Any:
    """The class of a replica, whose application is made where the replica runs."""
    settings = vars(options).copy()
    for name in ("run", "prog"):  # they hold what does not travel
        settings.pop(name, None)

    def build() -> Any:
        import torch

        from e5core import E5, Reranker
        from e5core.serve.app import App
        from e5core.serve.models import Models, serve_embedder, serve_reranker
        from e5core.serve.service import Service

        torch.set_num_threads(settings["cpus"])
        dtype, model, reranker = (settings[name] for name in ("dtype", "model", "reranker"))
        embedder = serve_embedder(E5.from_pretrained(model, dtype=dtype), model)
        rerankers = []
        if reranker is not None:
            loaded = Reranker.from_pretrained(reranker, dtype=dtype)
            rerankers.append(serve_reranker(loaded, reranker))
        service = Service(
            Models([embedder], rerankers), default_input_type=settings["default_input_type"]
        )
        return App(service, keys, hosts=hosts)

    @serve.deployment(
        num_replicas=options.replicas,
        max_ongoing_requests=REQUESTS_OF_A_REPLICA,
        max_queued_requests=REQUESTS_OF_A_REPLICA,
        ray_actor_options={"num_cpus": options.cpus, "num_gpus": options.gpus},
        health_check_period_s=2,
        # A replica that is taken away answers what it has; Ray would end it after 20 s.
        graceful_shutdown_timeout_s=Limits().timeout,
    )
    @serve.ingress(build)
    class Replica:
        def check_health(self) -> None:
            """Raise if the worker does not move: Ray then starts another replica."""
            if (reason := self.app.service.why_not_ready()) is not None:  # type: ignore[attr-defined]
                raise RuntimeError(reason)

    return Replica


if __name__ == "__main__":
    sys.exit(main())
