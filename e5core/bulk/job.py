"""A whole job: rows in, vectors out, and a partial output that the next run goes on from."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch

import e5core
from e5core.bulk.chunks import CHUNK_SIZES, Chunk, ChunkSize, refuse, split_into_chunks
from e5core.bulk.engine import Embedded, EmbedOptions, Engine, InProcess
from e5core.bulk.journal import (
    Journal,
    check_nothing_more,
    check_same,
    describe_kernels,
    model_digests,
    read_journal,
    skip_done,
    write_inputs,
)
from e5core.bulk.options import JobOptions
from e5core.bulk.parquet import ParquetSink
from e5core.bulk.partial import PARQUET, REJECTS, clear, follow, lock_partial_folder, publish
from e5core.bulk.progress import rate_bar
from e5core.bulk.record import (
    check_not_other,
    check_output_is_free,
    is_done,
    read_record,
    write_record,
)
from e5core.bulk.rows import BadRow, Row
from e5core.bulk.sinks import HEADERS, FileSink, Sink
from e5core.bulk.sources import Source, identify
from e5core.bulk.workers import Workers
from e5core.checkpoint.folder import ModelFolder
from e5core.checkpoint.options import LoadOptions
from e5core.model import InputType, Truncate

SHARD_ROWS = 65_536  # 100 MB of e5-small's vectors


@dataclass(frozen=True)
class Summary:
    """The counts of a job of `embed_files`, over all runs that it took.

    rows      vectors written, of `hidden_size` numbers; of split texts one for each passage
    tokens    the tokens of their texts before any cut, with prefix, `<s>` and `</s>`
    cut       texts that lost their end
    rejected  rows without a vector, each a line of the rejects file
    seconds   the time of all this work
    kernels   those that computed, and why no faster ones
    """

    output: Path
    rows: int
    hidden_size: int
    tokens: int
    cut: int
    rejected: int
    seconds: float
    kernels: str


def embed_files(
    model: str | Path,
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    input_type: InputType,
    task: str | None = None,
    truncate: Truncate = "end",
    split: int | None = None,
    overlap: int | None = None,
    normalize: bool = True,
    max_tokens_per_batch: int | None = None,
    column: str | None = None,
    id_column: str | None = None,
    delimiter: str | None = None,
    format: str | None = None,  # noqa: A002 (the name of the option)
    on_error: Literal["stop", "skip"] = "stop",
    workers: int = 1,
    restart: bool = False,
    force: bool = False,
    keep_blank: bool = False,
    chunk_rows: int | None = None,
    shard_rows: int = SHARD_ROWS,
    show_progress: bool | None = None,
    **load: Any,
) -> Summary:
    """Embed all rows of files into a file, or go on where a stopped run was.

    JobOptions, EmbedOptions, E5.embed and, for `load`, LoadOptions describe the arguments.
    Killed at any moment, the same call goes on, and the files are those of a run that was never
    stopped, byte by byte. The partial output lies in `<output>.partial`. It is refused
    (PartialOutputError) if the model, an option or a row that was read before has changed.
    Memory does not grow with the input.

    Raises ValueError or OSError naming the culprit; what was done stays.
    """
    if unknown := load.keys() - {field.name for field in fields(LoadOptions)}:
        raise TypeError(f"embed_files takes no argument {', '.join(sorted(unknown))}")
    options = JobOptions(
        model=model,
        inputs=(inputs,) if isinstance(inputs, str | Path) else tuple(inputs),
        output=follow(Path(output)),
        embed=EmbedOptions(
            input_type, task, truncate, normalize, max_tokens_per_batch, split, overlap
        ),
        load=LoadOptions(**load),
        column=column,
        id_column=id_column,
        delimiter=delimiter,
        format=format,
        on_error=on_error,
        workers=workers,
        restart=restart,
        force=force,
        keep_blank=keep_blank,
        chunk_rows=chunk_rows,
        shard_rows=shard_rows,
        show_progress=show_progress,
    )
    return run_job(options)


def run_job(options: JobOptions) -> Summary:
    """Take all steps of a job, as `embed_files` describes it."""
    started = time.monotonic()
    options.check()
    source = options.open_source()
    files = [identify(file) for file in source.files]
    with lock_partial_folder(options.output) as folder:
        if options.restart:
            clear(folder)
        journal = read_journal(folder)
        finished = None if journal and journal.complete else read_record(options.output)
        check_output_is_free(options, journal, finished)
        model = ModelFolder.open(options.model, options.load)
        with closing(start_engine(model, options)) as engine:
            size = choose_chunk_size(options, engine)
            made_from = fingerprint(model, options, engine, size)
            if finished is not None and not options.force:
                check_not_other(finished, made_from, options.output)
                if journal is None and is_done(finished, options, source, size):
                    return summarize(finished, options.output)
            if journal is None:
                journal = Journal(folder, made_from)
                write_inputs(folder, files)
            check_same(journal, made_from, options.on_error)
            chunks = split_into_chunks(source, size, options.on_error == "stop")
            skip_done(chunks, journal, files)
            if journal.complete:
                check_nothing_more(chunks, journal)
            else:
                embed_rest(chunks, engine, journal, source, options, started)
                complete(journal, model, options)
            publish(options.output, journal.done.rejected)
    return summarize(journal, options.output)


def start_engine(model: ModelFolder, options: JobOptions) -> Engine:
    """Load the model in this process, or in as many workers as are wanted."""
    if options.workers == 1:
        return InProcess(model, options.load, options.embed)
    return Workers(model, options.load, options.embed, options.workers)


def choose_chunk_size(options: JobOptions, engine: Engine) -> ChunkSize:
    size = CHUNK_SIZES[engine.description["device"]]
    return size if options.chunk_rows is None else size._replace(rows=options.chunk_rows)


def fingerprint(
    model: ModelFolder, options: JobOptions, engine: Engine, size: ChunkSize
) -> dict[str, dict[str, Any]]:
    """Everything but the rows that the output's bytes depend on, as {group: {name: value}}."""
    return {
        "model": model_digests(model),
        "options": {
            **engine.description,
            "input_type": options.embed.input_type,
            "task": options.embed.task,
            "truncate": options.embed.truncate,
            "normalize": options.embed.normalize,
            "max_tokens_per_batch": options.embed.max_tokens_per_batch,
            "column": options.column,
            "id_column": options.id_column,
            "split": options.embed.split,
            "overlap": options.embed.passages and options.embed.passages[1],
            "keep_blank": options.keep_blank,
            "chunk_rows": size.rows,
            "chunk_characters": size.characters,
            "shard_rows": options.shard_rows,
        },
        "versions": {"e5core": e5core.__version__, "torch": str(torch.__version__)},
    }


