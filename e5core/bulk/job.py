"""A whole job: rows in, vectors out, and a partial output that the next run goes on from."""

import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

import e5core
from e5core.bulk.chunks import CHUNK_CHARACTERS, CHUNK_ROWS, Chunk, chunked, refusal
from e5core.bulk.journal import (
    JOURNAL,
    Done,
    Journal,
    PartialOutputError,
    clear,
    differences,
    model_digests,
    read_inputs,
    read_journal,
    write_inputs,
)
from e5core.bulk.sinks import (
    REJECTS,
    FileSink,
    GrowingFile,
    ParquetSink,
    Sink,
    npy_header,
    reject_lines,
    safetensors_header,
    sync,
    targets,
)
from e5core.bulk.sources import STDIN, BadRow, Row, Source, hidden
from e5core.bulk.workers import Embedded, Here, Workers
from e5core.checkpoint.folder import ModelFolder
from e5core.checkpoint.options import LoadOptions
from e5core.formats.files import held
from e5core.model import InputType, Truncate
from e5core.progress import rate_bar

HEADERS = {".npy": npy_header, ".safetensors": safetensors_header}
PARQUET = ".parquet"
SHARD_ROWS = 65_536  # 100 MB of e5-small's vectors
FROM_PRETRAINED = ("dtype", "device", "kernels", "max_length")
RESOLVE = ("revision", "cache_dir", "token", "local_files_only")


@dataclass(frozen=True)
class Summary:
    """What `embed_files` did, in all runs that it took.

    rows      vectors written, of `hidden_size` numbers
    tokens    of their texts before any cut, with prefix, `<s>` and `</s>`
    cut       texts that lost their end
    rejected  rows without a vector, each a line of the rejects file
    seconds   of work
    """

    output: Path
    rows: int
    hidden_size: int
    tokens: int
    cut: int
    rejected: int
    seconds: float


def partial_folder(output: Path) -> Path:
    """Where an output grows until it is complete."""
    return output.with_name(f"{output.name}.partial")


