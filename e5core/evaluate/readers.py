"""Evaluation data as its authors publish it: files to rows, with nothing of mteb.

Each reader takes a folder and the subsets that are wanted, and returns those whose files are
there, as {subset: {split: {column: values}}}. Subsets, splits and columns have mteb's names.
"""

import csv
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from e5core.evaluate.records import read_fields
from e5core.formats.files import read_json_object

Columns = dict[str, list[Any]]
Found = dict[str, dict[str, Columns]]

# NusaX names languages in English, mteb by ISO 639-3.
NUSAX = {
    "ace": "acehnese",
    "ban": "balinese",
    "bbc": "toba_batak",
    "bjn": "banjarese",
    "bug": "buginese",
    "eng": "english",
    "ind": "indonesian",
    "jav": "javanese",
    "mad": "madurese",
    "min": "minangkabau",
    "nij": "ngaju",
    "sun": "sundanese",
}
# Where NTREX names a region, mteb names the script.
NTREX_REGIONS = {"zho_Hans": "zho-CN", "zho_Hant": "zho-TW"}
SIB_SPLITS = {"train": "train", "validation": "dev", "test": "test"}
SIB_COLUMNS = ("index_id", "category", "text")
DEFAULT = "default"  # mteb's name of the only subset of a task


def read_xquad(folder: Path, subsets: Sequence[str]) -> Found:
    """SQuAD's layout, a file a language: each paragraph is a document, each question a query.

    Equal paragraphs are one document and equal questions one query, as mteb has them.
    """
    found: Found = {}
    for subset in subsets:
        file = folder / f"xquad.{subset}.json"
        if not file.is_file():
            continue
        documents: dict[str, str] = {}  # text → id
        queries: dict[str, dict[str, int]] = {}  # text → ids of relevant documents
        for article in read_json_object(file)["data"]:
            for paragraph in article["paragraphs"]:
                context = paragraph["context"].strip()
                document = documents.setdefault(context, f"d{len(documents)}")
                for question in paragraph["qas"]:
                    queries.setdefault(question["question"].strip(), {})[document] = 1
        columns: Columns = {
            "documents": [[name, text] for text, name in documents.items()],
            "queries": [[f"q{i}", text] for i, text in enumerate(queries)],
            "relevant": [[f"q{i}", relevant] for i, relevant in enumerate(queries.values())],
        }
        found[subset] = {"validation": columns}
    return found


def read_tatoeba(folder: Path, subsets: Sequence[str]) -> Found:
    """Two files of sentences a language: tatoeba.XXX-eng.XXX and tatoeba.XXX-eng.eng.

    In mteb's copy each sentence ends with its line end, which no tokenizer sees.
    """
    found: Found = {}
    for subset in subsets:
        sides = [folder / f"tatoeba.{subset}.{language}" for language in subset.split("-")]
        if all(side.is_file() for side in sides):
            columns = _parallel(("sentence1", "sentence2"), sides)
            found[subset] = {
                "test": {name: [f"{line}\n" for line in lines] for name, lines in columns.items()}
            }
    return found


def read_ntrex(folder: Path, subsets: Sequence[str]) -> Found:
    """A file of sentences a language; mteb has the languages as columns and pairs as subsets."""
    pairs = [subset.split("-") for subset in subsets]
    files = {language: _ntrex_file(folder, language) for pair in pairs for language in pair}
    there = {language: file for language, file in files.items() if file is not None}
    columns = _parallel(list(there), list(there.values())) if there else {}
    return {
        subset: {"test": {language: columns[language] for language in pair}}
        for subset, pair in zip(subsets, pairs, strict=True)
        if all(language in there for language in pair)
    }


def read_nusax_pairs(folder: Path, subsets: Sequence[str]) -> Found:
    """One table whose columns are the languages. mteb evaluates on the split train."""
    file = folder / "train.csv"
    rows = read_table(file) if file.is_file() else []
    found: Found = {}
    for subset in subsets:
        source, target = (NUSAX[language] for language in subset.split("-"))
        if rows and {source, target} <= rows[0].keys():
            sides = {"sentence1": source, "sentence2": target}
            found[subset] = {
                "train": {side: [row[name] for row in rows] for side, name in sides.items()}
            }
    return found


def read_nusax_sentiment(folder: Path, subsets: Sequence[str]) -> Found:
    """A folder a language with the columns text and label."""
    found: Found = {}
    for subset in subsets:
        files = {split: folder / NUSAX[subset] / f"{split}.csv" for split in ("train", "test")}
        if all(file.is_file() for file in files.values()):
            found[subset] = _labelled(files, "label")
    return found


def read_stsb(folder: Path, subsets: Sequence[str]) -> Found:
    """Rows of two sentences and a grade from 0 to 5, without a header."""
    found: Found = {}
    for subset in subsets:
        files = {split: folder / f"stsb-{subset}-{split}.csv" for split in ("dev", "test")}
        if all(file.is_file() for file in files.values()):
            found[subset] = {split: read_graded(file) for split, file in files.items()}
    return found


