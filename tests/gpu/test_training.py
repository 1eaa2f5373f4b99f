"""Gradients on a GPU: flash attention over packed texts, with dropout, and chunk by chunk."""

import copy
import itertools
import json
from dataclasses import replace

import pytest
import torch
from support.models import tiny_encoder, write_tiny_model
from torch.utils.checkpoint import set_checkpoint_early_stop

from e5core import E5, Encoder, EncoderConfig, pack
from e5core.kernels import select
from e5core.kernels.cuda import flash
from e5core.parity.samples import spread_weights
from e5core.parity.tolerances import KERNEL_ERROR_FACTOR, KERNEL_ERROR_FLOOR
from e5core.pipeline import Pipeline
from e5core.train import train
from e5core.train.cached import cached_rows

LENGTHS = [3, 70, 1, 16, 200, 33]
CONFIG = EncoderConfig("bert", 300, 96, 3, 3, 160, 256, 0, 2, 1e-12)


def heads(dtype, seed=0, size=32):
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn(sum(LENGTHS), 3, 4, size, generator=generator)
    return qkv.to("cuda", dtype)


BOUNDS = torch.tensor([0, *LENGTHS]).cumsum(0).int()


def run(attend, qkv):
    qkv = qkv.detach().requires_grad_()
    output = attend(qkv, BOUNDS.cuda(), max(LENGTHS), 0.0)
    (output * heads(output.dtype, 1, qkv.shape[-1])[:, 0]).sum().backward()
    return output.detach().double(), qkv.grad.double()


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_attention_and_its_gradient(dtype, size):
    qkv = heads(dtype, size=size)
    assert flash.takes(qkv.device, dtype, size)
    plain = select("plain", "cuda").attention
    exact = run(plain, qkv.double())
    floor = KERNEL_ERROR_FLOOR[str(dtype)[6:]]
    for found, other, expected in zip(
        run(flash.attention, qkv), run(plain, qkv), exact, strict=True
    ):
        error, error_plain = ((one - expected).abs().max() for one in (found, other))
        assert error <= KERNEL_ERROR_FACTOR * error_plain + floor


def test_dropout_of_attention():
    """It keeps the mean, is the same for the same seed, and the gradient has the same mask."""
    qkv = heads(torch.float16)

    def attend(seed, values):
        torch.manual_seed(seed)
        changed = torch.stack([qkv[:, 0], qkv[:, 1], values], dim=1)
        return flash.attention(changed, BOUNDS.cuda(), max(LENGTHS), 0.5)

    value = qkv[:, 2].clone().requires_grad_()
    assert torch.equal(attend(0, value), attend(0, value))
    assert not torch.equal(attend(0, value), attend(1, value))
    mean = sum(attend(seed, value).detach().double() for seed in range(400)) / 400
    exact = flash.attention(qkv, BOUNDS.cuda(), max(LENGTHS)).double()
    assert (mean - exact).abs().mean() < 0.05 * exact.abs().mean() + 0.03
    # Attention is linear in the values: value · gradient is the output's sum.
    total = attend(3, value)
    weights = heads(torch.float16, 1)[:, 0]
    (total * weights).sum().backward()
    found = (value.detach().double() * value.grad.double()).sum()
    wanted = (total.detach().double() * weights.double()).sum()
    assert abs(found - wanted) < 1e-2 * wanted.abs() + 1


def ids(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(4, 300, (n,), generator=generator).tolist() for n in LENGTHS]


def gradient_of(encoder, dtype=None):
    encoder.zero_grad()
    with torch.autocast("cuda", dtype, enabled=dtype is not None):
        states = encoder(pack(ids(), encoder.config).to("cuda"))
    weights = torch.linspace(-1, 1, states.numel(), device="cuda").view_as(states)
    (states.double() * weights).sum().backward()
    return {name: p.grad.double() for name, p in encoder.named_parameters()}


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16], ids=str)
def test_every_gradient_of_an_encoder(dtype):
    """Against float64, beside plain kernels in the same precision."""
    encoder = spread_weights(Encoder(CONFIG)).to("cuda").eval()
    exact = gradient_of(copy.deepcopy(encoder).double())
    assert encoder.kernels.name == "sdpa"
    found = gradient_of(encoder, dtype)
    encoder.kernels = select("plain", training=True)
    plain = gradient_of(encoder, dtype)
    for name, expected in exact.items():
        if name.endswith("key.bias"):  # it changes nothing: its gradient is rounding alone
            continue
        scale = expected.abs().max()
        error, error_plain = ((g[name] - expected).abs().max() for g in (found, plain))
        assert error <= KERNEL_ERROR_FACTOR * error_plain + 1e-3 * scale, name


