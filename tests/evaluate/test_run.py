"""`e5core evaluate`: mteb's scores, each text embedded once, own data, two models, a reranker."""

import csv
import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.cli import fails
from support.evaluation import write_beir, write_data
from support.models import write_tiny_reranker

pytest.importorskip("mteb", reason="mteb is not installed")
import mteb

from e5core import E5
from e5core.checkpoint.options import LoadOptions
from e5core.cli import main
from e5core.evaluate.compare import average, compare
from e5core.evaluate.encoder import StoringEncoder
from e5core.evaluate.own import pairs_task, retrieval_task, similar_task
from e5core.evaluate.readers import LAYOUTS
from e5core.evaluate.results import Results
from e5core.evaluate.run import predictions_of, run_tasks
from e5core.evaluate.store import VectorStore
from e5core.evaluate.tasks import open_tasks
from e5core.integrations.mteb import E5Encoder
from e5core.parity.samples import SENTENCES


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def less(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer draws of what mteb draws: of each classification two, of each clustering 64 texts."""
    from mteb.abstasks import AbsTaskClassification, AbsTaskClustering

    monkeypatch.setattr(AbsTaskClassification, "n_experiments", 2)
    monkeypatch.setattr(AbsTaskClustering, "max_documents_per_cluster", 64)


@pytest.fixture
def model(make_tiny: Callable[..., Path]) -> Path:
    return make_tiny(name="multilingual-e5-small-tiny")


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every text that a model embeds, with its prefix."""
    texts: list[str] = []
    embed = E5.embed

    def record(self: E5, given: list[str], **options: Any) -> Any:
        kind = options["input_type"]
        prefix = {"query": "query: ", "passage": "passage: ", None: ""}[kind]
        texts.extend(prefix + text for text in given)
        return embed(self, given, **options)

    monkeypatch.setattr(E5, "embed", record)
    return texts


def evaluate(*arguments: object) -> int:
    return main(["evaluate", *map(str, arguments)])


def result_files(output: Path) -> dict[str, bytes]:
    """Everything below results/ by its path."""
    folder = output / "results"
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in sorted(folder.rglob("*.json"))
    }


def scores(output: Path, task: str) -> dict[str, Any]:
    (file,) = (output / "results").rglob(f"{task}.json")
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def _scores_of_mteb(encoder: E5Encoder, task: Any) -> dict[str, dict[str, float]]:
    """Main scores by split and subset; of a clustering as mteb has them of one subset alone."""
    alone = task.metadata.type == "Clustering"
    found: dict[str, dict[str, float]] = {}
    for subsets in [[subset] for subset in task.hf_subsets] if alone else [task.hf_subsets]:
        one = mteb.get_task(task.metadata.name, hf_subsets=subsets) if alone else task
        one.dataset, one.data_loaded = task.dataset, True
        result = mteb.evaluate(encoder, one, cache=None, show_progress_bar=False).task_results[0]
        for split, entries in result.scores.items():
            scores = {entry["hf_subset"]: entry["main_score"] for entry in entries}
            found.setdefault(split, {}).update(scores)
    return found


