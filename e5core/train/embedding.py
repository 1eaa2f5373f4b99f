"""Training of an embedding model: a batch to the terms of its loss, held-out pairs to figures."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from e5core.checkpoint.save import save_checkpoint
from e5core.model import E5
from e5core.prompts import prefix_for
from e5core.texts.cutting import cut
from e5core.train.cached import cached_rows, rows_of_all
from e5core.train.data import Batch, Data, Example
from e5core.train.links import Numbers
from e5core.train.losses import above_positive, distillation, info_nce, mean_entropy
from e5core.train.optimizer import TokenRows
from e5core.train.ranks import ALONE, Ranks
from e5core.train.settings import Settings


class EmbeddingTask:
    """A model whose vectors are trained."""

    gives_vectors = True

    def __init__(self, model: E5, settings: Settings, guide: E5 | None = None) -> None:
        """guide: a model that reads texts alike, see Settings.guide."""
        self.model = model
        self.pipeline = model.pipeline
        self.encoder = model.encoder
        self.tokenizer = model.tokenizer
        self.module: torch.nn.Module = model.encoder
        self.rows: TokenRows | None = None
        self.made_from: dict[str, Any] = {}  # what decides the bytes of a result, beside settings
        self.settings = settings
        self._guide = guide
        if settings.r_drop:
            raise ValueError("r_drop is of rerankers (--reranker); leave it out")
        self._prefixes = {role: prefix_for(model.prompts, role) for role in ("query", "passage")}
        self.passage_role = "query" if settings.symmetric else "passage"
        for size in settings.matryoshka:
            if not 0 < size < model.dimension:
                raise ValueError(
                    f"matryoshka has the size {size}, expected sizes from 1 to "
                    f"{model.dimension - 1}: the whole vector is trained anyway"
                )

    def tokenize(self, text: str, role: str) -> tuple[list[int], int]:
        """The ids of a text with the prefix of its role, and how many were cut off."""
        ids = self.tokenizer.encode(self._prefixes[role] + text)
        return cut(ids, self.model.max_length), max(0, len(ids) - self.model.max_length)

    def lengths(self, example: Example, data: Data) -> list[int]:
        """The tokens of each text that a step has of an example."""
        passages = [example.positives[0], *example.negatives[: self.settings.negatives]]
        return [data.texts.length(number) for number in (example.query, *passages)]

    def describe(self) -> str:
        """What stands before the texts."""
        passage = self._prefixes[self.passage_role]
        return f"queries begin with {self._prefixes['query']!r}, passages with {passage!r}"

    def encode(self, batch: Batch, data: Data, seed: tuple[int, ...], ranks: Ranks) -> Tensor:
        """The vectors of a batch's texts, [texts, hidden_size], with their graph."""
        sequences = data.sequences(batch)
        if self.rows is not None:
            sequences = self.rows.take(sequences)
        return rows_of_all(self.pipeline, sequences, self.settings, seed, ranks)

    def terms(
        self, batch: Batch, data: Data, seed: tuple[int, ...], ranks: Ranks = ALONE
    ) -> dict[str, Tensor]:
        """The terms of the loss of a batch, each this process's share of the mean over queries."""
        settings = self.settings
        vectors = self.encode(batch, data, seed, ranks)
        terms: dict[str, Tensor] = {}
        guided = self._guided(batch, data, ranks)
        sizes = (vectors.shape[1], *settings.matryoshka)
        for size in sizes:
            for name, value in self._terms(vectors[:, :size], batch, ranks, guided).items():
                terms[name] = terms.get(name, 0) + value / len(sizes)
        return terms

    def _terms(
        self, vectors: Tensor, batch: Batch, ranks: Ranks, guided: Tensor | None
    ) -> dict[str, Tensor]:
        settings, total = self.settings, len(batch.queries)
        own = ranks.share(total)
        terms = {}
        if settings.contrastive_weight:
            there = batch.queries, batch.groups, batch.known
            losses = _contrast(vectors, *there, own, settings, guided)
            if settings.symmetric:
                back = batch.groups[:, 0], batch.queries[:, None], batch.known_back
                losses = (losses + _contrast(vectors, *back, own, settings, guided)) / 2
            terms["contrastive"] = losses.sum() / total
        if settings.teacher_weight:
            losses = distillation(
                vectors[_on(vectors, batch.queries[own])],
                vectors,
                _on(vectors, batch.groups[own]),
                _on(vectors, batch.teacher[own]),
                settings.temperature,
                settings.teacher_temperature,
            )
            terms["teacher"] = losses.sum() / total
        return terms

    def _guided(self, batch: Batch, data: Data, ranks: Ranks) -> Tensor | None:
        """The guide's vectors of a batch's texts, [texts, hidden_size]; None without a guide."""
        if self._guide is None:
            return None
        with torch.no_grad():
            sequences, share = data.sequences(batch), (ranks.rank, ranks.size)
            vectors, order = cached_rows(self._guide.pipeline, sequences, share=share)
            return ranks.gather(vectors, order, len(sequences))

    def entropies(self, batch: Batch, data: Data) -> tuple[float, float]:
        """The mean entropies of the teacher's and of the student's distributions over groups."""
        settings = self.settings
        with torch.no_grad():
            vectors = torch.nn.functional.normalize(self.pipeline.run(data.sequences(batch)))
            groups = _on(vectors, batch.groups)
            queries = vectors[_on(vectors, batch.queries)]
            cosines = (queries[:, None] * vectors[groups.clamp(min=0)]).sum(-1)
            teacher = _on(vectors, batch.teacher) / settings.teacher_temperature
            student = cosines / settings.temperature
            return mean_entropy(teacher, groups), mean_entropy(student, groups)

    def evaluate(self, data: Data) -> dict[str, float]:
        """How held-out queries find their positives among all passages of the file.

        returns  "accuracy", the share whose nearest passage is a positive, and "mrr", the mean of
                 1 / rank of the first positive; a passage that scores alike comes before it
        """
        with torch.inference_mode():
            sequences = [data.texts[number] for number in range(len(data.texts))]
            vectors = torch.nn.functional.normalize(self.pipeline.run(sequences).float())
        passages = np.unique([t for e in data.examples for t in (*e.positives, *e.negatives)])
        columns = {number: column for column, number in enumerate(passages.tolist())}
        candidates = vectors[_on(vectors, passages)]
        ranks = []
        for example in data.examples:
            scores = candidates @ vectors[example.query]
            answers = data.answers.of(example.query).tolist()  # of other rows too
            own = torch.tensor([columns[number] for number in answers])
            best = scores[own].max()
            scores[own] = -torch.inf
            if example.query in columns:
                scores[columns[example.query]] = -torch.inf  # the query itself is no answer
            ranks.append(1 + int((scores >= best).sum()))
        return rank_figures(ranks)

    def save(self, folder: Path) -> None:
        """Write the whole model."""
        save_checkpoint(self.encoder, folder, like=self.model)


