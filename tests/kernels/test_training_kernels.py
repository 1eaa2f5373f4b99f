"""What training runs on, on a CPU: products, dropout and attention with gradients of their own."""

import pytest
import torch
from torch import nn

from e5core.kernels import select, training, training_attention
from e5core.kernels.native import training as native
from e5core.parity.tolerances import KERNEL_ERROR_FACTOR, KERNEL_ERROR_FLOOR

LENGTHS = {
    "one": [5],
    "equal": [16, 16, 16],
    "unequal": [3, 17, 16, 1, 2, 40],
    "long": [70, 150],
}


def states(tokens, features, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, features, generator=generator, dtype=dtype)


def linears(inputs, *outputs, dtype=torch.float64):
    torch.manual_seed(3)
    return tuple(nn.Linear(inputs, size).to(dtype) for size in outputs)


@pytest.mark.parametrize("outputs", [(24,), (24, 24, 24)], ids=["one", "three"])
@pytest.mark.parametrize("tokens", [1, 7, 130])
def test_products_and_gradients_are_as_near_to_float64_as_those_of_torch(tokens, outputs):
    if not training._onednn_is_right():
        pytest.skip("torch has no oneDNN here")

    def run(multiply, dtype):
        x, modules = states(tokens, 48).to(dtype).requires_grad_(), linears(48, *outputs)
        modules = tuple(module.to(dtype) for module in modules)
        y = multiply(x, modules)
        (y * states(tokens, sum(outputs), 1).to(dtype)).sum().backward()
        gradients = [p.grad for module in modules for p in module.parameters()]
        return [y.detach(), x.grad, *gradients]

    plain = select("plain").linear
    exact = run(plain, torch.float64)
    theirs = run(plain, torch.float32)
    for found, other, expected in zip(
        run(training.linear, torch.float32), theirs, exact, strict=True
    ):
        error, error_plain = ((t - expected).abs().max() for t in (found, other))
        floor = KERNEL_ERROR_FLOOR["float32"] * expected.abs().max()
        assert error <= KERNEL_ERROR_FACTOR * error_plain + floor


def test_weights_are_joined_once_where_they_stay_and_anew_elsewhere():
    if not training._onednn_is_right():
        pytest.skip("torch has no oneDNN here")
    modules, x = linears(8, 4, 4, dtype=torch.float32), states(3, 8, dtype=torch.float32)
    before, made = training.linear(x, modules), {}
    with training.made_once(made):
        torch.testing.assert_close(training.linear(x, modules), before)
    with torch.no_grad():
        modules[0].weight.mul_(2)
    after = torch.cat([module(x) for module in modules], -1)
    torch.testing.assert_close(training.linear(x, modules), after)
    with training.made_once(made):
        torch.testing.assert_close(training.linear(x, modules), before)
    with training.made_once({}):
        torch.testing.assert_close(training.linear(x, modules), after)


def test_a_linear_that_is_not_trained_gets_no_gradient():
    if not training._onednn_is_right():
        pytest.skip("torch has no oneDNN here")
    (module,) = linears(8, 4, dtype=torch.float32)
    module.requires_grad_(False)
    x = states(3, 8, dtype=torch.float32).requires_grad_()
    training.linear(x, (module,)).sum().backward()
    assert module.weight.grad is None
    torch.testing.assert_close(x.grad, module.weight.sum(0).expand(3, 8))


def heads_of(lengths, seed=0, dtype=torch.float64):
    return states(sum(lengths), 3 * 2 * 4, seed, dtype).view(-1, 3, 2, 4)


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_attention_and_its_gradient_are_those_of_plain(lengths, monkeypatch):
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    weights = heads_of(lengths, 1)[:, 0]

    def run(attend):
        qkv = (2 * heads_of(lengths)).requires_grad_()
        output = attend(qkv)
        (output * weights).sum().backward()
        return output.detach(), qkv.grad

    expected = run(lambda qkv: select("plain").attention(qkv, cu_seqlens, max(lengths), 0.0))
    for scores in (1, training_attention.MAX_SCORES):
        monkeypatch.setattr(training_attention, "MAX_SCORES", scores)
        training_attention._groups.cache_clear()
        found = run(lambda qkv: training_attention.attention(qkv, lengths, 0.0))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    training_attention._groups.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_attention_without_the_library_is_right_in_every_dtype(dtype, monkeypatch):
    lengths = LENGTHS["unequal"]

    def run(dtype):
        qkv = heads_of(lengths).to(dtype).requires_grad_()
        output = training_attention.attention(qkv, lengths, 0.0)
        (output * heads_of(lengths, 1)[:, 0].to(dtype)).sum().backward()
        return output.detach(), qkv.grad

    exact = run(torch.float64)
    monkeypatch.setattr(native, "steps", lambda dtype: None)
    bound = 0.05 if dtype == torch.bfloat16 else 1e-5
    for found, expected in zip(run(dtype), exact, strict=True):
        assert found.dtype == dtype
        assert (found - expected).abs().max() <= bound * expected.abs().max()


