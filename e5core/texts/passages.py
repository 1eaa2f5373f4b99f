"""A long text in passages: parts that a model takes whole, each with its place in the text."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from e5core.texts.boundaries import Boundaries, Level
from e5core.tokenizer import SentencePieceTokenizer

# A passage ends with a paragraph only if that fills this share of it at least, and so on: a
# heading is no passage of its own.
_FILLED = 0.25


@dataclass(frozen=True)
class Passage:
    """A part of a text.

    text        what stands there, `whole[start:end]`
    start, end  its characters in the whole text
    tokens      how many the model makes of it, with prefix, `<s>` and `</s>`
    """

    text: str
    start: int
    end: int
    tokens: int


def check_split(tokens: int, overlap: int, max_length: int, lead: int) -> None:
    """ValueError if passages of so many tokens cannot be made.

    max_length  tokens that the model takes
    lead        tokens of an empty text, with prefix, `<s>` and `</s>`
    """
    if tokens not in range(lead + 1, max_length + 1):  # nor is a str or a fraction
        raise ValueError(
            f"passages of {tokens!r} tokens are asked for (--split), expected {lead + 1} to "
            f"{max_length}: prefix, <s> and </s> are {lead}, and the model takes {max_length}"
        )
    if overlap not in range(tokens - lead):
        raise ValueError(
            f"overlap is {overlap!r} (--overlap), expected 0 to {tokens - lead - 1}: fewer than "
            f"the {tokens - lead} tokens that a passage has beside prefix, <s> and </s>"
        )


def split_text(
    text: str,
    tokenizer: SentencePieceTokenizer,
    prefix: str,
    tokens: int,
    overlap: int,
    max_length: int,
) -> list[Passage]:
    """Split a text into passages of at most `tokens` tokens, which together cover it.

    prefix      what every passage is embedded with
    tokens      the most that a passage may have, prefix, `<s>` and `</s>` included
    overlap     the most that a passage may share with the one before it
    max_length  tokens that the model takes

    A passage ends where a paragraph ends, else a sentence, else a word, else a grapheme, and the
    next one begins at such a place. A text that is short enough is one passage. Raises ValueError
    if the numbers do not fit the model, if a single grapheme has too many tokens, and for what
    cannot be tokenized.
    """

    def count(part: str) -> int:
        return tokenizer.count(prefix + part)

    lead = count("")
    check_split(tokens, overlap, max_length, lead)
    tokenizer.encode_pieces(text)  # names a character that cannot be encoded by its place in it
    whole = count(text)
    if whole <= tokens:
        return [Passage(text, 0, len(text), whole)]
    return list(_Splitter(text, count, lead, whole).passages(tokens, overlap))


class _Splitter:
    """One text that is being split."""

    def __init__(self, text: str, count: Callable[[str], int], lead: int, whole: int) -> None:
        self._text, self._count, self._lead = text, count, lead
        self._boundaries = Boundaries(text)
        self._characters = len(text) / max(1, whole - lead)  # of a token

    def passages(self, tokens: int, overlap: int) -> Iterator[Passage]:
        start = end = 0
        while end < len(self._text):
            stop = self._cut(start, end, tokens)
            if stop is None and start < end:  # the overlap leaves no room for more
                start = end
                stop = self._cut(start, end, tokens)
            if stop is None:
                raise ValueError(
                    f"the characters from {start} on are one grapheme of more than {tokens} "
                    "tokens, which is not cut; clean the text or let passages have more tokens"
                )
            part = self._text[start:stop]
            yield Passage(part, start, stop, self._count(part))
            end = stop
            start = self._overlap_start(start, end, overlap)

    def _cut(self, start: int, done: int, tokens: int) -> int | None:
        """The end of the passage from `start`; None if it cannot end beyond `done`."""
        most = self._furthest(start, tokens)
        while most > done:
            filled = max(done, start + int((most - start) * _FILLED))
            if most == len(self._text):
                found: int | None = most
            else:
                places = (self._boundaries.last(level, filled, most) for level in Level)
                found = next((place for place in places if place is not None), None)
            if found is None:  # a grapheme that is longer than three quarters of a passage
                found = self._boundaries.last(Level.GRAPHEME, done, filled)
            # A shorter part can have more tokens: letters that were one piece are two.
            if found is None or self._count(self._text[start:found]) <= tokens:
                return found
            most = found - 1
        return None

    def _furthest(self, start: int, tokens: int) -> int:
        """The last place up to which the text from `start` on has no more than `tokens` tokens.

        It is looked for where it must be if all tokens are of one length, and every third time in
        the middle, so that it is found in any case.
        """
        low, low_tokens = start, self._lead
        high, high_tokens = len(self._text), 0  # once it is known to be too far
        step = int((tokens - self._lead + 1) * self._characters) + 1
        tries = 0
        while not high_tokens or high - low > 1:
            if not high_tokens:
                place, step = min(low + step, high), 2 * step
            elif tries % 3 == 2:
                place = (low + high) // 2
            else:
                share = (tokens + 0.5 - low_tokens) / (high_tokens - low_tokens)
                place = min(max(low + int((high - low) * share), low + 1), high - 1)
            found, tries = self._count(self._text[start:place]), tries + 1
            if found > tokens:
                high, high_tokens = place, found
            elif place == len(self._text):
                return place
            else:
                low, low_tokens = place, found
        return low

    def _overlap_start(self, start: int, end: int, overlap: int) -> int:
        """Where the next passage begins, which shares the end of the one from `start` to `end`."""
        if not overlap or end == len(self._text):
            return end
        low, high = start, end  # the text from high on has few enough tokens
        near = end - int(4 * overlap * self._characters)
        if near > start and self._count(self._text[near:end]) - self._lead > overlap:
            low = near
        while high - low > 1:
            middle = (low + high) // 2
            if self._count(self._text[middle:end]) - self._lead <= overlap:
                high = middle
            else:
                low = middle
        for level in Level:
            found = self._boundaries.first(level, high, end)
            if found is not None and self._count(self._text[found:end]) - self._lead <= overlap:
                return found
        return end