def embed_rest(
    chunks: Iterator[Chunk],
    engine: Engine,
    journal: Journal,
    source: Source,
    options: JobOptions,
    started: float,
) -> None:
    """Embed the chunks that are left; the journal follows the files chunk by chunk."""
    earlier = journal.done.seconds
    # Closed before they are moved: Windows moves no open file, and NFS keeps one that is
    # removed under another name in the folder.
    with (
        closing(open_sink(journal, options)) as sink,
        rate_bar(source.total_bytes, source.position, options.show_progress) as advance,
    ):
        for chunk, embedded in engine.embed(chunks):
            store(chunk, embedded, sink, journal, options)
            journal.done.seconds = earlier + time.monotonic() - started
            journal.write()
            advance(chunk.position, len(embedded.vectors), embedded.tokens)
        sink.finish()


def complete(journal: Journal, model: ModelFolder, options: JobOptions) -> None:
    """Write the record, and note in the journal that only publishing is left.

    Raises ValueError if every row was rejected; such a job leaves nothing.
    """
    done = journal.done
    if done.rejected and not done.rows:
        with (journal.folder / REJECTS).open(encoding="utf-8") as lines:
            first = json.loads(next(lines))
        clear(journal.folder)
        raise ValueError(
            f"all {done.rejected} rows were rejected, so {options.output} is not written; the "
            f"first one was {first['file']}, line {first['line']}: {first['reason']}"
        )
    write_record(journal, model, options)
    journal.complete = True
    journal.write()


def open_sink(journal: Journal, options: JobOptions) -> Sink:
    """The files of the partial output, as the journal knows them."""
    hidden_size, sizes = journal.hidden_size, journal.done.sizes
    suffix = options.output.suffix
    if suffix == PARQUET:
        with_ids = options.id_column is not None
        spans = options.embed.split is not None
        return ParquetSink(journal.folder, hidden_size, sizes, options.shard_rows, with_ids, spans)
    return FileSink(journal.folder, hidden_size, sizes, HEADERS[suffix])


def store(
    chunk: Chunk, embedded: Embedded, sink: Sink, journal: Journal, options: JobOptions
) -> None:
    """Append a chunk to the files, and count it in the journal, which is not written yet.

    Raises ValueError for a row without a vector, if these are to stop the work.
    """
    rows: list[Row] = []
    rejected: list[BadRow] = []
    spans = iter(embedded.spans or ())
    texts = 0
    for row in chunk.rows:
        if isinstance(row, BadRow):
            rejected.append(row)
            continue
        reason = embedded.rejected.get(texts)
        texts += 1
        if reason is not None:
            rejected.append(BadRow(row.file, row.line, reason))
        elif embedded.spans is None:
            rows.append(row)
        else:
            rows += [row._replace(span=span) for span in next(spans)]
    if rejected and options.on_error == "stop":
        refuse(rejected[0])
    sink.append(embedded.vectors, rows, rejected)
    done = journal.done
    done.rows_read, done.sha256 = chunk.rows_read, chunk.sha256
    done.rows += len(rows)
    done.tokens += embedded.tokens
    done.cut += embedded.cut
    done.rejected += len(rejected)
    done.sizes = sink.sizes()


def summarize(journal: Journal, output: Path) -> Summary:
    done, size = journal.done, journal.hidden_size
    counts = done.rows, size, done.tokens, done.cut, done.rejected, done.seconds
    return Summary(output, *counts, describe_kernels(journal.made_from["options"]))
