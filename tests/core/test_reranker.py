"""Scores of pairs: what `score`, `score_pairs`, `rank` and `compute` promise."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.models import TINY, tiny_cross_encoder, write_tiny_model, write_tiny_tokenizer

from e5core import E5, Reranker, save_checkpoint
from e5core.encoder import ClassificationHead, Encoder
from e5core.kernels import BACKENDS, why_not
from e5core.parity.samples import QUERIES, SENTENCES, spread_head, spread_weights
from e5core.texts.errors import PairError
from e5core.tokenizer import SentencePieceTokenizer

CPU = torch.device("cpu")
WORDS = ["the", "query", "passage", "a", "é", "日本", "cat", "sat on the mat", ""]
PASSAGES = [" ".join(WORDS[: n % 9 + 1]) + " " + chr(97 + n) for n in range(20)]
# No word of these is known, so that every one of them has a piece or more for each character.
LONG = [("query " * 3, "a " * n) for n in (20, 50, 53, 54, 55, 56, 57, 80, 200)]
PAIRS = [*zip(QUERIES, SENTENCES, strict=False), *LONG, ("", ""), ("", "a"), ("a", "")]


@pytest.fixture
def reranker(reranker_folder: Path) -> Reranker:
    return Reranker.from_pretrained(reranker_folder)


def test_scores_are_logits_in_the_callers_order(reranker: Reranker) -> None:
    scores = reranker.score("the query", PASSAGES)
    assert scores.dtype == np.float32
    assert scores.shape == (20,)
    assert scores.std() > 0.1
    alone = [reranker.score("the query", [passage])[0] for passage in PASSAGES]
    assert np.array_equal(scores, alone)
    pairs = [("the query", passage) for passage in PASSAGES]
    assert np.array_equal(reranker.score_pairs(pairs), scores)
    assert np.array_equal(reranker.compute(pairs).scores, scores)


def test_the_head_as_it_is_written(reranker_folder: Path, dialect: str) -> None:
    """classifier(tanh(dense(state of <s>))), by hand."""
    encoder, head = tiny_cross_encoder(dialect)
    tokenizer = SentencePieceTokenizer(reranker_folder / "sentencepiece.bpe.model")
    ids = [0, *tokenizer.encode("the")[1:-1], 2, 2, *tokenizer.encode("a cat")[1:]]
    from e5core import pack

    with torch.no_grad():
        first = encoder(pack([ids], encoder.config))[0]
        expected = head.output(torch.tanh(head.dense(first))).item()
    found = Reranker.from_pretrained(reranker_folder).score("the", ["a cat"])
    assert found[0] == pytest.approx(expected, abs=3e-4)


def test_query_and_passage_are_no_equals(reranker: Reranker) -> None:
    assert abs(np.diff(reranker.score_pairs([("the", "a cat"), ("a cat", "the")]))[0]) > 1e-3


CASES = [(name, d) for name, backend in BACKENDS.items() for d in backend.dtypes]


@pytest.mark.parametrize(("name", "dtype"), CASES, ids=lambda value: str(value))
def test_bits_alone_in_any_batch_and_in_any_order(
    reranker_folder: Path, name: str, dtype: torch.dtype
) -> None:
    if reason := why_not(BACKENDS[name], CPU, dtype):
        pytest.skip(reason)
    model = Reranker.from_pretrained(reranker_folder, kernels=name, dtype=dtype)
    assert (model.encoder.kernels.name, model.encoder.device) == (name, CPU)
    options: Any = {"truncate": "longest"}
    alone = np.concatenate([model.score_pairs([pair], **options) for pair in PAIRS])
    if name in ("native", "onednn"):
        same = np.array_equal
    else:  # torch's own products add in other blocks
        bound = {torch.float64: 1e-6, torch.float32: 1e-3}.get(dtype, 5.0)
        same = lambda a, b: bool(np.abs(a - b).max() < bound)  # noqa: E731
    generator = np.random.default_rng(0)
    for budget in (None, 1, 70, 300, 10**9):
        order = generator.permutation(len(PAIRS))
        found = model.score_pairs([PAIRS[i] for i in order], max_tokens_per_batch=budget, **options)
        assert same(found, alone[order])


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_logits_of_low_precision_do_not_tie(reranker_folder: Path, dtype: str) -> None:
    """The head computes in float32, so that nothing is rounded to a few hundred values."""
    passages = [a + b for a in "abcdefghijklmnopqrst" for b in "ABCDEFGHIJKLMNOPQRST"]
    scores = Reranker.from_pretrained(reranker_folder, dtype=dtype).score("query", passages)
    assert len({*scores.tolist()}) > 397


def test_rank_is_best_first(reranker: Reranker) -> None:
    scores = reranker.score("query", PASSAGES)
    best = reranker.rank("query", PASSAGES)
    assert np.array_equal(best.scores, scores[best.indices])
    assert (np.diff(best.scores) <= 0).all()
    assert sorted(best.indices) == list(range(20))
    assert best.indices.dtype == np.int64
    three = reranker.rank("query", PASSAGES, top_k=3)
    assert np.array_equal(three.indices, best.indices[:3])
    assert len(reranker.rank("query", PASSAGES, top_k=100).indices) == 20


@pytest.mark.parametrize("top_k", [0, -1])
def test_rank_takes_one_or_more(reranker: Reranker, top_k: int) -> None:
    with pytest.raises(ValueError, match=f"top_k is {top_k}, expected 1 or more"):
        reranker.rank("query", PASSAGES, top_k=top_k)


def test_ties_are_in_the_order_of_the_input(reranker: Reranker) -> None:
    passages = ["cat", "the", "cat", "the", "a", "cat"]
    groups = [[i for i, text in enumerate(passages) if text == word] for word in ("cat", "the")]
    found = reranker.rank("query", passages).indices.tolist()
    for group in groups:
        assert [i for i in found if i in group] == group
    # Cut to one and the same text.
    long = ["a " * n for n in (300, 200, 100)]
    assert reranker.rank("query", long).indices.tolist() == [0, 1, 2]


def test_equal_sigmoids_are_no_ties(reranker: Reranker, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 20 the sigmoid is 1 in float32: logits decide."""
    logits = torch.tensor([20.0, 30.0, 25.0, 40.0])
    monkeypatch.setattr(reranker.pipeline, "run", lambda *_, **__: logits)
    best = reranker.rank("query", ["a", "b", "c", "d"], normalize=True)
    assert best.indices.tolist() == [3, 1, 2, 0]
    assert best.scores.tolist() == [1.0] * 4