def test_the_gradient_of_attention_with_dropout_is_that_of_finite_differences():
    lengths = [3, 17, 1]

    def attend(qkv):
        torch.manual_seed(5)  # the same masks each time
        return training_attention.attention(qkv, lengths, 0.3)

    assert torch.autograd.gradcheck(attend, (heads_of(lengths).requires_grad_(),))


def test_dropout_of_attention_keeps_its_mean():
    lengths = [16] * 20
    qkv = heads_of(lengths)
    torch.manual_seed(0)
    mean = torch.stack([training_attention.attention(qkv, lengths, 0.5) for _ in range(400)]).mean(
        0
    )
    exact = training_attention.attention(qkv, lengths, 0.0)
    assert not torch.allclose(training_attention.attention(qkv, lengths, 0.5), exact, atol=0.1)
    assert (mean - exact).abs().max() < 0.25
    assert (mean - exact).abs().mean() < 0.03


@pytest.fixture(params=["native", "torch"])
def steps(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr(native, "steps", lambda dtype: None)


def dropped_ones(probability, *shape, dtype=torch.float32):
    return training.add_dropped(torch.zeros(shape), torch.ones(shape, dtype=dtype), probability)


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_dropout_drops_as_many_as_it_should_and_keeps_the_mean(probability, dtype, steps):
    torch.manual_seed(0)
    dropped = dropped_ones(probability, 400, 512, dtype=dtype)
    share = (dropped == 0).float().mean().item()
    assert share == pytest.approx(probability, abs=5 * (probability / dropped.numel()) ** 0.5)
    kept = dropped[dropped != 0]
    assert (kept == kept[0]).all()
    assert kept[0].item() == pytest.approx(1 / (1 - probability), rel=1e-3)
    # No position is dropped more often than others.
    columns = (dropped == 0).float().mean(0)
    assert columns.std() < 2 * (probability * (1 - probability) / 400) ** 0.5


def test_torchs_generator_decides_the_masks():
    def draw(seed):
        torch.manual_seed(seed)
        return [training.draw_keeps((3, 50), 0.5, training.draw_seed()) for _ in range(2)]

    assert torch.equal(draw(1)[0], draw(1)[0])
    assert not torch.equal(*draw(1))
    assert not torch.equal(draw(1)[0], draw(2)[0])


def test_without_dropout_all_is_added():
    x, residual = states(4, 6), states(4, 6, 1)
    assert torch.equal(training.add_dropped(residual, x, 0.0), residual + x)


def test_the_gradient_of_dropout_has_its_mask():
    torch.manual_seed(0)
    x, residual = states(20, 30).requires_grad_(), torch.zeros(20, 30, dtype=torch.float64)
    residual.requires_grad_()
    dropped = training.add_dropped(residual, x, 0.25)
    dropped.sum().backward()
    torch.testing.assert_close(x.grad, (dropped != 0).double() * (dropped / x).max())
    assert (residual.grad == 1).all()


def test_products_under_autocast_have_gradients_of_the_weights_dtype():
    x, modules = states(40, 48).float().requires_grad_(), linears(48, 24, 24, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = training.linear(x, modules)
        theirs = select("plain").linear(x, modules)
    assert y.dtype == theirs.dtype == torch.bfloat16
    torch.testing.assert_close(y, theirs)
    weights = states(40, 48, 1).to(torch.bfloat16)

    def gradients(y):
        wanted = [x, *(p for module in modules for p in module.parameters())]
        return torch.autograd.grad((y * weights).sum(), wanted)

    for found, other in zip(gradients(y), gradients(theirs), strict=True):
        assert found.dtype == torch.float32
        assert (found - other).abs().max() < 0.01 * other.abs().max()


def test_they_run_where_gradients_flow_on_a_cpu_alone(monkeypatch):
    """Inference with sdpa computes what it did."""
    used = []
    monkeypatch.setattr(
        training_attention, "attention", lambda qkv, *_: used.append("attention") or qkv[:, 0]
    )
    monkeypatch.setattr(training, "linear", lambda x, w: used.append("linear") or x)
    kernels, modules = select("sdpa"), linears(24, 24, dtype=torch.float32)
    x, cu_seqlens = states(4, 24, dtype=torch.float32), torch.tensor([0, 4]).int()
    qkv = heads_of([4], dtype=torch.float32)
    with torch.no_grad():
        kernels.linear(x, modules)
        kernels.attention(qkv, cu_seqlens, 4, 0.0)
    assert not used
    kernels.linear(x.double(), linears(24, 24))
    assert not used  # products in float64 are torch's
    kernels.attention(qkv, cu_seqlens, 4, 0.0)
    with torch.autocast("cpu", torch.bfloat16):
        kernels.linear(x, modules)
    assert used == ["attention", "linear"]
    kernels.linear(x, modules)
    assert used == ["attention", "linear", "linear"] or not training._onednn_is_right()
