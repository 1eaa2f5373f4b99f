"""Serve models over HTTP to the clients of Pinecone, OpenAI, Cohere, Hugging Face and Ollama.

    E5CORE_API_KEY=… e5core serve --model intfloat/multilingual-e5-large

Keys are read from E5CORE_API_KEY and from --api-key-file; without one, only this machine is served.
Needs the extra serve. docs/serving.md says how each client is set up.
"""

import argparse
import sys
from argparse import Namespace
from collections.abc import Callable, Collection, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from e5core.bulk.queries import QueryOptions, query_model
from e5core.checkpoint.options import LoadOptions
from e5core.cli.options import DEFAULT_MODEL, HUB_FLAGS, MODEL_FLAGS, add_flags, load_options
from e5core.cli.program import Parser
from e5core.model import E5
from e5core.reranker import Reranker
from e5core.serve.keys import KEY_VARIABLE, Keys, read_keys
from e5core.serve.limits import Limits
from e5core.serve.models import INPUT_TYPES, NONE, Models, serve_embedder, serve_reranker
from e5core.serve.searcher import Searcher
from e5core.vectors.index import Index

LOOPBACK = ("127.0.0.1", "::1", "localhost")

LIMIT_FLAGS: dict[str, str] = {
    "max_wait": "seconds that a request may have to wait; one that would is refused (429)",
    "timeout": "seconds that a request may take",
    "max_body": "bytes of a request's body",
    "max_texts": "texts of a request",
    "max_characters": "characters of a text",
    "body_seconds": "seconds in which the headers of a request must arrive, and then its body",
    "hang_seconds": "seconds of a forward pass after which the process ends",
}


class _Served(argparse.Action):
    """Models, rerankers and their names, in the order in which they were given."""

    def __call__(
        self, parser: Any, namespace: Namespace, values: Any, option_string: str | None = None
    ) -> None:
        given = getattr(namespace, "served", None) or []
        namespace.served = [*given, (str(option_string), values)]


def add_arguments(parser: Parser) -> None:
    for flag, text in (
        (
            "--model",
            f"a folder or a hub id; may be repeated (default if none is named: {DEFAULT_MODEL})",
        ),
        ("--reranker", "a cross-encoder, a folder or a hub id; may be repeated"),
        ("--served-name", "what requests call the model given before it"),
    ):
        parser.add_argument(flag, action=_Served, dest="served", metavar="NAME", help=text)
    add_flags(parser, HUB_FLAGS | MODEL_FLAGS)
    parser.add_argument(
        "--index", type=Path, help="what e5core embed wrote; POST /search finds passages in it"
    )
    parser.add_argument("--host", default="127.0.0.1", help="(default: %(default)s)")
    parser.add_argument("--port", type=int, default=8080, help="(default: %(default)s)")
    parser.add_argument(
        "--default-input-type",
        choices=INPUT_TYPES,
        help="of texts whose request does not say it; without one it is refused",
    )
    parser.add_argument(
        "--default-task",
        metavar="TEXT",
        help="the instruction of queries whose request gives none, for instruct models",
    )
    add_key_arguments(parser)
    parser.add_argument(
        "--cors-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="a web page's origin that may call the server; may be repeated",
    )
    parser.add_argument(
        "--drain",
        type=float,
        default=5.0,
        metavar="SECONDS",
        help="take requests so long after SIGTERM, with readiness off, before the last ones are "
        "answered (default: %(default)s)",
    )
    parser.add_argument("--no-access-log", action="store_true")
    for limit in fields(Limits):
        parser.add_argument(
            "--" + limit.name.replace("_", "-"),
            type=type(limit.default),
            default=limit.default,
            metavar="N",
            help=f"{LIMIT_FLAGS[limit.name]} (default: %(default)s)",
        )
    parser.set_defaults(run=run)


def add_key_arguments(parser: Parser) -> None:
    parser.add_argument(
        "--api-key-file", type=Path, metavar="FILE", help="keys, one a line, beside E5CORE_API_KEY"
    )
    parser.add_argument(
        "--open", action="store_true", help="serve other machines without a key, to everybody"
    )


