"""Live parity of cross-encoders with transformers and its fast tokenizer, through the public path.

Both head layouts, random and widely spread weights, pairs from 6 to 512 tokens and longer ones cut
by "longest"; and the mistakes that these tests must find.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.models import CHARSMAP

from e5core import EncoderConfig, PackedBatch, Reranker
from e5core.encoder import ClassificationHead, Encoder
from e5core.parity.against_transformers import RUNNING
from e5core.parity.cases import error_case
from e5core.parity.pairs import Pair, pairs_to_compare, score
from e5core.parity.rerankers import reranker_ids
from e5core.parity.samples import QUERIES, SENTENCES, spread_head, spread_weights
from e5core.parity.tolerances import SCORE_FLOAT64_ERROR_FACTOR, SCORE_SPREAD_FLOAT32
from e5core.texts import pairs as layout
from e5core.tokenizer import EOS, SentencePieceTokenizer

Logits = npt.NDArray[Any]

# Half of the pairs are the project's own, half have every length up to the limit.
PAIRS = 200
GEOMETRIES = {
    "narrow bert": EncoderConfig("bert", 250037, 96, 2, 4, 384, 512, 0, 2, 1e-12, num_labels=1),
    "narrow xlm-roberta": EncoderConfig(
        "xlm-roberta", 250002, 96, 2, 4, 384, 514, 2, 1, 1e-5, num_labels=1
    ),
}
PUBLISHED_GEOMETRIES = {
    "small bert": EncoderConfig("bert", 250037, 384, 12, 12, 1536, 512, 0, 2, 1e-12, num_labels=1),
    "small xlm-roberta": EncoderConfig(
        "xlm-roberta", 250002, 384, 12, 12, 1536, 514, 2, 1, 1e-5, num_labels=1
    ),
    "base": EncoderConfig("xlm-roberta", 250002, 768, 12, 12, 3072, 514, 2, 1, 1e-5, num_labels=1),
    "large": EncoderConfig(
        "xlm-roberta", 250002, 1024, 24, 16, 4096, 514, 2, 1, 1e-5, num_labels=1
    ),
}
SAMPLED = {"large": 16}  # pairs, where 200 would take an hour


@pytest.fixture(scope="module")
def tokenizer(real_folder: Path) -> SentencePieceTokenizer:
    return SentencePieceTokenizer(real_folder / "sentencepiece.bpe.model")


@pytest.fixture(scope="module")
def fast(oracle: ModuleType, real_folder: Path) -> Any:
    return oracle.fast_tokenizer(real_folder, CHARSMAP)


@pytest.fixture(scope="module")
def pairs(tokenizer: SentencePieceTokenizer) -> list[Pair]:
    own = [(QUERIES[i % len(QUERIES)], SENTENCES[i]) for i in range(0, 188, 2)]
    return [*own, *pairs_to_compare(tokenizer, 512, PAIRS - len(own) - 6)]


@dataclass
class Parts:
    """A cross-encoder that holds its weights, what transformers makes of them, and the truth."""

    encoder: Encoder
    head: ClassificationHead
    theirs: Logits
    truth: Logits

    def reranker(self, tokenizer: SentencePieceTokenizer, kernels: str) -> Reranker:
        encoder = copy.deepcopy(self.encoder).prepare_for_inference(kernels=kernels)
        head = copy.deepcopy(self.head)
        head.prepare(encoder.kernels)
        return Reranker(encoder, head, tokenizer)


def make(oracle: Any, config: EncoderConfig, ids: list[list[int]]) -> Parts:
    encoder = spread_weights(Encoder(config, "sdpa")).eval().requires_grad_(False)
    head = spread_head(ClassificationHead(config)).eval().requires_grad_(False)
    theirs = oracle.reference_logits(oracle.reference_model(encoder, "sdpa", head), ids, 16)
    exact = oracle.reference_model(
        copy.deepcopy(encoder).double(), "eager", copy.deepcopy(head).double()
    )
    # One at a time, so that nothing depends on how padding is treated.
    return Parts(encoder, head, theirs[:, 0], oracle.reference_logits(exact, ids, 1)[:, 0])


@pytest.fixture(scope="module", params=GEOMETRIES)
def parts(
    request: pytest.FixtureRequest, oracle: ModuleType, fast: Any, pairs: list[Pair]
) -> Iterator[Parts]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield make(oracle, GEOMETRIES[request.param], oracle.pair_ids(fast, pairs, 512))
    torch.set_num_threads(threads)


def check(
    parts: Parts, found: Logits, name: str, kernels: str, measured: Callable[[str], None]
) -> None:
    spread = parts.truth.std()
    apart = np.abs(found - parts.theirs).max() / spread
    ours, theirs = (np.abs(x - parts.truth).mean() / spread for x in (found, parts.theirs))
    measured(
        f"cross-encoder, {name}, {kernels}: {apart:.1e} of the spread of {spread:.3g} from "
        f"transformers; mean error against float64 {ours:.1e}, transformers {theirs:.1e}"
    )
    assert spread > 1
    assert apart <= SCORE_SPREAD_FLOAT32
    numbers = (found[:, None], parts.theirs[:, None], parts.truth[:, None])
    case = error_case(kernels, *numbers, SCORE_FLOAT64_ERROR_FACTOR)
    assert case.ok, case


@pytest.mark.parametrize("kernels", RUNNING)
def test_two_hundred_pairs(
    parts: Parts,
    tokenizer: SentencePieceTokenizer,
    pairs: list[Pair],
    kernels: str,
    measured: Callable[[str], None],
) -> None:
    assert len(pairs) == PAIRS
    model = parts.reranker(tokenizer, kernels)
    assert model.encoder.kernels.name == kernels
    result = model.compute(pairs, truncate="longest")
    assert (result.token_counts.min(), result.truncated.sum()) == (6, 6)
    name = f"narrow {model.config.model_type}"
    check(parts, result.scores, name, kernels, measured)


@pytest.mark.exhaustive(sample=0)
@pytest.mark.parametrize("name", PUBLISHED_GEOMETRIES)
def test_published_geometries(
    oracle: ModuleType,
    fast: Any,
    tokenizer: SentencePieceTokenizer,
    pairs: list[Pair],
    name: str,
    measured: Callable[[str], None],
) -> None:
    """A float64 run of small over 200 pairs takes minutes, so that only --exhaustive has them."""
    sample = pairs[:: PAIRS // SAMPLED.get(name, PAIRS)]
    parts = make(oracle, PUBLISHED_GEOMETRIES[name], oracle.pair_ids(fast, sample, 512))
    model = parts.reranker(tokenizer, "auto")
    check(
        parts,
        score(model, sample),
        f"{name}, {len(sample)} pairs",
        model.encoder.kernels.name,
        measured,
    )


def test_ids_are_those_of_the_fast_tokenizer(
    oracle: ModuleType,
    parts: Parts,
    fast: Any,
    tokenizer: SentencePieceTokenizer,
    pairs: list[Pair],
) -> None:
    """Pairs of few pieces where little is left: the library keeps all that it cuts off, each part
    of one text beside each of the other."""
    model = parts.reranker(tokenizer, "plain")
    for model.max_length, some in ((512, pairs), (64, pairs[:20]), (16, pairs[:5]), (6, pairs[:5])):
        expected = oracle.pair_ids(fast, some, model.max_length)
        assert reranker_ids(model, some) == expected


@settings(max_examples=300)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(6, 50))
def test_lengths_are_cut_to_the_token(fast: Any, query: int, passage: int, limit: int) -> None:
    """A word that is always one token, so that lengths are all that matters."""
    text = [" ".join(["a"] * length) for length in (query, passage)]
    found = fast(*text, truncation="longest_first", max_length=limit)["input_ids"]
    (a,) = set(found) - {0, 2}
    ours = layout.fit_pair([a] * query, [a] * passage, limit, "longest", 0)
    assert ours == found


# ---- mistakes


def mutated(
    parts: Parts, tokenizer: SentencePieceTokenizer, pairs: list[Pair]
) -> tuple[float, Reranker]:
    """How far the scores are from transformers', in bounds."""
    model = parts.reranker(tokenizer, "sdpa")
    apart = np.abs(score(model, pairs[::5]) - parts.theirs[::5]).max()
    return float(apart / (SCORE_SPREAD_FLOAT32 * parts.truth.std())), model