def embed_files(
    model: str | Path,
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    input_type: InputType,
    column: str | None = None,
    id_column: str | None = None,
    format: str | None = None,  # noqa: A002 (the name of the option)
    on_error: Literal["stop", "skip"] = "stop",
    task: str | None = None,
    truncate: Truncate = "end",
    normalize: bool = True,
    max_tokens_per_batch: int | None = None,
    workers: int = 1,
    restart: bool = False,
    chunk_rows: int | None = None,
    shard_rows: int = SHARD_ROWS,
    show_progress: bool | None = None,
    prompts: Any = None,
    **load: Any,
) -> Summary:
    """Embed all rows of files into a file, or go on where a stopped run was.

    inputs      files, folders, or "-" for standard input: lines of text, or .jsonl, .csv, .tsv,
                .parquet (which needs pyarrow), read as they are needed
    output      by its suffix: .npy or .safetensors (the tensor "vectors") for one file
                [rows, hidden_size] float32 with the ids in `<output>.ids.jsonl`, a line a row;
                .parquet for a folder of shards with the columns id (text), file, line, vector
    column      the field that holds the text, by default "text"; lines have none
    id_column   the field that holds the id; without one a row is known by file and line
    format      "txt", "jsonl", "csv", "tsv" or "parquet" in place of the files' suffixes
    on_error    what a row does that holds no text, or under truncate="none" too much of it:
                "stop", or "skip" into `<output>.rejects.jsonl` with file, line and reason
    workers     processes that compute; on a GPU one each. Each imports the main module, so a
                script needs its `if __name__ == "__main__":`
    restart     begin anew where a partial output lies
    chunk_rows  rows after which what is done is safe on the disk, fewer if they are long. None
                takes 512 on a CPU, 8,192 on a GPU
    shard_rows  rows after which a .parquet shard ends, with its chunk
    model, prompts, load                          arguments of `E5.from_pretrained`
    input_type, task, truncate, normalize, max_tokens_per_batch, show_progress  of `E5.embed`

    Killed at any moment, the same call goes on, and the files are those of a run that was never
    stopped, byte by byte. The partial output lies in `<output>.partial`. It is refused
    (PartialOutputError) if the model, an option or a row that was read before has changed.
    Memory does not grow with the input.

    Raises ValueError or OSError naming the culprit; what was done stays.
    """
    started = time.monotonic()
    output = Path(output)
    counts = {"workers": workers, "chunk_rows": chunk_rows, "shard_rows": shard_rows}
    _check(output, on_error, truncate, counts)
    if unknown := load.keys() - {*FROM_PRETRAINED, *RESOLVE}:
        raise TypeError(f"embed_files takes no argument {', '.join(sorted(unknown))}")
    names = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    _check_apart(output, names)
    source = Source(names, column=column, id_column=id_column, format=format)
    files = [_known_by(file) for file in source.files]
    folder = partial_folder(output)
    folder.mkdir(exist_ok=True)
    with ExitStack() as stack:
        if not stack.enter_context(held(folder)):
            raise PartialOutputError(f"{folder} is in use by another run; wait for its end")
        stack.callback(_remove_if_done, folder)
        if restart:
            clear(folder)
        journal = read_journal(folder)
        if output.suffix == ".parquet" and output.exists() and not (journal and journal.complete):
            raise FileExistsError(f"{output} is there already; move it away or name another output")

        place = LoadOptions(**{k: v for k, v in load.items() if k in RESOLVE})
        found = ModelFolder.open(model, place)
        model_folder = found.path
        load = {name: value for name, value in load.items() if name in FROM_PRETRAINED}
        if prompts is None:  # the hub id says more about them than the folder alone
            prompts = found.prompts
        embed = {
            "input_type": input_type,
            "task": task,
            "truncate": truncate,
            "normalize": normalize,
            "max_tokens_per_batch": max_tokens_per_batch,
        }
        load["prompts"] = prompts
        engine: Here | Workers
        if workers == 1:
            engine = Here(model_folder, load, embed)
        else:
            engine = Workers(model_folder, load, embed, workers)
        stack.enter_context(closing(engine))

        device = engine.description["device"]
        chunk_rows = CHUNK_ROWS[device] if chunk_rows is None else chunk_rows
        chunk_characters = CHUNK_CHARACTERS[device]
        made_from = {
            "model": model_digests(model_folder),
            "options": {
                **engine.description,
                "truncate": truncate,
                "normalize": normalize,
                "max_tokens_per_batch": max_tokens_per_batch,
                "column": column,
                "id_column": id_column,
                "chunk_rows": chunk_rows,
                "chunk_characters": chunk_characters,
                "shard_rows": shard_rows,
            },
            "versions": {"e5core": e5core.__version__, "torch": str(torch.__version__)},
        }
        if journal is None:
            journal = Journal(folder, made_from)
            write_inputs(folder, files)
        _check_same(journal, made_from, on_error)
        chunks = chunked(source, chunk_rows, chunk_characters, on_error == "stop")
        if journal.done.rows_read:
            _skip(chunks, journal, files)
        if not journal.complete:
            earlier = journal.done.seconds
            # Closed before they are moved: Windows moves no open file, and NFS keeps one that is
            # removed under another name in the folder.
            with (
                closing(_sink(output, journal, shard_rows, id_column is not None)) as sink,
                closing(
                    GrowingFile(folder / REJECTS, journal.done.sizes.get(REJECTS, 0))
                ) as rejects,
                rate_bar(source.total_bytes, source.position, show_progress) as advance,
            ):
                for chunk, embedded in engine.embed(chunks):
                    _store(chunk, embedded, sink, rejects, journal.done, on_error)
                    journal.done.seconds = earlier + time.monotonic() - started
                    journal.write()
                    advance(chunk.position, len(embedded.vectors), embedded.tokens)
                sink.finish()
                rejects.complete()
            journal.complete = True
            journal.write()
        elif next(chunks, None) is not None:
            raise PartialOutputError(
                f"the input has more rows than {folder}, which is complete; pass restart=True to "
                "begin anew"
            )
        _publish(journal, output)
    done, hidden_size = journal.done, engine.description["hidden_size"]
    return Summary(
        output, done.rows, hidden_size, done.tokens, done.cut, done.rejected, done.seconds
    )


def _check(output: Path, on_error: str, truncate: str, counts: dict[str, int | None]) -> None:
    """Everything that can be said before any work."""
    if output.suffix not in (*HEADERS, PARQUET) or (output.suffix in HEADERS and output.is_dir()):
        raise ValueError(
            f"output is {output}, expected a file name that ends in .npy or .safetensors, or that "
            "of a new folder that ends in .parquet"
        )
    if not output.parent.is_dir():
        raise FileNotFoundError(f"cannot write {output}: the folder {output.parent} does not exist")
    if on_error not in ("stop", "skip"):
        raise ValueError(f"on_error is {on_error!r}, expected 'stop' or 'skip'")
    if truncate not in ("end", "none", "window"):
        raise ValueError(f"truncate is {truncate!r}, expected 'end', 'none' or 'window'")
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"{name} is {count}, expected 1 or more")


