"""What codes of languages stand for: names, and the groups that a map is coloured by."""

from functools import cache
from pathlib import Path
from typing import NamedTuple

FILE = Path(__file__).with_name("languages.tsv")
OTHER = "Other"


class Language(NamedTuple):
    """A language as a map names it.

    name   in English
    group  a family or a branch of one, or a region where there are several small ones
    """

    name: str
    group: str


def language(code: str) -> Language:
    """The language of a code: ISO 639-3 or 639-1, with a script behind it or without.

    A code that is not known is its own name, in the group Other. A script that is not the usual
    one of FLORES is left out of the name too: no map has a language in two scripts by accident.
    """
    return _languages().get(code.replace("-", "_").split("_")[0].lower(), Language(code, OTHER))


@cache
def _languages() -> dict[str, Language]:
    found = {}
    for line in FILE.read_text(encoding="utf-8").splitlines()[1:]:
        iso3, iso1, name, group = line.split("\t")
        found[iso3] = Language(name, group)
        if iso1:
            found[iso1] = Language(name, group)
    return found