def rank_figures(ranks: list[int]) -> dict[str, float]:
    """Accuracy and MRR of the ranks, counted from 1, of the first positive of each query."""
    found = np.array(ranks)
    return {"accuracy": float((found == 1).mean()), "mrr": float((1 / found).mean())}


def _contrast(
    vectors: Tensor,
    queries: Numbers,
    groups: Numbers,
    known: Numbers,
    own: slice,
    settings: Settings,
    guided: Tensor | None,
) -> Tensor:
    """The contrastive loss of some of a batch's queries against all passages of the batch.

    queries, groups, known  of Batch, as places in `vectors`
    own                     the queries whose loss is wanted
    guided                  as `vectors`, by the guide
    """
    passages = np.unique(groups[groups >= 0])
    known = known[(known[:, 0] >= own.start) & (known[:, 0] < own.stop)]
    known = known[np.isin(known[:, 1], passages)]
    pairs = np.stack([known[:, 0] - own.start, np.searchsorted(passages, known[:, 1])], axis=1)
    rows, columns = _on(vectors, queries[own]), _on(vectors, passages)
    positives = _on(vectors, np.searchsorted(passages, groups[own, 0]))
    ignored = _on(vectors, pairs)
    if guided is not None:
        more = above_positive(guided[rows], guided[columns], positives, settings.guide_margin)
        ignored = torch.cat([ignored, more])
    return info_nce(vectors[rows], vectors[columns], positives, settings.temperature, ignored)


def _on(vectors: Tensor, array: np.ndarray) -> Tensor:
    """An array as a tensor beside the vectors."""
    return torch.from_numpy(np.ascontiguousarray(array)).to(vectors.device)
