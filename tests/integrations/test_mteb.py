"""The mteb adapter, in tasks of mteb on the project's own sentences."""

import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from e5core import E5
from e5core.parity.samples import LANGUAGES, QUERIES, SENTENCES, TOPICS, read_column

pytest.importorskip("mteb", reason="mteb is not installed")
import mteb
from datasets import Dataset, DatasetDict
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.abstasks.text.bitext_mining import AbsTaskBitextMining
from mteb.models.models_protocols import EncoderProtocol
from mteb.types import PromptType

from e5core.integrations.mteb import E5Encoder

TASK = "Given a sentence, find its translations"


def metadata(kind: str, score: str) -> TaskMetadata:
    return TaskMetadata(
        name=f"Local{kind}",
        type=kind,
        main_score=score,
        description="The project's own sentences.",
        reference=None,
        dataset={"path": "none", "revision": "1"},
        eval_langs=["eng-Latn"],
        eval_splits=["test"],
        prompt=TASK,
        bibtex_citation="",
    )


class LocalRetrieval(AbsTaskRetrieval):
    """Each query of queries.tsv has the sentences of its topic in all languages."""

    metadata = metadata("Retrieval", "ndcg_at_10")

    def load_data(self, **_: Any) -> None:
        corpus = [{"id": f"d{i}", "text": text} for i, text in enumerate(SENTENCES)]
        queries = [{"id": f"q{i}", "text": text} for i, text in enumerate(QUERIES)]
        relevant = {
            f"q{i}": {f"d{j}": 1 for j, topic in enumerate(TOPICS) if topic == wanted}
            for i, wanted in enumerate(read_column("queries.tsv", "topic"))
        }
        split = {
            "corpus": Dataset.from_list(corpus),
            "queries": Dataset.from_list(queries),
            "relevant_docs": relevant,
            "top_ranked": None,
        }
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True


class LocalBitext(AbsTaskBitextMining):
    """English sentences and their translations into Japanese."""

    metadata = metadata("BitextMining", "accuracy")

    def load_data(self, **_: Any) -> None:
        def of(language: str) -> list[str]:
            return [s for s, found in zip(SENTENCES, LANGUAGES, strict=True) if found == language]

        rows = {"sentence1": of("en"), "sentence2": of("ja")}
        self.dataset = DatasetDict({"test": Dataset.from_dict(rows)})
        self.data_loaded = True


def evaluate(encoder: E5Encoder, task: Any) -> dict[str, float]:
    result = mteb.evaluate(encoder, task, cache=None, show_progress_bar=False)
    return result.task_results[0].scores["test"][0]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a test of mteb reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None, str]]:
    """input_type, task and first text of every call of E5.embed."""
    calls = []
    embed = E5.embed

    def record(self: E5, texts: list[str], **options: Any) -> Any:
        calls.append((options["input_type"], options.get("task"), texts[0]))
        return embed(self, texts, **options)

    monkeypatch.setattr(E5, "embed", record)
    return calls


def test_a_retrieval_task(real_folder: Path, recorded: list[Any], measured: Any) -> None:
    encoder = E5Encoder(real_folder)
    scores = evaluate(encoder, LocalRetrieval())
    measured(f"mteb retrieval on the own sentences: ndcg@10 {scores['ndcg_at_10']:.3f}")
    assert sorted(recorded) == [("passage", None, SENTENCES[0]), ("query", None, QUERIES[0])]
    # The score that our own ranking gives, computed by its definition.
    vectors = encoder.model.encode_query(QUERIES) @ encoder.model.encode_passage(SENTENCES).T
    gains = [
        [TOPICS[j] == topic for j in np.argsort(-row)[:10]]
        for row, topic in zip(vectors, read_column("queries.tsv", "topic"), strict=True)
    ]
    discounts = 1 / np.log2(np.arange(2, 12))
    assert scores["ndcg_at_10"] == pytest.approx((gains @ discounts / discounts.sum()).mean(), 1e-4)
    assert scores["ndcg_at_10"] > 0.9


def test_a_symmetric_task_gets_query_prefixes(real_folder: Path, recorded: list[Any]) -> None:
    scores = evaluate(E5Encoder(real_folder), LocalBitext())
    assert {call[0] for call in recorded} == {"query"}
    assert len(recorded) == 2
    assert scores["accuracy"] == 1.0


def test_an_instruct_model_gets_the_instruction_of_the_task(
    tiny_folder: Path, recorded: list[Any]
) -> None:
    evaluate(E5Encoder(tiny_folder, prompts="e5-instruct"), LocalRetrieval())
    assert sorted(call[:2] for call in recorded) == [("passage", None), ("query", TASK)]


def test_the_protocol(tiny_folder: Path) -> None:
    encoder = E5Encoder(tiny_folder, kernels="plain")
    assert isinstance(encoder, EncoderProtocol)
    meta = encoder.mteb_model_meta
    assert (meta.name, meta.embed_dim, meta.max_tokens) == ("local/tiny", 24, 64)
    assert E5Encoder(tiny_folder, "abc", name="me/mine").mteb_model_meta.name == "me/mine"
    vectors = encoder.encode(
        [{"text": ["a", "b"]}, {"text": ["c"]}],
        task_metadata=LocalBitext.metadata,
        hf_split="test",
        hf_subset="default",
        prompt_type=PromptType.document,
        batch_size=8,
    )
    expected = E5.from_pretrained(tiny_folder, kernels="plain").encode_passage(["a", "b", "c"])
    np.testing.assert_array_equal(vectors, expected)
    cosines = encoder.similarity(vectors, vectors)
    np.testing.assert_allclose(cosines, vectors @ vectors.T, atol=1e-6)
