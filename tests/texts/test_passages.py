"""Long texts in 28 languages, split: no passage too long, nothing lost, graphemes whole."""

import random
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e5core import E5, Passage
from e5core.parity.samples import LANGUAGES, QUERIES, SENTENCES, read_column
from e5core.texts.boundaries import is_grapheme_boundary

BY_LANGUAGE: dict[str, list[str]] = {}
for language, sentence in zip(
    LANGUAGES + read_column("queries.tsv", "language"), SENTENCES + QUERIES, strict=True
):
    BY_LANGUAGE.setdefault(language, []).append(sentence)

# What stands between two sentences of a document.
JOINS = [" ", " ", "\n", "\n\n", "\r\n\r\n", "", "\u3000", " \t", "\u200b", "\u2029"]
# What does not occur in the sentences.
ODD = [
    "👨\u200d👩\u200d👧",
    "🇩🇪🇫🇷",
    "क्षत्रिय",
    "\u1112\u1161\u11ab",
    "e\u0301" * 3,
    "x" * 90,
    "…",
    "<s>",
    " " * 40,
]


def check(
    passages: list[Passage], text: str, tokens: int, overlap: int, count: Callable[[str], int]
) -> None:
    """Whatever must hold of every split; `count` gives a text's tokens with its prefix."""
    assert passages[0].start == 0
    assert passages[-1].end == len(text)
    for passage in passages:
        assert passage.text == text[passage.start : passage.end]
        assert passage.tokens == count(passage.text) <= tokens
        assert is_grapheme_boundary(text, passage.start)
        assert is_grapheme_boundary(text, passage.end)
    for one, next_one in pairwise(passages):
        assert one.start < next_one.start <= one.end < next_one.end
        shared = text[next_one.start : one.end]
        assert not shared or count(shared) - count("") <= overlap


def test_there_are_28_languages() -> None:
    assert len(BY_LANGUAGE) == 28


@pytest.mark.parametrize("language", BY_LANGUAGE)
@settings(max_examples=12)
@given(
    seed=st.integers(0, 2**32),
    tokens=st.integers(24, 200),
    share=st.floats(0, 0.99),
    length=st.integers(1, 40),
)
def test_no_passage_is_too_long_and_nothing_is_lost(
    real_model: E5, language: str, seed: int, tokens: int, share: float, length: int
) -> None:
    generator = random.Random(seed)
    text = "".join(
        generator.choice(ODD if generator.random() < 0.1 else BY_LANGUAGE[language])
        + generator.choice(JOINS)
        for _ in range(length)
    )

    def count(part: str) -> int:
        return real_model.tokenizer.count("passage: " + part)

    overlap = int(share * (tokens - count("")))
    check(real_model.split(text, tokens, overlap), text, tokens, overlap, count)


@settings(max_examples=60)
@given(text=st.text(max_size=300), tokens=st.integers(40, 60), overlap=st.integers(0, 20))
def test_any_text_is_covered(real_model: E5, text: str, tokens: int, overlap: int) -> None:
    passages = real_model.split(text, tokens, overlap, input_type=None)
    check(passages, text, tokens, overlap, real_model.tokenizer.count)


def test_a_short_text_is_one_passage(real_model: E5) -> None:
    for text in ("", " ", "One sentence. And another one."):
        (passage,) = real_model.split(text)
        assert (passage.text, passage.start, passage.end) == (text, 0, len(text))


def numbered(count: int, words: int = 6) -> list[str]:
    return [f"Sentence {n} has {'many ' * words}words." for n in range(count)]


def test_paragraphs_are_kept_together_where_they_fit(real_model: E5) -> None:
    paragraphs = [" ".join(numbered(4)) for _ in range(9)]
    passages = real_model.split("\n\n".join(paragraphs), tokens=150, overlap=0)
    assert len(passages) > 2
    for passage in passages:
        assert set(passage.text.strip().split("\n\n")) == set(paragraphs)


def test_a_heading_is_no_passage_of_its_own(real_model: E5) -> None:
    text = "The heading\n\n" + " ".join(numbered(40))
    first = real_model.split(text, tokens=100)[0]
    assert first.text.startswith("The heading\n\nSentence 0")
    assert first.text.endswith("words. ")


def test_sentences_are_kept_together_and_overlap(real_model: E5) -> None:
    passages = real_model.split(" ".join(numbered(60)), tokens=100, overlap=40)
    for one, next_one in pairwise(passages):
        assert one.text.rstrip().endswith("words.")
        assert next_one.text.startswith("Sentence")
        assert one.end - next_one.start > 0  # a whole sentence of 15 tokens has room in 40
    nothing_shared = real_model.split(" ".join(numbered(60)), tokens=100, overlap=0)
    assert "".join(passage.text for passage in nothing_shared) == " ".join(numbered(60))


def test_words_are_whole_where_there_are_no_sentences(real_model: E5) -> None:
    words = ["alphabet", "Donaudampfschiff", "überall"] * 200
    passages = real_model.split(" ".join(words), tokens=64, overlap=16)
    assert all(set(passage.text.split()) <= set(words) for passage in passages)


def test_scripts_without_blanks_are_cut_between_graphemes(real_model: E5) -> None:
    for unit in ("ที่นี่มีน้ำ", "日本語の文章", "ကျွန်တော်", "क्षि"):
        text = unit * 200
        passages = real_model.split(text, tokens=64, overlap=8)
        assert len(passages) > 3
        check(passages, text, 64, 8, lambda part: real_model.tokenizer.count("passage: " + part))
        assert all(passage.tokens > 32 for passage in passages[:-1])  # they are filled


def test_the_prefix_counts(real_model: E5) -> None:
    text = " ".join(numbered(40))
    for input_type, prefix in (("query", "query: "), ("passage", "passage: "), (None, "")):
        passages = real_model.split(text, 64, input_type=input_type)  # type: ignore[arg-type]
        counts = real_model.embed([p.text for p in passages], input_type=input_type).token_counts  # type: ignore[arg-type]
        assert [passage.tokens for passage in passages] == counts.tolist()
        assert max(counts) <= 64, prefix


@pytest.mark.parametrize(
    ("tokens", "overlap", "message"),
    [
        (4, 0, r"passages of 4 tokens are asked for \(--split\), expected 5 to 512"),
        (513, 0, "passages of 513 tokens are asked for .* the model takes 512"),
        ("64", 0, "passages of '64' tokens are asked for"),
        (64, 1.5, r"overlap is 1.5 \(--overlap\), expected 0 to 59"),
        (64, -1, r"overlap is -1 \(--overlap\), expected 0 to 59"),
        (64, 60, "overlap is 60 .* expected 0 to 59: fewer than the 60 tokens"),
    ],
)
def test_numbers_that_do_not_fit(real_model: E5, tokens: int, overlap: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        real_model.split("text", tokens, overlap)


def test_texts_that_cannot_be_split(real_model: E5) -> None:
    with pytest.raises(TypeError, match="expected one str"):
        real_model.split(["text"])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"lone surrogate U\+D800 at character 2"):
        real_model.split("ab\ud800")
    marks = "a" + "\u0301\u0316\u0489\u20dd" * 400
    with pytest.raises(ValueError, match="the characters from 3 on are one grapheme"):
        real_model.split("b. " + marks, tokens=32, overlap=8)
