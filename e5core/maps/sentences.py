"""Parallel sentences from files: which text says what in which language."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from e5core.bulk.sources import Source, read_rows

TABLES = (".tsv", ".csv", ".jsonl", ".parquet")


@dataclass(frozen=True)
class Columns:
    """The fields of a table that holds a sentence a row."""

    text: str = "text"
    language: str = "language"
    meaning: str = "meaning"


@dataclass(frozen=True)
class Parallel:
    """Sentences of which every language has one for every meaning.

    languages  codes, in the order of the files
    meanings   names of what is said
    texts      [languages][meanings]
    places     [languages][meanings] where each text stood among the rows that were given
    """

    languages: list[str]
    meanings: list[str]
    texts: list[list[str]]
    places: list[list[int]]


def read_parallel(path: Path, columns: Columns = Columns()) -> Parallel:
    """Parallel sentences from a table, or from a folder with a file or a folder a language.

    path  a table with a row a sentence; a folder of text files, whose names are languages and
          whose lines belong together; or a folder of folders in the layout of SIB-200, whose
          tables have the columns index_id and text

    Raises OSError, or ValueError saying what does not fit together.
    """
    if not path.is_dir():
        if path.suffix not in TABLES:
            raise ValueError(
                f"{path} is none of {', '.join(TABLES)}; name a table, a folder with a text file "
                "a language, or vectors that e5core embed wrote"
            )
        read = [_column(path, name) for name in (columns.text, columns.language, columns.meaning)]
        return parallel(*read)
    rows: list[tuple[str, str, str]] = []
    for inner in sorted(path.iterdir()):
        if inner.is_dir():
            for file in sorted(inner.glob("*.tsv")):
                pairs = zip(_column(file, "text"), _column(file, "index_id"), strict=True)
                rows += [(text, inner.name, meaning) for text, meaning in pairs]
        elif inner.suffix == ".txt":
            lines = [row.text for row in read_rows(Source([str(inner)]))]
            rows += [(text, inner.stem, str(number)) for number, text in enumerate(lines, 1)]
    if not rows:
        raise ValueError(f"{path} holds no .txt file and no folder of tables, a language each")
    texts, languages, meanings = (list(column) for column in zip(*rows, strict=True))
    return parallel(texts, languages, meanings)


def parallel(texts: Sequence[str], languages: Sequence[str], meanings: Sequence[str]) -> Parallel:
    """Rows as parallel sentences: the meanings that every language has, each once.

    Raises ValueError if there is none, naming the language that has the fewest.
    """
    if not texts:
        raise ValueError("there are no sentences; a row holds a text, its language and its meaning")
    found: dict[str, dict[str, int]] = {}
    for place, (language, meaning) in enumerate(zip(languages, meanings, strict=True)):
        found.setdefault(language, {}).setdefault(meaning, place)
    shared = [
        meaning
        for meaning in dict.fromkeys(meanings)
        if all(meaning in has for has in found.values())
    ]
    if not shared:
        poorest = min(found, key=lambda language: len(found[language]))
        raise ValueError(
            f"no meaning is there in all {len(found)} languages; {poorest} has the fewest, "
            f"{len(found[poorest])}"
        )
    places = [[has[meaning] for meaning in shared] for has in found.values()]
    ordered = [[texts[place] for place in row] for row in places]
    return Parallel(list(found), shared, ordered, places)


def _column(file: Path, name: str) -> list[str]:
    """One field of every row of a table; ValueError naming a row that has none."""
    return [row.text for row in read_rows(Source([str(file)], column=name))]
