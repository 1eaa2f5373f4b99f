"""`e5core map`: what files become points, what is marked, and the pictures themselves."""

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.cli import fails

pytest.importorskip("altair", reason="altair, of the extra map, is not installed")
pytest.importorskip("vl_convert", reason="vl-convert, of the extra map, is not installed")

from e5core import E5
from e5core.cli import main
from e5core.maps.chart import COLOURS, GREY, save
from e5core.maps.labels import choose_sides
from e5core.maps.names import language, languages
from e5core.maps.points import (
    LACKING,
    Map,
    Point,
    map_of_languages,
    map_of_meanings,
    unknown_shares,
)
from e5core.maps.sentences import Columns, parallel, read_parallel
from e5core.parity.samples import DATA

OWN = Columns("sentence", "language", "topic")


def test_two_points_have_two_names() -> None:
    """SIB-200's folder has eight languages in two scripts."""
    codes = ["zho_Hans", "deu_Latn", "zho_Hant", "kas_Deva", "kas_Arab", "pt-BR", "pt", "zh"]
    assert [name for name, _ in languages(codes)] == [
        "Chinese (simplified)",
        "German",
        "Chinese (traditional)",
        "Kashmiri (Devanagari)",
        "Kashmiri (Arabic script)",
        "Portuguese (BR)",
        "Portuguese (pt)",
        "Chinese (zh)",
    ]
    assert {group for _, group in languages(["zho_Hans", "zh"])} == {language("zh").group}
    sentences = parallel(
        "abcdef", [c for c in ("zh-Hans", "zh-Hant", "de") for _ in "12"], "12" * 3
    )
    vectors = np.random.default_rng(0).standard_normal((3, 2, 8)).astype(np.float32)
    drawn = map_of_languages(sentences, vectors, [0.0] * 3)
    assert [p.label for p in drawn.points] == [
        "Chinese (simplified)",
        "Chinese (traditional)",
        "German",
    ]


def test_codes_have_names_and_groups() -> None:
    for code in ("por_Latn", "pt", "por", "pt-BR"):
        assert language(code) == ("Portuguese", "Romance")
    assert language("zho_Hans").name == "Chinese"
    assert language("nqo_Nkoo").name == "N'Ko"
    assert language("xx_Latn") == ("xx_Latn", "Other")
    table = (Path(language.__code__.co_filename).parent / "languages.tsv").read_text("utf-8")
    codes = [line.split("\t")[0] for line in table.splitlines()]
    short = [line.split("\t")[1] for line in table.splitlines() if line.split("\t")[1]]
    assert len(codes) == len(set(codes)) > 150
    assert len(short) == len(set(short))