def test_normalize_is_the_sigmoid_in_float64(
    reranker: Reranker, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = np.array([-800.0, -90, -17.25, -5.65234375, 0, 1e-8, 3, 16, 17.5], np.float32)
    monkeypatch.setattr(reranker.pipeline, "run", lambda *_, **__: torch.from_numpy(logits))
    with np.errstate(over="raise"):
        found = reranker.score("query", ["a"] * len(logits), normalize=True)
    from math import exp

    expected = [1 / (1 + exp(-x)) if x > -700 else 0.0 for x in logits.tolist()]
    assert found.dtype == np.float32
    assert found.tolist() == np.array(expected, np.float32).tolist()
    assert found[3] == pytest.approx(0.003497, abs=1e-6)  # as bge-reranker-v2-m3 publishes it


@pytest.mark.parametrize("normalize", [False, True])
def test_an_empty_list(reranker: Reranker, normalize: bool) -> None:
    for found in (
        reranker.score("query", [], normalize=normalize),
        reranker.score_pairs([], normalize=normalize),
        reranker.score_pairs(iter(()), normalize=normalize),
        reranker.rank("query", [], normalize=normalize).scores,
    ):
        assert (found.shape, found.dtype) == ((0,), np.float32)
    result = reranker.compute([])
    assert (result.token_counts.dtype, result.truncated.dtype) == (np.int64, np.bool_)
    assert reranker.rank("query", []).indices.tolist() == []


@pytest.mark.parametrize(
    ("query", "passages", "says"),
    [
        (None, ["a"], "query"),
        (["query"], ["a"], "query"),
        ("query", None, "passages"),
        ("query", "passage", r"passages is one str, expected several; pass \[passage\]"),
        ("query", ["a", None], "passage 1 is None of type NoneType, expected str"),
        ("query", ["a", "b", 3], "passage 2 is 3 of type int"),
        ("query", {"text": ["a"]}, "passages"),
    ],
)
def test_what_is_no_text_is_named(reranker: Reranker, query: Any, passages: Any, says: str) -> None:
    with pytest.raises(TypeError, match=says):
        reranker.score(query, passages)
    if isinstance(passages, list):
        with pytest.raises(TypeError, match=says):
            reranker.rank(query, iter(passages))


def test_a_lone_surrogate_names_its_pair(reranker: Reranker) -> None:
    with pytest.raises(PairError, match=r"^pair 1: .*surrogate") as caught:
        reranker.score("query", ["a", "b\ud800", "c"])
    assert caught.value.indices == (1,)


@pytest.mark.parametrize("truncate", ["end", "first", None, True])
def test_an_unknown_cut(reranker: Reranker, truncate: Any) -> None:
    with pytest.raises(ValueError, match="expected 'passage', 'longest' or 'none'"):
        reranker.score("query", ["a"], truncate=truncate)


def test_cut_pairs_are_reported(reranker: Reranker) -> None:
    tokens = reranker.tokenizer.count
    result = reranker.compute(PAIRS, truncate="longest")
    counts = [tokens(query) + tokens(passage) for query, passage in PAIRS]  # two specials each
    assert result.token_counts.tolist() == counts
    assert result.truncated.tolist() == [count > 64 for count in counts]
    assert 2 < result.truncated.sum() < len(PAIRS) - 2
    best = reranker.rank("a", ["a " * 100, "a", "a " * 200])
    assert best.truncated.tolist() == [bool(i != 1) for i in best.indices]


@pytest.mark.parametrize("truncate", ["passage", "none"])
def test_the_pair_that_does_not_fit_is_named_among_all(
    reranker: Reranker, monkeypatch: pytest.MonkeyPatch, truncate: Any
) -> None:
    monkeypatch.setattr("e5core.texts.pairs.SLICE_TOKENS", 50)
    pairs = [("a", "b")] * 30 + [("a " * 49, "a " * 12)] + [("a", "b")] * 3
    with pytest.raises(PairError, match="pair 30 ") as caught:
        reranker.score_pairs(iter(pairs), truncate=truncate)
    assert caught.value.indices == (30,)


def test_slices_change_nothing(reranker: Reranker, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = reranker.compute(PAIRS, truncate="longest")
    monkeypatch.setattr("e5core.texts.pairs.SLICE_TOKENS", 50)
    sliced = reranker.compute(iter(PAIRS), truncate="longest")
    for field in ("scores", "token_counts", "truncated"):
        assert np.array_equal(getattr(whole, field), getattr(sliced, field))


def test_pairs_are_read_as_they_are_needed(
    reranker: Reranker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("e5core.texts.pairs.SLICE_TOKENS", 50)
    read, scored = [], []
    run = reranker.pipeline.run
    monkeypatch.setattr(
        reranker.pipeline,
        "run",
        lambda *given, **o: (scored.append(len(read)), run(*given, **o))[1],
    )

    def pairs() -> Iterator[tuple[str, str]]:
        for passage in PASSAGES * 3:
            read.append(passage)
            yield "a query", passage

    assert len(reranker.score_pairs(pairs())) == len(read) == 60
    assert len(scored) > 5
    assert scored[0] < 10


def test_the_query_is_tokenized_once(reranker: Reranker, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    encode = reranker.tokenizer.encode_pieces
    monkeypatch.setattr(
        reranker.tokenizer, "encode_pieces", lambda text: (seen.append(text), encode(text))[1]
    )
    reranker.rank("the query", PASSAGES)
    assert seen.count("the query") == 1
    assert len(seen) == 21
    seen.clear()
    reranker.score_pairs([(query, text) for query in ("one", "two") for text in PASSAGES])
    assert (seen.count("one"), seen.count("two"), len(seen)) == (1, 1, 42)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_score_that_is_no_number(
    reranker: Reranker, monkeypatch: pytest.MonkeyPatch, bad: float
) -> None:
    monkeypatch.setattr("e5core.texts.pairs.SLICE_TOKENS", 30)
    run = reranker.pipeline.run
    calls: list[int] = []

    def spoilt(sequences: Any, *rest: Any, **options: Any) -> torch.Tensor:
        rows = run(sequences, *rest, **options).clone()
        calls.append(len(sequences))
        if len(calls) == 2:
            rows[0] = rows[-1] = bad
        return rows

    monkeypatch.setattr(reranker.pipeline, "run", spoilt)
    with pytest.raises(PairError, match=r"are not finite in torch\.float32") as caught:
        reranker.score("query", PASSAGES)
    assert caught.value.indices == (calls[0],)
    assert 'load them with dtype="float32" (--dtype float32)' in str(caught.value)


def test_eight_thousand_tokens(tmp_path: Path) -> None:
    """The geometry of positions of bge-reranker-v2-m3: 8,194 rows from the third on."""
    config = replace(TINY["xlm-roberta"], max_position_embeddings=8194, num_labels=1)
    encoder = spread_weights(Encoder(replace(config, num_hidden_layers=1)))
    save_checkpoint(encoder, tmp_path, spread_head(ClassificationHead(encoder.config)))
    write_tiny_tokenizer(tmp_path)
    model = Reranker.from_pretrained(tmp_path)
    assert model.max_length == 8192
    pieces = len(model.tokenizer.encode_pieces("a")), len(model.tokenizer.encode_pieces("a " * 9))
    assert pieces == (1, 9)
    fits, cut = model.compute([("a", "a " * 8187), ("a", "a " * 8188)]).scores
    assert fits == cut
    result = model.compute([("a", "a " * 8187), ("a", "a " * 8188)])
    assert result.token_counts.tolist() == [8192, 8193]
    assert result.truncated.tolist() == [False, True]
    with pytest.raises(PairError, match="pair 0 has 8193 tokens, the model takes 8192"):
        model.score("a", ["a " * 8188], truncate="none")
    # The last token counts: the whole of the table is used.
    ends = model.score_pairs([("a", "a " * 8186 + last) for last in ("a", "the")])
    assert ends[0] != ends[1]


@pytest.mark.parametrize("max_length", [5, 65])
def test_a_limit_that_cannot_be(reranker_folder: Path, max_length: int) -> None:
    with pytest.raises(ValueError, match=f"max_length is {max_length}, this model takes 6 to 64"):
        Reranker.from_pretrained(reranker_folder, max_length=max_length)


def test_a_shorter_limit(reranker_folder: Path) -> None:
    model = Reranker.from_pretrained(reranker_folder, max_length=8)
    assert model.compute([("a", "a a a a")]).truncated.tolist() == [True]


def test_prompts_are_refused(reranker_folder: Path) -> None:
    with pytest.raises(ValueError, match="prompts is 'e5', but a cross-encoder reads texts as"):
        Reranker.from_pretrained(reranker_folder, prompts="e5")


def test_a_cross_encoder_is_no_embedder(reranker_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"is a cross-encoder.*Reranker\.from_pretrained"):
        E5.from_pretrained(reranker_folder)


def test_an_embedder_is_no_cross_encoder(tmp_path: Path, dialect: str) -> None:
    write_tiny_model(tmp_path / "model", dialect)
    with pytest.raises(ValueError, match=r"no classification head.*E5\.from_pretrained"):
        Reranker.from_pretrained(tmp_path / "model")


def test_a_head_on_the_kernels_that_train(reranker_folder: Path) -> None:
    """In float64 the head is as wide as the rest."""
    wide = Reranker.from_pretrained(reranker_folder, dtype="float64", kernels="plain")
    assert wide._logits(torch.zeros(3, 24).double(), torch.tensor([0, 3])).dtype == torch.float64
    narrow = Reranker.from_pretrained(reranker_folder, dtype="bfloat16")
    states = torch.zeros(3, 24).bfloat16()
    assert narrow._logits(states, torch.tensor([0, 3])).dtype == torch.float32
