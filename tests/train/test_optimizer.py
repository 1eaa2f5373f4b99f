"""What the optimizer changes, and what it leaves alone."""

import pytest
import torch
from safetensors.torch import load_file
from support.models import write_tiny_reranker
from torch import nn

from e5core.train import loop, train
from e5core.train.optimizer import Optimizer, TokenRows
from e5core.train.settings import Settings

FEW = {"batch_size": 4, "learning_rate": 3e-3, "show_progress": False, "keep": 0.0}


@pytest.mark.parametrize("reranker", [False, True])
def test_weight_decay_leaves_tables_alone(folder, pairs, tmp_path, reranker):
    """A row that no text has stays as it is, in each of the tables."""
    if reranker:
        folder = write_tiny_reranker(tmp_path / "start", "bert")
    options = {**FEW, "reranker": reranker, "steps": 2, "token_table": "dense"}
    train(folder, pairs, tmp_path / "out", weight_decay=0.5, **options)
    old, new = (load_file(f / "model.safetensors") for f in (folder, tmp_path / "out"))
    for name in ("word_embeddings", "position_embeddings", "token_type_embeddings"):
        (name,) = (n for n in old if n.endswith(f"embeddings.{name}.weight"))
        changed = (old[name] != new[name]).any(1)
        assert changed.any(), name
        assert not changed.all(), name


def test_rows_that_were_touched_later_are_taken_back(folder, pairs, tmp_path, monkeypatch):
    """The best weights are those of their step, and not in part of later ones."""
    take, taken = TokenRows.take, []

    def noting(self, sequences):
        taken.append({i for ids in sequences for i in ids})
        return take(self, sequences)

    def evaluate(run, log):
        """Figures that get worse from step to step."""
        return {"mrr": 1 / (1 + run.progress.step)}

    monkeypatch.setattr(TokenRows, "take", noting)
    monkeypatch.setattr(loop, "evaluate", evaluate)
    # At a lower temperature the gradient of a negative far away may be 0.
    options = {**FEW, "batch_size": 1, "steps": 4, "token_table": "rows", "temperature": 1.0}
    summary = train(folder, pairs, tmp_path / "out", evaluate=pairs, evaluate_every=1, **options)
    assert summary.best_step == 1
    assert set.union(*taken[1:]) - taken[0]
    name = "embeddings.word_embeddings.weight"
    old, new = (load_file(f / "model.safetensors")[name] for f in (folder, tmp_path / "out"))
    assert set((old != new).any(1).nonzero()[:, 0].tolist()) == taken[0]


def test_what_an_optimizer_remembers_is_beside_its_weights():
    device = "cuda" if torch.cuda.is_available() else "cpu"
    settings = Settings()
    linears = [nn.Linear(3, 2, device=device) for _ in range(2)]
    one, other = (Optimizer(dict(linear.named_parameters()), settings) for linear in linears)

    def step(linear, optimizer):
        linear(torch.ones(1, 3, device=device)).sum().backward()
        optimizer.step(0.1)

    step(linears[0], one)
    other.load({name: tensor.cpu() for name, tensor in one.tensors().items()})
    for linear, optimizer in zip(linears, (one, other), strict=True):
        step(linear, optimizer)
    assert torch.equal(linears[0].weight, linears[1].weight)