def _check_apart(output: Path, names: Sequence[str | Path]) -> None:
    """ValueError if the output would be read as input by the next run, or replace it."""
    replaced = [target.resolve() for _, target in targets(partial_folder(output), output)]
    for name in names:
        source = Path(name).resolve()
        if source in replaced:
            raise ValueError(f"output {output} would replace the input {name}; name another output")
        if source.is_dir() and source in replaced[-1].parents:
            inside = replaced[-1].relative_to(source)
            if not any(map(hidden, inside.parts)):
                raise ValueError(
                    f"output {output} lies in the input folder {name}, where it would be read as "
                    "input; name one outside"
                )


def _known_by(file: str) -> list[Any]:
    """A file's name, size and time of change; OSError if it cannot be read."""
    if file == STDIN:
        return [file]
    status = Path(file).stat()
    if not stat.S_ISREG(status.st_mode):  # to open a pipe only to try would use it up
        raise ValueError(
            f"{file} is a pipe or a device, which can be read only once; pipe it into standard "
            "input and name that, -"
        )
    with Path(file).open("rb"):
        return [file, status.st_size, status.st_mtime_ns]


def _check_same(journal: Journal, made_from: dict[str, dict[str, Any]], on_error: str) -> None:
    """PartialOutputError if what is done would not be done so now."""
    if found := differences(journal.made_from, made_from):
        raise PartialOutputError(
            f"{journal.folder} was begun otherwise: {'; '.join(found)}. Go on as it was begun, or "
            "pass restart=True to begin anew"
        )
    if journal.done.rejected and on_error == "stop":
        raise PartialOutputError(
            f'{journal.folder} was begun with on_error="skip" and has left out '
            f"{journal.done.rejected} rows; go on so, or pass restart=True to begin anew"
        )


def _skip(chunks: Iterator[Chunk], journal: Journal, files: list[list[Any]]) -> None:
    """Read over the rows that are done; PartialOutputError if they are not the same rows."""
    done = journal.done
    for chunk in chunks:
        if chunk.rows_read >= done.rows_read:
            if (chunk.rows_read, chunk.sha256) == (done.rows_read, done.sha256):
                return
            break
    before = read_inputs(journal.folder)
    names = [file[0] for file in before]
    if names != [file[0] for file in files]:
        change = f"the files were {', '.join(names)}"
    else:
        pairs = zip(before, files, strict=True)
        changed = ", ".join(old[0] for old, new in pairs if old != new or old[0] == STDIN)
        change = f"changed: {changed}" if changed else "a file was replaced or is read otherwise"
    raise PartialOutputError(
        f"{journal.folder} holds the vectors of {done.rows_read} rows that are no longer the first "
        f"ones of the input ({change}); restore the input, or pass restart=True to begin anew"
    )


def _sink(output: Path, journal: Journal, shard_rows: int, with_ids: bool) -> Sink:
    hidden_size = journal.made_from["options"]["hidden_size"]
    sizes = journal.done.sizes
    if output.suffix == PARQUET:
        return ParquetSink(journal.folder, hidden_size, sizes, shard_rows, with_ids)
    return FileSink(journal.folder, hidden_size, sizes, HEADERS[output.suffix])


def _store(
    chunk: Chunk,
    embedded: Embedded,
    sink: Sink,
    rejects: GrowingFile,
    done: Done,
    on_error: str,
) -> None:
    """Append a chunk to the files, and count it in `done`."""
    rows: list[Row] = []
    bad: list[BadRow] = []
    texts = 0
    for row in chunk.rows:
        if isinstance(row, BadRow):
            bad.append(row)
            continue
        reason = embedded.rejected.get(texts)
        texts += 1
        if reason is None:
            rows.append(row)
        else:
            bad.append(BadRow(row.file, row.line, reason))
    if bad and on_error == "stop":
        raise ValueError(refusal(bad[0]))
    sink.append(embedded.vectors, rows)
    rejects.append(reject_lines(bad))
    done.rows_read, done.sha256 = chunk.rows_read, chunk.sha256
    done.rows += len(rows)
    done.tokens += embedded.tokens
    done.cut += embedded.cut
    done.rejected += len(bad)
    done.sizes = {**sink.state(), REJECTS: rejects.size}


def _publish(journal: Journal, output: Path) -> None:
    """Move complete files to their names; a run that was stopped here has moved some already."""
    for file, target in targets(journal.folder, output):
        if file.name == REJECTS and not journal.done.rejected:
            target.unlink(missing_ok=True)  # of the output that this one replaces
        elif file.exists():
            file.replace(target)
    sync(output.parent)
    clear(journal.folder, journal_last=True)


def _remove_if_done(folder: Path) -> None:
    """Leave nothing behind if all is done, or nothing was."""
    if not (folder / JOURNAL).is_file():
        with suppress(OSError):  # it holds something that is not ours, such as .DS_Store
            clear(folder)
            folder.rmdir()
