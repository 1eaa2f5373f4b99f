"""Rows of a query, its positives and its negatives: read, tokenized, drawn into batches."""

from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from e5core.bulk.objects import read_objects
from e5core.bulk.sources import Source
from e5core.train.links import Links, Numbers, places_of
from e5core.train.rows import LOGITS, SCORE_KIND, TrainingRow, read_row, unread

# A text and its role, "query" or "passage", → its ids, and how many of them were cut off.
Tokenize = Callable[[str, str], tuple[list[int], int]]


class Example(NamedTuple):
    """A row, its texts as numbers in `Texts`.

    source  the number of the file
    *_scores  the teacher's logits for positives and negatives, None where the row has none
    """

    source: int
    query: int
    positives: tuple[int, ...]
    negatives: tuple[int, ...]
    positive_scores: tuple[float, ...] | None
    negative_scores: tuple[float, ...] | None


class Texts:
    """The ids of texts. Equal ones are kept once; a token takes four bytes."""

    def __init__(self) -> None:
        self._ids = array("i")
        self._ends = array("q", [0])
        self._numbers: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._ends) - 1

    def add(self, ids: Sequence[int]) -> int:
        """The number of a text, a new one if its ids are new."""
        content = array("i", ids)
        key = blake2b(content.tobytes(), digest_size=16).digest()
        number = self._numbers.setdefault(key, len(self))
        if number == len(self):
            self._ids.extend(content)
            self._ends.append(len(self._ids))
        return number

    def __getitem__(self, number: int) -> list[int]:
        return self._ids[self._ends[number] : self._ends[number + 1]].tolist()

    def length(self, number: int) -> int:
        return self._ends[number + 1] - self._ends[number]


@dataclass(frozen=True)
class Batch:
    """What one loss sees.

    texts    numbers of its texts, each once: queries, positives and negatives in one stream
    queries  [n]     where the query of each example is in `texts`
    groups   [n, g]  where its positive, then its hard negatives are; -1 for one that it lacks
    teacher  [n, g]  the teacher's logits, NaN where there is none
    known    [k, 2]  an example and a place in `texts` that is no negative of its query: the query
             itself, and other positives of it in any row of the data
    known_back  the same for the example's positive as the query, and queries as the passages
    """

    texts: Numbers
    queries: Numbers
    groups: Numbers
    teacher: npt.NDArray[np.float32]
    known: Numbers
    known_back: Numbers


@dataclass
class Data:
    """The examples of some files, and what is to be said of them.

    texts     their texts as ids
    answers, questions  the positives of each query in all rows, and the queries of each positive
    mentions  how often texts were named; equal ones are in `texts` once
    tokens    of all that are named
    cut       texts whose end was cut off
    dropped   negatives that were left out since a row has them as positives of the same query
    skipped   examples that were left out since a reranker learns nothing from them
    unread    names of fields that rows had and that mean nothing here
    """

    files: list[str]
    texts: Texts = field(default_factory=Texts)
    examples: list[Example] = field(default_factory=list)
    answers: Links = field(init=False)
    questions: Links = field(init=False)
    mentions: int = 0
    tokens: int = 0
    cut: int = 0
    dropped: int = 0
    skipped: int = 0
    unread: set[str] = field(default_factory=set)

    def members(self) -> list[Numbers]:
        """The numbers of the examples of each file."""
        sources = np.array([example.source for example in self.examples], dtype=np.int64)
        return [np.flatnonzero(sources == source) for source in range(len(self.files))]

    def batch(self, numbers: Iterable[int], epoch: int, seed: int, negatives: int) -> Batch:
        """The batch of some examples; which texts an example gives depends on epoch and seed alone.

        Positives and negatives are taken in turn, as SimLM does (see docs/training.md).
        """
        examples = [self.examples[number] for number in numbers]
        turn = epoch + seed
        drawn = [_draw(example, turn, negatives) for example in examples]
        width = max(len(numbers) for numbers, _ in drawn)
        groups = np.full((len(drawn), width), -1, dtype=np.int64)
        teacher = np.full((len(drawn), width), np.nan, dtype=np.float32)
        for row, (passages, scores) in enumerate(drawn):
            groups[row, : len(passages)] = passages
            if scores is not None:
                teacher[row, : len(scores)] = scores
        queries = np.array([example.query for example in examples], dtype=np.int64)
        texts = np.unique(np.concatenate([queries, groups[groups >= 0]]))
        places = np.where(groups < 0, -1, np.searchsorted(texts, groups))
        known = _known(self.answers, queries, groups[:, 0], texts)
        back = _known(self.questions, groups[:, 0], queries, texts)
        return Batch(texts, np.searchsorted(texts, queries), places, teacher, known, back)

    def sequences(self, batch: Batch) -> list[list[int]]:
        """The ids of a batch's texts."""
        return [self.texts[number] for number in batch.texts.tolist()]

    def link(self) -> None:
        """Find the answers of all queries, and drop the negatives that are among them."""
        numbers = chain.from_iterable((e.query, p) for e in self.examples for p in e.positives)
        queries, positives = np.fromiter(numbers, np.int64).reshape(-1, 2).T
        self.answers = Links(queries, positives, len(self.texts))
        self.questions = Links(positives, queries, len(self.texts))
        for number, example in enumerate(self.examples):
            wrong = self.answers.have(example.query, example.negatives)
            if wrong.any():
                self.dropped += int(wrong.sum())
                kept, scores = np.flatnonzero(~wrong), example.negative_scores
                self.examples[number] = example._replace(
                    negatives=tuple(example.negatives[i] for i in kept),
                    negative_scores=None if scores is None else tuple(scores[i] for i in kept),
                )


