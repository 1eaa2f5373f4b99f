"""POST /search: the passages of an index that answer a query."""

from typing import Any

from e5core.bulk.queries import read_passages
from e5core.serve.dialects.openai import OPENAI
from e5core.serve.errors import RefusedError, bad
from e5core.serve.fields import Fields
from e5core.serve.http import Answer, Call, json_answer
from e5core.serve.routing import Route
from e5core.serve.searcher import Searcher
from e5core.serve.service import Service
from e5core.serve.tokenizing import EmbedRequest, RankRequest
from e5core.vectors.index import Index

MOST_HITS = 100
RERANKED = 50  # hits that a reranker scores anew, if fewer are asked for


def searching(searcher: Searcher | None) -> tuple[Route, Route]:
    """The routes GET and POST /search; without an index the latter refuses."""

    async def about(service: Service, call: Call, fields: Fields) -> Answer:
        return json_answer(
            {
                "rows": None if searcher is None else len(searcher.index),
                "embedders": [served.name for served in service.models.embedders],
                "rerankers": [served.name for served in service.models.rerankers],
            }
        )

    async def search(service: Service, call: Call, fields: Fields) -> Answer:
        if searcher is None:
            message = "this server has no index; start it with --index"
            raise RefusedError(404, message, code="not_found")
        return await _search(searcher, service, call, fields)

    return Route(OPENAI, about), Route(OPENAI, search)


async def _search(searcher: Searcher, service: Service, call: Call, fields: Fields) -> Answer:
    """The best passages, with their scores: cosines, or what the reranker gives from 0 to 1."""
    query, top_k = fields.needed_text("query"), fields.count("top_k") or 10
    if top_k > MOST_HITS:
        raise bad(f"top_k is {top_k}, this server gives {MOST_HITS}", "top_k")
    rerank = fields.flag("rerank", False)
    reranker = service.models.reranker(fields.text("reranker")) if rerank else None
    size = searcher.arguments["truncate_dim"]
    asked = EmbedRequest(searcher.served, [query], searcher.prefix, "query", dimensions=size)
    vector = (await service.embed(call, asked)).rows[0]
    wanted = max(top_k, RERANKED) if rerank else top_k
    found = await service.aside(lambda: searcher.index.search(vector, wanted))
    places = found.indices.tolist()
    texts = await service.aside(lambda: _texts(searcher, places))
    scores = found.scores.tolist()
    if reranker is not None:
        # What cannot be read any more cannot be scored.
        places = [place for place in places if place in texts]
        documents = [texts[place] for place in places]
        ranked = await service.rank(call, RankRequest(reranker, query, documents, "passages"))
        places = [places[i] for i in ranked.order]
        scores = ranked.scores[ranked.order].tolist()
    results = [
        {"id": _id(searcher.index, place), "score": score, "text": texts.get(place)}
        for place, score in zip(places[:top_k], scores, strict=False)
    ]
    return json_answer({"query": query, "results": results})


def _texts(searcher: Searcher, places: list[int]) -> dict[int, str]:
    given = searcher.index.texts
    if given is not None:
        return {place: given[place] for place in places}
    return read_passages(searcher.index, searcher.path, places)


def _id(index: Index, place: int) -> Any:
    return place if index.ids is None else index.ids[place]
