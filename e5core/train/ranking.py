"""Training of a cross-encoder: a batch to the terms of its loss, held-out groups to figures."""

from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from e5core.checkpoint.save import save_checkpoint
from e5core.pipeline import Pipeline, Reduction
from e5core.reranker import Reranker
from e5core.texts.pairs import PAIR_SPECIALS, fit_pair
from e5core.train.cached import rows_of_all
from e5core.train.data import Batch, Data, Example
from e5core.train.embedding import rank_figures
from e5core.train.losses import group_cross_entropy, group_divergence, mean_entropy
from e5core.train.optimizer import TokenRows
from e5core.train.ranks import ALONE, Ranks
from e5core.train.settings import Settings


class RankingTask:
    """A cross-encoder whose logits are trained. It puts no prefixes: it reads texts as they are."""

    gives_vectors = False
    passage_role = "passage"

    def __init__(self, model: Reranker, settings: Settings, like: str) -> None:
        """like: the folder or hub id that the tokenizer is from."""
        self.model = model
        logits = _without_autocast(model.pipeline.reduce)
        self.pipeline = Pipeline(model.encoder, logits, first_only=True)
        self.encoder = model.encoder
        self.tokenizer = model.tokenizer
        self.module: nn.Module = nn.ModuleDict({"encoder": model.encoder, "head": model.head})
        self.rows: TokenRows | None = None
        self.made_from: dict[str, Any] = {}  # what decides the bytes of a result, beside settings
        self.settings = settings
        self._like = like
        for name in ("symmetric", "matryoshka", "guide", "temperature"):
            if getattr(settings, name) != getattr(Settings, name):
                raise ValueError(f"{name} is of vectors, and a reranker gives none; leave it out")

    def tokenize(self, text: str, role: str) -> tuple[list[int], int]:
        """The pieces of a text. Pairs are cut when they are put together."""
        return self.tokenizer.encode_pieces(text), 0

    def lengths(self, example: Example, data: Data) -> list[int]:
        """The tokens of each pair that a step has of an example, before pairs are cut."""
        passages = [example.positives[0], *example.negatives[: self.settings.negatives]]
        query = data.texts.length(example.query)
        lengths = [PAIR_SPECIALS + query + data.texts.length(number) for number in passages]
        return lengths * (2 if self.settings.r_drop else 1)

    def describe(self) -> str:
        """What stands before the texts."""
        return f"pairs have no prefix and at most {self.model.max_length} tokens"

    def pairs(self, batch: Batch, data: Data) -> tuple[list[list[int]], Tensor]:
        """The ids of all pairs of a batch, and the place of each in groups [n, g]."""
        sequences: list[list[int]] = []
        groups = np.full(batch.groups.shape, -1, dtype=np.int64)
        for row, column in np.argwhere(batch.groups >= 0):
            query = data.texts[int(batch.texts[batch.queries[row]])]
            passage = data.texts[int(batch.texts[batch.groups[row, column]])]
            groups[row, column] = len(sequences)
            sequences.append(self._pair(query, passage))
        return sequences, torch.from_numpy(groups).to(self.encoder.device)

    def terms(
        self, batch: Batch, data: Data, seed: tuple[int, ...], ranks: Ranks = ALONE
    ) -> dict[str, Tensor]:
        """The terms of the loss of a batch, each this process's share of the mean over queries."""
        settings = self.settings
        if batch.groups.shape[1] == 1:
            raise ValueError("no query of a batch has negatives, and a reranker learns from them")
        sequences, groups = self.pairs(batch, data)
        if self.rows is not None:
            sequences = self.rows.take(sequences)
        logits = self._logits(sequences, seed, ranks)
        own = groups[ranks.share(len(groups))]
        terms = {}
        if settings.contrastive_weight:
            losses = group_cross_entropy(logits, own)
            terms["contrastive"] = losses.sum() / len(groups)
        if settings.teacher_weight:
            teacher = torch.from_numpy(batch.teacher).to(logits.device)[ranks.share(len(groups))]
            losses = group_cross_entropy(logits, own, teacher, settings.teacher_temperature)
            terms["teacher"] = losses.sum() / len(groups)
        if settings.r_drop:
            others = self._logits(sequences, (*seed, 1), ranks)
            terms["r_drop"] = group_divergence(logits, others, own).sum() / len(groups)
        return terms

    def _logits(self, sequences: list[list[int]], seed: tuple[int, ...], ranks: Ranks) -> Tensor:
        return rows_of_all(self.pipeline, sequences, self.settings, seed, ranks)

    def entropies(self, batch: Batch, data: Data) -> tuple[float, float]:
        """The mean entropies of the teacher's and of the student's distributions over groups."""
        sequences, groups = self.pairs(batch, data)
        with torch.no_grad():
            student = self.pipeline.run(sequences)[groups.clamp(min=0)]
        teacher = torch.from_numpy(batch.teacher).to(student.device)
        teacher = teacher / self.settings.teacher_temperature
        return mean_entropy(teacher, groups), mean_entropy(student, groups)

    def evaluate(self, data: Data) -> dict[str, float]:
        """How held-out queries rank their own positives and negatives.

        returns  as EmbeddingTask.evaluate
        """
        sequences, sizes = [], []
        for example in data.examples:
            if not example.negatives:
                raise ValueError("held-out rows of a reranker need negatives (neg) to rank")
            passages = (*example.positives, *example.negatives)
            query = data.texts[example.query]
            sequences += [self._pair(query, data.texts[number]) for number in passages]
            sizes.append(len(passages))
        with torch.inference_mode():
            logits = self.pipeline.run(sequences).float().cpu()
        ranks = []
        for example, start, size in zip(
            data.examples, accumulate(sizes, initial=0), sizes, strict=False
        ):
            own, count = logits[start : start + size], len(example.positives)
            ranks.append(1 + int((own[count:] >= own[:count].max()).sum()))
        return rank_figures(ranks)

    def save(self, folder: Path) -> None:
        """Write the whole model."""
        save_checkpoint(self.encoder, folder, self.model.head, like=self._like)

    def _pair(self, query: list[int], passage: list[int]) -> list[int]:
        return fit_pair(query, passage, self.model.max_length, "longest", 0)


def _without_autocast(reduce: Reduction) -> Reduction:
    """The same in the dtype of the head, since logits that are rounded tie."""

    def wide(states: Tensor, cu_seqlens: Tensor) -> Tensor:
        with torch.autocast(states.device.type, enabled=False):
            return reduce(states, cu_seqlens)

    return wide
