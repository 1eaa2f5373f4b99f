"""Leave the pieces that a corpus does not use out of a model's vocabulary.

Four fifths of multilingual-e5-small are its token table: 250,037 rows for a hundred languages.
A text whose pieces are all kept is cut and embedded as before, to the bit; any other is cut
into smaller pieces, in the end into single characters, which are all kept.

    e5core convert trim-vocabulary intfloat/multilingual-e5-small small-de --corpus german.txt
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from e5core import E5, Reranker, SentencePieceTokenizer
from e5core.bulk.sources import STDIN, read_texts
from e5core.checkpoint import hub
from e5core.checkpoint.folder import ModelFolder
from e5core.checkpoint.names import WORD_EMBEDDINGS
from e5core.checkpoint.tokenizers import steps_of
from e5core.config import CONFIG_FILE
from e5core.convert.folder import replacing_folder
from e5core.convert.settings import copy_settings
from e5core.convert.weights import Weights, stored_weights, stream_weights, summarize
from e5core.formats.fast_tokenizer import NO_STEPS, AddedToken, TextSteps
from e5core.formats.files import read_json_object, write_json
from e5core.formats.safetensors import TensorHeader
from e5core.formats.sentencepiece import NORMAL, Piece, keep_pieces, read_model, read_pieces
from e5core.formats.tokenizer_json import write_fast_tokenizer
from e5core.parity.samples import LANGUAGES, SENTENCES
from e5core.progress import progress_bar
from e5core.tokenizer import BOS, EOS, FAIRSEQ_OFFSET, PAD, UNKNOWN

VERIFIED_TEXTS = 256


@dataclass(frozen=True)
class Corpus:
    """Texts that say what is kept: some of our own, and the lines of files. Can be read again."""

    texts: Sequence[str]
    files: Sequence[Path]

    def check(self) -> None:
        """Raise ValueError if there is nothing to read, or something to be read only once."""
        if not self.texts and not self.files:
            raise ValueError("nothing says what to keep; give --corpus or --languages")
        for file in self.files:
            if str(file) == STDIN or (file.exists() and not file.is_file()):
                raise ValueError(
                    f"{file} is not a file, and the corpus is read twice; save it as one"
                )

    def __iter__(self) -> Iterator[str]:
        yield from self.texts
        yield from read_corpus(self.files)


def read_corpus(files: Sequence[Path]) -> Iterator[str]:
    """The lines of UTF-8 files that are not empty; ValueError names one that is not UTF-8."""
    return filter(None, read_texts(files)) if files else iter(())


def sample_texts(languages: Collection[str]) -> list[str]:
    """The project's own sentences in some languages (ISO 639-1)."""
    if unknown := sorted(set(languages) - set(LANGUAGES)):
        raise ValueError(
            f"there are no sample texts in {', '.join(unknown)}, only in "
            f"{', '.join(sorted(set(LANGUAGES)))}; give a --corpus of your own"
        )
    return [t for t, language in zip(SENTENCES, LANGUAGES, strict=True) if language in languages]


def with_bar(texts: Iterable[str]) -> Iterator[str]:
    with progress_bar(None, None) as advance:
        for text in texts:
            yield text
            advance(1)


def used_ids(tokenizer: SentencePieceTokenizer, texts: Iterable[str]) -> set[int]:
    """The model ids that any of the texts has."""
    used: set[int] = set()
    for text in texts:
        used.update(tokenizer.encode_pieces(text))
    return used


def kept_ids(pieces: Sequence[Piece], used: Collection[int]) -> list[int]:
    """The old model id of each new one, in the same order and with `<mask>` last as before.

    pieces  of the SentencePiece model
    used    model ids

    Kept are the ids used, all single characters, and pieces of a rare kind, which stand for
    more than their text. So does the piece with the lowest score, from which SentencePiece
    takes that of unknown characters.
    """
    normal = [k for k, piece in enumerate(pieces) if piece.kind == NORMAL]
    lowest = min(normal, key=lambda k: pieces[k].score)
    kept = [
        k + FAIRSEQ_OFFSET
        for k, piece in enumerate(pieces)
        if k + FAIRSEQ_OFFSET > UNKNOWN
        and (
            k + FAIRSEQ_OFFSET in used
            or k == lowest
            or piece.kind != NORMAL
            or len(piece.text) == 1
        )
    ]
    return [BOS, PAD, EOS, UNKNOWN, *kept, len(pieces) + FAIRSEQ_OFFSET]


