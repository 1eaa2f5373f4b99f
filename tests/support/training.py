"""Small training data, and tasks on tiny models."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from e5core.checkpoint.options import LoadOptions
from e5core.train.data import Data, read_data
from e5core.train.embedding import EmbeddingTask
from e5core.train.ranking import RankingTask
from e5core.train.ranks import Ranks
from e5core.train.settings import Settings
from e5core.train.start import choose_trained, load_task

WORDS = ("the", "a", "er", "ing", "query", "xy", "zq", "ß", "日本", "k", "vw", "é", "7", "я", "mno")


def sentence(generator: np.random.Generator, least: int = 1, most: int = 8) -> str:
    return " ".join(generator.choice(WORDS, generator.integers(least, most + 1)))


def make_rows(
    count: int, negatives: int = 2, seed: int = 0, scores: bool = False
) -> list[dict[str, Any]]:
    """Rows whose positive repeats the words of the query, so that there is something to learn."""
    generator = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        query = f"{sentence(generator)} {number}"
        row: dict[str, Any] = {"query": query, "pos": [f"{query} {sentence(generator, 1, 3)}"]}
        row["neg"] = [sentence(generator, 3, 9) + f" {number}{i}" for i in range(negatives)]
        if scores:
            row["pos_scores"] = [float(generator.normal(3, 1))]
            row["neg_scores"] = generator.normal(-2, 2, negatives).tolist()
        rows.append(row)
    return rows


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def tiny_task(folder: Path, reranker: bool = False, **settings: Any) -> EmbeddingTask | RankingTask:
    """A task in float64 without dropout, unless the settings say otherwise; all of it trained."""
    table = None if settings.get("lora") else "dense"
    wanted = {"precision": "float64", "dropout": 0.0, "token_table": table, **settings}
    chosen = Settings(**wanted)
    task = load_task(folder, chosen, LoadOptions(), reranker)
    choose_trained(task)
    task.module.train()
    return task


def read_rows(task: EmbeddingTask | RankingTask, *files: Path, teacher: bool = False) -> Data:
    return read_data([str(file) for file in files], task.tokenize, task.passage_role, teacher)


def gradients(task: EmbeddingTask | RankingTask) -> dict[str, torch.Tensor]:
    """The gradient of each parameter, which are then forgotten."""
    found = {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in task.module.named_parameters()
    }
    task.module.zero_grad()
    return found


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest difference of any number, as a part of the largest number."""
    assert one.keys() == other.keys()
    largest = max(float(tensor.abs().max()) for tensor in other.values())
    assert largest > 0
    return max(float((one[name] - other[name]).abs().max()) for name in one) / largest


def batch_gradients(
    folder: Path | str, data: Path | str, ranks: Ranks, examples: int, settings: dict[str, Any]
) -> dict[str, torch.Tensor]:
    """The loss of the first examples and every gradient, summed over all processes."""
    task = tiny_task(Path(folder), **settings)
    rows = read_rows(task, Path(data))
    batch = rows.batch(range(examples), 0, 0, 2)
    loss = torch.stack(list(task.terms(batch, rows, (0, 0), ranks).values())).sum()
    loss.backward()
    found = {"loss": loss.detach(), **gradients(task)}
    ranks.sum(found.values())
    return found
