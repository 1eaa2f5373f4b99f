"""Tasks of mteb over a user's own files: retrieval, translations, graded similarity."""

import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from e5core.evaluate.readers import DEFAULT, Columns, grade, read_graded
from e5core.evaluate.records import LAYOUTS, read_fields, read_named, text_of
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


def retrieval_task(folder: Path, splits: Sequence[str] = ()) -> Any:
    """A task over a folder in BEIR's layout: corpus.jsonl, queries.jsonl and qrels/*.tsv.

    splits  names of files of judgements, without .tsv; all of them if none are named

    Each file of judgements is a split, and every query that one of them judges is searched.
    Raises OSError or ValueError naming the file and line at fault.
    """
    corpus = _read_texts(folder / CORPUS)
    queries = _read_texts(folder / QUERIES)
    files = sorted((folder / JUDGEMENTS).glob("*.tsv"))
    if not files:
        raise FileNotFoundError(
            f"{folder / JUDGEMENTS} holds no .tsv file of judgements; {LAYOUTS}"
        )
    chosen = [file for file in files if not splits or file.stem in splits]
    if not chosen:
        there = ", ".join(file.stem for file in files)
        raise ValueError(f"{folder} has none of the splits {', '.join(splits)}, but {there}")
    dataset = {}
    for file in chosen:
        judged = _read_judgements(file, queries.keys(), corpus.keys())
        columns: Columns = {
            "documents": [[name, text] for name, text in corpus.items()],
            "queries": [[query, queries[query]] for query in judged],
            "relevant": list(judged.items()),
        }
        dataset[file.stem] = retrieval_split(columns)
    every = [folder / CORPUS, folder / QUERIES, *chosen]
    task = _task(AbsTaskRetrieval, RETRIEVAL, "ndcg_at_10", folder, every, list(dataset))
    task.dataset = {DEFAULT: dataset}
    return task


def pairs_task(file: Path) -> Any:
    """A bitext task over a file of translations: .tsv, .csv without a header, or .jsonl."""
    if file.suffix == ".jsonl":
        rows = [
            (line, [text_of(fields, side, file, line) for side in PAIR])
            for line, fields in read_named(file, PAIR)
        ]
    else:
        rows = list(read_fields(file))
        rows = rows[1:] if rows and tuple(rows[0][1]) == PAIR else rows
    for line, row in rows:
        if len(row) != 2 or not all(map(str.strip, row)):
            raise ValueError(f"{file}, line {line} is {row!r:.80}, expected two texts; {LAYOUTS}")
    columns = {side: [row[place] for _, row in rows] for place, side in enumerate(PAIR)}
    return _with_table(_task(AbsTaskBitextMining, BITEXT, "f1", file, [file]), columns)


def similar_task(file: Path) -> Any:
    """An STS task over a file of two texts and a grade: .tsv, .csv without a header, or .jsonl."""
    if file.suffix == ".jsonl":
        columns: Columns = {name: [] for name in (*PAIR, "score")}
        for line, fields in read_named(file, tuple(columns)):
            for side in PAIR:
                columns[side].append(text_of(fields, side, file, line))
            columns["score"].append(grade(fields["score"], file, line))
    else:
        columns = read_graded(file)
    for number, pair in enumerate(zip(*(columns[side] for side in PAIR), strict=True), 1):
        if not all(map(str.strip, pair)):
            raise ValueError(
                f"{file}, pair {number} is {pair!r:.80}, expected two texts; {LAYOUTS}"
            )
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
        raise ValueError(f"{task.metadata.dataset['path']} is empty; {LAYOUTS}")
    task.dataset = DatasetDict({SPLIT: Dataset.from_dict(columns)})
    return task


def _read_texts(file: Path) -> dict[str, str]:
    """The texts of a .jsonl file by their _id, with the title before where there is one."""
    texts: dict[str, str] = {}
    for line, fields in read_named(file, ("_id", "text")):
        name = fields["_id"]
        if not isinstance(name, (str, int)) or isinstance(name, bool):
            raise ValueError(
                f"{file}, line {line}: _id is {name!r:.60} of type {type(name).__name__}, expected "
                f"text or a whole number; {LAYOUTS}"
            )
        if str(name) in texts:
            raise ValueError(f"{file}, line {line} has the _id {name!r} a second time")
        titles = [text_of(fields, "title", file, line)] if fields.get("title") else []
        texts[str(name)] = " ".join([*titles, text_of(fields, "text", file, line)]).strip()
    return texts


def _read_judgements(
    file: Path, queries: Collection[str], documents: Collection[str]
) -> dict[str, dict[str, int]]:
    """Rows of query, document and grade; a grade of 0 says "not relevant".

    BEIR puts a header above them. A first row whose third field is no number is taken for one.
    """
    judged: dict[str, dict[str, int]] = {}
    for number, (line, row) in enumerate(read_fields(file)):
        if number == 0 and len(row) == 3 and row[0] not in queries and not row[2].isdecimal():
            continue
        if len(row) != 3 or not row[2].strip().isdecimal():
            raise ValueError(
                f"{file}, line {line} is {row!r:.80}, expected a query, a document and a grade "
                f"from 0 on, with tabs between them; {LAYOUTS}"
            )
        query, document, found = row[0], row[1], int(row[2])
        if query not in queries or document not in documents:
            what = f"the query {query!r}" if query not in queries else f"the document {document!r}"
            raise ValueError(f"{file}, line {line} names {what}, which there is not")
        before = judged.setdefault(query, {}).setdefault(document, found)
        if before != found:
            raise ValueError(
                f"{file}, line {line} grades the document {document!r} for the query {query!r} as "
                f"{found}, and a line before it as {before}"
            )
    relevant = {
        query: {document: value for document, value in grades.items() if value}
        for query, grades in judged.items()
    }
    found_any = {query: grades for query, grades in relevant.items() if grades}
    if not found_any:
        raise ValueError(f"{file} judges no document relevant; {LAYOUTS}")
    return found_any
