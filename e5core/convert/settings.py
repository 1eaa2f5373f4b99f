"""The files beside a model's weights, on their way into the result of a conversion."""

from pathlib import Path

from e5core.checkpoint.beside import write_settings
from e5core.checkpoint.folder import ModelFolder
from e5core.checkpoint.prompts import write_prompts
from e5core.convert.folder import SENTENCE_TRANSFORMERS_PATTERNS, TOKENIZER_PATTERNS, copy_files


def copy_settings(source: ModelFolder, target: Path) -> None:
    """Copy sentence-transformers' files: the steps, the limit and the prompts.

    They are copied where the encoder lies beside them. Where it lies in a folder of its own, or
    is an adapter's base model, they are written for a folder that holds all of it.
    """
    if source.config_file.parent == source.path:
        copy_files(source.path, target, SENTENCE_TRANSFORMERS_PATTERNS)
    else:
        write_settings(source, target, source.prompts)
    write_prompts(target, source.prompts)


def copy_tokenizer_files(source: ModelFolder, target: Path) -> None:
    """Copy the tokenizer's files as they are."""
    if source.tokenizer_file is not None:
        copy_files(source.tokenizer_file.parent, target, TOKENIZER_PATTERNS)
