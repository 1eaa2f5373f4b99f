"""XQuAD as questions in several languages, each to be answered by one English sentence.

The form is that of LAReQA (arXiv:2004.05484). XQuAD is github.com/deepmind/xquad: the same
paragraphs and questions in every language.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e5core.formats.files import read_json_object

LANGUAGES = ("en", "es", "ar", "th", "zh")
HELD_PARAGRAPHS, HELD_QUESTIONS = 80, 100  # of 240 paragraphs; questions are of each language

SENTENCE_END = re.compile(r"(?<=[.!?])[\"'”)\]]*\s+(?=[\"'“(\[]?[A-Z0-9])")
ABBREVIATION = re.compile(r"\b(?:St|Mr|Mrs|Dr|No|vs|e\.g|i\.e|U\.S|c|J|Jr|[A-Z])\.$")


@dataclass(frozen=True)
class Question:
    """A question, the sentence that holds its answer, and all sentences of the paragraph."""

    text: str
    answer: str
    paragraph: tuple[str, ...]
    language: str


@dataclass(frozen=True)
class Questions:
    """Questions to train on and held-out ones, of different paragraphs.

    passages   sentences of the paragraphs to train on
    sentences  those of all paragraphs, among which held-out questions find their answer
    """

    train: list[Question]
    held: list[Question]
    passages: list[str]
    sentences: list[str]


def read_questions(folder: Path) -> Questions:
    """The questions of xquad.XX.json in a folder, always the same and in the same order."""
    paragraphs = {language: read_paragraphs(folder, language) for language in LANGUAGES}
    english = paragraphs["en"]
    order = list(range(len(english)))
    random.Random(0).shuffle(order)
    held_places = set(order[:HELD_PARAGRAPHS])
    sentences, passages = {}, {}
    rows: dict[tuple[bool, str], list[Question]] = {}
    for place, paragraph in enumerate(english):
        held, context = place in held_places, paragraph["context"]
        parts = {span: context[slice(*span)].strip() for span in spans_of_sentences(context)}
        sentences |= dict.fromkeys(parts.values())
        if not held:
            passages |= dict.fromkeys(parts.values())
        for number, question in enumerate(paragraph["qas"]):
            answer = sentence_of(question["answers"][0], parts)
            if answer is None:
                continue
            for language in LANGUAGES:
                text = paragraphs[language][place]["qas"][number]["question"].strip()
                asked = Question(text, answer, tuple(parts.values()), language)
                rows.setdefault((held, language), []).append(asked)
    train, test = [], []
    for language in LANGUAGES:
        for held, some in ((False, train), (True, test)):
            mine = rows.get((held, language), [])
            random.Random(f"{'b' if held else 'a'}{language}").shuffle(mine)
            some += mine[:HELD_QUESTIONS] if held else mine
    random.Random(1).shuffle(train)
    return Questions(train, test, list(passages), list(sentences))


def read_paragraphs(folder: Path, language: str) -> list[dict[str, Any]]:
    articles = read_json_object(folder / f"xquad.{language}.json")["data"]
    return [paragraph for article in articles for paragraph in article["paragraphs"]]


def spans_of_sentences(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    for end in SENTENCE_END.finditer(text):
        if not ABBREVIATION.search(text[start : end.start()]):
            yield start, end.start()
            start = end.end()
    yield start, len(text)


def sentence_of(answer: dict[str, Any], parts: dict[tuple[int, int], str]) -> str | None:
    """The sentence that holds an answer; None if the answer runs over two."""
    start = answer["answer_start"]
    end = start + len(answer["text"])
    return next((text for (a, b), text in parts.items() if a <= start and end <= b + 1), None)
