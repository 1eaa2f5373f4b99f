"""Where a text may be cut: after paragraphs, sentences and words, never inside a grapheme."""

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from enum import IntEnum

# Characters that end a sentence: Sentence_Terminal of Unicode 17, PropList.txt, without the ASCII
# ones, and the shads of Tibetan and Greek's own question mark, which it leaves out.
_TERMINALS = (
    "\u0589\u061d-\u061f\u06d4\u0700-\u0702\u07f9\u0837\u0839\u083d\u083e\u0964\u0965\u104a\u104b"
    "\u1362\u1367\u1368\u166e\u1735\u1736\u17d4\u17d5\u1803\u1809\u1944\u1945\u1aa8-\u1aab\u1b4e"
    "\u1b4f\u1b5a\u1b5b\u1b5e\u1b5f\u1b7d-\u1b7f\u1c3b\u1c3c\u1c7e\u1c7f\u2024\u203c\u203d\u2047-"
    "\u2049\u2cf9-\u2cfb\u2e2e\u2e3c\u2e53\u2e54\u2e60\u2e61\u3002\ua4ff\ua60e\ua60f\ua6f3\ua6f7"
    "\ua876\ua877\ua8ce\ua8cf\ua92f\ua9c8\ua9c9\uaa5d-\uaa5f\uaaf0\uaaf1\uabeb\ufe12\ufe15\ufe16"
    "\ufe52\ufe56\ufe57\uff01\uff0e\uff1f\uff61\U00010a56\U00010a57\U00010f55-\U00010f59"
    "\U00010f86-\U00010f89\U00011047\U00011048\U000110be-\U000110c1\U00011141-\U00011143"
    "\U000111c5\U000111c6\U000111cd\U000111de\U000111df\U00011238\U00011239\U0001123b\U0001123c"
    "\U000112a9\U000113d4\U000113d5\U0001144b\U0001144c\U000115c2\U000115c3\U000115c9-\U000115d7"
    "\U00011641\U00011642\U0001173c-\U0001173e\U00011944\U00011946\U00011a42\U00011a43\U00011a9b"
    "\U00011a9c\U00011c41\U00011c42\U00011ef7\U00011ef8\U00011f43\U00011f44\U00016a6e\U00016a6f"
    "\U00016af5\U00016b37\U00016b38\U00016b44\U00016d6e\U00016d6f\U00016e98\U0001bc9f\U0001da88"
    "\u0f0d-\u0f12\u037e"
)
_CLOSERS = (
    r"[\"'\u2019\u201d\u00bb\u203a)\]}\u3009\u300b\u300d\u300f\u3011\u3015\uff09\uff3d\uff5d]*"
)
# Blanks at which a line may be broken; all other spaces are there to keep two words together.
_BLANK = r"[^\S\u00a0\u2007\u202f]"
_LINE_END = r"(?:\r\n|[\n\r\u0085\u2028])"

_PARAGRAPH_END = re.compile(rf"{_LINE_END}(?:[^\S\n]*{_LINE_END})+\s*|[\u2029\f]\s*")
# The signs of ASCII also stand in numbers, names and addresses, and end a sentence before a blank.
_SENTENCE_END = re.compile(
    rf"[{_TERMINALS}]+{_CLOSERS}{_BLANK}*|"
    # A run of dots is looked at once, and not again from each of its dots.
    rf"(?<![.!?\u2026])[.!?\u2026]+{_CLOSERS}(?:{_BLANK}+|$)"
)
_WORD_END = re.compile(rf"{_BLANK}+|[\u200b\u3001\uff0c\uff1b\uff1a\u30fb\u2014\u060c\u061b]+")


class Level(IntEnum):
    """The ends of larger parts are better places to cut than those of smaller ones."""

    PARAGRAPH = 0
    SENTENCE = 1
    WORD = 2
    GRAPHEME = 3


