"""`e5core check` on cross-encoders: against transformers, published scores and a copy."""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.checkpoints import Tensors, rewrite
from support.models import CHARSMAP, TINY, write_tiny_model, write_tiny_reranker

from e5core import Reranker
from e5core.checkpoint.folder import ModelFolder
from e5core.encoder import ClassificationHead
from e5core.kernels.plain import Kernels
from e5core.parity import rerankers
from e5core.parity.against_transformers import RUNNING
from e5core.parity.pairs import Logits, rank_correlation, sample_pairs
from e5core.parity.published import PUBLISHED, Scores
from e5core.parity.rerankers import reranker_against_published
from e5core.parity.samples import QUERIES, SENTENCES, spread, spread_head
from e5core.parity.tolerances import RANK_BOUNDS
from e5core.pipeline import Pipeline
from e5core.texts.pairs import join_pair

Run = Callable[..., tuple[int, dict[str, str], str]]
RERANKERS = {name: outputs for name, outputs in PUBLISHED.items() if isinstance(outputs[0], Scores)}

pytestmark = pytest.mark.usefixtures("one_thread")


def broken(verdicts: dict[str, str]) -> set[str]:
    return {name for name, verdict in verdicts.items() if verdict == "FAIL"}


# ---- against transformers


def test_a_right_model_holds_in_every_case(oracle: Any, run: Run, reranker_folder: Path) -> None:
    code, verdicts, err = run(reranker_folder)
    assert (code, set(verdicts.values()), err) == (0, {"ok"}, "")
    expected = {"pairs of other ids"}
    for name in RUNNING:
        attention = "eager" if name == "plain" else "sdpa"
        expected |= {f"batches of {size}, kernels {name}" for size in (1, 2, 7, 64)}
        expected |= {
            f"logits, kernels {name}, against {attention}",
            f"mean error against float64, kernels {name}",
            f"packed against one at a time, kernels {name}",
        }
    assert set(verdicts) == expected


