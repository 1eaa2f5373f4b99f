"""Texts and pairs of requests to sequences of ids that fit the model."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from e5core.serve.checks import MOST_NAMED, refuse_blank
from e5core.serve.errors import RefusedError, bad
from e5core.serve.models import ServedEmbedder, ServedReranker
from e5core.texts.containers import is_blank
from e5core.texts.cutting import cut
from e5core.texts.errors import PairError
from e5core.texts.pairs import PAIR_SPECIALS, fit_pair

# Characters of a token that are counted on before a text is tokenized.
CHARACTERS_PER_TOKEN = 4
# Tokens of a request for token states, each of which is a row of the answer: a hidden size of 1,024
# makes 64 MiB of them, and about 200 MB of JSON.
MOST_STATES = 16_384


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

    @property
    def characters(self) -> int:
        return sum(map(len, self.texts))

    @property
    def expected_tokens(self) -> int:
        """About how many tokens are computed: what is cut off costs nothing."""
        return expected(map(len, self.texts), self.served.model.max_length)

    @property
    def bytes_per_token(self) -> int:
        """Bytes that stay in memory for each token until the answer is sent."""
        return 4 * self.served.model.encoder.config.hidden_size if self.states else 0


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
    bytes_per_token = 0

    @property
    def characters(self) -> int:
        return len(self.query) + sum(map(len, self.documents))

    @property
    def expected_tokens(self) -> int:
        """About how many tokens are computed, those of the query with every document."""
        query, limit = len(self.query), self.served.model.max_length
        most = CHARACTERS_PER_TOKEN * (self.tokens_per_document or limit)
        return expected((query + min(len(text), most) for text in self.documents), limit)


def expected(lengths: Iterable[int], limit: int) -> int:
    """About how many tokens sequences have.

    lengths  of each in characters
    limit    tokens to which each is cut
    """
    return sum([min(length // CHARACTERS_PER_TOKEN, limit) for length in lengths])


@dataclass(frozen=True)
class Tokenized:
    """Sequences that fit, and the places of those that were cut."""

    sequences: list[list[int]]
    truncated: list[int]

    @property
    def tokens(self) -> int:
        return sum(map(len, self.sequences))


Stopped = Callable[[], bool]
Tokenize = Callable[[Stopped], Tokenized]


def never() -> bool:
    return False


class StoppedError(Exception):
    """Nobody wants the tokens any more."""


def wanted(texts: Sequence[str], stopped: Stopped) -> Iterator[str]:
    """The texts one after another; StoppedError as soon as nobody wants them any more."""
    for text in texts:
        if stopped():
            raise StoppedError
        yield text


def tokenize_texts(asked: EmbedRequest, stopped: Stopped) -> Tokenized:
    """The ids of each text with its prefix. RefusedError (400) names texts that cannot be embedded.

    Those are the empty ones, and with truncate="none" the long ones.

    stopped  whether nobody wants them any more; it is asked before each text
    """
    refuse_blank(asked.texts, asked.field)
    model = asked.served.model
    limit = model.max_length
    lead = model.tokenizer.encode_pieces(asked.prefix) if asked.truncate == "start" else []
    sequences, truncated = [], []
    long: dict[int, int] = {}
    left = MOST_STATES if asked.states else math.inf
    for index, text in enumerate(wanted(asked.texts, stopped)):
        ids = model.tokenizer.encode(asked.prefix + text)
        if len(ids) > limit:
            truncated.append(index)
            long[index] = len(ids)
            ids = cut_start(ids, lead, limit) if asked.truncate == "start" else cut(ids, limit)
        sequences.append(ids)
        left -= len(ids)
        if left < 0:
            raise RefusedError(
                413,
                f"{asked.field}[0] to {asked.field}[{index}] have more than {MOST_STATES:,} "
                "tokens, the most whose states this server gives at once; send fewer texts a "
                "request",
                code="too_many_tokens",
                param=asked.field,
            )
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


def tokenize_pairs(asked: RankRequest, stopped: Stopped) -> Tokenized:
    """The ids of the query with each document. RefusedError (400) names pairs that do not fit.

    stopped  as in tokenize_texts
    """
    if is_blank(asked.query):
        raise bad("query is empty, expected a text", "query", "empty_text")
    model = asked.served.model
    query = model.tokenizer.encode_pieces(asked.query)
    sequences, truncated = [], []
    for index, document in enumerate(wanted(asked.documents, stopped)):
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
