"""Vectors and what is known of them, as the points of a map."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from e5core.maps.names import OTHER
from e5core.maps.names import languages as languages_of
from e5core.maps.sentences import Parallel
from e5core.tokenizer import UNKNOWN, SentencePieceTokenizer
from e5core.vectors.places import Places, language_places, places

# From this share of unknown tokens on, a vocabulary lacks a script: what is left are spaces, digits
# and punctuation. Languages whose script it has stay below a hundredth.
LACKING = 0.1
LANGUAGES = 3  # that span a plane
# Characters of a sentence in a legend or in what hovering shows.
SHOWN = 300


@dataclass(frozen=True)
class Point:
    """One point of a map.

    label     beside the point; "" for none
    group     by which it is coloured
    text      the sentence, or an example of the language
    translation  of the sentence; "" if there is none
    language  its name; "" if it is not known
    unknown   the share of its tokens that the vocabulary does not know
    """

    x: float
    y: float
    label: str
    group: str
    text: str = ""
    translation: str = ""
    language: str = ""
    unknown: float = 0.0

    @property
    def lacking(self) -> bool:
        """Whether the vocabulary lacks the script."""
        return self.unknown > LACKING


@dataclass(frozen=True)
class Map:
    """Points, and what a map says of them.

    legend  the title of the legend
    shares  of the variance, of both axes
    """

    title: str
    legend: str
    points: list[Point]
    shares: tuple[float, float]
    notes: list[str] = field(default_factory=list)


def map_of_languages(
    sentences: Parallel,
    vectors: npt.NDArray[np.float32],
    unknown: Sequence[float],
    translation: str | None = None,
) -> Map:
    """A point a language; those whose script is lacking do not bend the plane.

    vectors      [languages, meanings, hidden_size]
    unknown      [languages] shares of unknown tokens
    translation  the language that an example is translated into
    """
    fitted = np.array(unknown) <= LACKING
    if fitted.sum() < LANGUAGES:
        raise ValueError(
            f"{int(fitted.sum())} languages are in a script that the vocabulary has, expected "
            f'{LANGUAGES} or more on a map of them; kind="meanings" (--kind meanings) draws fewer'
        )
    found = language_places(vectors, fitted)
    shown = _translations(sentences, translation)
    points = []
    named = languages_of(sentences.languages)
    for number, ((name, group), share) in enumerate(zip(named, unknown, strict=True)):
        x, y = found.coordinates[number].tolist()
        label = f"{name} ({share:.0%} unknown)" if share > LACKING else name
        example = sentences.texts[number][0][:SHOWN]
        points.append(Point(x, y, label, group, example, shown[0], name, share))
    title = f"{len(points)} languages by {len(sentences.meanings)} sentences"
    notes = [*_notes(points), *_note_of_neighbours(found, points, fitted)]
    return Map(title, "Languages", points, _shares(found), notes)


def map_of_meanings(
    sentences: Parallel,
    vectors: npt.NDArray[np.float32],
    unknown: Sequence[float],
    translation: str | None = None,
) -> Map:
    """A point a sentence, coloured by what it says; the arguments are those of languages."""
    shown = _translations(sentences, translation)
    languages, meanings, size = vectors.shape
    fitted = np.repeat(np.array(unknown) <= LACKING, meanings)
    found = places(vectors.reshape(-1, size), fitted)
    named, points = languages_of(sentences.languages), []
    for number in range(languages * meanings):
        of, what = divmod(number, meanings)
        code = sentences.languages[of]
        x, y = found.coordinates[number].tolist()
        group = shown[what] or sentences.meanings[what]
        text = sentences.texts[of][what][:SHOWN]
        points.append(Point(x, y, code, group, text, shown[what], named[of].name, unknown[of]))
    title = f"{meanings} sentences in {languages} languages"
    return Map(title, "Sentences", points, _shares(found), _notes(points))


def map_of_corpus(
    vectors: npt.NDArray[np.float32],
    texts: Sequence[str],
    labels: Sequence[str] | None,
    legend: str = "",
) -> Map:
    """A point a vector [n, hidden_size], coloured by its label."""
    found = places(vectors)
    points = [
        Point(x, y, "", "" if labels is None else labels[number], texts[number][:SHOWN])
        for number, (x, y) in enumerate(found.coordinates.tolist())
    ]
    return Map(f"{len(points)} texts", legend, points, _shares(found))


def unknown_shares(sentences: Parallel, tokenizer: SentencePieceTokenizer) -> list[float]:
    """For each language, the share of its tokens that the vocabulary does not know."""
    shares = []
    for texts in sentences.texts:
        ids = [number for text in texts for number in tokenizer.encode_pieces(text)]
        shares.append(ids.count(UNKNOWN) / max(1, len(ids)))
    return shares


def _translations(sentences: Parallel, into: str | None) -> list[str]:
    """What each meaning is called: its text in one language, "" where that is not there."""
    if into is None:
        english = [code for code in sentences.languages if code.split("_")[0] in ("en", "eng")]
        into = english[0] if english else None
    elif into not in sentences.languages:
        raise ValueError(
            f"there are no sentences in {into!r}, only in {', '.join(sentences.languages)}"
        )
    if into is None:
        return [""] * len(sentences.meanings)
    return [text[:SHOWN] for text in sentences.texts[sentences.languages.index(into)]]


def _shares(found: Places) -> tuple[float, float]:
    first, second = found.shares.tolist()
    return first, second


def _note_of_neighbours(
    found: Places, points: Sequence[Point], fitted: npt.NDArray[np.bool_]
) -> list[str]:
    """A sentence about how much of what groups languages a plane holds."""
    groups = [point.group for point, counts in zip(points, fitted, strict=True) if counts]
    related = [i for i, group in enumerate(groups) if group != OTHER and groups.count(group) > 1]
    if not related:
        return []
    beside = []
    for rows in (found.rows[fitted], found.coordinates[fitted]):
        distances = np.linalg.norm(rows[:, None] - rows[None], axis=2)
        np.fill_diagonal(distances, np.inf)
        nearest = distances.argmin(axis=1).tolist()
        beside.append(sum(groups[nearest[i]] == groups[i] for i in related))
    return [
        f"Of {len(related)} languages that have others of their group here, {beside[0]} lie next "
        f"to one in all dimensions, and {beside[1]} on this plane."
    ]


def _notes(points: Sequence[Point]) -> list[str]:
    """A sentence about the languages whose script the vocabulary lacks."""
    lacking = {point.language: point.unknown for point in points if point.lacking}
    if not lacking:
        return []
    named = ", ".join(f"{name} ({share:.0%})" for name, share in sorted(lacking.items()))
    return [f"The vocabulary lacks the script of {named}: that share of its tokens is unknown."]
