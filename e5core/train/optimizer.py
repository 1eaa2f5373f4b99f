"""AdamW over what is trained, and over the rows of the token table that occur."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from e5core.train.settings import Settings

# AdamW's own defaults. Source: arXiv:1711.05101 and torch.optim.
BETAS, EPS = (0.9, 0.999), 1e-8


class Optimizer:
    """AdamW with what it remembers by name, so that a stopped run goes on with it.

    Weight decay touches the matrices of linears alone: no biases, LayerNorms or tables.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        settings: Settings,
        table: "TokenRows | None" = None,
    ) -> None:
        """parameters: what is trained, by name. table: the token table, where rows of it are."""
        self.parameters = dict(parameters)
        self.table = table
        self._clip = settings.clip
        decays = [p for name, p in parameters.items() if _decays(name, p)]
        others = [p for name, p in parameters.items() if not _decays(name, p)]
        self._adam = torch.optim.AdamW(
            [
                {"params": decays, "weight_decay": settings.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            betas=BETAS,
            eps=EPS,
            foreach=False,
            fused=True,
        )

    def trained(self) -> Iterator[Tensor]:
        """Every tensor that gets a gradient in this step."""
        yield from self.parameters.values()
        if self.table is not None and self.table.leaf is not None:
            yield self.table.leaf

    def gradients(self) -> list[Tensor]:
        """The gradient of each, zeros where nothing has flowed."""
        for tensor in self.trained():
            if tensor.grad is None:
                tensor.grad = torch.zeros_like(tensor)
        return [tensor.grad for tensor in self.trained() if tensor.grad is not None]

    def step(self, rate: float, scale: float = 1.0) -> float:
        """Clip the gradients, follow them, forget them; returns their norm before.

        scale  what the loss was multiplied by. Nothing is changed if the norm is not finite
        """
        gradients = self.gradients()
        if scale != 1:
            torch._foreach_div_(gradients, scale)
        norm = float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))))
        if np.isfinite(norm):
            if self._clip and norm > self._clip:
                torch._foreach_mul_(gradients, self._clip / norm)
            for group in self._adam.param_groups:
                group["lr"] = rate
            self._adam.step()
        self._adam.zero_grad()
        if self.table is not None:
            self.table.give_back(rate if np.isfinite(norm) else None)
        return norm

    def tensors(self, moments: bool = True) -> dict[str, Tensor]:
        """What a later process goes on from: the weights and the moments, by name."""
        found = {f"weights.{name}": p.detach() for name, p in self.parameters.items()}
        for name, parameter in self.parameters.items() if moments else ():
            for key, value in self._adam.state.get(parameter, {}).items():
                found[f"adam.{key}.{name}"] = value
        return found if self.table is None else found | self.table.tensors()

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `tensors` gave."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[f"weights.{name}"])
                if (key := f"adam.step.{name}") in tensors:
                    device = parameter.device
                    # The fused AdamW wants its count beside the parameter.
                    self._adam.state[parameter] = {
                        "step": tensors[key].to(device, copy=True),
                        "exp_avg": tensors[f"adam.exp_avg.{name}"].to(device, copy=True),
                        "exp_avg_sq": tensors[f"adam.exp_avg_sq.{name}"].to(device, copy=True),
                    }
            if self.table is not None:
                self.table.load(tensors)

    def end(self) -> None:
        """Forget the moments; only `parameters` may be used after this."""
        self._adam.state.clear()
        if self.table is not None:
            self.table.end()


class TokenRows:
    """A token table of which a step takes the rows that its batch needs, and updates these alone.

    A dense gradient of e5-small's table is 384 MB, which every chunk would fill and every step
    read four times. A row's moments do not decay while it does not occur, and its bias correction
    counts the steps in which it did: a token that comes first in step 1,000 is updated as one that
    comes in step 1. That is where it differs from the mode "dense".

    leaf  the rows of this step, [rows, hidden_size]; None between steps
    """

    def __init__(self, word: nn.Module, table: Tensor, start: Tensor) -> None:
        """word: the module that holds the table as its `weight`. start: the table of the start."""
        self._word = word
        self._table, self._start = table, start
        self._first, self._second = torch.zeros_like(table), torch.zeros_like(table)
        self._steps = torch.zeros(len(table), dtype=torch.int64, device=table.device)
        self._ids = torch.empty(0, dtype=torch.int64)
        self.leaf: nn.Parameter | None = None

    def end(self) -> None:
        """Forget the moments."""
        self._first = self._second = self._steps = torch.empty(0)

    def take(self, sequences: Sequence[Sequence[int]]) -> list[list[int]]:
        """Put the rows of a batch in the place of the table; returns the ids as numbers of them."""
        flat = np.concatenate([np.asarray(ids, dtype=np.int64) for ids in sequences])
        distinct, places = np.unique(flat, return_inverse=True)
        self._ids = torch.from_numpy(distinct).to(self._table.device)
        self.leaf = nn.Parameter(self._table[self._ids])
        self._word.weight = self.leaf
        ends = np.cumsum([len(ids) for ids in sequences])[:-1]
        return [part.tolist() for part in np.split(places.reshape(-1), ends)]

    def give_back(self, rate: float | None) -> None:
        """Update the rows by their gradients, and put the table back; without a rate only that."""
        if self.leaf is not None and rate is not None and self.leaf.grad is not None:
            ids, gradient = self._ids, self.leaf.grad
            with torch.no_grad():
                self._steps[ids] += 1
                first = self._first[ids].lerp_(gradient, 1 - BETAS[0])
                second = self._second[ids].mul_(BETAS[1])
                second.addcmul_(gradient, gradient, value=1 - BETAS[1])
                self._first[ids], self._second[ids] = first, second
                count = self._steps[ids, None].to(first.dtype)
                first = first / (1 - BETAS[0] ** count)
                second = second / (1 - BETAS[1] ** count)
                self._table[ids] -= rate * first / (second.sqrt() + EPS)
        self.leaf = None
        self._word.weight = nn.Parameter(self._table, requires_grad=False)

    def tensors(self) -> dict[str, Tensor]:
        """The rows that have changed, their moments and their counts."""
        ids = self._steps.nonzero()[:, 0]
        return {
            "rows.ids": ids,
            "rows.weights": self._table[ids],
            "rows.first": self._first[ids],
            "rows.second": self._second[ids],
            "rows.steps": self._steps[ids],
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `tensors` gave; rows that have changed since are those of the start."""
        changed = self._steps > 0
        self._table[changed] = self._start[changed]
        self._first[changed] = self._second[changed] = 0
        self._steps[changed] = 0
        ids = tensors["rows.ids"].to(self._table.device)
        self._table[ids] = tensors["rows.weights"].to(self._table.device)
        self._first[ids] = tensors["rows.first"].to(self._table.device)
        self._second[ids] = tensors["rows.second"].to(self._table.device)
        self._steps[ids] = tensors["rows.steps"].to(self._table.device)


def _decays(name: str, parameter: nn.Parameter) -> bool:
    # A reranker's parameters are named encoder.embeddings and so on.
    return parameter.dim() == 2 and "embeddings" not in name.split(".")
