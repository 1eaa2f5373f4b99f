"""The options of a bulk job, which do not change while it runs, and their checks."""

import multiprocessing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from e5core.bulk.engine import EmbedOptions
from e5core.bulk.partial import PARQUET, published_names
from e5core.bulk.sinks import HEADERS
from e5core.bulk.sources import Source, is_hidden
from e5core.checkpoint.options import LoadOptions
from e5core.texts.cutting import check_truncate


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """The arguments of `embed_files`.

    model       a folder or a hub id
    inputs      files, folders, or "-" for standard input: lines of text, or .jsonl, .csv, .tsv,
                .parquet (which needs pyarrow), read as they are needed
    output      by its suffix: .npy or .safetensors (the tensor "vectors") for one file
                [rows, hidden_size] float32 with the ids in `<output>.ids.jsonl`, a line a row;
                .parquet for a folder of shards with the columns id (text), file, line, vector.
                With `split`, passage, start and end stand beside each line too
    embed, load the options of `E5.embed` and of `E5.from_pretrained`
    column      the field that holds the text, by default "text"; lines have none
    id_column   the field that holds the id; without one a row is known by file and line
    delimiter   the character between the fields of CSV and TSV, or "tab"
    format      "txt", "jsonl", "csv", "tsv" or "parquet" in place of the files' suffixes
    on_error    what a row does that holds no text, or under truncate="none" too much of it:
                "stop", or "skip" into `<output>.rejects.jsonl` with file, line and reason
    workers     processes that compute; on a GPU one each. Each imports the main module, so a
                script needs its `if __name__ == "__main__":`
    restart     begin anew where a partial output lies
    force       replace a finished output that another model or other options made
    keep_blank  embed texts in which nothing can be seen, which are rows without a text otherwise
    chunk_rows  rows after which what is done is safe on the disk, fewer if they are long. None
                takes 512 on a CPU, 8,192 on a GPU
    shard_rows  rows after which a .parquet shard ends, with its chunk
    show_progress  None shows a bar on a terminal and none elsewhere
    """

    model: str | Path
    inputs: tuple[str | Path, ...]
    output: Path
    embed: EmbedOptions
    load: LoadOptions
    column: str | None
    id_column: str | None
    delimiter: str | None
    format: str | None
    on_error: Literal["stop", "skip"]
    workers: int
    restart: bool
    force: bool
    keep_blank: bool
    chunk_rows: int | None
    shard_rows: int
    show_progress: bool | None

    def open_source(self) -> Source:
        """The rows of the input, from the first one on."""
        return Source(
            self.inputs,
            column=self.column,
            id_column=self.id_column,
            format=self.format,
            delimiter=self.delimiter,
            keep_blank=self.keep_blank,
        )

    def check(self) -> None:
        """Say everything that can be said before any work: ValueError or OSError."""
        output = self.output
        folder = output.is_dir()
        if output.is_symlink():  # links were followed
            raise OSError(f"output {output} is a link that leads nowhere but to itself; remove it")
        if output.suffix not in (*HEADERS, PARQUET) or (output.suffix in HEADERS and folder):
            inside = f"; it is a folder: name a file in it, such as {output / 'vectors.npy'}"
            raise ValueError(
                f"output is {output}, expected a file name that ends in .npy or .safetensors, or "
                f"that of a new folder that ends in .parquet{inside if folder else ''}"
            )
        if output.suffix == PARQUET and output.exists() and not folder:
            raise FileExistsError(f"output {output} is a file, expected a folder of shards")
        if not output.parent.is_dir():
            raise FileNotFoundError(
                f"cannot write {output}: the folder {output.parent} does not exist"
            )
        if self.on_error not in ("stop", "skip"):
            raise ValueError(f"on_error is {self.on_error!r}, expected 'stop' or 'skip'")
        check_truncate(self.embed.truncate)
        if self.embed.split is not None and self.embed.truncate == "window":
            raise ValueError(
                'split makes passages that fit, of which truncate="window" makes nothing; pass '
                "one of the two (--split or --truncate window)"
            )
        if self.embed.split is None and self.embed.overlap is not None:
            raise ValueError(
                f"overlap is {self.embed.overlap}, but texts are not split; pass split=256 "
                "(--split 256) too, or leave it out"
            )
        for name in ("workers", "chunk_rows", "shard_rows"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise ValueError(f"{name} is {count}, expected 1 or more")
        if self.workers > 1 and multiprocessing.current_process().daemon:
            raise ValueError(
                f"workers is {self.workers}, but this process is daemonic, as those of a Pool and "
                "of celery are, and may start none; pass workers=1 (--workers 1)"
            )
        self._check_apart()

    def _check_apart(self) -> None:
        """ValueError if the output would replace the input, or be read as input by the next run."""
        replaced = [target.resolve() for target in published_names(self.output).values()]
        vectors = replaced[-1]
        for name in self.inputs:
            source = Path(name).resolve()
            if source in replaced:
                raise ValueError(
                    f"output {self.output} would replace the input {name}; name another output"
                )
            if source.is_dir() and source in vectors.parents:
                inside = vectors.relative_to(source)
                if not any(map(is_hidden, inside.parts)):
                    raise ValueError(
                        f"output {self.output} lies in the input folder {name}, where it would be "
                        "read as input; name one outside"
                    )
