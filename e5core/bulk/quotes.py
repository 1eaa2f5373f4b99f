"""Tab-separated values in two dialects: with quotation marks as in CSV, and with none.

IANA's text/tab-separated-values knows no quotes, and corpora of sentences are full of marks that
are text. pandas, Excel and R put a field in quotes that would be misread otherwise, R every text.
What the marks mean is decided for a whole file, by the lines from the first mark on.
"""

import csv
import re
from collections.abc import Iterator
from itertools import chain, islice

from e5core.bulk.rows import BadRow, without_end

WINDOW = 256  # lines that decide
# A record: fields with tabs between them, each in quotes, with its own marks doubled, or without
# any mark.
_FIELD = r'(?:"(?:[^"]|"")*"|[^"\t\n]*)'
_RECORD = re.compile(rf"{_FIELD}(?:\t{_FIELD})*(?:\n|\Z)")
_OPEN = re.compile(rf'(?:{_FIELD}\t)*"(?:[^"]|"")*\Z')
_QUOTED = re.compile(r'(?:^|(?<=[\t\n]))"((?:[^"]|"")*)"')
# A field is put in quotes by most programs if this matches; Excel does so for a comma too.
_NEEDS = re.compile(r'[\t\n",;]|^\s|\s$')


def tsv_records(lines: Iterator[bytes], file: str) -> Iterator[tuple[int, list[str] | BadRow]]:
    """The records of a file with the lines on which they start."""
    fields = 0
    for number, line in enumerate(lines, 1):
        if b'"' in line:
            window = [line, *islice(lines, WINDOW - 1)]
            rest = chain(window, lines)
            texts = [_decode(text, number + i) for i, text in enumerate(window)]
            if is_quoted(texts, fields, whole=len(window) < WINDOW):
                yield from _quoted(rest, number - 1, file)
            else:
                yield from _plain(rest, number - 1)
            return
        record = _split(_decode(line, number))
        fields = fields or len(record)
        yield number, record


def is_quoted(lines: list[str], fields: int, whole: bool) -> bool:
    """Whether quotation marks are those of CSV, by lines without their ends.

    lines   from the first one with a mark on
    fields  of a record; 0 if the first line is the header
    whole   whether they are all lines that are left
    """
    text = "\n".join(lines)
    records: list[str] = []
    place = 0
    while place < len(text):
        match = _RECORD.match(text, place)
        if match is None or match.end() == place:
            if whole or not _OPEN.match(text, place):
                return False
            break  # the last record goes on behind these lines
        records.append(match.group().removesuffix("\n"))
        place = match.end()
    if not records:
        return False
    found = [_QUOTED.findall(record) for record in records]
    if not fields and found[0]:
        return True  # the header is quoted, so all text is
    inside = [field for record in found for field in record]
    if not all(_NEEDS.search(field) for field in inside):
        return False
    # If lines have the right number of fields even without quotes, there are two readings. Marks
    # are text then, unless one is doubled.
    plain = all(len(_split(line)) in (fields, 0) for line in lines)
    return not (plain and any("\n" in field for field in inside)) or '""' in text


def _quoted(
    lines: Iterator[bytes], before: int, file: str
) -> Iterator[tuple[int, list[str] | BadRow]]:
    decoded = (_decode(line, before + number) + "\n" for number, line in enumerate(lines, 1))
    reader = csv.reader(decoded, delimiter="\t", strict=True)
    while True:
        line = before + reader.line_num + 1
        try:
            yield line, next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, BadRow(file, line, f"the row is not TSV with quotation marks: {error}")


def _plain(lines: Iterator[bytes], before: int) -> Iterator[tuple[int, list[str] | BadRow]]:
    for number, line in enumerate(lines, before + 1):
        yield number, list(_split(_decode(line, number)))


def _split(line: str) -> list[str]:
    return line.split("\t") if line else []


def _decode(line: bytes, number: int) -> str:
    # A byte that is not UTF-8 becomes a lone surrogate, which is a fault of its own row alone.
    return without_end(line, number).decode("utf-8", "surrogateescape")