def read_data(
    files: Sequence[str],
    tokenize: Tokenize,
    passage_role: str = "passage",
    teacher: bool = False,
) -> Data:
    """Read and tokenize files of rows, row by row.

    files         .jsonl (.gz, …), .json or .parquet, patterns and folders of them
    passage_role  what positives and negatives are tokenized as
    teacher       whether every row must have the teacher's scores

    Raises OSError, or ValueError that names the file and the line at fault.
    """
    data = Data(Source(files, format=None).files)
    for source, file in enumerate(data.files):
        scores: list[float] = []
        for line, fields in read_objects(file):
            try:
                row = read_row(fields, teacher)
                _add(data, source, row, tokenize, passage_role)
            except ValueError as error:
                raise ValueError(f"{file}, line {line}: {error}") from None
            data.unread |= unread(fields)
            if fields.get(SCORE_KIND) != LOGITS:
                scores += (*(row.positive_scores or ()), *(row.negative_scores or ()))
        if teacher and scores and min(scores) >= 0 and max(scores) <= 1:
            raise ValueError(
                f"{file}: all {len(scores)} scores lie from 0 to 1, as after a sigmoid; write the "
                "teacher's logits (e5core mine --teacher), or leave --teacher-weight out"
            )
    if not data.examples:
        raise ValueError(f"{', '.join(data.files)} hold no rows; name files with examples")
    data.link()
    return data


def _add(data: Data, source: int, row: TrainingRow, tokenize: Tokenize, passage_role: str) -> None:
    """Put a row's texts and the example that they make into the data."""

    def number(text: str, role: str) -> int:
        ids, cut = tokenize(text, role)
        data.mentions += 1
        data.tokens += len(ids)
        data.cut += cut > 0
        return data.texts.add(ids)

    query = number(row.query, "query")
    positives = tuple(number(text, passage_role) for text in row.positives)
    negatives = tuple(number(text, passage_role) for text in row.negatives)
    scores = row.positive_scores, row.negative_scores
    data.examples.append(Example(source, query, positives, negatives, *scores))


def _draw(example: Example, turn: int, negatives: int) -> tuple[list[int], list[float] | None]:
    """One positive and up to so many negatives, and their scores where all of them have one."""
    first = turn % len(example.positives)
    count = min(negatives, len(example.negatives))
    start = turn * count
    chosen = [(start + i) % len(example.negatives) for i in range(count)]
    passages = [example.positives[first], *(example.negatives[i] for i in chosen)]
    if example.positive_scores is None or (count and example.negative_scores is None):
        return passages, None
    behind = example.negative_scores or ()
    return passages, [example.positive_scores[first], *(behind[i] for i in chosen)]


def _known(links: Links, queries: Numbers, positives: Numbers, texts: Numbers) -> Numbers:
    """Batch.known of queries whose answers are in `links`, or Batch.known_back."""
    pairs = [np.stack([np.arange(len(queries)), np.searchsorted(texts, queries)], axis=1)]
    for row in np.flatnonzero(links.counts(queries) > 1).tolist():  # most have their own alone
        places = places_of(links.of(queries[row]), texts)
        pairs.append(np.stack([np.full_like(places, row), places], axis=1))
    found = np.concatenate(pairs)
    others: Numbers = found[found[:, 1] != np.searchsorted(texts, positives)[found[:, 0]]]
    return others
