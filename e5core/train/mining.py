"""Hard negatives: passages that a model finds near a query and that do not answer it."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from e5core.bulk.objects import read_objects
from e5core.bulk.sources import Source, read_rows
from e5core.checkpoint.options import LoadOptions
from e5core.formats.files import replacing
from e5core.model import E5
from e5core.reranker import Reranker
from e5core.train.rows import LOGITS, SCORE_KIND, TrainingRow, read_row
from e5core.vectors.index import Index

# Candidates of a query that are looked at, and those that a teacher scores, which takes long.
DEPTH, TEACHER_DEPTH = 100, 30

BLOCK_QUERIES = 1024  # that are searched for at a time

Scores = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Mined:
    """What `mine` returns.

    queries    rows that were read and written
    passages   different texts that were searched in
    negatives  that were found in all
    short      rows that got fewer than were asked for
    near       candidates that were left out since they score almost as their positive does
    """

    queries: int
    passages: int
    negatives: int
    short: int
    near: int


def mine(
    model: str | Path | E5,
    data: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    passages: str | Path | Sequence[str | Path] | None = None,
    column: str | None = None,
    negatives: int = 7,
    depth: int | None = None,
    skip: int = 0,
    margin: float | None = 0.05,
    teacher: str | Path | Reranker | None = None,
    show_progress: bool | None = None,
    **options: Any,
) -> Mined:
    """Write rows with the hardest negatives of each query, and a teacher's scores on request.

    model     the retriever that finds candidates, exactly, among all passages
    data      rows as `train` reads them; negatives that they have are replaced
    output    .jsonl, written whole: query, pos, neg and, with a teacher, its scores
    passages  files of texts as `e5core embed` reads them; None takes the positives of the data
    column    the field that holds the text of a passage
    negatives  of each query, hardest first
    depth     the best candidates of a query that are looked at; 100, with a teacher 30
    skip      of these, the first so many are passed over: they may be answers that nobody marked
    margin    see `far_enough`. None takes all that is no positive, where all answers are marked
    teacher   a cross-encoder, whose logits decide what is too near, and are written
    options   fields of LoadOptions, for both models but for revision, prompts, max_length and
              truncate_dim, which are the retriever's

    Raises OSError, or ValueError that names the file and line at fault.
    """
    count = (depth or (DEPTH if teacher is None else TEACHER_DEPTH)) + skip
    for name, value, least in (("negatives", negatives, 1), ("depth", count, 1), ("skip", skip, 0)):
        if value < least:
            raise ValueError(f"{name} is {value}, expected {least} or more")
    if margin is not None and not 0 <= margin < 1:
        raise ValueError(f"margin is {margin}, expected none or a number from 0 to below 1")
    rows = list(_read_rows(_list(data)))
    texts = _distinct_passages(rows, None if passages is None else _list(passages), column)
    retriever = _retriever(model, options)
    scorer = _scorer(teacher, options)
    index = Index(retriever.encode_passage(texts, show_progress=show_progress))
    found = short = near = 0
    with replacing(Path(output)) as temporary, temporary.open("w", encoding="utf-8") as file:
        for row, candidates, scores, own in _search(rows, retriever, index, texts, count):
            candidates, scores = candidates[skip:], scores[skip:]
            if scorer is not None:
                candidates, scores, own = _scored(row, candidates, scorer)
            far = far_enough(scores, float(own.max()), margin)
            kept = np.flatnonzero(far)[:negatives]
            line: dict[str, Any] = {"query": row.query, "pos": row.positives}
            line["neg"] = [candidates[i] for i in kept]
            if scorer is not None:
                line |= {"pos_scores": own.tolist(), "neg_scores": scores[kept].tolist()}
                line[SCORE_KIND] = LOGITS
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            near += int((~far).sum())
            found, short = found + len(kept), short + (len(kept) < negatives)
    return Mined(len(rows), len(texts), found, short, near)


def far_enough(scores: Scores, positive: float, margin: float | None) -> npt.NDArray[np.bool_]:
    """Which candidates of a query are negatives, and not answers that nobody marked.

    scores    [candidates] of a retriever or a teacher
    positive  the best score of the query's positives
    margin    how much of the way from a usual candidate to the positive must lie between; None
              where all answers are marked, so that every candidate is a negative

    A share of the score itself, such as 95% of it, says nothing for E5, whose cosines lie from .7
    to 1, nor for logits. So scores are counted from the median of the query's candidates: one is
    far enough if it is under median + (1 − margin) · (positive − median), and under the positive.
    """
    if margin is None or not len(scores):
        return np.ones(len(scores), dtype=np.bool_)
    usual = float(np.median(scores))
    return scores < min(positive, usual + (1 - margin) * (positive - usual))


def _search(
    rows: list[TrainingRow], model: E5, index: Index, texts: list[str], count: int
) -> Iterator[tuple[TrainingRow, list[str], Scores, Scores]]:
    """Each row with its candidates, best first, their cosines, and those of its positives."""
    never: dict[str, set[str]] = {}  # A query's positives in all rows, and itself.
    for row in rows:
        never.setdefault(row.query, {row.query}).update(row.positives)
    for first in range(0, len(rows), BLOCK_QUERIES):
        some = rows[first : first + BLOCK_QUERIES]
        queries = model.encode_query([row.query for row in some], show_progress=False)
        positives = [text for row in some for text in row.positives]
        vectors = model.encode_passage(positives, show_progress=False)
        # What is never a candidate may take some of the places.
        result = index.search(queries, count + max(len(never[row.query]) for row in some))
        start = 0
        for number, row in enumerate(some):
            own = vectors[start : start + len(row.positives)] @ queries[number]
            start += len(row.positives)
            out = never[row.query]
            places = [i for i in result.indices[number] if texts[i] not in out][:count]
            kept = np.isin(result.indices[number], places)
            yield row, [texts[i] for i in places], result.scores[number][kept], own


def _scored(
    row: TrainingRow, candidates: list[str], teacher: Reranker
) -> tuple[list[str], Scores, Scores]:
    """Candidates by the teacher's logits, best first, these, and those of the positives."""
    # Pairs are cut as in training. "passage" would refuse a query that leaves it no room.
    own, scores = (
        teacher.score(row.query, texts, truncate="longest", show_progress=False)
        for texts in (row.positives, candidates)
    )
    order = np.argsort(-scores, kind="stable")
    return [candidates[i] for i in order], scores[order], own