def test_rows_and_gradients_chunk_by_chunk(tmp_path):
    """They are those of one chunk, up to the order of sums."""
    sequences = ids() * 3

    def run(chunk_tokens, precision):
        config = replace(CONFIG, hidden_dropout=0.0, attention_dropout=0.0)
        encoder = spread_weights(Encoder(config)).to("cuda").train()
        rows, order = cached_rows(
            Pipeline(encoder, "mean"), sequences, chunk_tokens, seed=(1,), precision=precision
        )
        rows = rows[torch.tensor(order, device="cuda").argsort()]
        weights = torch.linspace(-1, 1, rows.numel(), device="cuda").view_as(rows)
        (rows.double() * weights).sum().backward()
        return rows.detach(), {name: p.grad for name, p in encoder.named_parameters()}

    for precision, bound in ((None, 1e-4), ("bfloat16", 5e-2)):
        (whole, expected), (parts, found) = run(10**6, precision), run(300, precision)
        assert (whole - parts).abs().max() <= bound * whole.abs().max()
        for name, gradient in expected.items():
            scale = max(gradient.abs().max().item(), 1e-2)
            assert (found[name] - gradient).abs().max() <= bound * scale, name


def test_dropout_is_the_same_each_time_a_chunk_is_computed(monkeypatch):
    """The rows that the loss saw are those that the backward pass computes once more."""
    encoder = spread_weights(Encoder(CONFIG)).to("cuda").train()
    pipeline = Pipeline(encoder, "mean")
    sequences = [[0, *range(5, 5 + n), 2] for n in (3, 9, 20, 11, 4, 30)]
    seen: dict[tuple, list] = {}
    plain_run = pipeline.run

    def noting(chunk, *arguments, **options):
        rows = plain_run(chunk, *arguments, **options)
        seen.setdefault(tuple(map(tuple, chunk)), []).append(rows.detach().clone())
        return rows

    monkeypatch.setattr(pipeline, "run", noting)
    torch.manual_seed(5)
    before = torch.cuda.get_rng_state()
    with set_checkpoint_early_stop(False):
        rows, _ = cached_rows(pipeline, sequences, 40, seed=(7,), precision="bfloat16")
        rows.float().square().sum().backward()
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert len(seen) > 2
    twice = [times for times in seen.values() if len(times) == 2]
    assert len(twice) == len(seen) - 1
    assert all(torch.equal(*times) for times in twice)


def test_training_takes_bfloat16_there():
    encoder = tiny_encoder("bert")
    assert encoder.kernels.fastest_training_dtype(torch.device("cuda")) == torch.bfloat16


def test_a_run_learns(tmp_path):
    """`train` from a folder to a folder on the GPU; the loss falls and the result loads."""
    folder = write_tiny_model(tmp_path / "model", "bert")
    pairs = itertools.product("abcdefghijklm", "nopqrstuvwxyz")
    rows = [{"query": f"the {a} {b}", "pos": [f"a {b} {a}"]} for a, b in pairs]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train(
        folder, tmp_path / "rows.jsonl", tmp_path / "out", batch_size=64, epochs=8,
        device="cuda", learning_rate=1e-3, show_progress=False,
    )  # fmt: skip
    log = [json.loads(line) for line in (tmp_path / "out" / "training.jsonl").open()]
    losses = [line["loss"] for line in log if "loss" in line]
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
    assert E5.from_pretrained(tmp_path / "out", device="cuda").encode_query("the a n").shape == (
        24,
    )