def test_a_head_without_tanh_is_found(
    oracle: Any, run: Run, reranker_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(self: ClassificationHead, x: torch.Tensor) -> torch.Tensor:
        dense, output = self.weights
        wide = x.to(self.kernels.dtype)
        return self.kernels.linear(self.kernels.linear(wide, dense), output)

    monkeypatch.setattr(ClassificationHead, "forward", forward)
    code, verdicts, _ = run(reranker_folder, "--sample", 4)
    assert code == 1
    assert {"logits, kernels plain, against eager", "batches of 7, kernels plain"} <= broken(
        verdicts
    )


def test_another_cut_is_found(
    oracle: Any, run: Run, reranker_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shorter(query: int, passage: int, room: int) -> tuple[int, int]:
        query = min(query, room // 2)
        return query, min(passage, room - query)

    monkeypatch.setattr("e5core.texts.pairs.cut_longest_first", shorter)
    code, verdicts, _ = run(reranker_folder, "--sample", 4)
    assert (code, "pairs of other ids" in broken(verdicts)) == (1, True)


def test_a_leak_between_pairs_is_found_in_batches(
    oracle: Any, run: Run, reranker_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attention = Kernels.attention

    def leak(self: Any, qkv: Any, cu_seqlens: Any, max_seqlen: int, dropout: float) -> Any:
        whole = torch.tensor([0, len(qkv)], dtype=torch.int32)
        return attention(self, qkv, whole, len(qkv), dropout)

    monkeypatch.setattr(Kernels, "attention", leak)
    _, verdicts, _ = run(reranker_folder, "--sample", 4)
    assert {"batches of 7, kernels plain", "batches of 64, kernels plain"} <= broken(verdicts)
    assert "batches of 1, kernels plain" not in broken(verdicts)


# ---- against published scores


def test_published_pairs() -> None:
    assert len(RERANKERS) == 8
    for outputs in RERANKERS.values():
        *flag, planets = outputs
        assert [query for query, _ in planets.pairs] == 4 * [
            "Which planet is known as the Red Planet?"
        ]
        assert [text.split()[0] for _, text in planets.pairs] == [
            *("Venus", "Mars,", "Jupiter,", "Saturn,")
        ]
        assert planets.normalized == (max(planets.numbers) <= 1)
        for expected in flag:
            assert not expected.normalized
            assert expected.pairs[:2] == (("query", "passage"), ("what is panda?", "hi"))
            panda = expected.pairs[2][1].encode()
            assert hashlib.sha256(panda).hexdigest()[:16] == PANDA
    assert RERANKERS["qilowoq/bge-reranker-v2-m3-en-ru"][0].numbers == (
        RERANKERS["BAAI/bge-reranker-v2-m3"][1].numbers
    )


PANDA = "59c235468e0919dd"


@pytest.mark.parametrize(
    "name", ["BAAI/bge-reranker-large", "cross-encoder/mmarco-mMiniLMv2-L12-H384-v1"]
)
def test_right_scores_hold_and_a_change_of_any_one_breaks(
    oracle: Any, reranker_folder: Path, name: str
) -> None:
    folder = ModelFolder.read(reranker_folder)
    reference = oracle.load_classifier(reranker_folder)
    fast = oracle.fast_tokenizer(reranker_folder, CHARSMAP)
    for template in RERANKERS[name]:
        ids = oracle.pair_ids(fast, template.pairs, 64)
        numbers = oracle.reference_logits(reference, ids)[:, 0].astype(np.float64)
        if template.normalized:
            numbers = 1 / (1 + np.exp(-numbers))
        expected = dataclasses.replace(template, numbers=tuple(numbers.tolist()))
        if max(map(len, ids)) < 64:
            (case,) = reranker_against_published(folder, [expected], "float32")
            assert (case.ok, case.name) == (True, template.source)
        for index in range(len(numbers)):
            wrong = numbers.copy()
            wrong[index] += 1.5 * template.tolerance
            changed = dataclasses.replace(expected, numbers=tuple(wrong.tolist()))
            (case,) = reranker_against_published(folder, [changed], "float32")
            assert not case.ok


def test_published_scores_through_the_command(
    run: Run, reranker_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "BAAI/bge-reranker-base"
    (template,) = PUBLISHED[name]
    model = Reranker.from_pretrained(reranker_folder)
    numbers = tuple(model.score_pairs(template.pairs, normalize=True).tolist())
    monkeypatch.setitem(PUBLISHED, name, (dataclasses.replace(template, numbers=numbers),))
    options = ("--against", "published", "--published-as", "bge-reranker-base")
    assert run(reranker_folder, *options)[:2] == (0, {template.source: "ok"})
    monkeypatch.setitem(PUBLISHED, name, (dataclasses.replace(template, normalized=False),))
    assert run(reranker_folder, *options)[0] == 1


def test_an_embedder_is_not_checked_as_a_reranker(
    run: Run, reranker_folder: Path, tmp_path: Path, dialect: str
) -> None:
    embedder = write_tiny_model(tmp_path / "embedder", dialect)
    code, _, err = run(
        embedder, "--against", "published", "--published-as", "BAAI/bge-reranker-base"
    )
    assert (code, "no classification head" in err) == (2, True)
    code, _, err = run(
        reranker_folder, "--against", "published", "--published-as", "multilingual-e5-base"
    )
    assert (code, "is a cross-encoder" in err) == (2, True)
    for one, other in ((embedder, reranker_folder), (reranker_folder, embedder)):
        code, _, err = run(one, "--against", other)
        assert code == 2
        assert "they cannot be copies of one model" in err


# ---- against a copy


def test_a_copy_of_itself_holds(run: Run, reranker_folder: Path) -> None:
    code, verdicts, _ = run(reranker_folder, "--against", reranker_folder)
    assert code == 0
    assert list(verdicts) == [
        "largest difference",
        "rank correlation",
        "rank correlation, worst query",
        "queries with the same first passage",
    ]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8", "float64"])
def test_a_copy_in_another_precision(run: Run, reranker_folder: Path, dtype: str) -> None:
    code, verdicts, _ = run(reranker_folder, "--against", reranker_folder, "--dtype", dtype)
    assert (code, len(verdicts)) == (0, 4 if dtype == "float64" else 3)


@pytest.mark.parametrize(("gap", "code"), [(1e-6, 0), (4e-3, 1)])
def test_neighbours_may_change_places_within_rounding(
    run: Run, reranker_folder: Path, monkeypatch: pytest.MonkeyPatch, gap: float, code: int
) -> None:
    """Of each two neighbours the second is ahead in one run, and the first in the other."""
    gaps = iter((gap, -gap))

    def score(model: Reranker, pairs: Sequence[tuple[str, str]]) -> Logits:
        places = np.arange(len(pairs))
        return (places // 2 / 100 + next(gaps) * (places % 2)).astype(np.float32)

    monkeypatch.setattr(rerankers, "score", score)
    found, verdicts, _ = run(reranker_folder, "--against", reranker_folder)
    assert found == code
    assert broken(verdicts) == (set(verdicts) if code else set())


def test_another_model_breaks_every_bound(run: Run, tmp_path: Path, dialect: str) -> None:
    first = write_tiny_reranker(tmp_path / "first", dialect)
    second = write_tiny_reranker(tmp_path / "second", dialect, seed=1)
    code, verdicts, _ = run(first, "--against", second, "--bounds", "int8")
    assert (code, set(verdicts.values())) == (1, {"FAIL"})


def test_a_head_that_is_turned_round_is_found(
    run: Run, reranker_folder: Path, tmp_path: Path, dialect: str
) -> None:
    """Same encoder, and the worst passage first."""
    other = write_tiny_reranker(tmp_path / "other", dialect)

    def turn(tensors: Tensors) -> None:
        name = "classifier.weight" if dialect == "bert" else "classifier.out_proj.weight"
        tensors[name] = -tensors[name]

    rewrite(other, turn)
    assert run(reranker_folder, "--against", other, "--bounds", "int8")[0] == 1


def test_one_passage_has_no_order(run: Run, reranker_folder: Path) -> None:
    code, _, err = run(reranker_folder, "--against", reranker_folder, "--sample", 1)
    assert (code, "one passage has no order; give 2 or more" in err) == (2, True)


def test_bounds_never_widen_towards_finer_precision() -> None:
    rows = [dataclasses.astuple(bounds) for bounds in RANK_BOUNDS.values()]
    assert list(RANK_BOUNDS) == ["float64", "float32", "float16", "bfloat16", "int8"]
    assert rows == sorted(rows, reverse=True)


def test_rank_correlation() -> None:
    scores = np.array([3.0, -1, 2, 5])
    assert rank_correlation(scores, np.exp(scores)) == pytest.approx(1)
    assert rank_correlation(scores, -scores) == pytest.approx(-1)
    assert rank_correlation(scores, np.array([3.0, -1, 5, 2])) == pytest.approx(0.2)
    # scipy.stats.spearmanr([1, 2, 2, 3], [1, 2, 3, 4]), the two equal ones at rank 2.5
    tied = rank_correlation(np.array([1.0, 2, 2, 3]), np.array([1.0, 2, 3, 4]))
    assert tied == pytest.approx(0.9486832980505138)


def test_sample_pairs_differ() -> None:
    assert len(set(sample_pairs(600))) == 600
    assert sample_pairs(10) == sample_pairs(10)
    assert rerankers.BATCH_SIZES == (1, 2, 7, 64)


@pytest.fixture(scope="module")
def first_states(real_folder: Path) -> dict[str, torch.Tensor]:
    """By precision, what the encoder of real e5-small gives the head for 4 × 32 pairs."""
    folder = ModelFolder.read(real_folder)
    pieces = folder.load_tokenizer().encode_pieces
    ids = [
        join_pair(pieces(query), pieces(text))
        for query in QUERIES[:4]
        for text in spread(SENTENCES, 32)
    ]
    with torch.inference_mode():
        return {
            dtype: Pipeline(folder.load_encoder(dtype, "cpu"), "cls").run(ids)
            for dtype in ("float32", "bfloat16", "int8")
        }


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", ["int8", "bfloat16"])
def test_low_precision_keeps_the_order_of_real_text(
    first_states: dict[str, torch.Tensor], dtype: str, seed: int, measured: Callable[[str], None]
) -> None:
    """The encoder of real multilingual-e5-small under random heads: no real cross-encoder lies in
    the package index. A trained head's logits lie further apart, and keep their order better."""
    config = replace(TINY["bert"], hidden_size=384, num_labels=1)
    head = spread_head(ClassificationHead(config), seed).eval()
    with torch.no_grad():
        exact, found = (head(first_states[key])[:, 0].numpy() for key in ("float32", dtype))
    whole = rank_correlation(found, exact)
    rows = zip(found.reshape(4, 32), exact.reshape(4, 32), strict=True)
    worst_query = min(rank_correlation(*row) for row in rows)
    measured(
        f"e5-small's encoder under random head {seed}, logits spread by {exact.std():.2g}: rank "
        f"correlation of {dtype} with float32 {whole:.4f}, worst query {worst_query:.4f}"
    )
    assert whole >= RANK_BOUNDS[dtype].correlation
    assert worst_query >= RANK_BOUNDS[dtype].worst_query
