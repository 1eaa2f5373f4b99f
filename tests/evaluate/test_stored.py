"""What is stored of an earlier run: of which model, rows and draws it is, and when it is used."""

import csv
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.evaluation import write_beir, write_data
from support.models import write_tiny_reranker

pytest.importorskip("mteb", reason="mteb is not installed")

from e5core import E5
from e5core.cli import main
from e5core.evaluate import run
from e5core.evaluate.tasks import open_tasks


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path / "data")


@pytest.fixture(autouse=True)
def less(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer texts than mteb draws of each clustering."""
    from mteb.abstasks import AbsTaskClustering

    monkeypatch.setattr(AbsTaskClustering, "max_documents_per_cluster", 64)


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every text that a model embeds."""
    texts: list[str] = []
    embed = E5.embed

    def record(self: E5, given: list[str], **options: Any) -> Any:
        texts.extend(given)
        return embed(self, given, **options)

    monkeypatch.setattr(E5, "embed", record)
    return texts


def evaluate(*arguments: object) -> int:
    return main(["evaluate", *map(str, arguments)])


def entries(output: Path, task: str, model: str = "*") -> dict[str, Any]:
    """What the only result of a task says of each subset."""
    (file,) = (output / "results").glob(f"local__{model}/**/{task}.json")
    scores: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["scores"]
    return {f"{split} {one['hf_subset']}": one for split in scores for one in scores[split]}


def rewrite(file: Path, change: Callable[[list[str]], Sequence[str]]) -> None:
    lines = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    file.write_text("\n".join(change(lines)) + "\n", encoding="utf-8")


def test_other_rows_are_other_results(
    data: Path, make_tiny: Callable[..., Path], tmp_path: Path, embedded: list[str]
) -> None:
    """A subset whose file was completed is computed anew, and no other one."""
    output = tmp_path / "out"
    arguments = ("Tatoeba", "--data", data, "--model", make_tiny(), "--output", output)
    whole = [data / "tatoeba" / f"tatoeba.tur-eng.{side}" for side in ("tur", "eng")]
    contents = [file.read_bytes() for file in whole]
    for file in whole:
        rewrite(file, lambda lines: lines[:5])
    assert evaluate(*arguments) == 0
    before = entries(output, "Tatoeba")
    for file, content in zip(whole, contents, strict=True):
        file.write_bytes(content)
    embedded.clear()
    assert evaluate(*arguments, "--languages", "deu") == 0
    assert entries(output, "Tatoeba") == before  # what is not asked for is left as it is
    assert evaluate(*arguments) == 0
    assert len(embedded) == 3  # in Turkish; the English ones were there in other pairs
    after = entries(output, "Tatoeba")
    assert {name for name in after if after[name] != before[name]} == {"test tur-eng"}
    fresh = tmp_path / "fresh"
    assert evaluate(*arguments[:-1], fresh) == 0
    assert entries(fresh, "Tatoeba") == after


def swap_questions(lines: list[str]) -> list[str]:
    content = json.loads("".join(lines))
    first, second = content["data"][0]["paragraphs"][:2]
    first["qas"], second["qas"] = second["qas"], first["qas"]
    return [json.dumps(content)]


def swap_labels(lines: list[str]) -> list[str]:
    """Of the first two rows of a table whose last field is the label."""
    (*one, first), (*other, second) = (line.rsplit(",", 1) for line in lines[-2:])
    return [*lines[:-2], f"{one[0]},{second}", f"{other[0]},{first}"]


@pytest.mark.parametrize(
    ("task", "file", "change", "subset"),
    [
        ("XQuADRetrieval", "xquad/xquad.de.json", swap_questions, "de"),
        ("STSBenchmarkMultilingualSTS", "stsb/stsb-de-dev.csv", swap_labels, "de"),
        ("NusaX-senti", "nusax-senti/javanese/train.csv", swap_labels, "jav"),
        ("Banking77Classification", "banking77/test.csv", swap_labels, "default"),
    ],
)
def test_the_same_texts_with_other_answers_are_other_rows(
    task: str, file: str, change: Callable[[list[str]], list[str]], subset: str, data: Path
) -> None:
    (before,), (same,) = open_tasks([task], data), open_tasks([task], data)
    assert before.digests == same.digests
    rewrite(data / file, change)
    (after,) = open_tasks([task], data)
    changed = {name for name in after.digests if after.digests[name] != before.digests[name]}
    assert changed == {subset}


def test_another_model_under_a_name_is_another_result(
    data: Path, make_tiny: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who removes the vectors of the old one, as the error says, gets the figures of the new."""
    output, model = tmp_path / "out", make_tiny(name="model")
    arguments = ("Tatoeba", "--data", data, "--languages", "deu,fra", "--model", model, "--output")
    assert evaluate(*arguments, output) == 0
    old = entries(output, "Tatoeba")
    shutil.rmtree(model)
    make_tiny(seed=1, name="model")
    capsys.readouterr()
    assert evaluate(*arguments, output) == 2
    error = capsys.readouterr().err
    (vectors,) = (output / "vectors").iterdir()
    assert str(vectors) in error
    assert "holds vectors of another model" in error
    for options in ((), ("--max-length", 6), ("--truncate-dim", 8)):
        shutil.rmtree(vectors)
        fresh = tmp_path / "-".join(["fresh", *map(str, options)])
        assert evaluate(*arguments, output, *options) == 0
        assert evaluate(*arguments, fresh, *options) == 0
        assert entries(output, "Tatoeba") == entries(fresh, "Tatoeba") != old
        old = entries(output, "Tatoeba")
    # Of the language that is not asked for, nothing is left that would be of another model.
    shutil.rmtree(vectors)
    assert evaluate(*arguments, output, "--languages", "deu") == 0
    assert list(entries(output, "Tatoeba")) == ["test deu-eng"]


def test_reranking_is_of_both_models(make_tiny: Callable[..., Path], tmp_path: Path) -> None:
    output, model, reranker = tmp_path / "out", make_tiny(name="model"), tmp_path / "reranker"
    write_tiny_reranker(reranker, "bert")
    arguments = ("--retrieval", write_beir(tmp_path / "beir"), "--model", model)
    arguments += ("--reranker", reranker, "--rerank-top", 3, "--output")

    def reranked(output: Path) -> Any:
        files = list((output / "results" / "local__reranker").rglob("OwnRetrieval-beir.json"))
        return max(files, key=lambda file: file.stat().st_mtime_ns).read_bytes()

    assert evaluate(*arguments, output) == 0
    first = reranked(output)
    shutil.rmtree(model)
    make_tiny(seed=1, name="model")
    shutil.rmtree(output / "vectors")
    assert evaluate(*arguments, output) == 0
    assert evaluate(*arguments, tmp_path / "fresh") == 0
    assert reranked(output) == reranked(tmp_path / "fresh") != first
    shutil.rmtree(reranker)
    write_tiny_reranker(reranker, "xlm-roberta")
    assert evaluate(*arguments, output) == 0
    assert len(list((output / "results" / "local__reranker").iterdir())) == 2


@pytest.mark.parametrize(
    ("name", "every"), [("SIB200ClusteringS2S", "deu,eng"), ("NTREXBitextMining", "deu,srp,zho")]
)
def test_a_subset_depends_on_no_other(
    name: str, every: str, data: Path, make_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    """Not on subsets or models before it, at once or in another run: its samples are its own."""
    outputs = [tmp_path / which for which in ("whole", "parts", "alone")]
    models = make_tiny(name="one"), make_tiny(seed=1, name="two")
    arguments = (name, "--data", data, "--output")
    both = ("--model", models[0], "--compare", models[1])
    assert evaluate(*arguments, outputs[0], *both) == 0
    for languages in ("deu", every):
        assert evaluate(*arguments, outputs[1], *both, "--languages", languages) == 0
    assert evaluate(*arguments, outputs[2], "--model", models[1]) == 0
    for output, model in ((outputs[1], "one"), (outputs[1], "two"), (outputs[2], "two")):
        assert entries(output, name, model) == entries(outputs[0], name, model)


def test_draws_begin_anew(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both generators that mteb's tasks draw from, and what was restricted is so no more."""
    (task,) = open_tasks(["SIB200ClusteringS2S"], data)
    drawn: list[object] = []

    def evaluate(model: Any, task: Any, **options: Any) -> Any:
        drawn.append((task.rng_state.random(), task.np_rng.random(), *task.eval_splits))
        raise RuntimeError(*task.hf_subsets)

    monkeypatch.setattr("mteb.evaluate", evaluate)
    for subset in task.hf_subsets:
        with pytest.raises(RuntimeError, match=subset):
            run.compute(None, task, "test", [subset])
    assert drawn == [drawn[0]] * 2
    assert set(task.hf_subsets) == {"deu_Latn", "eng_Latn"}


@pytest.mark.parametrize("name", ["Tatoeba", "NTREXBitextMining"])
def test_predictions_are_made_where_they_lack(
    name: str,
    data: Path,
    make_tiny: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A comparison after runs with and without one, in other languages and of other rows."""
    output, model = tmp_path / "out", make_tiny()
    arguments = (name, "--data", data, "--model", model, "--kernels", "plain", "--output")
    compare = ("--compare-dtype", "bfloat16")
    others = "srp" if name != "Tatoeba" else "tur"

    def compared(output: Path, *options: object) -> str:
        capsys.readouterr()
        assert evaluate(*arguments, output, *compare, *options) == 0
        return capsys.readouterr().out.partition(" against ")[2]

    assert "loses" in compared(output, "--languages", "deu").replace("is lost", "loses")
    assert evaluate(*arguments, output, "--languages", others) == 0
    both = ("--languages", f"deu,{others}")
    assert compared(output, *both) == compared(tmp_path / "fresh", *both)
    # Other rows, first without predictions: the old ones are of no use any more.
    for file in sorted((data / name.lower().removesuffix("bitextmining")).glob("*deu*")):
        rewrite(file, lambda lines: lines[::-1])
    assert evaluate(*arguments, output, *both) == 0
    anew = compared(output, *both)
    assert anew == compared(tmp_path / "anew", *both)
    # A killed run has left half of them.
    for file in (output / "results").rglob("predictions/*.json"):
        file.write_bytes(file.read_bytes()[:-9])
    assert compared(output, *both) == anew


def test_own_data_beside_files_of_a_task(
    data: Path, make_tiny: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows are counted of what mteb describes."""
    pairs = tmp_path / "pairs.csv"
    with pairs.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["one", "eins"], ["two", "zwei"], ["three", "drei"]])
    own = ("--pairs", pairs, "--retrieval", write_beir(tmp_path / "beir"))
    arguments = ("--data", data, "--model", make_tiny(), "--output", tmp_path / "out")
    assert evaluate("Tatoeba", "--languages", "deu", *own, *arguments) == 0
    printed = capsys.readouterr()
    assert "OwnBitextMining-pairs (" in printed.out
    assert "Tatoeba deu-eng test has 8 rows" in printed.err
    assert "Own" not in printed.err
