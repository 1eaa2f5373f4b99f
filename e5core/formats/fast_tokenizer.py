"""The text steps and the added tokens of a tokenizer.json, which stand beside its vocabulary.

Format: huggingface/tokenizers, tokenizers/src/tokenizer/serialization.rs. What XLM-R's own
tokenizer does, SentencePiece does; what goes beyond it is described here, or refused by name.
"""

import json
import mmap
import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e5core.formats.files import read_json_object
from e5core.formats.sentencepiece import FAIRSEQ_SPECIALS

SPECIALS = {name: number for number, name in enumerate(FAIRSEQ_SPECIALS)}
MASK = "<mask>"
_WAY_OUT = "use the model with transformers or sentence-transformers, or train it without"
_PIECE = re.compile(rb'\[\s*"((?:[^"\\]|\\.)*)"\s*,\s*-?[\d.]')
_UNICODE_FORMS = ("NFC", "NFD", "NFKC", "NFKD")
# SentencePiece does these replacements of spaces itself, wherever they stand in the file.
_SPACES = ({"Regex": " {2,}"}, (" ", "▁"))


@dataclass(frozen=True)
class TextStep:
    """A normaliser of a tokenizer.json: text in, text out."""

    kind: str
    pattern: str = ""
    content: str = ""

    def __call__(self, text: str) -> str:
        if self.kind == "Lowercase":  # each character by itself, whatever stands beside it
            return "".join(map(str.lower, text))
        if self.kind == "StripAccents":
            return "".join(c for c in text if unicodedata.category(c) != "Mn")
        if self.kind == "Replace":
            return text.replace(self.pattern, self.content)
        return unicodedata.normalize(self.kind, text)  # type: ignore[arg-type]


@dataclass(frozen=True)
class AddedToken:
    """A text that becomes one id wherever it stands.

    single_word  not inside a word
    lstrip, rstrip  it takes the white space before it, or after it, along
    normalized   it is looked for in the normalised text
    """

    id: int
    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = True


@dataclass(frozen=True)
class TextSteps:
    """The steps that a text goes through beside SentencePiece.

    before, after  steps before and after SentencePiece's own normalisation
    added          tokens beyond the vocabulary and XLM-R's specials
    """

    before: tuple[TextStep, ...] = ()
    after: tuple[TextStep, ...] = ()
    added: tuple[AddedToken, ...] = ()


NO_STEPS = TextSteps()


def read_text_steps(path: Path) -> TextSteps:
    """The steps and the added tokens of a tokenizer.json.

    Raises ValueError naming whatever is neither XLM-R's own nor described by TextSteps.
    """
    head = read_head(path)
    model = head.get("model") or {}
    if model.get("type") != "Unigram":
        raise ValueError(f"{path} holds a {model.get('type')!r} tokenizer, expected 'Unigram'")
    if model.get("byte_fallback"):
        raise _refusal(path, "byte_fallback", True)
    if model.get("unk_id", SPECIALS["<unk>"]) != SPECIALS["<unk>"]:
        raise _refusal(path, "unk_id", model["unk_id"])
    _check_pre_tokenizer(path, head.get("pre_tokenizer"))
    _check_post_processor(path, head.get("post_processor"))
    before, after = _normalizers(path, head.get("normalizer"))
    return TextSteps(before, after, tuple(_added_tokens(path, head.get("added_tokens") or [])))


