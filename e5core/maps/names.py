"""What codes of languages stand for: names, and the groups that a map is coloured by."""

from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

FILE = Path(__file__).with_name("languages.tsv")
OTHER = "Other"
# The scripts of FLORES' languages that it has in two.
SCRIPTS = {
    "Arab": "Arabic script",
    "Deva": "Devanagari",
    "Hans": "simplified",
    "Hant": "traditional",
    "Latn": "Latin script",
    "Tfng": "Tifinagh",
}


class Language(NamedTuple):
    """A language as a map names it.

    name   in English
    group  a family or a branch of one, or a region where there are several small ones
    """

    name: str
    group: str


def language(code: str) -> Language:
    """The language of a code: ISO 639-3 or 639-1, with a script behind it or without.

    A code that is not known is its own name, in the group Other. The script is left out.
    """
    return _languages().get(code.replace("-", "_").split("_")[0].lower(), Language(code, OTHER))


def languages(codes: Sequence[str]) -> list[Language]:
    """The languages of a map, each under a name of its own: with its script, where one is twice."""
    found = [language(code) for code in codes]
    counts = Counter(name for name, _ in found)
    return [
        Language(f"{name} ({_what_tells(code)})" if counts[name] > 1 else name, group)
        for code, (name, group) in zip(codes, found, strict=True)
    ]


def _what_tells(code: str) -> str:
    """A script or region in words if it is known; the code if it has neither."""
    rest = code.replace("-", "_").partition("_")[2]
    return SCRIPTS.get(rest, rest or code)


@cache
def _languages() -> dict[str, Language]:
    found = {}
    for line in FILE.read_text(encoding="utf-8").splitlines()[1:]:
        iso3, iso1, name, group = line.split("\t")
        found[iso3] = Language(name, group)
        if iso1:
            found[iso1] = Language(name, group)
    return found
