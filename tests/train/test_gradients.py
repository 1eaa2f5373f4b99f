"""Cached gradients are those of the whole graph: section after section of what can go wrong."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.models import TINY, tiny_vocabulary, write_tiny_model
from support.training import (
    gradients,
    largest_difference,
    read_rows,
    tiny_task,
    write_rows,
)
from torch.utils.checkpoint import set_checkpoint_early_stop

from e5core import E5, Encoder, save_checkpoint
from e5core.formats.files import write_json
from e5core.formats.sentencepiece import CHARSMAP, unigram_model
from e5core.formats.tokenizer_json import tokenizer_json
from e5core.parity.samples import spread_weights
from e5core.train.cached import cached_rows

# Float64 with sums of a few thousand terms in another order.
EXACT = 1e-12


def plain_loss(task, data, batch, temperature=0.05):
    """InfoNCE by the book: one graph of everything, one table of scores."""
    vectors = torch.nn.functional.normalize(task.pipeline.run(data.sequences(batch), 10**6))
    passages = np.unique(batch.groups[batch.groups >= 0])
    logits = vectors[batch.queries] @ vectors[passages].T / temperature
    for row, place in batch.known.tolist():
        if place in passages:
            logits[row, np.searchsorted(passages, place)] = -torch.inf
    target = torch.from_numpy(np.searchsorted(passages, batch.groups[:, 0]))
    return torch.nn.functional.cross_entropy(logits, target)


@pytest.mark.parametrize("chunk_tokens", [1, 17, 64, 200, 10**6])
def test_loss_and_gradients_are_those_of_the_whole_graph(folder, pairs, chunk_tokens):
    task = tiny_task(folder, temperature=0.05, chunk_tokens=chunk_tokens)
    data = read_rows(task, pairs)
    batch = data.batch(range(9), 0, 0, 2)
    expected = plain_loss(task, data, batch)
    expected.backward()
    wanted = gradients(task)
    loss = task.terms(batch, data, (0, 0))["contrastive"]
    loss.backward()
    assert abs(loss.item() - expected.item()) < EXACT * abs(expected.item())
    assert largest_difference(gradients(task), wanted) < EXACT


def test_the_order_of_texts_changes_nothing(folder, pairs):
    task = tiny_task(folder, chunk_tokens=40)
    data = read_rows(task, pairs)
    sequences = data.sequences(data.batch(range(9), 0, 0, 2))
    order = np.random.default_rng(0).permutation(len(sequences))
    weights = torch.randn(len(sequences), 24, dtype=torch.float64)

    def run(places):
        rows, found = cached_rows(task.pipeline, [sequences[i] for i in places], 40)
        rows = rows[torch.tensor(found).argsort()]
        (rows * weights[places]).sum().backward()
        return rows.detach(), gradients(task)

    (one, wanted), (other, found) = run(np.arange(len(sequences))), run(order)
    torch.testing.assert_close(other, one[order], rtol=EXACT, atol=EXACT)
    assert largest_difference(found, wanted) < EXACT


def test_dropout_is_the_same_each_time_a_chunk_is_computed(folder, pairs):
    task = tiny_task(folder, dropout=0.1, chunk_tokens=60)
    data = read_rows(task, pairs)
    batch = data.batch(range(9), 0, 0, 2)
    sequences = data.sequences(batch)
    computed: dict[tuple[int, ...], list[torch.Tensor]] = {}
    run = task.pipeline.run

    def noting(chunk, *arguments):
        rows = run(chunk, *arguments)
        computed.setdefault(tuple(map(tuple, chunk)), []).append(rows.detach().clone())
        return rows

    task.pipeline.run = noting
    weights = torch.randn(len(sequences), 24, dtype=torch.float64)
    before = torch.random.get_rng_state()
    with set_checkpoint_early_stop(False):  # otherwise the second time ends before the rows
        rows, order = cached_rows(task.pipeline, sequences, 60, seed=(3, 5))
    (rows * weights[order]).sum().backward()
    assert torch.equal(before, torch.random.get_rng_state())  # the caller's draws are its own
    found = gradients(task)
    assert len(computed) > 2
    # The largest chunk has kept its graph.
    size = {chunk: sum(map(len, chunk)) for chunk in computed}
    once = [chunk for chunk, rows in computed.items() if len(rows) == 1]
    assert len(once) == 1
    assert size[once[0]] == max(size.values())
    assert all(torch.equal(rows[0], rows[-1]) for rows in computed.values())
    assert all(len(rows) == 2 for chunk, rows in computed.items() if chunk != once[0])

    # The graph that is kept of the same chunks under the same seeds has the same gradients.
    def keep(function, *arguments, **options):
        return function(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("e5core.train.cached.checkpoint", keep)
        kept, order = cached_rows(task.pipeline, sequences, 60, seed=(3, 5))
    assert torch.equal(kept, rows)
    (kept * weights[order]).sum().backward()
    assert largest_difference(gradients(task), found) < EXACT
    with torch.no_grad():
        assert not torch.allclose(cached_rows(task.pipeline, sequences, 60, seed=(3, 6))[0], rows)


def test_gradients_follow_the_scale_of_the_loss_and_add_up(folder, pairs):
    task = tiny_task(folder, chunk_tokens=50)
    data = read_rows(task, pairs)
    first, second = data.batch(range(5), 0, 0, 2), data.batch(range(5, 9), 0, 0, 2)

    def loss(batch):
        return task.terms(batch, data, (0, 0))["contrastive"]

    loss(first).backward()
    one = gradients(task)
    loss(second).backward()
    two = gradients(task)
    (loss(first) * 3).backward()
    assert largest_difference(gradients(task), {n: 3 * g for n, g in one.items()}) < EXACT
    total = {name: one[name] + two[name] for name in one}
    loss(first).backward()
    loss(second).backward()
    assert largest_difference(gradients(task), total) < EXACT
    # Two forward passes before the first backward pass.
    a, b = loss(first), loss(second)
    a.backward()
    b.backward()
    assert largest_difference(gradients(task), total) < EXACT


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_autocast_is_finite_and_near_float32(folder, pairs, precision):
    """At temperature 0.01, whose logits reach ±100, with the losses in float32."""
    exact = tiny_task(folder, precision="float32", temperature=0.01)
    data = read_rows(exact, pairs)
    batch = data.batch(range(9), 0, 0, 2)
    expected = exact.terms(batch, data, (0, 0))["contrastive"]
    expected.backward()
    wanted = gradients(exact)
    task = tiny_task(folder, precision=precision, temperature=0.01, chunk_tokens=50)
    loss = task.terms(batch, data, (0, 0))["contrastive"]
    assert loss.dtype == torch.float32
    loss.backward()
    found = gradients(task)
    assert all(gradient.isfinite().all() for gradient in found.values())
    assert 0 < abs(loss.item() - expected.item()) < 0.1 * expected.item() + 0.1
    for name in ("layers.0.intermediate.weight", "layers.2.output.weight"):
        cosine = torch.cosine_similarity(found[name].flatten(), wanted[name].flatten(), dim=0)
        assert cosine > 0.98, name


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_the_logits_of_a_reranker_are_not_rounded(folder, pairs, precision):
    task = tiny_task(folder, reranker=True, precision=precision)
    data = read_rows(task, pairs)
    sequences, _ = task.pairs(data.batch(range(9), 0, 0, 2), data)
    logits, _ = cached_rows(task.pipeline, sequences, 50, precision=precision)
    assert logits.dtype == torch.float32
    assert (logits != logits.to(getattr(torch, precision)).float()).float().mean() > 0.9


@pytest.mark.parametrize("margin", [0.0, 0.3])
def test_what_a_guide_ranks_above_the_positive_is_no_negative(folder, pairs, tmp_path, margin):
    guide = write_tiny_model(tmp_path / "guide", "bert", seed=4)
    task = tiny_task(folder, temperature=0.05, guide=str(guide), guide_margin=margin)
    data = read_rows(task, pairs)
    batch = data.batch(range(9), 0, 0, 2)
    found = task.terms(batch, data, (0, 0))["contrastive"].item()
    theirs = E5.from_pretrained(guide).pipeline
    vectors = torch.nn.functional.normalize(theirs.run(data.sequences(batch)).double())
    cosines = vectors[batch.queries] @ vectors.T
    least = cosines.gather(1, torch.from_numpy(batch.groups[:, :1])) - margin
    places = (cosines > least).nonzero().tolist()
    near = [[row, place] for row, place in places if place != batch.groups[row, 0]]
    assert near
    known = np.array([*batch.known.tolist(), *near])
    expected = plain_loss(task, data, replace(batch, known=known)).item()
    assert abs(found - expected) < EXACT * expected
    assert abs(found - plain_loss(task, data, batch).item()) > 1e-3 * expected


@pytest.mark.parametrize("change", ["order", "size", "steps", "prompts", "positions"])
def test_a_guide_that_reads_texts_otherwise_is_refused(folder, tmp_path, change):
    guide = write_tiny_model(tmp_path / "guide", "bert", seed=4)
    file = guide / "sentencepiece.bpe.model"
    if change in ("order", "size"):
        pieces = tiny_vocabulary()
        pieces = [*pieces[:4], *reversed(pieces[4:])] if change == "order" else pieces[:-1]
        file.write_bytes(unigram_model(pieces, CHARSMAP.read_bytes()))
    elif change == "steps":
        write_json(guide / "added_tokens.json", {"the": 119})
    elif change == "prompts":
        write_json(
            guide / "config_sentence_transformers.json",
            {"prompts": {"query": "Q: ", "passage": "P: "}},
        )
    else:
        save_checkpoint(
            spread_weights(Encoder(replace(TINY["bert"], max_position_embeddings=32))), guide
        )
    what = {"prompts": "has the prompts", "positions": r"takes 32 tokens, .* pass max_length=32"}
    with pytest.raises(ValueError, match=f"the guide .*{what.get(change, 'another vocabulary')}"):
        tiny_task(folder, guide=str(guide))


def test_a_guide_may_have_its_tokenizer_in_the_other_format(folder, tmp_path):
    guide = write_tiny_model(tmp_path / "guide", "bert", seed=4)
    file = guide / "sentencepiece.bpe.model"
    write_json(guide / "tokenizer.json", tokenizer_json(file.read_bytes()))
    file.unlink()
    tiny_task(folder, guide=str(guide))


def test_texts_that_occur_twice_are_encoded_once(folder, tmp_path):
    """Its gradient is that of encoding it twice."""
    shared = {"query": "the er", "pos": ["a ing 7"]}
    rows = [shared, {"query": "zq vw", "pos": ["a ing 7"]}, {"query": "mno", "pos": ["k k k"]}]
    task = tiny_task(folder, temperature=0.05)
    data = read_rows(task, write_rows(tmp_path / "rows.jsonl", rows))
    batch = data.batch(range(3), 0, 0, 0)
    assert data.mentions == 6
    assert len(data.texts) == len(batch.texts) == 5
    task.terms(batch, data, (0, 0))["contrastive"].backward()
    found = gradients(task)

    # By the book: each row's texts are encoded apart, and the equal column is left out.
    ids = [data.texts[e.query] for e in data.examples]
    ids += [data.texts[e.positives[0]] for e in data.examples]
    vectors = torch.nn.functional.normalize(task.pipeline.run(ids, 10**6))
    logits = vectors[:3] @ vectors[3:].T / 0.05
    logits = logits.masked_fill(torch.tensor([[0, 1, 0], [1, 0, 0], [0, 1, 0]]).bool(), -torch.inf)
    torch.nn.functional.cross_entropy(logits, torch.arange(3)).backward()
    assert largest_difference(found, gradients(task)) < EXACT
