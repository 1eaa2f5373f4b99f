"""The tokenizer of a folder: SentencePiece, and what a tokenizer.json puts around it."""

import base64
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import sentencepiece

from e5core.checkpoint.contents import ADDED_TOKENS_FILE, TOKENIZER_CONFIG_FILE, Contents
from e5core.formats.fast_tokenizer import (
    MASK,
    NO_STEPS,
    SPECIALS,
    AddedToken,
    TextStep,
    TextSteps,
    charsmap_text,
    read_text_steps,
    vocabulary_text,
)
from e5core.formats.sentencepiece import (
    FAIRSEQ_SPECIALS,
    charsmap_model,
    read_charsmap,
    read_model,
    without_charsmap,
)
from e5core.tokenizer import SentencePieceTokenizer

SPM_FILE, JSON_FILE = "sentencepiece.bpe.model", "tokenizer.json"
_SURROGATE = re.compile("[\ud800-\udfff]")


class FastTokenizer(SentencePieceTokenizer):
    """SentencePiece with the text steps and the added tokens of a Hugging Face fast tokenizer.

    A text is cut at added tokens first; what lies between them is normalised, cut at those that
    are looked for in normalised text, and goes to SentencePiece part by part. Source:
    huggingface/tokenizers, tokenizers/src/tokenizer/added_vocabulary.rs.
    """

    def __init__(self, path: Path, steps: TextSteps) -> None:
        """Load a SentencePiece model or a tokenizer.json, and put steps around it."""
        super().__init__(path)
        self.steps = steps
        self._charsmap = None
        if steps.after or steps.added:
            # SentencePiece's normalisation stands between steps then, and on its own.
            content = read_model(path)
            self._charsmap = sentencepiece.SentencePieceProcessor()
            self._charsmap.LoadFromSerializedProto(charsmap_model(read_charsmap(content)))
            self._processor.LoadFromSerializedProto(without_charsmap(content))
        self._raw = _Finder(token for token in steps.added if not token.normalized)
        normalized = (token for token in steps.added if token.normalized)
        self._normalized = _Finder(
            replace(token, content=self._normalize(token.content)) for token in normalized
        )

    @property
    def vocab_size(self) -> int:
        return max([self.mask_id, *(token.id for token in self.steps.added)]) + 1

    def encode_pieces(self, text: str) -> list[int]:
        """The ids of a text without `<s>` and `</s>`."""
        if not isinstance(text, str) or _SURROGATE.search(text):
            return super().encode_pieces(text)  # raises
        ids: list[int] = []
        for raw in self._raw.split(text):
            if isinstance(raw, int):
                ids.append(raw)
                continue
            for part in self._normalized.split(self._normalize(raw)):
                ids += [part] if isinstance(part, int) else super().encode_pieces(part)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The normalised text of a list of ids, with the texts of added tokens."""
        contents = {token.id: token.content for token in self.steps.added}
        parts: list[str] = []
        run: list[int] = []
        for i in ids:
            if i in contents:
                parts += [super().decode(run), contents[i]]
                run = []
            else:
                run.append(i)
        return " ".join(filter(None, [*parts, super().decode(run)]))

    def _normalize(self, text: str) -> str:
        for step in self.steps.before:
            text = step(text)
        if self._charsmap is not None:
            text = self._charsmap.Normalize(text)
        for step in self.steps.after:
            text = step(text)
        return text


class _Finder:
    """Finds added tokens in a text: the leftmost, of those the longest."""

    def __init__(self, tokens: Iterable[AddedToken]) -> None:
        self._tokens = {token.content: token for token in tokens if token.content}
        longest_first = sorted(self._tokens, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)))

    def split(self, text: str) -> Iterator[str | int]:
        """The parts of a text in order, added tokens as their ids."""
        start = 0
        for match in self._pattern.finditer(text) if self._tokens else ():
            token = self._tokens[match[0]]
            first, last = match.span()
            if token.single_word and (
                re.search(r"\w\Z", text[:first]) or re.match(r"\w", text[last:])
            ):
                continue
            if token.lstrip:
                first = max(len(text[:first].rstrip()), start)
            if token.rstrip:
                last += len(text[last:]) - len(text[last:].lstrip())
            if start < first:
                yield text[start:first]
            yield token.id
            start = last
        if start < len(text):
            yield text[start:]


def load_tokenizer(
    folder: Path, file: Path, lower_case: bool, added: Sequence[AddedToken] = ()
) -> SentencePieceTokenizer:
    """The tokenizer of a folder.

    folder      where tokenizer.json may lie beside `file`
    file        the SentencePiece model, or tokenizer.json itself
    lower_case  whether texts are lowered first
    added       tokens that the folder's other files name

    Raises ValueError for what is damaged, contradicts itself or is not implemented.
    """
    fast = folder / JSON_FILE
    steps = read_text_steps(fast) if fast.is_file() else NO_STEPS
    if fast.is_file():
        missing = sorted({t.content for t in added} - {t.content for t in steps.added})
        if missing:
            raise ValueError(
                f"{folder / TOKENIZER_CONFIG_FILE} or {ADDED_TOKENS_FILE} adds the tokens "
                f"{missing}, which {fast} lacks; save the tokenizer again"
            )
    else:
        steps = replace(steps, added=tuple(added))
    if lower_case and TextStep("Lowercase") not in (*steps.before, *steps.after):
        steps = replace(steps, before=(TextStep("Lowercase"), *steps.before))
    own = SentencePieceTokenizer(file) if steps == NO_STEPS else FastTokenizer(file, steps)
    if fast.is_file() and file != fast:
        check_same_pieces(own, file, fast)
    return own


def is_plain(file: Path | None) -> bool:
    """Whether no tokenizer.json beside a SentencePiece model says more than the model does."""
    if file is None or file.name == JSON_FILE:
        return True
    fast = file.with_name(JSON_FILE)
    return not fast.is_file() or read_text_steps(fast) == NO_STEPS


def steps_of(tokenizer: SentencePieceTokenizer) -> TextSteps:
    """What a tokenizer does to a text beside SentencePiece."""
    return tokenizer.steps if isinstance(tokenizer, FastTokenizer) else NO_STEPS


def added_tokens(contents: Contents) -> list[AddedToken]:
    """The tokens beyond XLM-R's that tokenizer_config.json and added_tokens.json name."""
    found: dict[str, AddedToken] = {}
    decoder = contents.objects.get(TOKENIZER_CONFIG_FILE, {}).get("added_tokens_decoder") or {}
    names = ("single_word", "lstrip", "rstrip", "normalized")
    try:
        for number, entry in decoder.items():
            entry = entry if isinstance(entry, dict) else {"content": entry, "normalized": True}
            flags = {name: bool(entry.get(name)) for name in names}
            found[entry["content"]] = _added_token(number, entry["content"], **flags)
        for content, number in contents.objects.get(ADDED_TOKENS_FILE, {}).items():
            found.setdefault(content, _added_token(number, content))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{contents.folder}: {TOKENIZER_CONFIG_FILE} or {ADDED_TOKENS_FILE} lists the added "
            f"tokens otherwise than by text and id ({type(error).__name__}: {error}); save the "
            "tokenizer again"
        ) from error
    return [t for t in found.values() if t.content not in SPECIALS and t.content != MASK]


