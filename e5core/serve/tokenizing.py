"""Texts and pairs of requests to sequences of ids that fit the model."""

from collections.abc import Sequence
from dataclasses import dataclass

from e5core.serve.checks import MOST_NAMED, refuse_blank
from e5core.serve.errors import bad
from e5core.serve.models import ServedEmbedder, ServedReranker
from e5core.texts.containers import is_blank
from e5core.texts.cutting import cut
from e5core.texts.errors import PairError
from e5core.texts.pairs import PAIR_SPECIALS, fit_pair


@dataclass(frozen=True)
class EmbedRequest:
    """Texts to embed.

    prefix      goes before each text
    field       what errors call the texts
    truncate    "end" cuts the end of a text that is too long, "start" its beginning behind the
                prefix, "none" refuses it
    normalize   scale vectors to unit length
    dimensions  numbers of a vector that are kept, before it is scaled; None for all
    states      give a row for each token, in place of vectors
    """

    served: ServedEmbedder
    texts: Sequence[str]
    prefix: str
    field: str = "input"
    truncate: str = "end"
    normalize: bool = True
    dimensions: int | None = None
    states: bool = False


@dataclass(frozen=True)
class RankRequest:
    """Documents to score for a query.

    truncate          as Reranker.compute takes it
    tokens_per_document  of each document that are read; None for all
    """

    served: ServedReranker
    query: str
    documents: Sequence[str]
    field: str = "documents"
    truncate: str = "passage"
    tokens_per_document: int | None = None


@dataclass(frozen=True)
class Tokenized:
    """Sequences that fit, and the places of those that were cut."""

    sequences: list[list[int]]
    truncated: list[int]

    @property
    def tokens(self) -> int:
        return sum(map(len, self.sequences))


def tokenize_texts(asked: EmbedRequest) -> Tokenized:
    """The ids of each text with its prefix. RefusedError (400) names texts that cannot be embedded.

    Those are the empty ones, and with truncate="none" the long ones.
    """
    refuse_blank(asked.texts, asked.field)
    model = asked.served.model
    limit = model.max_length
    lead = model.tokenizer.encode_pieces(asked.prefix) if asked.truncate == "start" else []
    sequences, truncated = [], []
    long: dict[int, int] = {}
    for index, text in enumerate(asked.texts):
        ids = model.tokenizer.encode(asked.prefix + text)
        if len(ids) > limit:
            truncated.append(index)
            long[index] = len(ids)
            ids = cut_start(ids, lead, limit) if asked.truncate == "start" else cut(ids, limit)
        sequences.append(ids)
    if long and asked.truncate == "none":
        named = ", ".join(
            f"{asked.field}[{index}] has {tokens} tokens"
            for index, tokens in list(long.items())[:MOST_NAMED]
        )
        more = f", and {len(long) - MOST_NAMED} more are too long" * (len(long) > MOST_NAMED)
        raise bad(
            f"{named}{more}; the model takes {limit} (prefix, <s> and </s> included); shorten "
            "them, or let them be cut",
            asked.field,
            "text_too_long",
        )
    return Tokenized(sequences, truncated)


def cut_start(ids: Sequence[int], lead: Sequence[int], limit: int) -> list[int]:
    """Keep `<s>`, the prefix and the last pieces: a model without its prefix embeds worse."""
    kept = list(lead) if list(ids[1 : 1 + len(lead)]) == list(lead) else []
    room = limit - 1 - len(kept)
    return [ids[0], *kept, *ids[len(ids) - room :]]


def tokenize_pairs(asked: RankRequest) -> Tokenized:
    """The ids of the query with each document. RefusedError (400) names pairs that do not fit."""
    if is_blank(asked.query):
        raise bad("query is empty, expected a text", "query", "empty_text")
    model = asked.served.model
    query = model.tokenizer.encode_pieces(asked.query)
    sequences, truncated = [], []
    for index, document in enumerate(asked.documents):
        pieces = model.tokenizer.encode_pieces(document)
        whole = len(query) + len(pieces) + PAIR_SPECIALS
        pieces = pieces[: asked.tokens_per_document]
        if asked.truncate == "none" and whole > model.max_length:
            raise bad(
                f"the query with {asked.field}[{index}] has {whole} tokens, the model takes "
                f"{model.max_length} (four special ones included); shorten it, or let it be cut",
                asked.field,
                "text_too_long",
            )
        try:
            ids = fit_pair(query, pieces, model.max_length, asked.truncate, index)
        except PairError as error:
            name = f"the query with {asked.field}[{{}}]".format
            raise bad(error.naming(name), asked.field, "text_too_long") from None
        if len(ids) < whole:
            truncated.append(index)
        sequences.append(ids)
    return Tokenized(sequences, truncated)
