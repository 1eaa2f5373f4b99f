"""A model against transformers: ids, vectors, batches, and the error against float64."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from e5core import E5
from e5core.checkpoint.folder import ModelFolder
from e5core.formats.sentencepiece import CHARSMAP
from e5core.kernels import BACKENDS, why_not
from e5core.parity.cases import Case, at_most, error_case, worst
from e5core.parity.rerankers import reranker_against_transformers
from e5core.parity.samples import QUERIES, SENTENCES, spread, text_of_length
from e5core.parity.tolerances import (
    BATCH_INVARIANCE_FLOAT32,
    UNIT_VECTOR_FLOAT32,
)
from e5core.parity.vectors import LONGEST, Kind, Vectors, embed, encode_ids, load, task_of
from e5core.prompts import prefix_for
from e5core.texts.cutting import cut
from e5core.tokenizer import BOS, EOS

CPU = torch.device("cpu")
BATCH_SIZES = (1, 2, 7, 64)
# All kernels that run on this machine in float32, by the attention of transformers that they are
# held against.
RUNNING = [name for name in BACKENDS if not why_not(BACKENDS[name], CPU, torch.float32)]
KERNELS = {"eager": ["plain"], "sdpa": [name for name in RUNNING if name != "plain"]}
ALL_KERNELS = [kernels for group in KERNELS.values() for kernels in group]
KINDS: tuple[Kind, ...] = ("query", "passage")
SAMPLE = 32  # texts: most languages, a minute or two for small on two cores


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


@dataclass(frozen=True)
class Sample:
    """The texts of one kind, without their prefix, and the ids of the fast tokenizer."""

    texts: list[str]
    ids: list[list[int]]


def against_transformers(
    name: str, sample: int | None = None, max_length: int | None = None
) -> Iterator[Case]:
    """Compare ids, vectors or logits, and batches of a model with those of transformers.

    sample      texts of the collection; None takes SAMPLE
    max_length  longest text in tokens; None takes LONGEST, or the model's own limit
    """
    oracle = import_oracle()
    folder = ModelFolder.open(name)
    limit = max_length or min(LONGEST, folder.max_length)
    if folder.config.num_labels:
        yield from reranker_against_transformers(oracle, folder, sample or SAMPLE, limit, KERNELS)
        return
    fast = oracle.fast_tokenizer(folder.path, CHARSMAP)
    collection = spread(SENTENCES + QUERIES, sample or SAMPLE)
    exact = load(folder, dtype="float64", device="cpu", kernels="plain", max_length=limit)
    samples: dict[Kind, Sample] = {}
    for kind in KINDS:
        samples[kind], case = compare_ids(exact, fast, kind, collection)
        yield case
    query_ids = samples["query"].ids
    truth = encode_ids(exact, query_ids, batch_size=8)
    del exact  # in float64 a large model takes 4.5 GB
    yield from compare_vectors(oracle, folder, limit, samples, truth)

    # Short and long among each other, and texts of 1, 2 and 3 tokens: a prefix alone has more.
    mixed = [[BOS], [BOS, EOS], [BOS, query_ids[0][1], EOS]]
    mixed += [*query_ids[: len(collection)], query_ids[-1]]
    random.Random(0).shuffle(mixed)
    yield from compare_batches(oracle, folder, limit, mixed)


def compare_ids(model: E5, fast: Any, kind: Kind, collection: Sequence[str]) -> tuple[Sample, Case]:
    """The collection and texts of chosen lengths, as both tokenizers cut them."""
    limit = model.max_length
    prefix = prefix_for(model.prompts, kind, task_of(model, kind))
    # After the collection, by length with the prefix. The last one is cut.
    lengths = (3, limit - 2, limit - 1, limit, limit + 1)
    texts = [
        *collection,
        *(text_of_length(model.tokenizer, tokens, prefix, seed=tokens) for tokens in lengths),
    ]
    prefixed = [prefix + text for text in texts]
    ids = fast(prefixed, truncation=True, max_length=limit)["input_ids"]
    ours = [cut(model.tokenizer.encode(text), limit) for text in prefixed]
    different = [i for i, (a, b) in enumerate(zip(ours, ids, strict=True)) if a != b]
    note = f", first {prefixed[different[0]]!r:.60}" if different else ""
    case = at_most(f"texts of other ids, prefix {prefix!r:.30}", 0, len(different), note)
    return Sample(texts, ids), case


def compare_vectors(
    oracle: Any, folder: ModelFolder, limit: int, samples: Mapping[Kind, Sample], truth: Vectors
) -> Iterator[Case]:
    """Vectors of all kernels beside both attentions, and the errors against float64."""
    vectors: dict[tuple[str, str], Vectors] = {}
    for kernels in ALL_KERNELS:
        model = load(folder, device="cpu", kernels=kernels, max_length=limit)
        for kind in KINDS:
            vectors[kernels, kind] = embed(model, samples[kind].texts, kind)
    for attention, matching in KERNELS.items():
        reference = oracle.load_reference(folder.path, attention)
        for kind in KINDS:
            theirs = oracle.reference_vectors(reference, samples[kind].ids, 8, folder.pooling)
            for kernels in ALL_KERNELS:
                difference = worst(vectors[kernels, kind], theirs)
                case = f"{kind}, kernels {kernels}, against {attention}"
                yield at_most(case, UNIT_VECTOR_FLOAT32, difference)
            for kernels in matching if kind == "query" else ():
                yield error_case(kernels, vectors[kernels, kind], theirs, truth)


def compare_batches(
    oracle: Any, folder: ModelFolder, limit: int, mixed: Sequence[Sequence[int]]
) -> Iterator[Case]:
    """Texts in packed batches of every size, beside transformers' one at a time."""
    reference = oracle.load_reference(folder.path, "sdpa")
    expected = oracle.reference_vectors(reference, mixed, 1, folder.pooling)
    for kernels in ALL_KERNELS:
        model = load(folder, device="cpu", kernels=kernels, max_length=limit)
        packed = {size: encode_ids(model, mixed, size) for size in BATCH_SIZES}
        for size, found in packed.items():
            case = f"batches of {size}, kernels {kernels}"
            yield at_most(case, UNIT_VECTOR_FLOAT32, worst(found, expected))
        difference = max(worst(packed[size], packed[1]) for size in BATCH_SIZES[1:])
        case = f"packed against one at a time, kernels {kernels}"
        yield at_most(case, BATCH_INVARIANCE_FLOAT32, difference)
