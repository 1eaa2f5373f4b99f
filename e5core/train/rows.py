"""A row of training data under the names that people give its fields."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from e5core.bulk.rows import describe_surrogate
from e5core.texts.containers import is_blank

# The native names are FlagEmbedding's. anchor and positive are those of sentence-transformers,
# positive_passages and negative_passages those of tevatron, whose passages have titles.
QUERIES = ("query", "anchor")
POSITIVES = ("pos", "positive", "positive_passages")
NEGATIVES = ("neg", "negative", "negative_passages")
SCORES = ("pos_scores", "neg_scores")

# What `mine` says of scores that it wrote: those of a young teacher can all lie from 0 to 1.
SCORE_KIND, LOGITS = "score_kind", "logits"


class TrainingRow(NamedTuple):
    """A query and its passages; scores are None where the row has none."""

    query: str
    positives: list[str]
    negatives: list[str]
    positive_scores: tuple[float, ...] | None
    negative_scores: tuple[float, ...] | None


def read_row(fields: Mapping[str, Any], teacher: bool = False) -> TrainingRow:
    """The row that an object holds.

    teacher  whether it must have scores

    Raises ValueError that says which field is wrong.
    """
    name = _one_of(fields, QUERIES)
    if name is None:
        raise ValueError(f"there is no query; its field is {' or '.join(QUERIES)}")
    query = _text(fields[name], name)
    name = _one_of(fields, POSITIVES)
    positives = [] if name is None else _texts(fields[name], name)
    if not positives:
        raise ValueError(
            f"there is no positive, a text that answers the query; its field is {POSITIVES[0]}"
        )
    negatives = []
    if (name := _one_of(fields, NEGATIVES)) is not None:
        negatives = _texts(fields[name], name)
    for name in filter(_is_numbered, fields):
        negatives += _texts(fields[name], name)
    positive_scores = _scores(fields, SCORES[0], len(positives))
    negative_scores = _scores(fields, SCORES[1], len(negatives))
    missing = positive_scores is None or (negatives and negative_scores is None)
    if teacher and missing:
        raise ValueError(
            "a teacher has a weight, but the row lacks pos_scores or neg_scores; write them with "
            "e5core mine --teacher, or leave --teacher-weight out"
        )
    return TrainingRow(query, positives, negatives, positive_scores, negative_scores)


def unread(fields: Mapping[str, Any]) -> set[str]:
    """The names of fields that `read_row` passes over."""
    known = {*QUERIES, *POSITIVES, *NEGATIVES, *SCORES, SCORE_KIND}
    return {name for name in fields if name not in known and not _is_numbered(name)}


def _is_numbered(name: str) -> bool:
    """Whether it is negative_1, negative_2, … of sentence-transformers."""
    return name.startswith("negative_") and name.removeprefix("negative_").isdigit()


def _one_of(fields: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The first of some names that the fields have with a value."""
    return next((name for name in names if fields.get(name) is not None), None)


def _texts(value: Any, name: str) -> list[str]:
    """The texts of a field that holds one or several."""
    if value is None:
        return []
    several = value if isinstance(value, list) else [value]
    return [_text(one, name) for one in several]


def _text(value: Any, name: str) -> str:
    """A text, or the title and the text of a passage in one."""
    if isinstance(value, Mapping) and isinstance(value.get("text"), str):
        title = value.get("title")
        value = f"{title} {value['text']}" if isinstance(title, str) and title else value["text"]
    if not isinstance(value, str):
        raise ValueError(f"{name} is {value!r:.60} of type {type(value).__name__}, expected text")
    if is_blank(value):
        raise ValueError(f"{name} holds an empty text; take it out")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name}: {describe_surrogate(error)}") from None
    return value


def _scores(fields: Mapping[str, Any], name: str, count: int) -> tuple[float, ...] | None:
    value = fields.get(name)
    if value is None:
        return None
    several = value if isinstance(value, list) else [value]
    for score in several:
        number = isinstance(score, (int, float)) and not isinstance(score, bool)
        if not number or not math.isfinite(score):
            raise ValueError(f"{name} holds {score!r:.60}, expected finite numbers")
    if len(several) != count:
        raise ValueError(f"{name} has {len(several)} scores for {count} texts")
    return tuple(map(float, several))
