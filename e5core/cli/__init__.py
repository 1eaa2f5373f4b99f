"""The command line: e5core embed | search | info."""

import argparse
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import e5core
from e5core.bulk import SHARD_ROWS
from e5core.bulk.rows import BadRow
from e5core.bulk.sources import FORMATS, Source
from e5core.checkpoint.folder import AUTO, DTYPES, ModelFolder
from e5core.checkpoint.options import LoadOptions
from e5core.kernels import BACKENDS
from e5core.model import E5
from e5core.prompts import PROMPTS_BY_NAME
from e5core.vectors.search import search

DEFAULT_MODEL = "intfloat/multilingual-e5-small"
USAGE_ERROR = 2  # argparse's own exit code, used for every error of the caller's making


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, as every other error; argparse would print the usage before it."""
        self.exit(USAGE_ERROR, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; an error is one line on standard error and the exit code 2."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output, such as head, has what it wants. Python would complain
        # again when it flushes standard output at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print(f"e5core: interrupted{options.hint}", file=sys.stderr)
        return 130
    except (OSError, ValueError, MemoryError, RuntimeError) as error:
        # torch's error for a full memory is a RuntimeError; any other is a defect of ours.
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        reason = _as_options(" ".join(str(error).split()) or type(error).__name__)
        print(f"e5core {options.command}: {reason}{options.hint}", file=sys.stderr)
        return USAGE_ERROR
    return 0


def _parser() -> _Parser:
    parser = _Parser(prog="e5core", description="multilingual E5 embeddings")
    parser.add_argument("--version", action="version", version=f"e5core {e5core.__version__}")
    parser.set_defaults(hint="")  # what to say behind an error
    commands = parser.add_subparsers(dest="command", required=True)

    hub_options = _Parser(add_help=False)
    hub_options.add_argument("--revision", help="branch, tag or commit on the hub")
    hub_options.add_argument("--cache-dir", type=Path, help="in place of huggingface_hub's cache")
    hub_options.add_argument(
        "--local-files-only", action="store_true", help="never ask the hub, use its cache"
    )

    load = _Parser(add_help=False, parents=[hub_options])
    load.add_argument(
        "--model", default=DEFAULT_MODEL, help="a folder or a hub id (default: %(default)s)"
    )
    load.add_argument("--dtype", default=AUTO, choices=(AUTO, *DTYPES))
    load.add_argument("--device", help="cpu, cuda, … (default: the GPU if there is one)")
    load.add_argument("--kernels", default="auto", choices=("auto", *BACKENDS))
    load.add_argument(
        "--prompts", choices=PROMPTS_BY_NAME, help="in place of the model's own prefixes"
    )
    load.add_argument("--max-length", type=int, help="tokens a text may have")
    load.add_argument("--task", help="the instruction of an instruct model's queries")
    load.add_argument("--max-tokens-per-batch", type=int, help="tokens of one forward pass")

    embed = commands.add_parser(
        "embed",
        parents=[load],
        help="embed files of any size; stopped, the same command goes on",
        description="Embed the rows of files. Stopped at any moment, the same command goes on.",
    )
    embed.add_argument(
        "input", nargs="+", help=f"a file, a folder, or - for standard input: {', '.join(FORMATS)}"
    )
    embed.add_argument("--input-type", required=True, choices=("query", "passage", "none"))
    embed.add_argument(
        "--output",
        required=True,
        type=Path,
        help="[rows, hidden] float32, .npy or .safetensors, or a folder of shards, .parquet",
    )
    embed.add_argument("--format", choices=FORMATS, help="in place of what the suffix says")
    embed.add_argument("--column", help="the field that holds the text (default: text)")
    embed.add_argument("--id-column", help="the field that holds the id (default: file and line)")
    embed.add_argument(
        "--on-error",
        default="stop",
        choices=("stop", "skip"),
        help="what a bad row does: stop, or go to OUTPUT.rejects.jsonl",
    )
    embed.add_argument("--truncate", default="end", choices=("end", "none", "window"))
    embed.add_argument("--no-normalize", action="store_true", help="leave vectors at their length")
    embed.add_argument("--workers", type=int, default=1, help="processes; on GPUs one each")
    embed.add_argument("--restart", action="store_true", help="begin anew over a partial output")
    embed.add_argument("--chunk-rows", type=int, help="rows after which all is safe on the disk")
    embed.add_argument("--shard-rows", type=int, default=SHARD_ROWS, help="rows of a .parquet file")
    embed.set_defaults(run=_embed)

    find = commands.add_parser(
        "search", parents=[load], help="find the passages that answer queries"
    )
    find.add_argument("query", nargs="+", metavar="QUERY")
    find.add_argument("--passages", required=True, help="UTF-8 text, one passage a line")
    find.add_argument("--top-k", type=int, default=5)
    find.set_defaults(run=_search)

    info = commands.add_parser("info", parents=[hub_options], help="describe a model")
    info.add_argument("model", help="a folder or a hub id")
    info.set_defaults(run=_info)
    return parser


def _load_options(options: argparse.Namespace) -> dict[str, Any]:
    return {
        name: getattr(options, name)
        for name in (
            "revision",
            "dtype",
            "device",
            "kernels",
            "local_files_only",
            "cache_dir",
            "prompts",
            "max_length",
        )
    }


def _lines(name: str) -> Iterator[str]:
    """The lines of a file without their ends; ValueError names a line that is not UTF-8."""
    for row in Source([name], format="txt").rows():
        if isinstance(row, BadRow):
            raise ValueError(f"{row.file}, line {row.line}: {row.reason}")
        yield row.text


@contextmanager
def _errors_counting(noun: str, file: str = "") -> Iterator[None]:
    """Errors of the library in the words of this program.

    A text that it counts from 0 is a line of the file or a query, counted from 1, and its
    argument truncate="end" is the option --truncate "end".
    """
    try:
        yield
    except ValueError as error:
        reason = re.sub(r"\btext (\d+)\b", lambda m: f"{noun} {int(m[1]) + 1}", str(error))
        reason = _as_options(reason)
        raise ValueError(f"{file}: {reason}" if file else reason) from error


def _as_options(reason: str) -> str:
    """Arguments of the library, such as truncate="end" or restart=True, as options."""
    option = r'\b([a-z_]+)=(?:True\b|(?=["\d]))'
    return re.sub(option, lambda m: "--" + m[1].replace("_", "-") + " " * (m[0][-1] == "="), reason)


def _embed(options: argparse.Namespace) -> None:
    from e5core import bulk

    try:
        summary = bulk.embed_files(
            options.model,
            options.input,
            options.output,
            input_type=None if options.input_type == "none" else options.input_type,
            task=options.task,
            truncate=options.truncate,
            normalize=not options.no_normalize,
            max_tokens_per_batch=options.max_tokens_per_batch,
            column=options.column,
            id_column=options.id_column,
            format=options.format,
            on_error=options.on_error,
            workers=options.workers,
            restart=options.restart,
            chunk_rows=options.chunk_rows,
            shard_rows=options.shard_rows,
            **_load_options(options),
        )
    except ImportError as error:  # pyarrow
        raise ValueError(str(error)) from error
    except BaseException as error:
        kept = bulk.partial_folder(options.output)
        if kept.is_dir() and not isinstance(error, bulk.PartialOutputError):
            options.hint = f"; what is done is in {kept}"
            if not isinstance(error, ValueError):  # that asks for another command, or input
                options.hint += ", the same command goes on from there"
        raise
    seconds = max(summary.seconds, 0.001)
    rejects = f"{summary.rejected} rows rejected, see {options.output}.rejects.jsonl; "
    print(
        f"{options.output}: {summary.rows} vectors of {summary.hidden_size} numbers, "
        f"{summary.tokens} tokens, {summary.cut} texts cut; {rejects if summary.rejected else ''}"
        f"{seconds:.1f} s, {summary.rows / seconds:.1f} rows/s, "
        f"{summary.tokens / seconds:.0f} tokens/s"
    )


def _search(options: argparse.Namespace) -> None:
    if options.top_k < 1:
        raise ValueError(f"--top-k is {options.top_k}, expected 1 or more")
    passages = list(_lines(options.passages))
    if not passages:
        raise ValueError(f"{options.passages} has no lines to search")
    model = E5.from_pretrained(options.model, **_load_options(options))
    limit = options.max_tokens_per_batch
    with _errors_counting("query"):
        queries = model.encode_query(options.query, task=options.task, max_tokens_per_batch=limit)
    with _errors_counting("line", options.passages):
        vectors = model.encode_passage(passages, max_tokens_per_batch=limit)
    result = search(queries, vectors, options.top_k)
    for query, indices, scores in zip(options.query, result.indices, result.scores, strict=True):
        print(query)
        for rank, (index, score) in enumerate(zip(indices, scores, strict=True), 1):
            print(f"{rank:5}. {score:.4f}  line {index + 1}: {passages[index]}")


def _info(options: argparse.Namespace) -> None:
    place = LoadOptions(
        revision=options.revision,
        cache_dir=options.cache_dir,
        local_files_only=options.local_files_only,
    )
    folder = ModelFolder.open(options.model, place, weights=False)
    config = folder.config
    parameters, tokens = config.num_parameters, config.vocab_size * config.hidden_size
    rows = {
        "architecture": f"{config.model_type}, {config.num_hidden_layers} layers",
        "hidden size": f"{config.hidden_size} in {config.num_attention_heads} heads",
        "feed-forward size": f"{config.intermediate_size}",
        "vocabulary": f"{config.vocab_size:,} rows",
        "parameters": f"{parameters:,}, of which {tokens:,} in the token table",
    }
    for name, dtype in DTYPES.items():
        rows[f"memory in {name}"] = f"{parameters * dtype.itemsize / 1e6:,.0f} MB"
    rows["pooling"] = folder.pooling
    for kind in ("query", "passage"):
        known = folder.prompts and repr(folder.prompts[kind])
        rows[f"{kind} prefix"] = known or "not known; say it with --prompts"
    limit, longest = folder.max_length, config.max_length
    rows["longest text"] = f"{limit} tokens; the position table holds {longest}"
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:{width}}  {value}")


if __name__ == "__main__":
    sys.exit(main())