def read_sib200(folder: Path, subsets: Sequence[str]) -> Found:
    """A folder a language with tables of index_id, category and text, quoted as CSV is."""
    found: Found = {}
    for subset in subsets:
        files = {split: folder / subset / f"{name}.tsv" for split, name in SIB_SPLITS.items()}
        if not all(file.is_file() for file in files.values()):
            continue
        tables = {split: read_table(file, "\t", SIB_COLUMNS) for split, file in files.items()}
        found[subset] = {
            split: {name: [row[name] for row in rows] for name in SIB_COLUMNS}
            for split, rows in tables.items()
        }
    return found


def read_banking77(folder: Path, subsets: Sequence[str]) -> Found:
    """Two tables with the columns text and category."""
    files = {split: folder / f"{split}.csv" for split in ("train", "test")}
    if not all(file.is_file() for file in files.values()):
        return {}
    return {DEFAULT: _labelled(files, "category")}


class Layout(NamedTuple):
    """The folder that holds a task's data, and what reads it."""

    folder: str
    read: Callable[[Path, Sequence[str]], Found]


LAYOUTS = {
    "XQuADRetrieval": Layout("xquad", read_xquad),
    "Tatoeba": Layout("tatoeba", read_tatoeba),
    "NTREXBitextMining": Layout("ntrex", read_ntrex),
    "NusaXBitextMining": Layout("nusax-mt", read_nusax_pairs),
    "NusaX-senti": Layout("nusax-senti", read_nusax_sentiment),
    "STSBenchmarkMultilingualSTS": Layout("stsb", read_stsb),
    "SIB200Classification": Layout("sib200", read_sib200),
    "SIB200ClusteringS2S": Layout("sib200", read_sib200),
    "Banking77Classification": Layout("banking77", read_banking77),
}


def read_lines(file: Path) -> list[str]:
    """The lines of a text file. Other characters that Python counts as line ends are kept."""
    with file.open(encoding="utf-8", newline="\n") as lines:
        return [line.rstrip("\r\n") for line in lines]


def read_graded(file: Path) -> Columns:
    """Rows of two texts and a grade; ValueError naming the line of a row of another shape."""
    columns: Columns = {"sentence1": [], "sentence2": [], "score": []}
    for number, (line, fields) in enumerate(read_fields(file)):
        if number == 0 and fields == list(columns):
            continue
        if len(fields) != 3:
            raise ValueError(
                f"{file}, line {line} is {fields!r:.80}, expected two texts and a number"
            )
        for name, value in zip(columns, (*fields[:2], grade(fields[2], file, line)), strict=True):
            columns[name].append(value)
    return columns


def grade(value: Any, file: Path, line: int) -> float:
    """A grade as a number, from a text or from JSON; ValueError if it is none that orders."""
    try:
        number = float(value) if isinstance(value, (str, int, float)) else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or isinstance(value, bool):
        raise ValueError(
            f"{file}, line {line} has the grade {value!r:.60}, expected a number such as 3.5"
        )
    return number


def read_table(
    file: Path, delimiter: str = ",", wanted: Sequence[str] = ()
) -> list[dict[str, str]]:
    """The rows of a table with a header; ValueError if it lacks a column."""
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, delimiter=delimiter)
        rows = list(reader)
    if missing := [name for name in wanted if name not in (reader.fieldnames or [])]:
        raise ValueError(f"{file} has the columns {reader.fieldnames}, and not {missing[0]!r}")
    return rows


def _labelled(files: dict[str, Path], label: str) -> dict[str, Columns]:
    """Tables of texts with labels; the labels become numbers in alphabetical order."""
    tables = {split: read_table(file, ",", ("text", label)) for split, file in files.items()}
    numbers = {
        name: number for number, name in enumerate(sorted({row[label] for row in tables["train"]}))
    }
    for split, rows in tables.items():
        if strange := [row[label] for row in rows if row[label] not in numbers]:
            raise ValueError(
                f"{files[split]} has the {label} {strange[0]!r}, which no text of "
                f"{files['train']} has"
            )
    return {
        split: {
            "text": [row["text"] for row in rows],
            "label": [numbers[row[label]] for row in rows],
        }
        for split, rows in tables.items()
    }


def _parallel(names: Sequence[str], files: Sequence[Path]) -> Columns:
    """Files whose lines belong together, as columns; ValueError if they differ in length."""
    columns = {name: read_lines(file) for name, file in zip(names, files, strict=True)}
    counts = {len(lines) for lines in columns.values()}
    if len(counts) > 1:
        lengths = ", ".join(
            f"{file} has {len(lines)}" for file, lines in zip(files, columns.values(), strict=True)
        )
        raise ValueError(f"the lines of parallel files belong together, but {lengths} lines")
    return columns


def _ntrex_file(folder: Path, language: str) -> Path | None:
    """The file of a language that mteb calls, for example, deu_Latn; None if it is not there."""
    if language == "eng_Latn":
        names = ["src.eng"]
    else:
        code = language.split("_")[0]
        names = ["ref." + NTREX_REGIONS.get(language, language.replace("_", "-")), f"ref.{code}"]
        if language in NTREX_REGIONS:
            names.pop()  # ref.zho alone would not say which script it has
    files = [folder / f"newstest2019-{name}.txt" for name in names]
    return next((file for file in files if file.is_file()), None)
