"""Tasks without --data: what mteb loads from the hub, from folders in the hub's layout."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.cli import fails
from support.evaluation import write_data

pytest.importorskip("mteb", reason="mteb is not installed")
import datasets
from mteb.abstasks import abstask, retrieval_dataset_loaders

from e5core.cli import main
from e5core.evaluate.contents import texts_of
from e5core.evaluate.readers import LAYOUTS
from e5core.evaluate.results import OF_DATA
from e5core.evaluate.tasks import open_tasks

# A task of each way in which mteb loads: a table a subset, all subsets in one table with a column
# of their names, a single subset, and the three tables of a retrieval.
TASKS = ("SIB200Classification", "Tatoeba", "Banking77Classification", "XQuADRetrieval")
# Functions of datasets that ask the hub, where mteb has them.
ASKING = (
    (abstask, "load_dataset"),
    (retrieval_dataset_loaders, "load_dataset"),
    (retrieval_dataset_loaders, "get_dataset_config_names"),
    (retrieval_dataset_loaders, "get_dataset_split_names"),
)
SUBSETS = {
    "SIB200Classification": ["deu_Latn", "eng_Latn"],
    "Tatoeba": ["deu-eng", "fra-eng"],
    "Banking77Classification": ["default"],
}
CHOSEN = {name: LAYOUTS[name] for name in SUBSETS}
Rows = Sequence[Mapping[str, Any]]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands in for the hub: datasets reads its repositories in place of others."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def here(ask: Callable[..., Any]) -> Callable[..., Any]:
        def asked(path: str, *arguments: Any, **options: Any) -> Any:
            options.pop("revision", None)
            if not (tmp_path / "hub" / path).is_dir():
                raise ConnectionError(f"Couldn't reach '{path}' on the Hub")
            given = [one for one in arguments if not _is_revision(one)]
            return ask(str(tmp_path / "hub" / path), *given, **options)

        return asked

    for module, name in ASKING:
        monkeypatch.setattr(module, name, here(getattr(datasets, name)))
    return tmp_path / "hub"


def _is_revision(argument: Any) -> bool:
    return isinstance(argument, str) and len(argument) == 40


def write_repository(folder: Path, configs: Mapping[str, Mapping[str, Rows]]) -> None:
    """Tables by config and split, as a repository of data has them: JSON lines and a card."""
    card = ["---", "configs:"]
    for config, splits in configs.items():
        card += [f"- config_name: {config}", "  data_files:"]
        for split, rows in splits.items():
            file = folder / config / f"{split}.jsonl"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            card += [f"  - split: {split}", f"    path: {config}/{split}.jsonl"]
    (folder / "README.md").write_text("\n".join([*card, "---", ""]), encoding="utf-8")


def publish(hub: Path, data: Path) -> None:
    """The files of --data as mteb has published the same rows."""
    found = {name: read(data / folder, SUBSETS[name]) for name, (folder, read) in CHOSEN.items()}
    tables = {
        name: {
            subset: {split: _rows(columns) for split, columns in splits.items()}
            for subset, splits in subsets.items()
        }
        for name, subsets in found.items()
    }
    write_repository(hub / "mteb" / "sib200", tables["SIB200Classification"])
    write_repository(hub / "mteb" / "banking77", tables["Banking77Classification"])
    rows = [
        {**row, "lang": subset}
        for subset, splits in tables["Tatoeba"].items()
        for row in splits["test"]
    ]
    write_repository(hub / "mteb" / "tatoeba-bitext-mining", {"default": {"test": rows}})
    (xquad,) = open_tasks(["XQuADRetrieval"], data)
    configs = {}
    for subset in xquad.hf_subsets:
        part = xquad.dataset[subset]["validation"]
        judged = [
            {"query-id": query, "corpus-id": document, "score": grade}
            for query, grades in part["relevant_docs"].items()
            for document, grade in grades.items()
        ]
        for name, rows in (("corpus", part["corpus"]), ("queries", part["queries"])):
            configs[f"{subset}-{name}"] = {
                "validation": [{"_id": row["id"], "text": row["text"]} for row in rows]
            }
        configs[f"{subset}-qrels"] = {"validation": judged}
    write_repository(hub / "mteb" / "XQuADRetrieval", configs)


def _rows(columns: Mapping[str, Sequence[Any]]) -> Rows:
    return [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]


def scores(output: Path) -> dict[str, Any]:
    """The scores of each task, without the digest of rows from files, which the hub's have not."""
    found = {
        file.stem: json.loads(file.read_text(encoding="utf-8"))["scores"]
        for file in (output / "results").rglob("*.json")
        if file.stem in TASKS
    }
    for entry in (entry for splits in found.values() for one in splits.values() for entry in one):
        del entry[OF_DATA]
    return found


def test_the_hub_and_files_give_the_same(
    hub: Path, make_tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mteb.abstasks import AbsTaskClassification

    monkeypatch.setattr(AbsTaskClassification, "n_experiments", 2)
    data = write_data(tmp_path / "data")
    publish(hub, data)
    languages = ["deu", "default"]
    of_hub, of_files = (open_tasks(list(TASKS), where, languages) for where in (None, data))
    for there, here in zip(of_hub, of_files, strict=True):
        assert there.hf_subsets == here.hf_subsets
        for subset in here.hf_subsets:
            for split in here.eval_splits:
                assert texts_of(there, subset, split) == texts_of(here, subset, split)
    arguments = ["evaluate", *TASKS, "--model", str(make_tiny()), "--languages", "deu,default"]
    outputs = [tmp_path / "hub-out", tmp_path / "files-out"]
    assert main([*arguments, "--output", str(outputs[0])]) == 0
    assert main([*arguments, "--data", str(data), "--output", str(outputs[1])]) == 0
    assert sorted(scores(outputs[0])) == sorted(TASKS)
    assert scores(outputs[0]) == scores(outputs[1])


def test_without_a_network(
    hub: Path, make_tiny: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_tiny()
    said = fails(capsys, "evaluate", "Tatoeba", "--model", model, "--output", tmp_path / "out")
    assert "Couldn't reach 'mteb/tatoeba-bitext-mining' on the Hub" in said
