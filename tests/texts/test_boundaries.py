"""Ends of paragraphs, sentences, words and graphemes, in many scripts."""

import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e5core.parity.samples import QUERIES, SENTENCES
from e5core.texts.boundaries import _SENTENCE_END, Boundaries, Level, is_grapheme_boundary


def places(text: str, level: Level) -> list[int]:
    boundaries = Boundaries(text)
    found = [boundaries.first(level, place, place + 1) for place in range(len(text) + 1)]
    return [place for place in found if place is not None]


def parts(text: str, level: Level) -> list[str]:
    ends = places(text, level)
    return [text[a:b] for a, b in zip([0, *ends], [*ends, len(text)], strict=True) if a < b]


@pytest.mark.parametrize(
    "text",
    [
        "One ends. |Another begins! |A third? |“Quoted.” |(In brackets.) |Last",
        "It costs 3.14 dollars at e5core.example, etc. and so on. |Really...|",
        "第一句。|第二句！|「引用？」|最后",
        "यह पहला है। |यह दूसरा है॥ |तीसरा",
        "هل هذا سؤال؟ |نعم. |حسنا",
        "یہ ایک جملہ ہے۔ |دوسرا",
        "Πού είναι\u037e |Εκεί. |",
        "አማርኛ ነው። |ሁለተኛ",
        "မြန်မာစာ။ |ဒုတိယ",
        "ខ្មែរ។ |ទីពីរ",
        "བོད་སྐད། |གཉིས་པ",
        "Հայերեն։ |Երկրորդ",
        "日本語です｡|次です．|終わり",
    ],
)
def test_sentences_end_in_every_script(text: str) -> None:
    expected = text.rstrip("|").split("|")
    assert parts(text.replace("|", ""), Level.SENTENCE) == expected


def test_all_terminals_of_unicode_end_a_sentence() -> None:
    regex = pytest.importorskip("regex")
    terminals = regex.findall(
        r"\p{Sentence_Terminal}", "".join(map(chr, range(128, sys.maxunicode + 1)))
    )
    assert len(terminals) > 150
    assert all(_SENTENCE_END.search(f"a{terminal}b") for terminal in terminals)


def test_paragraphs_end_with_a_blank_line_or_a_line_that_ends_a_sentence() -> None:
    text = "A title\n\n|One line that is\nwrapped ends.\n|The next\r\n  \r\n  |one\u2029|and\f|more"
    assert parts(text.replace("|", ""), Level.PARAGRAPH) == text.split("|")


def test_words_end_with_blanks_that_break() -> None:
    text = "one |two  |«\u00a0three\u00a0» |四、|五，|ไทย\u200b|คำ"
    assert parts(text.replace("|", ""), Level.WORD) == text.split("|")


@pytest.mark.parametrize(
    "grapheme",
    [
        "\r\n",
        "e\u0301",
        "👩🏽\u200d💻",
        "👨\u200d👩\u200d👧\u200d👦",
        "🇩🇪",
        "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
        "क्षि",
        "क्\u200dष",
        "நி",
        "กำ",
        "\u1100\u1161\u11a8",
        "ｶﾞ",
        "1\ufe0f\u20e3",
        "\u0600١",
        "g̈̃̂",
    ],
)
def test_a_grapheme_is_whole(grapheme: str) -> None:
    text = f"a{grapheme}a" if grapheme != "\r\n" else grapheme
    inside = range(text.index(grapheme) + 1, text.index(grapheme) + len(grapheme))
    assert not any(is_grapheme_boundary(text, place) for place in inside)
    assert places(2 * grapheme, Level.GRAPHEME) == [0, len(grapheme), 2 * len(grapheme)]


TRICKY = (
    "a\u0301\u200d\u200c\ufe0f\r\n \u00a0👩🏽💻❤🇩🇪🇫\u1100\u1161\u11a8각가कष्\u093f\u0e33กﾞｶ\u0600١"
    "\u0d4eമ\u17d2\u1780\U000e0067\u200b\u2028\u180e\u0b95\u0bcd"
)


@settings(max_examples=300)
@given(st.text(st.one_of(st.sampled_from(TRICKY), st.characters()), max_size=12))
def test_no_place_is_inside_a_grapheme_of_uax_29(text: str) -> None:
    regex = pytest.importorskip("regex")
    ends = {0, *(match.end() for match in regex.finditer(r"\X", text))}
    ours = {place for place in range(len(text) + 1) if is_grapheme_boundary(text, place)}
    assert ours <= ends


def test_in_real_sentences_hardly_a_place_is_missed() -> None:
    regex = pytest.importorskip("regex")
    for text in SENTENCES + QUERIES:
        ends = [match.end() for match in regex.finditer(r"\X", text)]
        missed = sum(not is_grapheme_boundary(text, end) for end in ends)
        assert missed <= 0.02 * len(ends), text


@pytest.mark.parametrize("unit", [".", "...)", "!?", "\r", "\n \n", "。", '."', " ", "🇩🇪", ".\n"])
def test_the_time_grows_with_the_text_alone(unit: str) -> None:
    started = time.process_time()
    Boundaries(unit * 200_000 + "x")
    assert time.process_time() - started < 10  # it takes less than one second