def run(options: Namespace) -> int:
    try:
        from e5core.serve.access import AccessLog
        from e5core.serve.app import App
        from e5core.serve.server import serve
        from e5core.serve.service import Service
    except ModuleNotFoundError as error:
        if error.name not in ("orjson", "uvicorn"):
            raise
        raise ValueError(f"it needs {error.name}; pip install 'e5core[serve]'") from error

    limits = read_limits(options)
    keys = Keys(read_keys(options.api_key_file))
    hosts = check_host(options.host, keys, options.open)
    models, searcher = load_models(options)
    service = Service(models, limits, options.default_input_type, options.default_task)
    log = AccessLog(None if options.no_access_log else sys.stdout)

    def make_app(lost: Callable[[str], None]) -> App:
        return App(
            service,
            keys,
            log=log,
            searcher=searcher,
            origins=options.cors_origin,
            hosts=hosts,
            on_failure=lost,
        )

    names = ", ".join(served.name for served in models.everything)
    return serve(
        make_app,
        host=options.host,
        port=options.port,
        drain=options.drain,
        ready=f"{options.prog}: {names} at {{}}",
    )


def read_limits(options: Namespace) -> Limits:
    """The limits as they were given; ValueError if one is not positive."""
    limits = Limits(**{limit.name: getattr(options, limit.name) for limit in fields(Limits)})
    for limit in fields(limits):
        value = getattr(limits, limit.name)
        if not value > 0:
            flag = limit.name.replace("_", "-")
            raise ValueError(f"--{flag} is {value}, expected more than 0")
    return limits


def check_host(host: str, keys: Keys, is_open: bool) -> Collection[str] | None:
    """The hosts whose web pages may post; None for all, where a key keeps others out.

    Raises ValueError if other machines could reach a server that asks for no key.
    """
    if keys or is_open:
        return None
    if host not in LOOPBACK:
        raise ValueError(
            f"--host is {host}, which others reach, and there is no key; set {KEY_VARIABLE} or "
            "--api-key-file, or say --open to serve everybody"
        )
    return LOOPBACK


def load_models(options: Namespace) -> tuple[Models, Any]:
    """All models that were asked for, under their names, and the Searcher of an index.

    The first embedding model is the one that made the index.
    """
    load = load_options(options)
    load_reranker = load.for_another()
    asked = named_models(options.served or [])
    own = [row for row in asked if row[0] == "--model"]
    if not asked and options.index is None:
        own = [("--model", DEFAULT_MODEL, None)]
    embedders, searcher = [], None
    if options.index is not None:
        searcher = open_index(options.index, own.pop(0) if own else None, load)
        embedders.append(searcher.served)
    for _, origin, name in own:
        model = E5.from_pretrained(origin, **vars(load))
        if model.prompts is None and options.default_input_type != NONE:
            raise ValueError(
                f"{origin} does not say which prefixes its texts take; pass --prompts e5, "
                f"e5-instruct or none, or --default-input-type {NONE} if clients write them"
            )
        embedders.append(serve_embedder(model, origin, name))
    rerankers = []
    for flag, origin, name in asked:
        if flag == "--reranker":
            reranker = Reranker.from_pretrained(origin, **vars(load_reranker))
            rerankers.append(serve_reranker(reranker, origin, name))
    return Models(embedders, rerankers), searcher


def open_index(
    path: Path, asked: tuple[str, str, str | None] | None, load: LoadOptions
) -> Searcher:
    """An index with the model that made it, which is the one asked for, or refused."""
    index = Index.open(path)
    _, origin, name = asked or ("", None, None)
    model, arguments = query_model(index, path, QueryOptions(origin, load=load))
    made = (index.made_from or {})["model"]["name"]
    return Searcher(index, path, serve_embedder(model, origin or made, name), arguments)


def named_models(given: Sequence[tuple[str, str]]) -> list[tuple[str, str, str | None]]:
    """Each model's flag, where it comes from, and its name if one follows it.

    Raises ValueError for a name that follows no model.
    """
    asked: list[tuple[str, str, str | None]] = []
    for flag, value in given:
        if flag != "--served-name":
            asked.append((flag, value, None))
        elif not asked or asked[-1][2] is not None:
            raise ValueError(f"--served-name {value} stands behind no --model and no --reranker")
        else:
            asked[-1] = (*asked[-1][:2], value)
    return asked