def _read_rows(files: list[str]) -> Iterator[TrainingRow]:
    for file in Source(files).files:
        for line, fields in read_objects(file):
            try:
                yield read_row(fields)
            except ValueError as error:
                raise ValueError(f"{file}, line {line}: {error}") from None


def _distinct_passages(
    rows: list[TrainingRow], files: list[str] | None, column: str | None
) -> list[str]:
    """The passages to search in, each once."""
    if files is None:
        texts = [text for row in rows for text in row.positives]
    else:
        texts = [row.text for row in read_rows(Source(files, column=column, keep_blank=False))]
    if not rows or not texts:
        raise ValueError("there are no rows, or no passages, to mine in")
    return list(dict.fromkeys(texts))


def _retriever(model: str | Path | E5, options: dict[str, Any]) -> E5:
    return model if isinstance(model, E5) else E5.from_pretrained(model, **options)


def _scorer(teacher: str | Path | Reranker | None, options: dict[str, Any]) -> Reranker | None:
    if teacher is None or isinstance(teacher, Reranker):
        return teacher
    return Reranker.from_pretrained(teacher, **vars(LoadOptions(**options).for_another()))


def _list(files: str | Path | Sequence[str | Path]) -> list[str]:
    return [str(files)] if isinstance(files, str | Path) else list(map(str, files))
