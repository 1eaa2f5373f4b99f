"""A conversion's target, which appears as a whole or not at all, and files that travel along."""

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from e5core.checkpoint.contents import MODULES_FILE, PROMPTS_FILE, TRANSFORMER_FILES
from e5core.config import CONFIG_FILE
from e5core.formats.files import lock_folder

# What a model folder holds beside config and weights, and sentence-transformers' files among it.
TOKENIZER_PATTERNS = (
    "sentencepiece.bpe.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
SENTENCE_TRANSFORMERS_PATTERNS = (
    MODULES_FILE,
    *TRANSFORMER_FILES,
    PROMPTS_FILE,
    "*_Pooling/config.json",
    "*_Normalize/config.json",
    "*_Dense/config.json",
    "*_Dense/model.safetensors",
)


@contextmanager
def replacing_folder(folder: Path, source: Path, force: bool) -> Iterator[Path]:
    """Yield a new folder beside `folder` that takes its name if the block succeeds.

    What a killed run has left beside the target is cleared away; while that run lives, another
    one for the same target is refused. Raises FileExistsError before any work if `folder` holds
    anything and is not to be replaced, or is no model's folder, or holds the source.
    """
    folder = folder.resolve()
    temporary = folder.with_name(f".{folder.name}.partial")
    old = folder.with_name(f".{folder.name}.old")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(temporary, folder):
        if old.exists() and not folder.exists():  # killed between the two renames below
            old.rename(folder)
        _check_target(folder, source.resolve(), force)
        try:
            yield temporary
            if folder.exists():
                shutil.rmtree(old, ignore_errors=True)
                folder.rename(old)
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            if folder.exists():
                shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _locked(temporary: Path, folder: Path) -> Iterator[None]:
    """Make a new folder, once nobody else can be at work on it."""
    with suppress(FileExistsError):
        temporary.mkdir()
    with lock_folder(temporary) as ours:
        if not ours:
            raise FileExistsError(
                f"another process is writing {folder}; wait for it, or name another folder"
            )
        for left in temporary.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        try:
            yield
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _check_target(folder: Path, source: Path, force: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is there and is not a folder; name another one")
    if folder.is_dir() and any(folder.iterdir()):
        if folder in (source, *source.parents):
            raise FileExistsError(f"{folder} holds the source; name another folder for the result")
        if not force:
            raise FileExistsError(f"{folder} is there already; pass --force to replace it")
        if not (folder / CONFIG_FILE).is_file():
            raise FileExistsError(
                f"{folder} has no {CONFIG_FILE}, so it is no model and is not replaced; remove it "
                "or name another one"
            )


def copy_files(source: Path, target: Path, patterns: Iterable[str]) -> None:
    """Copy the files of a folder that match any of the patterns, under the same names."""
    for pattern in patterns:
        for file in source.glob(pattern):
            copy = target / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
