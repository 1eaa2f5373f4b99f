"""Texts and pairs at fault, as data."""

from collections.abc import Callable


class TextError(ValueError):
    """Texts that cannot be embedded: which ones, and why.

    sentence  what is wrong, with one `{}` for the name of each text at fault
    indices   the places of these texts among those that the caller gave, counted from 0

    The message calls them "text 0", "text 1", …; whoever knows them by other names, such as
    the lines of a file, asks for `naming`.
    """

    noun = "text"

    def __init__(self, sentence: str, *indices: int) -> None:
        super().__init__(sentence, *indices)  # all of it, so that pickling keeps it
        self.sentence = sentence
        self.indices = indices

    def naming(self, name: Callable[[int], str]) -> str:
        """The sentence with the texts under the names that `name` gives their indices."""
        return self.sentence.format(*map(name, self.indices))

    def renumbered(self, number: Callable[[int], int]) -> "TextError":
        """The same error for a caller who counts the texts otherwise."""
        return type(self)(self.sentence, *map(number, self.indices))

    def __str__(self) -> str:
        return self.naming(f"{self.noun} {{}}".format)


class PairError(TextError):
    """Pairs of texts that cannot be scored: "pair 0", "pair 1", …"""

    noun = "pair"
