"""Embed the rows of files. Stopped at any moment, the same command goes on."""

from argparse import Namespace
from pathlib import Path

from e5core import bulk
from e5core.bulk.engine import OVERLAP
from e5core.bulk.sources import FORMATS
from e5core.cli.options import add_model_options, load_options
from e5core.cli.program import Parser


def add_arguments(parser: Parser) -> None:
    add_model_options(parser)
    parser.add_argument("--task", help="the instruction of an instruct model's queries")
    parser.add_argument("--max-tokens-per-batch", type=int, help="tokens of one forward pass")
    parser.add_argument(
        "input", nargs="+", help=f"a file, a folder, or - for standard input: {', '.join(FORMATS)}"
    )
    parser.add_argument("--input-type", required=True, choices=("query", "passage", "none"))
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        help="[rows, hidden] float32, .npy or .safetensors, or a folder of shards, .parquet",
    )
    parser.add_argument("--format", choices=FORMATS, help="in place of what the suffix says")
    parser.add_argument("--column", help="the field that holds the text (default: text)")
    parser.add_argument("--id-column", help="the field that holds the id (default: file and line)")
    parser.add_argument("--delimiter", help="between the fields of CSV and TSV, such as ';' or tab")
    parser.add_argument(
        "--on-error",
        default="stop",
        choices=("stop", "skip"),
        help="what a bad row does: stop, or go to OUTPUT.rejects.jsonl",
    )
    parser.add_argument("--truncate", default="end", choices=("end", "none", "window"))
    parser.add_argument(
        "--split", type=int, metavar="TOKENS", help="a vector for each passage of so many tokens"
    )
    parser.add_argument(
        "--overlap",
        type=int,
        metavar="TOKENS",
        help=f"what a passage may share with the one before it (default: {OVERLAP})",
    )
    parser.add_argument("--no-normalize", action="store_true", help="leave vectors at their length")
    parser.add_argument("--workers", type=int, default=1, help="processes; on GPUs one each")
    parser.add_argument("--restart", action="store_true", help="begin anew over a partial output")
    parser.add_argument("--force", action="store_true", help="replace a finished output")
    parser.add_argument("--keep-blank", action="store_true", help="embed blank texts too")
    parser.add_argument("--chunk-rows", type=int, help="rows after which all is safe on the disk")
    parser.add_argument(
        "--shard-rows", type=int, default=bulk.SHARD_ROWS, help="rows of a .parquet file"
    )
    parser.set_defaults(run=run, hint=what_is_kept)


def run(options: Namespace) -> int:
    summary = bulk.embed_files(
        options.model,
        options.input,
        options.output,
        input_type=None if options.input_type == "none" else options.input_type,
        task=options.task,
        truncate=options.truncate,
        split=options.split,
        overlap=options.overlap,
        normalize=not options.no_normalize,
        max_tokens_per_batch=options.max_tokens_per_batch,
        column=options.column,
        id_column=options.id_column,
        delimiter=options.delimiter,
        format=options.format,
        on_error=options.on_error,
        workers=options.workers,
        restart=options.restart,
        force=options.force,
        keep_blank=options.keep_blank,
        chunk_rows=options.chunk_rows,
        shard_rows=options.shard_rows,
        **vars(load_options(options)),
    )
    seconds = max(summary.seconds, 0.001)
    rejects = f"{summary.rejected} rows rejected, see {options.output}.rejects.jsonl; "
    print(
        f"{options.output}: {summary.rows} vectors of {summary.hidden_size} numbers, "
        f"{summary.tokens} tokens, {summary.cut} texts cut; {rejects if summary.rejected else ''}"
        f"{seconds:.1f} s, {summary.rows / seconds:.1f} rows/s, "
        f"{summary.tokens / seconds:.0f} tokens/s; kernels: {summary.kernels}"
    )
    return 0


def what_is_kept(options: Namespace, error: BaseException) -> str:
    """Say where an error has left the job's work, and if the same command goes on from there."""
    kept = bulk.partial_folder(options.output)
    if isinstance(error, bulk.PartialOutputError) or not kept.is_dir():
        return ""
    # A ValueError asks for another command, or other input.
    goes_on = "" if isinstance(error, ValueError) else ", the same command goes on from there"
    return f"; what is done is in {kept}{goes_on}"
