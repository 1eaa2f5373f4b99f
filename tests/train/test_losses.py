"""Losses against their formulas, written out."""

import pytest
import torch

from e5core.train import losses
from e5core.train.losses import (
    above_positive,
    distillation,
    group_cross_entropy,
    group_divergence,
    info_nce,
    mean_entropy,
)


def vectors(count, seed=0, size=8, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, size, generator=generator, dtype=dtype) * 3


def unit(x):
    return x / x.norm(dim=1, keepdim=True)


POSITIVES = torch.tensor([2, 0, 5, 1])


@pytest.mark.parametrize("block", [1, 14, 10**6])
def test_info_nce_is_cross_entropy_of_cosines(monkeypatch, block):
    monkeypatch.setattr(losses, "BLOCK_SCORES", block)
    queries, passages = vectors(4, 1).requires_grad_(), vectors(7, 2).requires_grad_()
    logits = unit(queries) @ unit(passages).T / 0.05
    expected = torch.nn.functional.cross_entropy(logits, POSITIVES, reduction="none")
    found = info_nce(queries, passages, POSITIVES, 0.05)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    wanted = torch.autograd.grad(expected.sum(), (queries, passages))
    torch.testing.assert_close(torch.autograd.grad(found.sum(), (queries, passages)), wanted)


@pytest.mark.parametrize("block", [1, 14, 10**6])
def test_an_ignored_passage_is_as_if_it_were_not_there(monkeypatch, block):
    monkeypatch.setattr(losses, "BLOCK_SCORES", block)
    queries, passages = vectors(4, 1), vectors(7, 2)
    ignored = torch.tensor([[row, 6] for row in range(4)] + [[3, 4]])
    found = info_nce(queries, passages, POSITIVES, 0.05, ignored)
    reduced = info_nce(queries, passages[:6], POSITIVES, 0.05)
    torch.testing.assert_close(found[:3], reduced[:3], rtol=1e-12, atol=0)
    without = passages[[0, 1, 2, 3, 5]]
    torch.testing.assert_close(found[3:], info_nce(queries[3:], without, POSITIVES[3:], 0.05))


def test_each_argument_of_info_nce_counts():
    queries, passages = vectors(4, 1), vectors(7, 2)
    base = info_nce(queries, passages, POSITIVES, 0.05)
    assert torch.allclose(info_nce(queries * 7, passages * 0.1, POSITIVES, 0.05), base)
    for other in (
        info_nce(queries, passages, POSITIVES, 0.06),
        info_nce(queries, passages, POSITIVES.flip(0), 0.05),
        info_nce(queries.flip(0), passages, POSITIVES, 0.05),
        info_nce(queries, passages.flip(0), POSITIVES, 0.05),
        info_nce(queries, passages, POSITIVES, 0.05, torch.tensor([[0, 3]])),
    ):
        assert not torch.allclose(other, base)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    """Under autocast too: logits of ±100 would differ by whole numbers."""
    queries, passages = vectors(4, 1).to(dtype), vectors(7, 2).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        found = info_nce(queries, passages, POSITIVES, 0.01)
    assert found.dtype == torch.float32
    exact = info_nce(queries.double(), passages.double(), POSITIVES, 0.01)
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-4)


GROUPS = torch.tensor([[0, 3, 4], [1, 2, -1], [5, 6, 0]])


def test_distillation_is_the_divergence_over_the_own_group():
    queries, passages, teacher = vectors(3, 1), vectors(7, 2), vectors(3, 3, 3)
    found = distillation(queries, passages, GROUPS, teacher, 0.1, 2.0)
    for row, group in enumerate(GROUPS.tolist()):
        places = [place for place in group if place >= 0]
        student = (unit(passages[places]) @ unit(queries)[row] / 0.1).log_softmax(0)
        wanted = (teacher[row, : len(places)] / 2).softmax(0)
        expected = (wanted * (wanted.log() - student)).sum()
        assert found[row].item() == pytest.approx(expected.item(), rel=1e-10)


def test_each_argument_of_distillation_counts_and_the_teacher_gets_no_gradient():
    queries, passages = vectors(3, 1).requires_grad_(), vectors(7, 2)
    teacher = vectors(3, 3, 3).requires_grad_()
    base = distillation(queries, passages, GROUPS, teacher, 0.1, 2.0)
    base.sum().backward()
    assert teacher.grad is None
    assert queries.grad.abs().sum() > 0
    for other in (
        distillation(queries, passages, GROUPS, teacher, 0.2, 2.0),
        distillation(queries, passages, GROUPS, teacher, 0.1, 1.0),
        distillation(queries, passages, GROUPS, -teacher, 0.1, 2.0),
        distillation(queries, passages, GROUPS.flip(0), teacher, 0.1, 2.0),
    ):
        assert not torch.allclose(other, base)


def test_a_query_without_the_teachers_logits_is_not_distilled():
    queries, passages, teacher = vectors(3, 1).requires_grad_(), vectors(7, 2), vectors(3, 3, 3)
    teacher[1, 1] = torch.nan
    found = distillation(queries, passages, GROUPS, teacher, 0.1)
    assert found[1] == 0
    found.sum().backward()
    assert queries.grad.isfinite().all()
    assert (queries.grad[1] == 0).all()
    assert (queries.grad[0] != 0).any()


def test_cross_entropy_over_groups():
    logits = vectors(1, 4, 7)[0].requires_grad_()
    found = group_cross_entropy(logits, GROUPS)
    expected = [-logits[[p for p in g if p >= 0]].log_softmax(0)[0] for g in GROUPS.tolist()]
    torch.testing.assert_close(found, torch.stack(expected))
    found.sum().backward()
    assert logits.grad.isfinite().all()
    teacher = vectors(3, 3, 3)
    own = group_cross_entropy(logits, GROUPS, teacher, 1.5)
    wanted = (teacher[1, :2] / 1.5).softmax(0)
    student = logits[[1, 2]].log_softmax(0)
    assert own[1].item() == pytest.approx((wanted * (wanted.log() - student)).sum().item())


def test_r_drop_is_the_mean_of_both_divergences():
    one, other = vectors(1, 4, 7)[0].requires_grad_(), vectors(1, 5, 7)[0]
    found = group_divergence(one, other, GROUPS)
    p, q = one[[1, 2]].log_softmax(0), other[[1, 2]].log_softmax(0)
    expected = ((p.exp() * (p - q)).sum() + (q.exp() * (q - p)).sum()) / 2
    assert found[1].item() == pytest.approx(expected.item())
    assert (group_divergence(one, one, GROUPS) == 0).all()
    found.sum().backward()
    assert one.grad.isfinite().all()


@pytest.mark.parametrize("block", [1, 10**6])
def test_a_guide_finds_what_it_ranks_above_the_positive(monkeypatch, block):
    monkeypatch.setattr(losses, "BLOCK_SCORES", block)
    queries, passages = vectors(4, 1), vectors(7, 2)
    cosines = unit(queries) @ unit(passages).T
    for margin in (0.0, 0.2):
        found = set(map(tuple, above_positive(queries, passages, POSITIVES, margin).tolist()))
        assert found == {
            (row, column)
            for row in range(4)
            for column in range(7)
            if column != POSITIVES[row]
            and cosines[row, column] > cosines[row, POSITIVES[row]] - margin
        }
        assert found


def test_the_mean_entropy_of_groups():
    logits = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 9.0], [50.0, 0.0, 0.0]])
    expected = (torch.tensor([3.0, 2.0]).log().sum().item() + 0) / 3
    assert mean_entropy(logits, GROUPS) == pytest.approx(expected, abs=1e-6)
