"""scripts/experiments: whole runs on tiny models and made-up data in the layout of the real."""

import csv
import json
import re

import measure
import numpy as np
import pytest
import questions
import translations
import xquad
from support.models import write_tiny_model
from support.training import sentence


@pytest.fixture
def model(tmp_path):
    return str(write_tiny_model(tmp_path / "model", "bert"))


@pytest.fixture
def xquad_folder(tmp_path):
    """82 paragraphs of two sentences, with a question each that repeats the answer's words."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "xquad"
    folder.mkdir()
    for language in xquad.LANGUAGES:
        paragraphs = []
        for number in range(82):
            first, answer = (f"The {sentence(generator)} {number}{i}." for i in "ab")
            place = {"answer_start": len(first) + 1, "text": answer[:5]}
            asked = {"question": f"{answer[:-1]} {language}?", "answers": [place]}
            paragraphs.append({"context": f"{first} {answer}", "qas": [asked]})
        content = json.dumps({"data": [{"paragraphs": paragraphs}]})
        (folder / f"xquad.{language}.json").write_text(content, "utf-8")
    return folder


def test_questions_find_the_sentence_of_their_answer(xquad_folder):
    found = xquad.read_questions(xquad_folder)
    assert (len(found.train), len(found.held)) == (2 * 5, 80 * 5)
    assert (len(found.passages), len(found.sentences)) == (2 * 2, 82 * 2)
    for question in found.train + found.held:
        assert question.answer.endswith("b.")
        assert question.answer == question.paragraph[1]
        if question.language == "en":
            assert question.text.startswith(question.answer[:-1])
    assert {q.answer for q in found.train}.isdisjoint(q.answer for q in found.held)


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two? Three!", ["One.", "Two?", "Three!"]),
        ('He said "no." Then he left.', ['He said "no.', "Then he left."]),
        ("Dr. Who met J. Smith. They ran.", ["Dr. Who met J. Smith.", "They ran."]),
        ("No end", ["No end"]),
    ],
)
def test_sentences_of_a_text(text, sentences):
    assert [text[a:b] for a, b in xquad.spans_of_sentences(text)] == sentences


def test_an_answer_over_two_sentences_has_no_sentence():
    parts = {(0, 4): "One.", (5, 9): "Two."}
    assert xquad.sentence_of({"answer_start": 5, "text": "Two"}, parts) == "Two."
    assert xquad.sentence_of({"answer_start": 2, "text": "e. Tw"}, parts) is None


def test_measures():
    order = np.array([[2, 0, 1], [1, 2, 0], [0, 1, 2]])
    found = measure.ndcg_at_10(order, np.array([2, 2, 2]))
    assert found == pytest.approx([1, 1 / np.log2(3), 0.5])
    deep = np.arange(12)[None]
    assert measure.ndcg_at_10(deep, np.array([9])) == pytest.approx([1 / np.log2(11)])
    assert measure.ndcg_at_10(deep, np.array([10])) == [0]
    assert measure.accuracy(np.eye(3), np.eye(3)[[0, 2, 1]]) == pytest.approx(1 / 3)
    assert measure.mean_and_error(np.array([0.0, 0.02])) == pytest.approx((1, 1 / 2**0.5))


def test_questions(xquad_folder, model, tmp_path, capsys):
    """Every model of a seed is trained and reported, and the same command trains none again."""
    output = tmp_path / "questions"
    command = [
        "--data", xquad_folder, "--model", model, "--output", output, "--students", 4,
        "--steps", 1, "--prompts", "e5",
    ]  # fmt: skip
    command = list(map(str, command))
    assert questions.main(command) == 0
    said = capsys.readouterr().out
    names = ("start", "tuned", "reranker", *(way for way, _, _ in questions.WAYS))
    assert all(re.search(rf"^  {re.escape(name)}.* \d\.\d{{3}}", said, re.M) for name in names)
    assert said.count("beside the best contrastive") == 2
    rows = [json.loads(line) for line in (output / "exact.jsonl").read_text("utf-8").splitlines()]
    assert len(rows) == 6
    assert all(set(row["pos"]).isdisjoint(row["neg"]) for row in rows)
    scored = (output / "seed-0" / "scored.jsonl").read_text("utf-8")
    assert len(scored.splitlines()) == 4
    assert "pos_scores" in scored

    made = {file: file.stat().st_mtime_ns for file in output.rglob("*") if file.is_file()}
    assert questions.main(command) == 0
    assert capsys.readouterr().out == said
    assert made == {f: f.stat().st_mtime_ns for f in output.rglob("*") if f.is_file()}


def test_too_many_students(xquad_folder, model, tmp_path, capsys):
    where = ["--data", str(xquad_folder), "--model", model, "--output", str(tmp_path / "out")]
    assert questions.main([*where, "--students", "10", "--prompts", "e5"]) == 2
    assert "--students is 10, of 10 questions to train on" in capsys.readouterr().err


@pytest.fixture
def nusax(tmp_path):
    """A folder whose nusax-mt has two languages beside English."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "data" / "nusax-mt"
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        with (folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["", "english", "balinese", "madurese"])
            for number in range(6):
                writer.writerow([number, *(sentence(generator) for _ in range(3))])
    return folder.parent


def test_translations(nusax, model, tmp_path, capsys):
    output = tmp_path / "out"
    command = [
        "--data", str(nusax), "--model", model, "--output", str(output), "--prompts", "e5",
        "--steps", "2", "--seeds", "3", "4", "--languages", "balinese", "madurese",
    ]  # fmt: skip
    assert translations.main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["balinese", "madurese", "s"]
    starts = [line.split("  ")[0] for line in lines[1:]]
    assert starts == ["before", "seed 3", "", "seed 4", ""]
    assert all(0 <= float(value) <= 1 for value in lines[1].split()[1:])
    rows = [json.loads(line) for line in (output / "madurese.jsonl").read_text().splitlines()]
    assert len(rows) == 6
    assert rows[0]["query"] != rows[0]["pos"][0]


def test_a_language_that_is_not_there(nusax, model, tmp_path, capsys):
    where = ["--data", str(nusax), "--model", model, "--output", str(tmp_path / "out")]
    assert translations.main([*where, "--languages", "ngaju"]) == 2
    err = capsys.readouterr().err
    assert "train.csv has the columns" in err
    assert "and not 'ngaju'" in err