def trim_spm(content: bytes, rows: Sequence[int]) -> bytes:
    """The SentencePiece model with the pieces of `rows`, as kept_ids returns them."""
    # SentencePiece's first three are specials, which it numbers in another order.
    kept = {0, 1, 2, *(i - FAIRSEQ_OFFSET for i in rows[UNKNOWN + 1 : -1])}
    return keep_pieces(content, kept)


def trim_table(weights: Weights, rows: Sequence[int]) -> Weights:
    """The same weights with some rows of the token table; heads over it are left out already."""
    table = weights.headers[WORD_EMBEDDINGS]
    trimmed = TensorHeader(table.dtype, (len(rows), table.shape[1]))

    def read(name: str) -> Tensor:
        tensor = weights.read(name)
        return tensor[list(rows)] if name == WORD_EMBEDDINGS else tensor

    return Weights({**weights.headers, WORD_EMBEDDINGS: trimmed}, read, weights.left_out)


@dataclass
class Comparison:
    """What the two tokenizers make of the same texts."""

    texts: int = 0
    different: int = 0
    tokens_before: int = 0
    tokens_after: int = 0
    same: list[str] = field(default_factory=list)  # the first VERIFIED_TEXTS cut alike


def compare(
    before: SentencePieceTokenizer,
    after: SentencePieceTokenizer,
    rows: Sequence[int],
    texts: Iterable[str],
) -> Comparison:
    result = Comparison()
    for text in texts:
        old, new = before.encode(text), after.encode(text)
        result.texts += 1
        result.tokens_before += len(old)
        result.tokens_after += len(new)
        if [rows[i] for i in new] != old:
            result.different += 1
        elif len(result.same) < VERIFIED_TEXTS:
            result.same.append(text)
    return result


def outputs(folder: ModelFolder, texts: Sequence[str]) -> npt.NDArray[np.float32]:
    """The vectors of texts, or a cross-encoder's scores of each text as query and as passage."""
    if folder.config.num_labels:
        pairs = zip(texts, [*texts[1:], texts[0]], strict=True)
        return Reranker.from_folder(folder).score_pairs(pairs, truncate="longest")[:, None]
    return E5.from_folder(folder).embed(texts, input_type=None).vectors


def verify_same_bits(source: ModelFolder, target: ModelFolder, texts: Sequence[str]) -> None:
    """Raise ValueError unless both models give the same texts the same bits."""
    if not texts:
        raise ValueError(
            "no text of the sample is cut as before, so there is nothing to compare; give a "
            "--sample that is closer to the corpus"
        )
    # One model at a time is in memory.
    before, after = (outputs(folder, texts) for folder in (source, target))
    kind = "score" if source.config.num_labels else "vector"
    if not np.array_equal(before, after):
        wrong = int((before != after).any(axis=1).argmax())
        raise ValueError(
            f"the {kind} of {texts[wrong]!r:.80} has changed by up to "
            f"{np.abs(before[wrong] - after[wrong]).max():.1e}, expected not a bit"
        )
    print(f"verified: {len(texts)} texts that are cut alike, {kind}s compared bit by bit")


def in_numbers(before: int, after: int) -> str:
    return f"{before:,} → {after:,} ({1 - after / before:.1%} saved)"


