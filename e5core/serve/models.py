"""The models that are served, and the names under which requests ask for them."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from e5core.model import E5
from e5core.prompts import prefix_for
from e5core.reranker import Reranker
from e5core.serve.engines import Engine, Pace, pipeline_engine, states_engine, vectors_engine
from e5core.serve.errors import RefusedError, bad

# Names with one of these at their end say which prefix the texts get, for the dialects that have
# no field for it. NVIDIA's NIM has the same names (nemo-retriever, text-embedding 1.5).
SUFFIXES = {"-query": "query", "-passage": "passage"}
NONE = "none"
INPUT_TYPES = ("query", "passage", NONE)


@dataclass(frozen=True)
class ServedEmbedder:
    """An embedding model with its names.

    engine  computes vectors, of unit length and of the model's own dimension
    pooled  computes them before they are cut and scaled, for requests that ask for others
    states  computes token states
    """

    name: str
    aliases: frozenset[str]
    model: E5
    engine: Engine
    pooled: Engine
    states: Engine

    @property
    def tells_apart(self) -> bool:
        """Whether queries and passages get different prefixes, so that requests must choose."""
        prompts = self.model.prompts
        return prompts is None or prompts["query"] != prompts["passage"]

    def prefix(
        self, input_type: str | None, task: str | None = None, default_task: str | None = None
    ) -> str:
        """The prefix of texts of this type; RefusedError says the ways out where nothing tells it.

        input_type    "query", "passage", "none", or None if the request did not say
        task          the instruction that the request gives, or None
        default_task  the operator's, for texts that need one
        """
        prompts = self.model.prompts
        if prompts is None and input_type != NONE:
            raise bad(
                f"nobody told this server which prefixes the texts of {self.name!r} take; start it "
                'with --prompts, or ask for input_type "none" and write them into the texts',
                "input_type",
                "prompts_unknown",
            )
        if input_type is None:
            if self.tells_apart:
                raise bad(
                    f"the model embeds queries and passages differently; say which: model "
                    f'"{self.name}-query" or "{self.name}-passage", or a field input_type '
                    '("query", "passage" or "none")',
                    "model",
                    "input_type_missing",
                )
            input_type = "passage"
        kind = None if input_type == NONE else input_type
        if task is None and prompts and kind and "{task}" in prompts[kind]:
            task = default_task
            if task is None:
                raise bad(
                    "the model's queries start with an instruction; send it in a field task, for "
                    'example "Given a web search query, retrieve relevant passages that answer '
                    'the query", or start the server with --default-task',
                    "task",
                    "task_missing",
                )
        try:
            return prefix_for(prompts, kind, task)  # type: ignore[arg-type,unused-ignore]
        except ValueError as error:
            raise bad(str(error), "task") from None


@dataclass(frozen=True)
class ServedReranker:
    """A cross-encoder with its names; its engine computes logits."""

    name: str
    aliases: frozenset[str]
    model: Reranker
    engine: Engine


Served = TypeVar("Served", ServedEmbedder, ServedReranker)


def names_of(model: str, served_name: str | None) -> tuple[str, frozenset[str]]:
    """What a model is called: the name that answers give, and all that requests may use.

    model        a hub id or a folder
    served_name  what the operator calls it; None for the last part of the hub id or the folder
    """
    last = Path(model).name or model
    name = served_name or last
    return name, frozenset({name, model, last})


def serve_embedder(model: E5, origin: str, served_name: str | None = None) -> ServedEmbedder:
    """An embedding model, named after where it came from."""
    name, aliases = names_of(origin, served_name)
    pace = Pace(model.encoder.device.type)
    return ServedEmbedder(
        name,
        aliases,
        model,
        vectors_engine(model, pace),
        pipeline_engine(model, pace),
        states_engine(model, pace),
    )


def serve_reranker(model: Reranker, origin: str, served_name: str | None = None) -> ServedReranker:
    """A cross-encoder, named after where it came from."""
    name, aliases = names_of(origin, served_name)
    pace = Pace(model.encoder.device.type)
    return ServedReranker(name, aliases, model, pipeline_engine(model, pace))


class Models:
    """All models of a server; the first of its kind is taken where a request names none."""

    def __init__(
        self, embedders: Sequence[ServedEmbedder], rerankers: Sequence[ServedReranker] = ()
    ) -> None:
        self.embedders = embedders
        self.rerankers = rerankers
        names: set[str] = set()
        for served in self.everything:
            own = {served.name}
            if isinstance(served, ServedEmbedder):
                own |= {served.name + suffix for suffix in SUFFIXES}
            if taken := own & names:
                raise ValueError(
                    f"two models are served as {min(taken)!r}; give them names of their own "
                    "(--served-name)"
                )
            names |= own

    @property
    def everything(self) -> list[ServedEmbedder | ServedReranker]:
        """All of them, embedding models first."""
        return [*self.embedders, *self.rerankers]

    def embedder(self, name: str | None) -> tuple[ServedEmbedder, str | None]:
        """A model by its name, and the input type if the name tells it."""
        if name is not None:
            name = name.removesuffix(":latest")  # Ollama's clients may add it
        if found := _find(self.embedders, name):
            return found, None
        for suffix, input_type in SUFFIXES.items():
            bare = None if name is None else name.removesuffix(suffix)
            if bare != name and (found := _find(self.embedders, bare)):
                return found, input_type
        raise self._unknown(name, self.embedders, "embedding model")

    def reranker(self, name: str | None) -> ServedReranker:
        if found := _find(self.rerankers, name):
            return found
        raise self._unknown(name, self.rerankers, "reranker")

    def either(self, name: str) -> ServedEmbedder | ServedReranker:
        """A model of either kind by its name."""
        for kind in (self.embedder, self.reranker):
            with suppress(RefusedError):
                found = kind(name)
                return found[0] if isinstance(found, tuple) else found
        raise self._unknown(name, self.everything, "model")

    def _unknown(
        self, name: str | None, kind: Sequence[ServedEmbedder | ServedReranker], what: str
    ) -> RefusedError:
        if not kind:
            flag = "--reranker" if kind is self.rerankers else "--model"
            message = f"this server has no {what}; it is started with {flag}"
        elif name is None:
            message = f"model is missing; the {what}s are {_listed(kind)}"
            return bad(message, "model")
        else:
            message = f"there is no {what} {name!r:.120}; this server has {_listed(kind)}"
        return RefusedError(404, message, code="model_not_found", param="model")


def _find(kind: Sequence[Served], name: str | None) -> Served | None:
    if name is None:  # the only one needs no name
        return kind[0] if len(kind) == 1 else None
    exact = (served for served in kind if served.name == name)
    return next(exact, next((served for served in kind if name in served.aliases), None))


def _listed(kind: Sequence[ServedEmbedder | ServedReranker]) -> str:
    return ", ".join(repr(served.name) for served in kind)