def test_the_same_sentences_from_each_kind_of_file(tmp_path: Path) -> None:
    rows = [("Hello.", "en", "1"), ("Where?", "en", "2"), ("Hallo.", "de", "1")]
    rows += [("Wo?", "de", "2"), ("Só.", "pt", "2"), ("Olá.", "pt", "1")]
    table = tmp_path / "table.tsv"
    lines = ["text\tlanguage\tmeaning", *("\t".join(row) for row in rows)]
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    expected = read_parallel(table)
    assert expected.languages == ["en", "de", "pt"]
    assert expected.texts == [["Hello.", "Where?"], ["Hallo.", "Wo?"], ["Olá.", "Só."]]
    assert expected.places == [[0, 1], [2, 3], [5, 4]]
    files, sib = tmp_path / "files", tmp_path / "sib"
    files.mkdir()
    for code, texts in zip(expected.languages, expected.texts, strict=True):
        (files / f"{code}.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
        (sib / code).mkdir(parents=True)
        content = "".join(f"{i}\tx\t{text}\n" for i, text in enumerate(texts))
        (sib / code / "test.tsv").write_text(f"index_id\tcategory\ttext\n{content}", "utf-8")
    for folder in (files, sib):
        found = read_parallel(folder)
        assert dict(zip(found.languages, found.texts, strict=True)) == dict(
            zip(expected.languages, expected.texts, strict=True)
        )
    # What a language lacks is left out, and no meaning at all is an error.
    assert parallel("abc", ["en", "en", "de"], ["1", "2", "2"]).meanings == ["2"]
    with pytest.raises(ValueError, match="no meaning is there in all 2 languages; en has"):
        parallel("ab", ["en", "de"], ["1", "2"])


def test_a_lacking_script_is_marked_and_bends_nothing(make_tiny: Callable[..., Path]) -> None:
    model = E5.from_pretrained(make_tiny())
    texts = ["the query", "a passage"] * 4
    texts[6:] = ["ߊߓߊ ߊߓ", "ߓߊ ߊ"]
    sentences = parallel(
        texts, [x for x in ("en", "de", "fr", "nqo") for _ in "12"], ["1", "2"] * 4
    )
    shares = unknown_shares(sentences, model.tokenizer)
    assert shares[:3] == [0, 0, 0]
    assert shares[3] > LACKING
    vectors = np.random.default_rng(0).standard_normal((4, 2, 24)).astype(np.float32)
    drawn = map_of_languages(sentences, vectors, shares)
    assert [point.lacking for point in drawn.points] == [False] * 3 + [True]
    assert drawn.points[3].label == f"N'Ko ({shares[3]:.0%} unknown)"
    assert "N'Ko" in drawn.notes[0]
    moved = vectors.copy()
    moved[3] *= -3
    again = map_of_languages(sentences, moved, shares)
    assert [(p.x, p.y) for p in again.points[:3]] == [(p.x, p.y) for p in drawn.points[:3]]


def test_one_meaning_lies_together(real_model: E5, measured: Any) -> None:
    """Of the project's own sentences, on the plane: the nearest centre is that of the meaning."""
    every = read_parallel(DATA / "sentences.tsv", OWN)
    texts = [text for row in every.texts for text in row]
    vectors = real_model.encode_query(texts).reshape(len(every.languages), len(every.meanings), -1)
    chosen = [every.meanings.index(name) for name in ("train", "coffee", "shoes", "rain")]
    some = parallel(
        [row[i] for row in every.texts for i in chosen],
        [code for code in every.languages for _ in chosen],
        [every.meanings[i] for _ in every.languages for i in chosen],
    )
    drawn = map_of_meanings(some, vectors[:, chosen], [0.0] * len(every.languages))
    places = np.array([(p.x, p.y) for p in drawn.points]).reshape(len(every.languages), 4, 2)
    centres = places.mean(axis=0)
    nearest = np.linalg.norm(places[:, :, None] - centres[None, None], axis=3).argmin(axis=2)
    share = float((nearest == np.arange(4)).mean())
    measured(f"four meanings in 12 languages on a plane: {share:.1%} next to their own centre")
    assert share > 0.95
    assert drawn.points[0].translation == "Where is the nearest train station?"


def test_pictures_of_sentences(make_tiny: Callable[..., Path], tmp_path: Path) -> None:
    model = make_tiny()
    arguments = ["map", str(DATA / "sentences.tsv"), "--model", str(model)]
    arguments += ["--text-column", "sentence", "--meaning-column", "topic"]
    page, picture, drawing = (tmp_path / f"map.{suffix}" for suffix in ("html", "png", "svg"))
    assert main([*arguments, "--output", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    # Nothing is fetched: every script is in the page.
    assert not re.search(r"<script[^>]+src=|<link[^>]+href=", text)
    assert "Swahili" in text
    assert (
        main([*arguments, "--kind", "meanings", "--meanings", "2", "--output", str(picture)]) == 0
    )
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main([*arguments, "--kind", "languages", "--output", str(drawing)]) == 0
    names = ["".join(element.itertext()) for element in ElementTree.parse(drawing).iter()]
    assert any("German" in name for name in names)
    assert any("12 languages by 16 sentences" in name for name in names)


def test_pictures_of_vectors(make_tiny: Callable[..., Path], tmp_path: Path) -> None:
    model, vectors = make_tiny(), tmp_path / "sentences.npy"
    embed = ["embed", str(DATA / "sentences.tsv"), "--model", str(model), "--column", "sentence"]
    assert main([*embed, "--input-type", "query", "--output", str(vectors)]) == 0
    page = tmp_path / "corpus.html"
    command = ["map", str(vectors), "--output", str(page)]
    assert main([*command, "--labels", "topic", "--points", "50"]) == 0
    spec = json.loads(re.search(r"const spec = (\{.*\});", page.read_text("utf-8"))[1])  # type: ignore[index]
    rows = spec["data"]["values"]
    assert len(rows) == 50
    assert rows[0]["sentence"] == "Where is the nearest train station?"
    assert rows[0]["group"] == "train"
    # The same vectors as a map of languages: that of the texts themselves.
    columns = ["--text-column", "sentence", "--meaning-column", "topic"]
    drawings = []
    for source in (str(vectors), str(DATA / "sentences.tsv")):
        drawing = tmp_path / "languages.svg"
        options = ["--kind", "languages", "--output", str(drawing), "--model", str(model)]
        assert main(["map", source, *columns, *options]) == 0
        places = re.findall(r'aria-label="([^"]*German[^"]*)"', drawing.read_text("utf-8"))
        drawings.append([float(x) for x in re.findall(r"-?\d+\.\d{4,}", " ".join(places))])
    assert drawings[0]
    np.testing.assert_allclose(drawings[0], drawings[1], rtol=1e-3, atol=1e-6)


def test_refusals(
    make_tiny: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, output = make_tiny(), tmp_path / "map.html"
    table = DATA / "sentences.tsv"
    assert "expected .html" in fails(capsys, "map", table, "--output", tmp_path / "map.pdf")
    corpus = fails(capsys, "map", table, "--kind", "corpus", "--output", output)
    assert "holds no vectors" in corpus
    assert "'text'" in fails(capsys, "map", table, "--output", output, "--model", model)
    columns = ("--text-column", "sentence", "--meaning-column", "topic")
    options = (*columns, "--output", output, "--model", model)
    assert "no sentences in 'xx'" in fails(capsys, "map", table, *options, "--translation", "xx")
    assert "--meanings is 0" in fails(
        capsys, "map", table, *options, "--kind", "meanings", "--meanings", 0
    )
    assert "--labels colours" in fails(capsys, "map", table, *options, "--labels", "topic")
    for size in ("10", "0x0", "x600", "800x600x2", "99999x99999"):
        assert "expected a width and a height" in fails(
            capsys, "map", table, *options, "--size", size
        )
    vectors = tmp_path / "vectors.npy"
    np.save(vectors, np.eye(4, 8, dtype=np.float32))
    few = ("map", vectors, "--output", output, "--points")
    assert "--points is -3" in fails(capsys, *few, -3)
    head = "text\tlanguage\tmeaning\n"
    for name, content, match in (
        ("bare", "", "there are no sentences"),
        ("head", head, "there are no sentences"),
        ("two", f"{head}the\ten\t1\na\tde\t1\n", "2 languages are in a script that"),
    ):
        file = tmp_path / f"{name}.tsv"
        file.write_text(content)
        assert match in fails(capsys, "map", file, "--output", output, "--model", model)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds no .txt file" in fails(capsys, "map", empty, *options)
    assert "is none of .tsv" in fails(capsys, "map", tmp_path / "x.doc", *options)


@pytest.mark.parametrize("kinds", [2, COLOURS, COLOURS + 5])
def test_each_colour_is_of_one_label(kinds: int, tmp_path: Path) -> None:
    """The largest groups have a colour each, all others the grey, and the legend says so."""
    groups = [f"g{i}" for i in range(kinds) for _ in range(1 + (i >= 5))]
    points = [Point(i, i % 7, "", group) for i, group in enumerate(groups)]
    picture = tmp_path / "map.svg"
    save(Map("", "Kind", points, (0.5, 0.5)), picture)
    marks = re.findall(
        r'aria-label="[^"]*group: (g\d+)[^"]*"[^>]* fill="(#\w+)"', picture.read_text()
    )
    assert len(marks) == len(groups)
    colours = dict(marks)
    own = {group: colour for group, colour in colours.items() if colour != GREY}
    assert len(own) == len(set(own.values())) == min(kinds, COLOURS)
    assert set(colours) - set(own) == {f"g{i}" for i in range(kinds - len(own))}
    words = [text.text for text in ElementTree.parse(picture).iter() if text.text]
    assert {word for word in words if re.fullmatch(r"g\d+", word)} == set(own)
    assert ("Kind (5 others are grey)" in words) == (kinds > COLOURS)


def test_labels_keep_off_each_other() -> None:
    # Alone, a label stands to the right of its point; one of two neighbours makes room.
    assert choose_sides([[0, 0], [500, 0]], ["Hungarian", "Greek"]) == [0, 0]
    assert choose_sides([[0, 0], [12, 0]], ["Bulgarian", "Russian"]) == [1, 0]
    # To the right of the first lies the second, and to the left the third.
    crowded = choose_sides([[0, 0], [12, 0], [-12, 0]], ["Tamil", "", ""])
    assert crowded[0] not in (0, 1)
    assert choose_sides(np.zeros((0, 2)), []) == []
    # What every point hides is decided all the same.
    assert len(choose_sides(np.zeros((40, 2)), ["x"] * 40)) == 40


def test_how_many_relatives_are_neighbours_is_told() -> None:
    codes = ["es", "fr", "pt", "de", "nl", "xx", "yy"]
    families = [0, 0, 0, 1, 1, 2, 2]
    random = np.random.default_rng(0)
    meanings, offsets = random.standard_normal((6, 16)), random.standard_normal((3, 16))
    vectors = meanings + offsets[families][:, None] + 0.1 * random.standard_normal((7, 6, 16))
    rows = [(f"{code} {i}", code, str(i)) for code in codes for i in range(6)]
    sentences = parallel(*(list(column) for column in zip(*rows, strict=True)))
    drawn = map_of_languages(sentences, vectors.astype(np.float32), [0.0] * 7)
    # Languages that are not known are no relatives of each other.
    assert drawn.notes == [
        "Of 5 languages that have others of their group here, 5 lie next to one in all dimensions, "
        "and 5 on this plane."
    ]
    without = map_of_languages(
        parallel(*(list(column) for column in zip(*rows[30:], ("a", "de", "0"), strict=True))),
        vectors[[5, 6, 3], :1].astype(np.float32),
        [0.0] * 3,
    )
    assert without.notes == []
