"""The cases of `e5core check`: a model against transformers, published outputs or a copy."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from e5core import E5, l2_normalize, pack, search
from e5core.checkpoint.folder import ModelFolder
from e5core.checkpoint.options import LoadOptions
from e5core.formats.sentencepiece import CHARSMAP
from e5core.kernels import BACKENDS, why_not
from e5core.parity.published import (
    TASK,
    Expectation,
    FirstNumbers,
    LastNumbers,
    published_outputs,
)
from e5core.parity.samples import QUERIES, SENTENCES, spread, text_of_length
from e5core.parity.tolerances import (
    BATCH_INVARIANCE_FLOAT32,
    COPY_BOUNDS,
    FLOAT64_ERROR_FACTOR,
    FLOAT64_ERROR_STANDARD_ERRORS,
    UNIT_VECTOR_FLOAT32,
)
from e5core.pooling import POOLINGS
from e5core.prompts import E5_PROMPTS, prefix_for
from e5core.tokenizer import BOS, EOS, cut

Vectors = npt.NDArray[Any]
CPU = torch.device("cpu")

BATCH_SIZES = (1, 2, 7, 64)
# All kernels that run on this machine in float32, by the attention of transformers that they are
# held against.
RUNNING = [name for name in BACKENDS if not why_not(BACKENDS[name], CPU, torch.float32)]
KERNELS = {"eager": ["plain"], "sdpa": [name for name in RUNNING if name != "plain"]}
KINDS: tuple[Literal["query", "passage"], ...] = ("query", "passage")
SAMPLE = 32  # texts against transformers: most languages, a minute or two for small on two cores
LONGEST = 512  # tokens, also where a model takes 8,192: eager attention needs their square
TOP = 10


@dataclass(frozen=True)
class Case:
    """A row of the table."""

    name: str
    bound: str
    measured: str
    ok: bool


def table(cases: Sequence[Case]) -> str:
    rows = [("case", "bound", "measured", "verdict")]
    rows += [(case.name, case.bound, case.measured, "ok" if case.ok else "FAIL") for case in cases]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def at_most(name: str, bound: float, measured: float, note: str = "") -> Case:
    """NaN breaks any bound."""
    return Case(name, f"≤ {bound:.2g}", f"{measured:.2g}{note}", measured <= bound)


def at_least(name: str, bound: float, measured: float) -> Case:
    return Case(name, f"≥ {bound:.10g}", f"{measured:.10g}", measured >= bound)


def worst(vectors: npt.ArrayLike, reference: npt.ArrayLike) -> float:
    """The largest difference of two numbers in the same place."""
    a, b = np.asarray(vectors), np.asarray(reference)
    if a.shape != b.shape:
        raise ValueError(f"cannot compare an array of shape {a.shape} with one of {b.shape}")
    return float(np.abs(a - b).max())


def load(folder: ModelFolder, **options: Any) -> E5:
    """A model with its own prefixes, or E5's if it does not say: any serve a comparison."""
    prompts = folder.prompts or E5_PROMPTS
    return E5.from_folder(folder, LoadOptions(prompts=prompts, **options))


def task_of(model: E5, kind: Literal["query", "passage"]) -> str | None:
    return TASK if model.prompts and "{task}" in model.prompts[kind] else None


def embed(model: E5, texts: Sequence[str], kind: Literal["query", "passage"]) -> Vectors:
    """The public path from text to unit vector."""
    return model.encode(texts, input_type=kind, task=task_of(model, kind), show_progress=False)


def encode_ids(model: E5, ids: Sequence[Sequence[int]], batch_size: int) -> Vectors:
    """Unit vectors of tokenized texts in the model's precision, packed `batch_size` at a time."""
    vectors = []
    with torch.inference_mode():
        for start in range(0, len(ids), batch_size):
            batch = pack(ids[start : start + batch_size], model.config)
            pooled = POOLINGS[model.pooling](model.encoder(batch), batch.cu_seqlens)
            vectors.append(l2_normalize(pooled).numpy())
    return np.concatenate(vectors)


# --- against transformers ---------------------------------------------------------------------