def report(source: ModelFolder, target: ModelFolder, seen: Comparison) -> None:
    """What was saved, and how a sample of texts is cut now."""
    before, after = source.config, target.config
    share = before.vocab_size * before.hidden_size / before.num_parameters
    print(f"rows of the token table: {in_numbers(before.vocab_size, after.vocab_size)}")
    if spare := before.vocab_size - source.load_tokenizer().vocab_size:
        print(f"  {spare} of them belonged to no id of the tokenizer and are left out")
    sizes = [
        sum(file.stat().st_size for file in {t.file for t in (folder.tensors or {}).values()})
        for folder in (source, target)
    ]
    print(f"bytes of weights: {in_numbers(*sizes)}; the table was {share:.0%} of the parameters")
    growth = seen.tokens_after / seen.tokens_before - 1
    print(f"texts cut differently: {seen.different:,} of {seen.texts:,}, {growth:+.1%} tokens")


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--corpus", nargs="+", type=Path, default=[], metavar="FILE", help="UTF-8, a text a line"
    )
    parser.add_argument(
        "--languages",
        nargs="+",
        default=[],
        metavar="CODE",
        help="keep what this project's 16 sample sentences in a language use; a corpus has more",
    )
    parser.add_argument(
        "--sample",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="texts to report on, best others than those of the corpus (default: the same)",
    )


def convert(options: Namespace) -> None:
    corpus = Corpus(sample_texts(options.languages), options.corpus)
    corpus.check()
    source = ModelFolder.open(options.source)
    with replacing_folder(options.folder, source.path, options.force) as target:
        if source.stored_dtype == torch.int8:
            raise ValueError("the weights are in int8; trim the model that they were made from")
        tokenizer = source.load_tokenizer()
        used = used_ids(tokenizer, with_bar(corpus))
        if not used:
            raise ValueError(f"{', '.join(map(str, corpus.files))}: there is no text")
        used |= used_ids(tokenizer, (source.prompts or {}).values())
        assert source.tokenizer_file is not None  # it was loaded
        model = read_model(source.tokenizer_file)
        steps = steps_of(tokenizer)
        kept = kept_ids(read_pieces(model), used | {token.id for token in steps.added})
        rows = with_added(kept, steps, tokenizer.mask_id)
        steps = replace(steps, added=renumbered(steps.added, rows))
        weights = trim_table(stored_weights(source), rows)
        result = write_result(source, target, trim_spm(model, kept), weights, steps)

        sample = read_corpus(options.sample) if options.sample else corpus
        seen = compare(tokenizer, result.load_tokenizer(), rows, with_bar(sample))
        if not seen.texts:
            raise ValueError(f"{', '.join(map(str, options.sample))}: there is no text")
        if options.verify:
            verify_same_bits(source, result, seen.same)
        report(source, result, seen)
    summarize(weights, options.folder)


def with_added(kept: Sequence[int], steps: TextSteps, mask_id: int) -> list[int]:
    """The old id of each new one, those of added tokens behind `<mask>` as before."""
    return [*kept, *sorted({token.id for token in steps.added if token.id > mask_id})]


def renumbered(added: Iterable[AddedToken], rows: Sequence[int]) -> tuple[AddedToken, ...]:
    """Added tokens under their new ids."""
    new = {old: number for number, old in enumerate(rows)}
    return tuple(replace(token, id=new[token.id]) for token in added)


def write_result(
    source: ModelFolder, target: Path, tokenizer: bytes, weights: Weights, steps: TextSteps
) -> ModelFolder:
    """Write the whole folder; ValueError unless it says of itself what the source says."""
    copy_settings(source, target)
    if steps == NO_STEPS:
        (target / hub.TOKENIZER_FILES[0]).write_bytes(tokenizer)
    write_fast_tokenizer(tokenizer, target, source.max_length, steps)
    config = read_json_object(source.config_file)
    vocab_size = weights.headers[WORD_EMBEDDINGS].shape[0]
    write_json(target / CONFIG_FILE, {**config, "vocab_size": vocab_size})
    stream_weights(weights, target, source.config)
    result = ModelFolder.read(target, source.name)
    for setting in ("pooling", "prompts", "max_length", "normalizes"):
        before, after = getattr(source, setting), getattr(result, setting)
        if before != after:
            raise ValueError(f"its {setting} is {before}, the result's {after}")
    return result