def test_all_tasks_get_the_scores_of_mteb(
    data: Path, model: Path, tmp_path: Path, embedded: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of mteb.evaluate with the plain adapter, and no text is embedded twice."""
    output = tmp_path / "out"
    arguments = (*LAYOUTS, "--data", data, "--model", model, "--output", output)
    assert evaluate(*arguments, "--symmetric-prefix", "none") == 0
    assert len(embedded) == len(set(embedded))
    printed = capsys.readouterr()
    assert "Tatoeba tur-eng test has 8 rows" in printed.err  # which mteb describes otherwise
    lines = [line.split() for line in printed.out.splitlines()]
    assert "difference" in lines[2]  # the folder's name says which figures are beside
    turkish = next(line for line in lines if line[:2] == ["test", "tur-eng"])
    assert turkish[3] == "0.9042"
    encoder = E5Encoder(model, symmetric_prefix="none")
    for task in open_tasks(list(LAYOUTS), data):
        stored = scores(output, task.metadata.name)
        assert stored["dataset_revision"] == task.metadata.revision
        assert stored["evaluation_time"] is None
        for split, entries in _scores_of_mteb(encoder, task).items():
            found = {entry["hf_subset"]: entry["main_score"] for entry in stored["scores"][split]}
            assert found == pytest.approx(entries, abs=1e-6), task
    # mteb finds the results in the folder.
    assert mteb.ResultCache(output).load_results(load_experiments="match_name").model_results
    # Kernels in C++ are named with a slash, which makes no folder.
    assert {len(Path(name).parts) for name in result_files(output)} == {5}
    assert {file.parent.parent for file in output.rglob("keys.bin")} == {output / "vectors"}

    files = result_files(output)
    embedded.clear()
    assert evaluate(*arguments, "--symmetric-prefix", "none") == 0
    assert embedded == []
    assert result_files(output) == files
    # The other prefix is another result, and queries of the retrieval have their vectors already.
    assert evaluate(*arguments, "--symmetric-prefix", "query") == 0
    assert not [text for text in embedded if text.startswith("passage: ")]
    assert files.items() < result_files(output).items()


def test_languages_add_up(data: Path, model: Path, tmp_path: Path) -> None:
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    arguments = ("Tatoeba", "--data", data, "--model", model, "--output")
    assert evaluate(*arguments, parts, "--languages", "tur") == 0
    assert evaluate(*arguments, parts, "--languages", "deu,fra") == 0
    assert evaluate(*arguments, whole) == 0
    assert result_files(parts) == result_files(whole)


def test_what_is_advised_and_a_bar(
    data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Translations get no prefix if nothing is said; the bar counts all texts of all tasks."""
    tasks = open_tasks(["Tatoeba", "STSBenchmarkMultilingualSTS"], data, ["deu"], ["test"])
    encoder = StoringEncoder(model, LoadOptions(), tmp_path)
    assert [encoder.prefix_of(task) for task in tasks] == ["none", "query"]
    results = run_tasks(encoder, tasks, Results(tmp_path), show_progress=True)
    encoder.close()
    assert [result.task_name for result in results] == [task.metadata.name for task in tasks]
    bar = capsys.readouterr().err
    assert "40/40" in bar  # 8 pairs and 12 pairs
    assert "Matching" not in bar  # mteb's own bars


def test_another_model_does_not_mix_in(
    data: Path, make_tiny: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    model = make_tiny(name="model")
    arguments = ("Tatoeba", "--data", data, "--languages", "deu", "--output", output)
    assert evaluate(*arguments, "--model", model) == 0
    other = make_tiny(seed=1, name="other/model")
    capsys.readouterr()
    assert evaluate(*arguments, "--model", other) == 2
    assert "holds vectors of another model" in capsys.readouterr().err


def write_rows(path: Path, rows: list[list[str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",").writerows(rows)
    return path


def test_own_data_before_and_after_a_reranker(
    model: Path, tmp_path: Path, embedded: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    english, japanese = SENTENCES[:16], SENTENCES[16:32]
    pairs = write_rows(
        tmp_path / "pairs.tsv", [list(pair) for pair in zip(english, japanese, strict=True)]
    )
    grades = [[english[i], english[i // 2], str(i % 5)] for i in range(16)]
    similar = write_rows(tmp_path / "similar.csv", grades)
    folder = write_beir(tmp_path / "beir")
    reranker = write_tiny_reranker(tmp_path / "reranker", "bert")
    arguments = ["--retrieval", folder, "--pairs", pairs, "--similar", similar, "--model", model]
    arguments += ["--reranker", reranker, "--rerank-top", 5, "--output", tmp_path / "out"]
    assert evaluate(*arguments) == 0
    printed = capsys.readouterr().out
    for name in ("OwnRetrieval-beir", "OwnBitextMining-pairs", "OwnSTS-similar"):
        assert f"\n{name} (" in printed
    assert "the best 5 reranked" in printed
    # The scores by their definition, from the model's own vectors.
    e5 = E5.from_pretrained(model)
    queries, passages = e5.encode_query(english), e5.encode_passage(japanese)
    order = np.argsort(-(queries @ passages.T), axis=1, kind="stable")
    places = np.array([row.tolist().index(i) for i, row in enumerate(order)])
    gains = np.where(places < 10, 1 / np.log2(places + 2), 0)
    files = list((tmp_path / "out" / "results").rglob("OwnRetrieval-beir.json"))
    assert len(files) == 2
    found = {
        "reranker" in file.parts[-5]: json.loads(file.read_text())["scores"]["test"][0]
        for file in files
    }
    assert found[False]["ndcg_at_10"] == pytest.approx(gains.mean(), abs=1e-5)
    from e5core import Reranker

    logits = Reranker.from_pretrained(reranker)
    again = []
    for i, row in enumerate(order):
        best = row[:5]
        if i not in best:
            again.append(0.0)
            continue
        ranked = best[
            np.argsort(-logits.score(english[i], [japanese[j] for j in best], truncate="longest"))
        ]
        again.append(1 / np.log2(ranked.tolist().index(i) + 2))
    assert found[True]["ndcg_at_10"] == pytest.approx(np.mean(again), abs=1e-5)
    embedded.clear()
    assert evaluate(*arguments) == 0
    assert embedded == []
    # Another answer is other data: its results are computed anew.
    write_rows(similar, [*grades[:-1], [*grades[-1][:2], "4.5"]])
    before = scores(tmp_path / "out", "OwnSTS-similar")
    assert evaluate(*arguments) == 0
    assert scores(tmp_path / "out", "OwnSTS-similar") != before


def test_titles_are_read_with_documents(tmp_path: Path) -> None:
    task = retrieval_task(write_beir(tmp_path / "beir", titles=True))
    corpus = task.dataset["default"]["test"]["corpus"]
    assert corpus["text"][0] == f"T {SENTENCES[16]}"
    assert task.dataset["default"]["test"]["relevant_docs"]["q0"] == {"d0": 1}  # 0 is no answer


def test_the_splits_of_own_judgements(tmp_path: Path) -> None:
    folder = write_beir(tmp_path / "beir")
    judgements = (folder / "qrels" / "test.tsv").read_text()
    (folder / "qrels" / "dev.tsv").write_text(judgements)
    assert list(retrieval_task(folder).dataset["default"]) == ["dev", "test"]
    assert list(retrieval_task(folder, ["dev"]).dataset["default"]) == ["dev"]
    with pytest.raises(ValueError, match="has none of the splits train, but dev, test"):
        retrieval_task(folder, ["train"])


def test_judgements_need_no_header_and_ids_may_be_numbers(tmp_path: Path) -> None:
    folder = write_beir(tmp_path / "beir")
    whole = retrieval_task(folder).dataset["default"]["test"]["relevant_docs"]
    file = folder / "qrels" / "test.tsv"
    file.write_text(file.read_text().split("\n", 1)[1])
    assert retrieval_task(folder).dataset["default"]["test"]["relevant_docs"] == whole
    assert len(whole) == 16
    (folder / "corpus.jsonl").write_text('{"_id": 7, "title": null, "text": "seven"}\n\n')
    (folder / "queries.jsonl").write_text('\ufeff{"_id": 1, "text": "one"}\n')
    file.write_text("1\t7\t2\n\n")
    part = retrieval_task(folder).dataset["default"]["test"]
    assert part["relevant_docs"] == {"1": {"7": 2}}
    assert part["corpus"][0] == {"id": "7", "text": "seven"}


def test_quotation_marks_of_translations(tmp_path: Path) -> None:
    """In .tsv they are text unless all of them quote as in CSV; in .csv a lone one is a fault."""
    file = tmp_path / "pairs.tsv"
    file.write_text('"Where is it?" he asks.\t"Wo?"\nSay "hi\tSag "hi"\n"\t"x\n')
    found = pairs_task(file).dataset["test"]
    assert found["sentence1"][:] == ['"Where is it?" he asks.', 'Say "hi', '"']
    assert found["sentence2"][:] == ['"Wo?"', 'Sag "hi"', '"x']
    file = tmp_path / "pairs.csv"
    file.write_text('one,"eins, 1"\ntwo,"zwei\nthree,drei\n')
    with pytest.raises(ValueError, match=r"line 2: the row.* is not CSV"):
        pairs_task(file)


# A file of one's own, what it holds, and what an error says of it.
WRONG_PAIRS = {
    "p.csv": ("a,b\na\n", "line 2 is"),
    "q.csv": ("a,b\na,  \n", "line 2 is"),
    "empty.csv": ("", "is empty"),
    "blank.tsv": ("\n\n", "is empty"),
    "three.tsv": ("a\tb\tc\n", "line 1 is"),
    "p.txt": ("a\tb\n", "ends in '.txt', expected .tsv"),
    "bytes.tsv": (b"a\tb\na\t\xff\n", "line 2: the byte 0xFF is not UTF-8"),
    "wide.tsv": ("a\tb\n".encode("utf-16"), "the file is UTF-16"),
    "p.jsonl": ('{"sentence1": "a", "sentence2": "b"}\nno\n', "line 2: the line is not JSON"),
    "less.jsonl": ('{"sentence1": "a"}\n', "line 1 has no 'sentence2'"),
    "null.jsonl": ('{"sentence1": "a", "sentence2": null}\n', "line 1: sentence2 is None"),
    "other.jsonl": ("3\n", "line 1: the line is a JSON int"),
}
WRONG_GRADES = {
    "word.csv": ("a,b,x\n", "line 1 has the grade 'x', expected a number"),
    "nan.csv": ("a,b,1\na,b,nan\n", "line 2 has the grade 'nan'"),
    "inf.csv": ("a,b,inf\n", "line 1 has the grade 'inf'"),
    "two.csv": ("a,b\n", "line 1 is"),
    "blank.csv": ("a,b,1\na, ,2\n", "pair 2 is"),
    "same.csv": ("a,b,1\na,c,1\n", "less than two different grades"),
    "empty.csv": ("", "less than two different grades"),
    "s.jsonl": ('{"sentence1": "a", "sentence2": "b"}\n', "line 1 has no 'score'"),
    "null.jsonl": ('{"sentence1": "a", "sentence2": "b", "score": null}', "the grade None"),
    "true.jsonl": ('{"sentence1": "a", "sentence2": "b", "score": true}', "the grade True"),
}
# In place of the corpus, the queries and the judgements of a folder.
WRONG_FOLDERS = {
    "corpus.jsonl": [
        ("", "names the document 'd0'"),
        ('{"_id": "d0"}\n', "line 1 has no 'text'"),
        ('{"_id": "d0", "text": null}\n', "line 1: text is None"),
        ('{"_id": "d0", "text": 5}\n', "line 1: text is 5 of type int"),
        ('{"_id": null, "text": "x"}\n', "line 1: _id is None"),
        ('{"_id": "d0", "text": "x"}\n{"_id": "d0", "text": "y"}\n', "line 2 has the _id 'd0' a"),
        ("[1]\n", "expected an object"),
    ],
    "queries.jsonl": [('{"_id": "q99", "text": "x"}\n', "names the query 'q0'")],
    "qrels/test.tsv": [
        ("q0\td99\t1\n", "line 1 names the document 'd99'"),
        ("query-id\tcorpus-id\tscore\nq99\td1\t1\n", "line 2 names the query 'q99'"),
        ("q0\td1\t0\n", "judges no document relevant"),
        ("query-id\tcorpus-id\tscore\n", "judges no document relevant"),
        ("", "judges no document relevant"),
        ("q0\td1\t1.0\n", "line 1 is .* a grade from 0 on"),
        ("q0\td1\t-1\n", "line 1 is"),
        ("q0\td1\t\u00b2\n", "line 1 is"),
        ("q0 0 d1 1\n", "with tabs between them"),
        ("q0\td1\t1\nq0\td1\t2\n", "line 2 grades the document 'd1' .* as 2, .* before it as 1"),
    ],
}


def test_files_that_are_no_data(tmp_path: Path) -> None:
    def wrong(match: str, make: Callable[[Path], Any], path: Path) -> None:
        with pytest.raises((ValueError, OSError), match=match):
            make(path)

    for make, files in ((pairs_task, WRONG_PAIRS), (similar_task, WRONG_GRADES)):
        for name, (content, match) in files.items():
            path = tmp_path / name
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
            wrong(match, make, path)
    wrong("No such file", pairs_task, tmp_path / "none.tsv")
    folder = write_beir(tmp_path / "beir")
    for name, contents in WRONG_FOLDERS.items():
        right = (folder / name).read_text()
        for content, match in contents:
            (folder / name).write_text(content)
            wrong(match, retrieval_task, folder)
        (folder / name).write_text(right)
    (folder / "qrels" / "test.tsv").unlink()
    wrong("no .tsv file", retrieval_task, folder)


def test_refusals_before_the_first_vector(
    model: Path,
    make_tiny: Callable[..., Path],
    tmp_path: Path,
    embedded: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    pairs = write_rows(tmp_path / "pairs.tsv", [["one", "eins"], ["two", "zwei"]])
    output = ("--output", tmp_path / "out")

    def said(*arguments: object) -> str:
        return fails(capsys, "evaluate", "--model", model, *output, *arguments)

    assert "nothing to evaluate" in said()
    assert "none of the tasks is a retrieval" in said("--pairs", pairs, "--reranker", model)
    assert "--languages chooses" in said("--pairs", pairs, "--languages", "deu")
    folder = write_beir(tmp_path / "beir")
    assert "--rerank-top is 0" in said("--retrieval", folder, "--rerank-top", 0)
    missing = tmp_path / "missing"
    assert "missing" in said("--pairs", pairs, "--compare", missing)
    assert "missing" in said("--retrieval", folder, "--reranker", missing)
    assert "no classification head" in said("--retrieval", folder, "--reranker", model)
    reranker = write_tiny_reranker(tmp_path / "reranker", "bert")
    assert "is a cross-encoder" in said("--pairs", pairs, "--compare", reranker)
    assert "invalid choice: 'int9'" in said("--pairs", pairs, "--compare-dtype", "int9")
    same = make_tiny(seed=1, name=f"other/{model.name}")
    assert "rename one of the folders" in said("--pairs", pairs, "--compare", same)
    assert embedded == []


def test_two_dtypes_are_compared(
    data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = ["XQuADRetrieval", "Tatoeba", "STSBenchmarkMultilingualSTS", "NusaX-senti"]
    tasks += ["NTREXBitextMining", "SIB200ClusteringS2S"]
    arguments = (*tasks, "--data", data, "--model", model, "--output", tmp_path / "out")
    assert evaluate(*arguments, "--kernels", "plain", "--compare-dtype", "bfloat16") == 0
    printed = capsys.readouterr().out
    assert printed.count("bfloat16") >= len(tasks)
    assert printed.count("More than 0.01 is lost in") + printed.count("Nothing loses") == 6
    lines = [line.split() for line in printed.splitlines() if "average" in line]
    assert all(len(line) in (4, 5, 7) for line in lines)


@pytest.mark.parametrize(
    "name",
    ["XQuADRetrieval", "Tatoeba", "NTREXBitextMining", "NusaX-senti", "SIB200ClusteringS2S"],
)
def test_items_add_up_to_the_scores(
    name: str, data: Path, make_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    """The mean over the items that are drawn anew is mteb's score, so the interval is of it."""
    from e5core.evaluate import compare as module

    (task,) = open_tasks([name], data)
    results, files, stored = [], [], Results(tmp_path)
    for seed in (0, 1):
        encoder = StoringEncoder(make_tiny(seed=seed, name=f"m{seed}"), LoadOptions(), tmp_path)
        with closing(encoder):
            results += run_tasks(encoder, [task], stored, predictions=True)
        folder = predictions_of(stored, encoder.meta_of(task), task)
        files.append(folder / task.prediction_file_name)
    comparisons = compare(task, results, files)
    for one in comparisons:
        assert one.interval is not None
        assert one.resampled is not None
        assert one.interval.low <= one.interval.high
        assert one.resampled.mean() == pytest.approx(
            one.second - one.first, abs=4 * one.resampled.std() / 2000**0.5 + 1e-9
        )
        if task.metadata.type in module._ITEMS:
            for result, file in zip(results, files, strict=True):
                items = module._ITEMS[task.metadata.type](
                    task, one.split, one.subset, json.loads(file.read_text())
                )
                score = next(
                    entry["main_score"]
                    for entry in result.scores[one.split]
                    if entry["hf_subset"] == one.subset
                )
                assert items.mean() == pytest.approx(score, abs=1e-5)  # mteb rounds nDCG
    mean = average(comparisons)
    assert mean.second - mean.first == pytest.approx(
        np.mean([one.second - one.first for one in comparisons])
    )


def test_the_store_forgets_what_was_not_finished(tmp_path: Path) -> None:
    store = VectorStore(tmp_path, 3, {"model": "a"})
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    store.add(["one", "two"], rows)
    store.close()
    # A killed run has written vectors without their keys, and half a key.
    with (tmp_path / "vectors.bin").open("ab") as file:
        file.write(b"rest of a vector")
    with (tmp_path / "keys.bin").open("ab") as file:
        file.write(b"half")
    store = VectorStore(tmp_path, 3, {"model": "a"})
    assert len(store) == 2
    assert "three" not in store
    with pytest.raises(OSError, match="another run is writing to"):
        VectorStore(tmp_path, 3, {"model": "a"})
    store.add(["three"], rows[:1] + 10)
    np.testing.assert_array_equal(store.get(["three", "one"]), [rows[0] + 10, rows[0]])
    store.close()
    again = VectorStore(tmp_path, 3, {"model": "a"})
    np.testing.assert_array_equal(again.get(["two", "three"]), [rows[1], rows[0] + 10])
    with pytest.raises(ValueError, match="shape"):
        again.add(["four"], rows)
    again.close()
    with pytest.raises(ValueError, match="model was 'a', is 'b'"):
        VectorStore(tmp_path, 3, {"model": "b"})