def test_without_a_mistake(
    parts: Parts, tokenizer: SentencePieceTokenizer, pairs: list[Pair]
) -> None:
    assert mutated(parts, tokenizer, pairs)[0] <= 1


def no_tanh(self: ClassificationHead, x: torch.Tensor) -> torch.Tensor:
    dense, output = self.weights
    return self.kernels.linear(self.kernels.linear(x.to(self.kernels.dtype), dense), output)


states_of = Encoder.forward


def second_token(self: Encoder, batch: PackedBatch, *rest: Any) -> torch.Tensor:
    return states_of(self, batch)[batch.cu_seqlens[:-1].long() + 1]


def last_token(self: Encoder, batch: PackedBatch, *rest: Any) -> torch.Tensor:
    return states_of(self, batch)[batch.cu_seqlens[1:].long() - 1]


join = layout.join_pair
MISTAKES: dict[str, tuple[Any, str, Any]] = {
    "no tanh": (ClassificationHead, "forward", no_tanh),
    "one separator": (layout, "join_pair", lambda q, p: [0, *q, EOS, *p, EOS]),
    "no end": (layout, "join_pair", lambda q, p: join(q, p)[:-1]),
    "no start": (layout, "join_pair", lambda q, p: join(q, p)[1:]),
    "swapped": (layout, "join_pair", lambda q, p: join(p, q)),
    "pooled over the second token": (Encoder, "forward", second_token),
    "pooled over the last token": (Encoder, "forward", last_token),
    "E5's prefixes": (
        SentencePieceTokenizer,
        "encode_pieces",
        lambda self, text, encode=SentencePieceTokenizer.encode_pieces: encode(
            self, "query: " + text
        ),
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found(
    parts: Parts,
    tokenizer: SentencePieceTokenizer,
    pairs: list[Pair],
    monkeypatch: pytest.MonkeyPatch,
    mistake: str,
) -> None:
    monkeypatch.setattr(*MISTAKES[mistake])
    assert mutated(parts, tokenizer, pairs)[0] > 100


@pytest.mark.parametrize("name", ["dense", "output"])
def test_a_bias_of_the_head_is_missed(
    parts: Parts, tokenizer: SentencePieceTokenizer, pairs: list[Pair], name: str
) -> None:
    head = copy.deepcopy(parts.head)
    head.get_submodule(name).bias.data.zero_()
    changed = Parts(parts.encoder, head, parts.theirs, parts.truth)
    assert mutated(changed, tokenizer, pairs)[0] > 100