def read_head(path: Path) -> dict[str, Any]:
    """A tokenizer.json without its vocabulary, which may take 17 MB and a second to parse."""
    try:
        with _mapped(path) as content:
            # A few characters more, so that the key is read as one.
            start, end = content.find(b'"vocab"'), content.rfind(b"]")
            text = content[: start + 16].decode("utf-8-sig", "ignore") if start >= 0 else ""
            rest = content[end + 1 :]
        head = _object_until(text, "vocab", "model")[0]
    except (ValueError, IndexError):
        head = {}
    if not {"added_tokens", "normalizer", "pre_tokenizer", "model"} <= head.keys():
        return read_json_object(path)  # in another order than the library writes, or damaged
    if re.search(rb'"byte_fallback"\s*:\s*true', rest):
        head["model"]["byte_fallback"] = True
    return head


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    """A file's bytes, of which only what is looked at comes into memory; ValueError if empty."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        yield content


def _object_until(
    text: str, stop: str, inner: str = "", place: int = 0
) -> tuple[dict[str, Any], int]:
    """The values of an object by key, up to the key `stop` in it or in its object `inner`.

    returns  the values, and the place behind that key; 0 if the object ended without it
    """
    decode = json.JSONDecoder().raw_decode
    found: dict[str, Any] = {}
    place = _skip(text, place, "{")
    while text[place] != "}":
        key, place = decode(text, place)
        place = _skip(text, place, ":")
        if key == stop:
            return found, place
        if key == inner and text[place] == "{":
            found[key], stopped = _object_until(text, stop, "", place)
            if stopped:
                return found, stopped
        found[key], place = decode(text, place)
        place = _skip(text, place, ",") if text[_skip(text, place)] == "," else _skip(text, place)
    return found, 0


def _skip(text: str, place: int, expected: str = "") -> int:
    """The place behind white space, a character that is expected, and white space."""
    while text[place] in " \t\r\n":
        place += 1
    if not expected:
        return place
    if text[place] != expected:
        raise ValueError(f"there is {text[place]!r} at character {place}, expected {expected!r}")
    return _skip(text, place + 1)


def vocabulary_text(path: Path) -> Iterator[str]:
    """The pieces of a tokenizer.json in the order of their ids, without the cost of parsing it."""
    with _mapped(path) as content:
        for match in _PIECE.finditer(content, content.find(b'"vocab"')):
            piece = match[1]
            yield json.loads(b'"%s"' % piece) if b"\\" in piece else piece.decode()


def charsmap_text(path: Path) -> str:
    """The table that a tokenizer.json normalises by, in base64; "" if it has none."""
    steps = _flat(read_head(path).get("normalizer"), "normalizers")
    own = (step for step in steps if step.get("type") == "Precompiled")
    return str(next(own, {}).get("precompiled_charsmap") or "")


def _normalizers(path: Path, normalizer: Any) -> tuple[tuple[TextStep, ...], tuple[TextStep, ...]]:
    """The steps before and after the table that SentencePiece normalises by."""
    before: list[TextStep] = []
    after: list[TextStep] = []
    seen = False
    for step in _flat(normalizer, "normalizers"):
        kind = str(step.get("type"))
        if kind == "Precompiled" and not seen:
            seen = True
        elif kind in ("Lowercase", "StripAccents", *_UNICODE_FORMS):
            (after if seen else before).append(TextStep(kind))
        elif kind == "Replace":
            pattern, content = step.get("pattern"), step.get("content")
            if pattern == _SPACES[0] and content in _SPACES[1]:
                continue
            literal = pattern.get("String") if isinstance(pattern, dict) else None
            if not isinstance(literal, str) or not literal or not isinstance(content, str):
                raise _refusal(path, "Replace", pattern)
            (after if seen else before).append(TextStep(kind, literal, content))
        elif kind != "Strip":  # SentencePiece strips anyway
            raise _refusal(path, "normalizer", kind)
    return tuple(before), tuple(after)


def _check_pre_tokenizer(path: Path, pre_tokenizer: Any) -> None:
    """ValueError unless it splits at white space, and every word starts with `▁`."""
    steps = _flat(pre_tokenizer, "pretokenizers")
    kinds = [str(step.get("type")) for step in steps]
    others = [kind for kind in kinds if kind not in ("WhitespaceSplit", "Metaspace")]
    if others or kinds[-1:] != ["Metaspace"] or kinds.count("Metaspace") > 1:
        raise _refusal(path, "pre_tokenizer", others[0] if others else kinds)
    metaspace = steps[-1]
    scheme = metaspace.get("prepend_scheme", "always")
    alone = len(kinds) == 1  # then the only word that it sees is the text
    if metaspace.get("replacement", "▁") != "▁" or not (
        scheme == "always" or (alone and scheme == "first")
    ):
        raise _refusal(path, "Metaspace", metaspace)
    if not metaspace.get("add_prefix_space", True) or not metaspace.get("split", True):
        raise _refusal(path, "Metaspace", metaspace)


def _check_post_processor(path: Path, processor: Any) -> None:
    """ValueError unless it puts `<s>` and `</s>` around a text."""
    kind = processor.get("type") if isinstance(processor, dict) else None
    if kind == "TemplateProcessing":
        names = [
            next(iter(part.values())).get("id") if isinstance(part, dict) else None
            for part in processor.get("single") or []
        ]
        specials = processor.get("special_tokens") or {}
        ids = [(specials.get(name) or {}).get("ids") for name in (names[:1] + names[-1:])]
        if names == ["<s>", "A", "</s>"] and ids == [[0], [2]]:
            return
    if kind in ("RobertaProcessing", "BertProcessing") and (
        processor.get("cls") == ["<s>", 0] and processor.get("sep") == ["</s>", 2]
    ):
        return
    raise _refusal(path, "post_processor", kind)


def _added_tokens(path: Path, entries: list[Any]) -> Iterator[AddedToken]:
    """The added tokens that are none of XLM-R's five specials."""
    for entry in entries:
        said = entry if isinstance(entry, dict) else {}
        content, number = said.get("content"), said.get("id")
        if not isinstance(content, str) or not content or type(number) is not int or number < 0:
            raise ValueError(f"{path}: the added token {entry} has no text or no id")
        if SPECIALS.get(content, number) != number:
            raise _refusal(path, f"the id {number} of", content)
        if content not in SPECIALS and content != MASK:
            flags = ("single_word", "lstrip", "rstrip", "normalized")
            known = {flag: bool(entry[flag]) for flag in flags if flag in entry}
            yield AddedToken(number, content, **known)


def _flat(step: Any, inner: str) -> list[dict[str, Any]]:
    """A step, or those of a sequence of steps; what is no step has a type that nothing fits."""
    if step is None:
        return []
    if not isinstance(step, dict):
        return [{"type": repr(step)}]
    if step.get("type") == "Sequence":
        return [each for part in step.get(inner) or [] for each in _flat(part, inner)]
    return [step]


def _refusal(path: Path, step: str, value: Any) -> ValueError:
    return ValueError(
        f"{path} asks for {step} {value!r:.80}, which e5core does not do to texts; {_WAY_OUT}"
    )