def import_oracle() -> Any:
    try:
        from e5core.parity import oracle
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise ValueError(
            "--against transformers needs transformers, which is not installed; "
            "python -m pip install 'transformers>=5'"
        ) from None
    oracle.quiet()
    return oracle


def error_case(kernels: str, ours: Vectors, theirs: Vectors, truth: Vectors) -> Case:
    """e5core's distance from the exact result is no larger than transformers'."""
    our_errors, their_errors = (np.abs(v - truth).mean(axis=1) for v in (ours, theirs))
    chance = (our_errors - their_errors).std() / np.sqrt(len(truth))
    bound = (
        FLOAT64_ERROR_FACTOR[kernels] * their_errors.mean() + FLOAT64_ERROR_STANDARD_ERRORS * chance
    )
    note = f" (transformers {their_errors.mean():.2g})"
    name = f"mean error against float64, kernels {kernels}"
    return at_most(name, float(bound), float(our_errors.mean()), note)


def against_transformers(
    name: str, sample: int | None = None, max_length: int | None = None
) -> Iterator[Case]:
    oracle = import_oracle()
    folder = ModelFolder.open(name)
    limit = max_length or min(LONGEST, folder.max_length)
    fast = oracle.fast_tokenizer(folder.path, CHARSMAP)
    collection = spread(SENTENCES + QUERIES, sample or SAMPLE)
    # After the collection, by length with the prefix. The last one is cut.
    lengths = (3, limit - 2, limit - 1, limit, limit + 1)

    exact = load(folder, dtype="float64", device="cpu", kernels="plain", max_length=limit)
    texts: dict[str, list[str]] = {}
    ids: dict[str, list[list[int]]] = {}  # the fast tokenizer's
    for kind in KINDS:
        prefix = prefix_for(exact.prompts, kind, task_of(exact, kind))
        texts[kind] = [
            *collection,
            *(text_of_length(exact.tokenizer, tokens, prefix, seed=tokens) for tokens in lengths),
        ]
        prefixed = [prefix + text for text in texts[kind]]
        ids[kind] = fast(prefixed, truncation=True, max_length=limit)["input_ids"]
        ours = [cut(exact.tokenizer.encode(text), limit) for text in prefixed]
        different = [i for i, (a, b) in enumerate(zip(ours, ids[kind], strict=True)) if a != b]
        note = f", first {prefixed[different[0]]!r:.60}" if different else ""
        yield at_most(f"texts of other ids, prefix {prefix!r:.30}", 0, len(different), note)
    truth = encode_ids(exact, ids["query"], batch_size=8)
    del exact  # in float64 a large model takes 4.5 GB

    vectors: dict[tuple[str, str], Vectors] = {}
    all_kernels = [kernels for group in KERNELS.values() for kernels in group]
    for kernels in all_kernels:
        model = load(folder, device="cpu", kernels=kernels, max_length=limit)
        for kind in KINDS:
            vectors[kernels, kind] = embed(model, texts[kind], kind)
    for attention, matching in KERNELS.items():
        reference = oracle.load_reference(folder.path, attention)
        for kind in KINDS:
            theirs = oracle.reference_vectors(reference, ids[kind], 8, model.pooling)
            for kernels in all_kernels:
                difference = worst(vectors[kernels, kind], theirs)
                case = f"{kind}, kernels {kernels}, against {attention}"
                yield at_most(case, UNIT_VECTOR_FLOAT32, difference)
            for kernels in matching if kind == "query" else ():
                yield error_case(kernels, vectors[kernels, kind], theirs, truth)

    # Short and long among each other, and texts of 1, 2 and 3 tokens: a prefix alone has more.
    mixed = [[BOS], [BOS, EOS], [BOS, ids["query"][0][1], EOS]]
    mixed += [*ids["query"][: len(collection)], ids["query"][-1]]
    random.Random(0).shuffle(mixed)
    expected = oracle.reference_vectors(reference, mixed, 1, model.pooling)
    for kernels in all_kernels:
        model = load(folder, device="cpu", kernels=kernels, max_length=limit)
        packed = {size: encode_ids(model, mixed, size) for size in BATCH_SIZES}
        for size, found in packed.items():
            case = f"batches of {size}, kernels {kernels}"
            yield at_most(case, UNIT_VECTOR_FLOAT32, worst(found, expected))
        difference = max(worst(packed[size], packed[1]) for size in BATCH_SIZES[1:])
        case = f"packed against one at a time, kernels {kernels}"
        yield at_most(case, BATCH_INVARIANCE_FLOAT32, difference)


