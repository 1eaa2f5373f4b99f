"""Chunks of texts to vectors, by a model in this process."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch

from e5core.bulk.chunks import Chunk
from e5core.bulk.rows import Span
from e5core.checkpoint.folder import ModelFolder
from e5core.checkpoint.options import LoadOptions
from e5core.model import E5, InputType, Truncate, Vectors
from e5core.prompts import prefix_for
from e5core.texts.cutting import describe_limit
from e5core.texts.errors import TextError
from e5core.texts.passages import check_split, split_text

OVERLAP = 32  # tokens that a passage shares with the one before it, by default


@dataclass(frozen=True)
class EmbedOptions:
    """The options of `E5.embed` that the vectors depend on, and how texts are split before.

    split    tokens of the passages that long texts are split into; None leaves texts whole
    overlap  tokens that a passage may share with the one before it; None takes OVERLAP
    """

    input_type: InputType
    task: str | None = None
    truncate: Truncate = "end"
    normalize: bool = True
    max_tokens_per_batch: int | None = None
    split: int | None = None
    overlap: int | None = None

    @property
    def passages(self) -> tuple[int, int] | None:
        """The tokens and the overlap of passages, None if texts stay whole."""
        if self.split is None:
            return None
        return self.split, OVERLAP if self.overlap is None else self.overlap

    @property
    def of_embed(self) -> dict[str, Any]:
        """The arguments of `E5.embed`."""
        own = ("split", "overlap")
        return {name: value for name, value in vars(self).items() if name not in own}


@dataclass(frozen=True)
class Embedded:
    """The vectors of a chunk's texts, and the counts that come with them.

    vectors   [texts - rejected, hidden_size] float32, in order; of split texts [passages, …]
    tokens    the tokens of all these texts before any cut
    cut       how many of them lost their end
    rejected  the index of each text without a vector, and why
    spans     the passages of each text that has vectors; None if texts are not split
    """

    vectors: Vectors
    tokens: int = 0
    cut: int = 0
    rejected: dict[int, str] = field(default_factory=dict)
    spans: list[list[Span]] | None = None


class Engine(Protocol):
    """An engine turns chunks into vectors.

    description  the settings that the vectors depend on, beside the model's files and the texts
    """

    description: dict[str, Any]

    def embed(self, chunks: Iterator[Chunk]) -> Iterator[tuple[Chunk, Embedded]]:
        """Each chunk with its vectors, in order; an error comes in the order of the chunks."""

    def close(self) -> None:
        """End the work at once."""


class InProcess:
    """The model in this process, on all of torch's threads."""

    def __init__(self, folder: ModelFolder, load: LoadOptions, options: EmbedOptions) -> None:
        """Load the model of a folder; raises what loading raises."""
        self._model = E5.from_folder(folder, load)
        self._options = options
        self.description = describe(self._model, options)

    def embed(self, chunks: Iterator[Chunk]) -> Iterator[tuple[Chunk, Embedded]]:
        for chunk in chunks:
            try:
                embedded = embed_texts(self._model, chunk.texts, self._options)
            except TextError as error:
                raise locate(error, chunk) from error
            yield chunk, embedded

    def close(self) -> None:
        pass


def embed_texts(model: E5, texts: list[str], options: EmbedOptions) -> Embedded:
    """`model.embed` with these options, but a text that is too long does not stop the others.

    Raises what `embed` raises; a TextError counts the texts in `texts`.
    """
    if options.passages is not None:
        return embed_passages(model, texts, options, *options.passages)
    rejected = {}
    if options.truncate == "none":
        prefix = prefix_for(model.prompts, options.input_type, options.task)
        for index, text in enumerate(texts):
            tokens = model.tokenizer.count(prefix + text)
            if tokens > model.max_length:
                limit = describe_limit(model.max_length)
                rejected[index] = f"the text has {tokens} tokens, {limit}"
        options = replace(options, truncate="end")  # counted already; nothing is left to cut
    kept = [index for index in range(len(texts)) if index not in rejected]
    if not kept:
        return Embedded(np.empty((0, model.dimension), np.float32), rejected=rejected)
    try:
        result = model.embed(
            [texts[index] for index in kept], show_progress=False, **options.of_embed
        )
    except TextError as error:
        raise error.renumbered(lambda index: kept[index]) from error
    tokens, cut = int(result.token_counts.sum()), int(result.truncated.sum())
    return Embedded(result.vectors, tokens, cut, rejected)


def embed_passages(
    model: E5, texts: list[str], options: EmbedOptions, tokens: int, overlap: int
) -> Embedded:
    """`embed_texts` of texts that are split: a vector for each passage of each text."""
    prefix = prefix_for(model.prompts, options.input_type, options.task)
    passages, owners, rejected = [], [], {}
    spans: list[list[Span]] = []
    for index, text in enumerate(texts):
        try:
            parts = split_text(text, model.tokenizer, prefix, tokens, overlap, model.max_length)
        except ValueError as error:
            rejected[index] = str(error)
            continue
        passages += [part.text for part in parts]
        owners += [index] * len(parts)
        spans.append([Span(number, part.start, part.end) for number, part in enumerate(parts)])
    try:
        result = model.embed(passages, show_progress=False, **options.of_embed)
    except TextError as error:
        raise error.renumbered(lambda index: owners[index]) from error
    return Embedded(result.vectors, int(result.token_counts.sum()), rejected=rejected, spans=spans)


def describe(model: E5, options: EmbedOptions) -> dict[str, Any]:
    """The settings that the vectors depend on, beside the model's files and the texts.

    Raises ValueError if the options do not fit the model.
    """
    prefix = prefix_for(model.prompts, options.input_type, options.task)
    if options.passages is not None:
        check_split(*options.passages, model.max_length, model.tokenizer.count(prefix))
    device = model.encoder.device
    return {
        "hidden_size": model.dimension,
        **({} if model.truncate_dim is None else {"truncate_dim": model.truncate_dim}),
        "prefix": prefix,
        "pooling": str(model.pooling),
        "max_length": model.max_length,
        "dtype": str(model.encoder.kernels.dtype).removeprefix("torch."),
        "kernels": model.encoder.kernels.label,
        "machine": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else torch.backends.cpu.get_cpu_capability(),
        "device": device.type,
    }


def locate(error: TextError, chunk: Chunk) -> ValueError:
    """An error of `embed_texts` with the files and lines of the texts at fault."""
    rows = chunk.good_rows
    return ValueError(error.naming(lambda index: f"{rows[index].file}, line {rows[index].line}"))
