"""Tasks of mteb over a user's own files: retrieval, translations, graded similarity."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from e5core.evaluate.readers import DEFAULT, Columns, read_graded, read_rows
from e5core.evaluate.tasks import BITEXT, RETRIEVAL, STS, retrieval_split
from e5core.formats.files import sha256
from e5core.integrations import extra

with extra("mteb", "mteb", "datasets"):
    from datasets import Dataset, DatasetDict
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.sts import AbsTaskSTS
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.abstasks.text.bitext_mining import AbsTaskBitextMining

SPLIT = "test"
CORPUS, QUERIES, JUDGEMENTS = "corpus.jsonl", "queries.jsonl", "qrels"
PAIR = ("sentence1", "sentence2")
ROWS = "docs/evaluation.md shows the layouts"


def retrieval_task(folder: Path) -> Any:
    """A task over a folder in BEIR's layout: corpus.jsonl, queries.jsonl and qrels/*.tsv.

    Each file of judgements is a split, and every query that one of them judges is searched.
    Raises OSError or ValueError naming the file and line at fault.
    """
    corpus = _read_records(folder / CORPUS)
    queries = {row["_id"]: row["text"] for row in _read_records(folder / QUERIES)}
    files = sorted((folder / JUDGEMENTS).glob("*.tsv"))
    if not files:
        raise FileNotFoundError(f"{folder / JUDGEMENTS} holds no .tsv file of judgements; {ROWS}")
    known = {row["_id"] for row in corpus}
    texts = [" ".join(filter(None, (row.get("title"), row["text"]))) for row in corpus]
    dataset = {}
    for file in files:
        judged = _read_judgements(file, queries.keys(), known)
        columns: Columns = {
            "documents": [[row["_id"], text] for row, text in zip(corpus, texts, strict=True)],
            "queries": [[query, queries[query]] for query in judged],
            "relevant": list(judged.items()),
        }
        dataset[file.stem] = retrieval_split(columns)
    every = [folder / CORPUS, folder / QUERIES, *files]
    task = _task(AbsTaskRetrieval, RETRIEVAL, "ndcg_at_10", folder, every, list(dataset))
    task.dataset = {DEFAULT: dataset}
    return task


def pairs_task(file: Path) -> Any:
    """A bitext task over a file of translations: .tsv, .csv without a header, or .jsonl."""
    if file.suffix == ".jsonl":
        rows = [[str(row[side]) for side in PAIR] for row in _read_records(file, PAIR)]
    else:
        rows = read_rows(file)
        rows = rows[1:] if rows and tuple(rows[0]) == PAIR else rows
    for number, row in enumerate(rows, 1):
        if len(row) != 2 or not all(row):
            raise ValueError(f"{file}, row {number} is {row!r:.80}, expected two texts; {ROWS}")
    columns = {side: [row[place] for row in rows] for place, side in enumerate(PAIR)}
    return _with_table(_task(AbsTaskBitextMining, BITEXT, "f1", file, [file]), columns)


def similar_task(file: Path) -> Any:
    """An STS task over a file of two texts and a grade: .tsv, .csv without a header, or .jsonl."""
    if file.suffix == ".jsonl":
        records = _read_records(file, (*PAIR, "score"))
        columns = {name: [row[name] for row in records] for name in (*PAIR, "score")}
    else:
        columns = read_graded(file)
    if len(set(columns["score"])) < 2:
        raise ValueError(f"{file} has less than two different grades, which order nothing")
    task = _with_table(_task(AbsTaskSTS, STS, "cosine_spearman", file, [file]), columns)
    task.min_score, task.max_score = min(columns["score"]), max(columns["score"])
    return task


def _task(
    kind: type, name: str, score: str, path: Path, files: Sequence[Path], splits: Sequence[str] = ()
) -> Any:
    """A task without data, whose revision is the digest of its files: results know theirs."""
    digest = hashlib.sha256("".join(sha256(file) for file in files).encode()).hexdigest()
    metadata = TaskMetadata(
        name=f"Own{name}-{path.resolve().stem}",
        type=name,
        main_score=score,
        description="A user's own data.",
        reference=None,
        dataset={"path": path.name, "revision": digest[:40]},
        eval_langs=["mul-Zyyy"],
        eval_splits=list(splits) or [SPLIT],
        bibtex_citation="",
    )
    own: Any = type(f"Own{name}", (kind,), {"metadata": metadata})
    task = own()
    task.data_loaded = True
    return task


def _with_table(task: Any, columns: Columns) -> Any:
    if not columns[PAIR[0]]:
        raise ValueError(f"{task.metadata.dataset['path']} is empty; {ROWS}")
    task.dataset = DatasetDict({SPLIT: Dataset.from_dict(columns)})
    return task


def _read_records(file: Path, names: Sequence[str] = ("_id", "text")) -> list[dict[str, Any]]:
    """The objects of a .jsonl file; ValueError naming a line that lacks one of the names."""
    records = []
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{file}, line {number} is no JSON: {error}; {ROWS}") from None
            if missing := [name for name in names if name not in record]:
                raise ValueError(f"{file}, line {number} has no {missing[0]!r}; {ROWS}")
            records.append(record)
    return records


def _read_judgements(file: Path, queries: Any, documents: Any) -> dict[str, dict[str, int]]:
    """Rows of query, document and grade under a header; a grade of 0 says "not relevant"."""
    judged: dict[str, dict[str, int]] = {}
    for number, row in enumerate(read_rows(file)[1:], 2):
        if len(row) != 3 or not row[2].strip().isdigit():
            raise ValueError(
                f"{file}, row {number} is {row!r:.80}, expected a query, a document and a grade "
                f"from 0 on; {ROWS}"
            )
        query, document, grade = row
        if query not in queries or document not in documents:
            what = f"the query {query!r}" if query not in queries else f"the document {document!r}"
            raise ValueError(f"{file}, row {number} names {what}, which there is not")
        if int(grade):
            judged.setdefault(query, {})[document] = int(grade)
    if not judged:
        raise ValueError(f"{file} judges no document relevant; {ROWS}")
    return judged