# --- against published outputs ----------------------------------------------------------------


def against_published(
    name: str, published_as: str | None = None, dtype: str = "float32"
) -> Iterator[Case]:
    expectations = published_outputs(published_as or name)
    model = load(ModelFolder.open(name), dtype=dtype, device="cpu")
    return (published_case(model, expected) for expected in expectations)


def published_case(model: E5, expected: Expectation) -> Case:
    """The setting under which the numbers come nearest decides."""
    differences = {
        setting: worst(numbers, expected.numbers)
        for setting, numbers in outputs(model, expected).items()
    }
    nearest = min(differences, key=lambda setting: differences[setting])
    note = f" ({nearest})"
    return at_most(expected.source, expected.tolerance, differences[nearest], note)


def outputs(model: E5, expected: Expectation) -> dict[str, Vectors]:
    """By the name of the setting, what the model computes in the place of the numbers."""
    encode = partial(model.encode, input_type=None, show_progress=False)
    if isinstance(expected, LastNumbers):
        with torch.inference_mode():
            states = model.encoder(pack([expected.ids], model.config))  # [tokens, hidden_size]
        return {"last numbers of the hidden states": states[:, -1].float().numpy()}
    if isinstance(expected, FirstNumbers):
        first = encode([expected.text], normalize=False)[0, : len(expected.numbers)]
        return {"first numbers of the vector": first}
    found = {}
    for setting in expected.settings:
        queries = encode([setting.query + text for text in expected.queries])
        passages = encode([setting.passage + text for text in expected.passages])
        name = f"{len(expected.numbers)} similarities, {setting.name}"
        found[name] = (queries @ passages.T).ravel() * expected.scale
    return found


# --- against another copy ---------------------------------------------------------------------


def against_copy(
    name: str,
    other: str,
    dtype: str = "float32",
    other_dtype: str = "float32",
    sample: int | None = None,
    bounds: str | None = None,
) -> Iterator[Case]:
    folders = [ModelFolder.open(name), ModelFolder.open(other)]
    sizes = [folder.config.hidden_size for folder in folders]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"{name} has hidden size {sizes[0]}, {other} has {sizes[1]}: they cannot be copies of "
            "one model; give two checkpoints of the same"
        )
    coarser = max(dtype, other_dtype, key=list(COPY_BOUNDS).index)
    limits = COPY_BOUNDS[bounds or coarser]

    sentences = SENTENCES if sample is None else spread(SENTENCES, sample)
    vectors, ranks = [], []
    for folder, precision in zip(folders, (dtype, other_dtype), strict=True):
        model = load(folder, dtype=precision, device="cpu")
        queries, passages = embed(model, QUERIES, "query"), embed(model, sentences, "passage")
        del model  # before the next one takes its memory
        vectors.append(np.concatenate([queries, passages]))
        ranks.append(search(queries, passages, TOP).indices)

    # In float64, where the cosine of nearly equal vectors does not drown in rounding.
    a, b = (
        v / np.linalg.norm(v, axis=1, keepdims=True) for v in np.asarray(vectors, dtype=np.float64)
    )
    cosines = (a * b).sum(axis=1)
    if limits.largest_difference is not None:
        yield at_most("largest difference", limits.largest_difference, worst(*vectors))
    yield at_least("worst cosine", limits.worst_cosine, float(cosines.min()))
    yield at_least("mean cosine", limits.mean_cosine, float(cosines.mean()))
    same_first = float((ranks[0][:, 0] == ranks[1][:, 0]).mean())
    yield at_least("queries with the same first passage", limits.first_share, same_first)
    overlap = [len({*a} & {*b}) / len(a) for a, b in zip(*ranks, strict=True)]
    yield at_least(f"overlap of the first {TOP}", limits.top_overlap, float(np.mean(overlap)))