def _added_token(number: Any, content: Any, **flags: bool) -> AddedToken:
    if not isinstance(content, str) or int(number) < 0:
        raise ValueError(f"{content!r:.40} with the id {number!r:.40}")
    return AddedToken(int(number), content, **flags)


def check_same_pieces(tokenizer: SentencePieceTokenizer, file: Path, fast: Path) -> None:
    """ValueError naming both files unless they hold the same pieces and normalise alike."""
    if base64.b64encode(read_charsmap(read_model(file))).decode() != charsmap_text(fast):
        raise ValueError(
            f"{file} and {fast} are not the same tokenizer: they normalise texts by other tables; "
            f"one of them is left from another model, often {file.name}: remove it"
        )
    processor = tokenizer._processor
    own = map(processor.IdToPiece, range(3, processor.GetPieceSize()))
    pieces = chain(FAIRSEQ_SPECIALS, own, [MASK])
    for number, (ours, theirs) in enumerate(zip_longest(pieces, vocabulary_text(fast))):
        # <mask>, and what was added to it, need not stand in the vocabulary.
        if ours != theirs and not (number >= tokenizer.mask_id and None in (ours, theirs)):
            raise ValueError(
                f"{file} and {fast} are not the same tokenizer: id {number} is {ours!r} in the "
                f"one and {theirs!r} in the other; one of them is left from another model, often "
                f"{file.name}: remove it"
            )
