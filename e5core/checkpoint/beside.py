"""The files beside the weights of a model, written from those of another folder."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from e5core.checkpoint.contents import MODULES_FILE, PROMPTS_FILE
from e5core.checkpoint.folder import ModelFolder
from e5core.checkpoint.hub import TOKENIZER_FILES
from e5core.checkpoint.sentence_transformers import (
    LIMIT_FILE,
    write_sentence_transformers_files,
    write_steps,
)
from e5core.checkpoint.tokenizers import steps_of
from e5core.formats.fast_tokenizer import NO_STEPS
from e5core.formats.files import read_json_object, write_json
from e5core.formats.sentencepiece import read_model
from e5core.formats.tokenizer_json import write_fast_tokenizer


def copy_tokenizer(source: ModelFolder, folder: Path) -> None:
    """A fast tokenizer's files, and the SentencePiece model where that is the whole tokenizer."""
    tokenizer = source.load_tokenizer()  # raises where it is damaged or does not fit the table
    assert source.tokenizer_file is not None  # it was loaded
    content = read_model(source.tokenizer_file)
    steps = steps_of(tokenizer)
    if steps == NO_STEPS:
        (folder / TOKENIZER_FILES[0]).write_bytes(content)
    write_fast_tokenizer(content, folder, source.max_length, steps)


def write_settings(source: ModelFolder, target: Path, prompts: Mapping[str, str] | None) -> None:
    """Write sentence-transformers' files, with prompts that may be other than the source's."""
    said = source.path / PROMPTS_FILE
    if said.is_file() and not (target / PROMPTS_FILE).exists():
        shutil.copyfile(said, target / PROMPTS_FILE)
    size = source.config.hidden_size
    write_sentence_transformers_files(target, size, source.max_length, source.pooling, prompts)
    # A folder that lists no steps gets E5's, whose vectors have unit length.
    normalizes = source.normalizes or not (source.path / MODULES_FILE).is_file()
    if source.dense or not normalizes:
        write_steps(target, size, source.pooling, normalizes, source.dense)
    if source.lower_case:
        limit = read_json_object(target / LIMIT_FILE)
        write_json(target / LIMIT_FILE, {**limit, "do_lower_case": True})
