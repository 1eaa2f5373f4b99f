"""Losses as functions of vectors and of logits.

Cosines and softmax are computed in float32 or wider, whatever the vectors are in and whether
autocast is on: at temperature 0.01 logits reach ±100. Scores of a batch are computed in blocks of
rows, and computed again in the backward pass, so that the whole table never exists.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from e5core.pooling import l2_normalize

# Scores that are in memory at a time: 8 MB in float32.
BLOCK_SCORES = 1 << 21


def info_nce(
    queries: Tensor,
    passages: Tensor,
    positives: Tensor,
    temperature: float,
    ignored: Tensor | None = None,
) -> Tensor:
    """The contrastive loss of each query, whose negatives are all passages but its own.

    queries    [n, size]  of any length; the loss sees cosines
    passages   [m, size]  each text once
    positives  [n]        the place of each query's positive in `passages`
    ignored    [k, 2]     a query and a passage that is not to count as its negative
    returns    [n]        −log softmax(cosines / temperature) at the positive, float32 or wider

    Source: InfoNCE, arXiv:1807.03748; E5, arXiv:2212.03533, with temperature 0.01.
    """
    queries, passages = _unit(queries), _unit(passages)

    def block(some: Tensor, first: int, passages: Tensor) -> Tensor:
        with _wide(some):
            logits = some @ passages.T / temperature
        if ignored is not None:
            own = (ignored[:, 0] >= first) & (ignored[:, 0] < first + len(some))
            row, column = (ignored[own] - torch.tensor([first, 0], device=some.device)).unbind(1)
            logits = logits.index_put((row, column), logits.new_tensor(-torch.inf))
        place = positives[first : first + len(some), None]
        return logits.logsumexp(1) - logits.gather(1, place)[:, 0]

    return _in_blocks(block, queries, passages, len(passages))


def distillation(
    queries: Tensor,
    passages: Tensor,
    groups: Tensor,
    teacher: Tensor,
    temperature: float,
    teacher_temperature: float = 1.0,
) -> Tensor:
    """The divergence KL(teacher ‖ student) of each query over its own group of passages.

    queries, passages  [n, size], [m, size]  of any length
    groups   [n, g]  places in `passages`; −1 where a query has fewer
    teacher  [n, g]  logits of a cross-encoder, NaN where there is none; no gradient flows to them
    returns  [n]     0 for a query without the teacher's logits; float32 or wider

    The student's distribution is softmax(cosines / temperature), the teacher's
    softmax(logits / teacher_temperature). Source: E5, arXiv:2212.03533, section 4.2.
    """
    queries, passages = _unit(queries), _unit(passages)

    def block(some: Tensor, first: int, passages: Tensor) -> Tensor:
        rows = slice(first, first + len(some))
        with _wide(some):
            cosines = (some[:, None] * passages[groups[rows].clamp(min=0)]).sum(-1)
        there = groups[rows] >= 0
        return _divergence(
            cosines / temperature, teacher[rows].to(some.dtype) / teacher_temperature, there
        )

    return _in_blocks(block, queries, passages, groups.shape[1] * queries.shape[1])


def group_cross_entropy(
    logits: Tensor,
    groups: Tensor,
    teacher: Tensor | None = None,
    teacher_temperature: float = 1.0,
) -> Tensor:
    """The loss of a cross-encoder for each query, over its group of passages.

    logits   [pairs]  of query and passage
    groups   [n, g]   places in `logits`, the positive first; −1 where a query has fewer
    teacher  [n, g]   logits, NaN where there is none
    returns  [n]      without a teacher −log softmax at the positive, with one KL(teacher ‖ logits);
             float32 or wider
    """
    own, there = _of_groups(logits, groups)
    if teacher is not None:
        return _divergence(own, teacher.to(own.dtype) / teacher_temperature, there)
    return own.logsumexp(1) - own[:, 0]


def group_divergence(logits: Tensor, others: Tensor, groups: Tensor) -> Tensor:
    """R-Drop: the mean of both divergences of two passes with other dropout, [n].

    logits, others  [pairs]  of the same pairs
    groups          [n, g]   as for group_cross_entropy

    Source: arXiv:2106.14448.
    """
    one, there = _of_groups(logits, groups)
    other, _ = _of_groups(others, groups)
    one, other = one.log_softmax(1), other.log_softmax(1)
    difference = torch.where(there, one - other, 0)
    return (torch.where(there, one.exp() - other.exp(), 0) * difference).sum(1) / 2


def above_positive(
    queries: Tensor, passages: Tensor, positives: Tensor, margin: float = 0.0
) -> Tensor:
    """The pairs that a guide model takes for false negatives: `ignored` of info_nce.

    queries, passages, positives  as for info_nce, the vectors by the guide model
    margin   a passage counts if its cosine is above that of the positive less this
    returns  [k, 2]  query and passage

    Source: GISTEmbed, arXiv:2402.16829.
    """
    queries, passages = _unit(queries.detach()), _unit(passages.detach())
    found = [positives.new_empty(0, 2)]
    for first, some in _blocks(queries, len(passages)):
        with _wide(some):
            cosines = some @ passages.T
        place = positives[first : first + len(some), None]
        least = cosines.gather(1, place) - margin
        above = (cosines > least).scatter(1, place, False)
        found.append(above.nonzero() + torch.tensor([first, 0], device=some.device))
    return torch.cat(found)


def mean_entropy(logits: Tensor, groups: Tensor) -> float:
    """The mean entropy, in nats, of the distributions that logits [n, g] make of groups [n, g]."""
    there = (groups >= 0) & logits.isfinite()
    some = logits[there.any(1)].masked_fill(~there[there.any(1)], -torch.inf).log_softmax(1)
    return float(-(some.exp() * some.nan_to_num(neginf=0.0)).sum(1).mean()) if len(some) else 0.0


def _divergence(student: Tensor, teacher: Tensor, there: Tensor) -> Tensor:
    """KL(softmax(teacher) ‖ softmax(student)) [n] of logits [n, g]; 0 where a teacher's is NaN."""
    teacher = teacher.detach()
    scored = (teacher.isfinite() | ~there).all(1)
    teacher = teacher.masked_fill(~there | ~scored[:, None], -torch.inf)
    teacher = torch.where(scored[:, None], teacher, 0)
    student = student.masked_fill(~there, -torch.inf).log_softmax(1)
    teacher = teacher.log_softmax(1)
    difference = torch.where(there, teacher - student, 0)
    return torch.where(scored, (teacher.exp() * difference).sum(1), 0)


def _of_groups(logits: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [n, g], −inf where a group has none, and where it has one."""
    there = groups >= 0
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return wide[groups.clamp(min=0)].masked_fill(~there, -torch.inf), there


def _unit(vectors: Tensor) -> Tensor:
    return l2_normalize(vectors.to(torch.promote_types(vectors.dtype, torch.float32)))


def _wide(vectors: Tensor) -> torch.autocast:
    """Products of the block in the dtype of their factors, although autocast may be on."""
    return torch.autocast(vectors.device.type, enabled=False)


def _blocks(queries: Tensor, width: int) -> Iterator[tuple[int, Tensor]]:
    rows = max(1, BLOCK_SCORES // width)
    yield from ((first, queries[first : first + rows]) for first in range(0, len(queries), rows))


def _in_blocks(
    block: Callable[[Tensor, int, Tensor], Tensor], queries: Tensor, passages: Tensor, width: int
) -> Tensor:
    """What `block` gives for all queries, `width` numbers a query in memory for one block alone."""
    parts = [
        checkpoint(block, some, first, passages, use_reentrant=False, preserve_rng_state=False)
        for first, some in _blocks(queries, width)
    ]
    return torch.cat(parts) if parts else queries.sum(1)  # of no query, but in the graph
