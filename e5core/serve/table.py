"""Every route of the server, and how the paths that dialects share are told apart."""

from e5core.serve.dialects import cohere, jina, ollama, openai, pinecone, tei
from e5core.serve.errors import bad
from e5core.serve.fields import Fields
from e5core.serve.http import Call
from e5core.serve.routing import Dialect, Fork, Route, Routes

# A path may start with one of these: then nothing has to be told apart.
PREFIXES = {"/pinecone": pinecone.PINECONE, "/tei": tei.TEI}


def _embed_before(call: Call) -> Dialect:
    return pinecone.PINECONE if call.is_pinecone else tei.TEI


def _embed(call: Call, fields: Fields) -> Route:
    """Pinecone's header, or inputs that are objects; strings and lists of them are TEI's."""
    inputs = fields.value("inputs")
    objects = isinstance(inputs, list) and inputs and isinstance(inputs[0], dict)
    return pinecone.EMBED if call.is_pinecone or objects else tei.EMBED


def _rerank_before(call: Call) -> Dialect:
    return pinecone.PINECONE if call.is_pinecone else jina.JINA


def _rerank(call: Call, fields: Fields) -> Route:
    """`texts` are TEI's; `documents` Pinecone's with its header or rank_fields, else Jina's."""
    if call.is_pinecone:
        return pinecone.RERANK
    if fields.has("texts"):
        return tei.RERANK
    if fields.has("documents"):
        return pinecone.RERANK if fields.has("rank_fields") else jina.RERANK
    raise bad("there is neither documents nor texts, expected one of them", "documents")


def _models_before(call: Call) -> Dialect:
    return pinecone.PINECONE if call.is_pinecone else openai.OPENAI


def _models(call: Call, fields: Fields) -> Route:
    return pinecone.MODELS if call.is_pinecone else openai.MODELS


ROUTES: Routes = {
    ("POST", "/"): tei.ROOT,
    ("POST", "/embed"): Fork(_embed_before, _embed),
    ("POST", "/embed_all"): tei.EMBED_ALL,
    ("POST", "/rerank"): Fork(_rerank_before, _rerank),
    ("POST", "/similarity"): tei.SIMILARITY,
    ("POST", "/tokenize"): tei.TOKENIZE,
    ("POST", "/decode"): tei.DECODE,
    ("GET", "/info"): tei.INFO,
    ("POST", "/embeddings"): openai.EMBEDDINGS,
    ("POST", "/v1/embeddings"): openai.EMBEDDINGS,
    ("GET", "/v1/models"): openai.MODELS,
    ("GET", "/models"): Fork(_models_before, _models),
    ("POST", "/v1/embed"): cohere.EMBED,
    ("POST", "/v2/embed"): cohere.EMBED,
    ("POST", "/v1/rerank"): cohere.RERANK,
    ("POST", "/v2/rerank"): cohere.RERANK,
    ("POST", "/api/embed"): ollama.EMBED,
}

# What the prefixes lead to where the path alone would not tell.
OF_PREFIX: Routes = {
    ("POST", "/pinecone/embed"): pinecone.EMBED,
    ("POST", "/pinecone/rerank"): pinecone.RERANK,
    ("GET", "/pinecone/models"): pinecone.MODELS,
    ("POST", "/tei"): tei.ROOT,
    ("POST", "/tei/"): tei.ROOT,
    ("POST", "/tei/embed"): tei.EMBED,
    ("POST", "/tei/rerank"): tei.RERANK,
}

ALL: Routes = {**ROUTES, **OF_PREFIX}


def find(method: str, path: str) -> tuple[Route | Fork | None, list[str]]:
    """The route of a path, and the methods that the path has.

    A model's name follows /models/ and may hold slashes, as hub ids do.
    """
    for listing in ("/v1/models", "/pinecone/models", "/models"):
        if path.startswith(listing + "/"):
            path = listing
    if (found := ALL.get((method, path))) is not None:
        return found, [method]
    for prefix in PREFIXES:
        if path.startswith(prefix + "/") and (path := path.removeprefix(prefix)):
            return find(method, path)
    return None, [known for known, other in ALL if other == path]


def likely_dialect(call: Call) -> Dialect:
    """The dialect of a request whose path is no route, by its headers and its path."""
    if call.is_pinecone or call.path.startswith("/pinecone/"):
        return pinecone.PINECONE
    if call.path.startswith("/api/"):
        return ollama.OLLAMA
    return tei.TEI if call.path.startswith("/tei/") else openai.OPENAI