class Boundaries:
    """The places of one text at which it may be cut, in order, level by level."""

    def __init__(self, text: str) -> None:
        self._text = text
        paragraphs = {match.end() for match in _PARAGRAPH_END.finditer(text)}
        sentences: set[int] = set()
        for match in _SENTENCE_END.finditer(text):
            end = match.end()
            if text[match.start()] == "." and text[end : end + 1].islower():
                continue  # an abbreviation
            # A line that ends with its sentence ends a paragraph; others may only be wrapped.
            ends_line = re.search(_LINE_END, match.group()) is not None
            (paragraphs if ends_line else sentences).add(end)
        words = {match.end() for match in _WORD_END.finditer(text)}
        self._places = [sorted(places) for places in (paragraphs, sentences, words)]

    def last(self, level: Level, after: int, until: int) -> int | None:
        """The last place with `after` < place <= `until`, None if there is none."""
        return self._first_whole(reversed(self._between(level, after + 1, until + 1)))

    def first(self, level: Level, start: int, before: int) -> int | None:
        """The first place with `start` <= place < `before`, None if there is none."""
        return self._first_whole(self._between(level, start, before))

    def _between(self, level: Level, start: int, before: int) -> Sequence[int]:
        if level is Level.GRAPHEME:
            return range(start, before)
        places = self._places[level]
        return places[bisect_left(places, start) : bisect_left(places, before)]

    def _first_whole(self, places: Iterable[int]) -> int | None:
        """The first of these places that is not inside a grapheme."""
        return next((place for place in places if is_grapheme_boundary(self._text, place)), None)


# --- graphemes ----------------------------------------------------------------------------------

# Joined to what stands before them although they are no marks: the vowels am of Thai and Lao,
# voiced marks of halfwidth Katakana, skin tones.
_JOINED = {"\u0e33", "\u0eb3", "\uff9e", "\uff9f", *map(chr, range(0x1F3FB, 0x1F400))}
_JOINER = "\u200d"
_MARKS = ("Mn", "Mc", "Me")
_VIRAMA = 9  # the combining class of signs that join two consonants


def is_grapheme_boundary(text: str, place: int) -> bool:
    """Whether no grapheme of a text has characters on both sides of a place.

    These are the rules of UAX #29 in the categories that Python knows. Where they are simplified,
    they keep more together: formatting characters stay with what stands before them, and nothing
    is cut behind a joiner or a virama.
    """
    if not 0 < place < len(text):
        return True
    before, after = text[place - 1], text[place]
    if before == "\r" and after == "\n":
        return False
    if before in "\n\r\u2028\u2029" or after in "\n\r\u2028\u2029":
        return True
    if _is_joined(after) or before == _JOINER or _is_prepended(before):
        return False
    if _ends_in_virama(text, place):
        return False
    if _is_regional(before) and _is_regional(after):  # two letters make a flag
        start = place
        while start and _is_regional(text[start - 1]):
            start -= 1
        return (place - start) % 2 == 0
    return not _joins_syllable(before, after)


def _is_joined(character: str) -> bool:
    """Whether a character belongs to the one before it."""
    category = unicodedata.category(character)
    if category == "Cn":  # of a newer Unicode: it may be a mark, but not among the ideographs
        return character < "\U00020000"
    if category == "Cf":
        return not _is_prepended(character)
    return category in _MARKS or character in _JOINED


def _ends_in_virama(text: str, place: int) -> bool:
    """Whether a virama stands before a place, with nothing but marks behind it."""
    while place and unicodedata.category(text[place - 1]) in _MARKS:
        place -= 1
        if unicodedata.combining(text[place]) == _VIRAMA:
            return True
    return False


def _is_prepended(character: str) -> bool:
    """Whether a character belongs to the next one, as signs before Arabic numbers do."""
    if unicodedata.category(character) == "Cf":
        return "\u0600" <= character < "\u2000" or "\U000110bd" <= character <= "\U000110cd"
    return character in _PREPENDED_LETTERS


_PREPENDED_LETTERS = {
    *"\u0d4e\U000111c2\U000111c3\U000113d1\U0001193f\U00011941\U00011d46\U00011f02",
    *map(chr, range(0x11A84, 0x11A8A)),
}


def _is_regional(character: str) -> bool:
    return "\U0001f1e6" <= character <= "\U0001f1ff"


def _joins_syllable(before: str, after: str) -> bool:
    """Whether two letters of Hangul belong to one syllable."""
    if "\u1160" <= after <= "\u11ff" or "\ud7b0" <= after <= "\ud7fb":  # a vowel or a final
        return "\u1100" <= before <= "\u11ff" or "\ua960" <= before <= "\ud7fb"
    leads = "\u1100" <= before <= "\u115f" or "\ua960" <= before <= "\ua97c"
    return leads and ("\u1100" <= after <= "\u115f" or "\ua960" <= after <= "\ud7a3")
