"""Evaluation data in the layouts of its authors, a few lines of each."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

from e5core.evaluate.readers import NUSAX
from e5core.parity.samples import SENTENCES

WORDS = ["the", "a", "query", "passage", "zing", "foo", "bar", "baz", "x1", "y2", "so", "it"]


def sentence(number: int, language: str = "") -> str:
    """A short text that no other number and language has."""
    words = [WORDS[(number * step + step) % len(WORDS)] for step in (1, 2, 3, 5)]
    return " ".join([*words, language, str(number)]).replace("  ", " ")


def write_data(folder: Path) -> Path:
    """All eight folders of --data."""
    _write_xquad(folder / "xquad", ("en", "de"))
    _write_tatoeba(folder / "tatoeba", ("deu", "fra", "tur"))
    _write_ntrex(folder / "ntrex", ("src.eng", "ref.deu", "ref.zho-CN", "ref.srp-Latn"))
    _write_nusax(folder)
    for language in ("en", "de"):
        for split in ("dev", "test"):
            rows = [
                [sentence(i, language), sentence(i + i % 3, language + split), f"{i % 6}.0"]
                for i in range(12)
            ]
            _write_rows(folder / "stsb" / f"stsb-{language}-{split}.csv", rows)
    for language in ("eng_Latn", "deu_Latn"):
        for split, first, count in (("train", 0, 12), ("dev", 20, 6), ("test", 30, 6)):
            rows = [["index_id", "category", "text"]]
            rows += [
                [
                    str(first + i),
                    ("travel", "sports", "health")[i % 3],
                    f'"{sentence(first + i, language)}" said, it',
                ]
                for i in range(count)
            ]
            _write_rows(folder / "sib200" / language / f"{split}.tsv", rows, "\t")
    for split, first in (("train", 0), ("test", 50)):
        rows = [["text", "category"]]
        rows += [[sentence(first + i), ("card_lost", "atm")[i % 2]] for i in range(10)]
        _write_rows(folder / "banking77" / f"{split}.csv", rows)
    return folder


def write_beir(folder: Path, titles: bool = False) -> Path:
    """A folder in BEIR's layout: each English sentence is a query, its Japanese one the answer."""
    english, japanese = SENTENCES[:16], SENTENCES[16:32]
    folder.mkdir(parents=True)
    corpus = [
        {"_id": f"d{i}", "text": text, **({"title": "T"} if titles else {})}
        for i, text in enumerate(japanese)
    ]
    queries = [{"_id": f"q{i}", "text": text} for i, text in enumerate(english)]
    for name, records in (("corpus", corpus), ("queries", queries)):
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    rows = [["query-id", "corpus-id", "score"], *([f"q{i}", f"d{i}", "1"] for i in range(16))]
    rows.append(["q0", "d1", "0"])
    _write_rows(folder / "qrels" / "test.tsv", rows, "\t")
    return folder


def _write_xquad(folder: Path, languages: Sequence[str]) -> None:
    folder.mkdir(parents=True)
    for language in languages:
        paragraphs = [
            {
                "context": f" {sentence(i, language)} \n",
                "qas": [
                    {"question": sentence(100 + i, language) + "?"},
                    {"question": "who?" if i < 2 else sentence(200 + i, language)},
                ],
            }
            for i in range(6)
        ]
        paragraphs.append({"context": sentence(0, language), "qas": [{"question": "again?"}]})
        content = {"data": [{"paragraphs": paragraphs[:3]}, {"paragraphs": paragraphs[3:]}]}
        (folder / f"xquad.{language}.json").write_text(json.dumps(content), encoding="utf-8")


def _write_tatoeba(folder: Path, languages: Sequence[str]) -> None:
    folder.mkdir()
    for language in languages:
        for side in (language, "eng"):
            lines = [sentence(i, side) for i in range(8)]
            name = f"tatoeba.{language}-eng.{side}"
            (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_ntrex(folder: Path, names: Sequence[str]) -> None:
    folder.mkdir()
    for name in names:
        # A line separator that Python's splitlines would take for the end of a line.
        lines = [f"{sentence(i, name)}\u2028more\r\n" for i in range(7)]
        (folder / f"newstest2019-{name}.txt").write_bytes("".join(lines).encode())


def _write_nusax(folder: Path) -> None:
    rows = [["", *NUSAX.values()]]
    rows += [[str(i), *(sentence(i, name) for name in NUSAX.values())] for i in range(9)]
    _write_rows(folder / "nusax-mt" / "train.csv", rows)
    for language in ("english", "javanese"):
        for split, first in (("train", 0), ("test", 40)):
            rows = [["id", "text", "label"]]
            rows += [
                [str(i), sentence(first + i, language), ("positive", "neutral", "negative")[i % 3]]
                for i in range(12)
            ]
            _write_rows(folder / "nusax-senti" / language / f"{split}.csv", rows)


def _write_rows(file: Path, rows: Sequence[Sequence[str]], delimiter: str = ",") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8", newline="") as lines:
        csv.writer(lines, delimiter=delimiter).writerows(rows)
