"""What the conversion scripts share: a command line, files that travel along, a summary."""

import argparse
import hashlib
import secrets
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import NoReturn

import torch
from safetensors import safe_open
from torch import Tensor

from e5core import Encoder, EncoderConfig
from e5core.checkpoint import CONFIG_FILE, StoredTensor, check_headers, read_headers, weight_files
from e5core.files import read_json_object, write_json
from e5core.folder import Settings

USAGE_ERROR = 2
PROMPTS_FILE = "config_sentence_transformers.json"


class Parser(argparse.ArgumentParser):
    """The arguments that every conversion takes."""

    def __init__(self, program: str, description: str) -> None:
        super().__init__(
            program,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.add_argument("source", help="the model: a folder or a hub id")
        self.add_argument("folder", type=Path, help="where the result goes")
        self.add_argument("--force", action="store_true", help="replace a model that is there")
        self.add_argument(
            "--verify", action="store_true", help="compare with the source before it is in place"
        )

    def error(self, message: str) -> NoReturn:
        """One line, as every other error; argparse would print the usage before it."""
        self.exit(USAGE_ERROR, f"{self.prog}: {message}; see {self.prog} --help\n")


def run(
    parser: Parser, convert: Callable[[argparse.Namespace], None], arguments: Sequence[str] | None
) -> int:
    """Parse and convert; an error is one line on standard error and the exit code 2."""
    options = parser.parse_args(arguments)
    try:
        convert(options)
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        return 130
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        print(f"{parser.prog}: {options.source}: {reason}", file=sys.stderr)
        return USAGE_ERROR
    return 0


@contextmanager
def replacing_folder(folder: Path, source: Path, force: bool) -> Iterator[Path]:
    """Yield a new folder beside `folder` that takes its name if the block succeeds.

    Raises FileExistsError before any work if `folder` holds anything and is not to be replaced,
    or is no model's folder, or holds the source.
    """
    folder = folder.absolute()
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is there and is not a folder; name another one")
    if folder.is_dir() and any(folder.iterdir()):
        if folder.resolve() in (source.resolve(), *source.resolve().parents):
            raise FileExistsError(f"{folder} holds the source; name another folder for the result")
        if not force:
            raise FileExistsError(f"{folder} is there already; pass --force to replace it")
        if not (folder / CONFIG_FILE).is_file():
            raise FileExistsError(
                f"{folder} has no {CONFIG_FILE}, so it is no model and is not replaced; remove it "
                "or name another one"
            )
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}")
    temporary.mkdir()
    try:
        yield temporary
        if folder.exists():
            old = folder.rename(temporary.with_name(temporary.name + "-old"))
            temporary.rename(folder)
            shutil.rmtree(old)
        else:
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def copy_files(source: Path, target: Path, patterns: Iterable[str]) -> None:
    """Copy the files of a folder that match any of the patterns, under the same names."""
    for pattern in patterns:
        for file in source.glob(pattern):
            copy = target / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)


def write_prompts(target: Path, settings: Settings) -> None:
    """Say the prompts in the folder itself: what e5core knows by a model's name would be lost."""
    path = target / PROMPTS_FILE
    content = read_json_object(path) if path.is_file() else {}
    if settings.prompts and not content.get("prompts"):
        write_json(path, {**content, "prompts": settings.prompts})


def checked_tensors(folder: Path, config: EncoderConfig) -> dict[str, StoredTensor]:
    """The encoder's tensors under their published names, checked by the headers alone."""
    stored = read_headers(*weight_files(folder))
    with torch.device("meta"):
        check_headers(stored, Encoder(config), folder)
    return stored


def read_tensors(
    stored: dict[str, StoredTensor], names: Iterable[str]
) -> Iterator[tuple[str, Tensor]]:
    """Some tensors in the order of their names, each the mapped file itself."""
    for file, group in groupby(names, key=lambda name: stored[name].file):
        with safe_open(file, framework="pt") as reader:
            for name in group:
                yield name, reader.get_tensor(stored[name].stored_name)


def print_summary(folder: Path, files: Iterable[Path], tensors: int, parameters: int) -> None:
    """What was written, a line a file; `folder` is the name that the result gets."""
    print(f"{folder}: {tensors} tensors, {parameters:,} parameters")
    for file in files:
        print(f"  {file.name}: {file.stat().st_size:,} bytes, sha256 {_sha256(file)}")


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while chunk := content.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
