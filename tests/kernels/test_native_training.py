"""What training does in C++, by every instruction set of this CPU."""

import numpy as np
import pytest
import torch
from support.models import CPU, INSTRUCTION_SETS

from e5core.kernels import BY_NAME, training, training_attention, why_not
from e5core.kernels.native import training as native
from e5core.parity.tolerances import KERNEL_ERROR_FACTOR, KERNEL_ERROR_FLOOR

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
COUNTS = (1, 7, 16, 17, 3 * 2**14 + 5)  # of less than a vector, and of several threads' shares
LENGTHS = ([5], [16, 16, 16], [3, 17, 16, 1, 2, 40], [70, 150, 149])
SIZES = (12, 32, 83)  # of a head: up to more than a panel, and an odd one


@pytest.fixture(params=DTYPES)
def dtype(request):
    return DTYPES[request.param]


@pytest.fixture(params=INSTRUCTION_SETS)
def steps(request, dtype, monkeypatch):
    if reason := why_not(BY_NAME[request.param], CPU, dtype):
        pytest.skip(reason)
    made = native.Steps(dtype, BY_NAME[request.param].only)
    monkeypatch.setattr(native, "steps", lambda dtype: made)
    return made


def normal(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def keeps(count, how):
    """The places that dropout keeps, number by number after training.h."""
    x = np.arange(count, dtype=np.uint32)
    x = (x ^ x >> 16 ^ np.uint32(how.seed[0])) * np.uint32(0x21F0AAAD)
    x = (x ^ x >> 15 ^ np.uint32(how.seed[1])) * np.uint32(0xD35A2D97)
    x = (x ^ x >> 15) * np.uint32(0x21F0AAAD)
    return torch.from_numpy((x ^ x >> 15) >= how.threshold)


@pytest.mark.parametrize("probability", [0.1, 0.5])
@pytest.mark.parametrize("count", COUNTS)
def test_dropout_and_its_gradient_follow_their_definition(count, probability, steps, dtype):
    residual, x = normal(count, dtype=torch.float32), normal(count, seed=1, dtype=dtype)
    how = native.dropout(probability, 0x123456789ABCDEF)
    scaled = keeps(count, how) / (1 - probability)
    total = steps.add_dropped(residual, x, how)
    torch.testing.assert_close(total, (residual + x * scaled).float(), rtol=1e-6, atol=1e-6)
    of_x = steps.drop(residual, how)
    torch.testing.assert_close(of_x, (residual * scaled).to(dtype), rtol=1e-2, atol=1e-6)
    assert torch.equal(of_x == 0, ~keeps(count, how))


def test_masks_of_neighbours_and_of_seeds_have_nothing_in_common(steps):
    torch.manual_seed(0)
    seeds = [training.draw_seed() for _ in range(5)]
    seeds += [5 << 32, 1 << 60]
    masks = [
        (steps.drop(torch.ones(1 << 16), native.dropout(0.5, seed)) != 0).double() for seed in seeds
    ]
    others = [mask.roll(n) for mask in masks[:1] for n in (1, 2, 3, 16, 384, 1024, 4096)]
    signs = torch.stack(masks + others) * 2 - 1
    products = (signs @ signs.T / signs.shape[1]).fill_diagonal_(0)
    assert products.abs().max() < 5 / signs.shape[1] ** 0.5  # standard errors
    assert signs.mean(1).abs().max() < 5 / signs.shape[1] ** 0.5


def attend(lengths, qkv, weights, probability=0.0):
    torch.manual_seed(3)
    qkv = qkv.clone().requires_grad_()
    output = training_attention.attention(qkv, lengths, probability)
    (output * weights).sum().backward()
    return output.detach(), qkv.grad


def attend_exactly(lengths, qkv, weights, probability, dtype=torch.float64):
    """The same with masks by their definition, each text alone, in steps that round to a dtype."""
    torch.manual_seed(3)
    heads, size = qkv.shape[2:]
    qkv = qkv.to(dtype).clone().requires_grad_()
    seed = training_attention.draw_seed() if probability else 0
    masks = keeps(heads * sum(length**2 for length in lengths), native.dropout(probability, seed))
    masks = masks.split([heads * length**2 for length in lengths])
    outputs = []
    for text, mask in zip(qkv.split(list(lengths)), masks, strict=True):
        query, key, value = text.permute(1, 2, 0, 3)
        mask = mask.view(heads, len(text), len(text)).transpose(1, 2)  # from keys to queries
        scores = (query @ key.transpose(1, 2)).to(torch.float64) / size**0.5
        kept = (scores.softmax(-1) * mask / (1 - probability)).to(dtype)
        outputs.append((kept @ value).transpose(0, 1))
    output = torch.cat(outputs)
    (output * weights.to(dtype)).sum().backward()
    return output.detach(), qkv.grad


@pytest.mark.parametrize("probability", [0.0, 0.1])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_attention_and_its_gradient_are_right(lengths, size, probability, steps, dtype):
    qkv = 1.5 * normal(sum(lengths), 3, 4, size)
    qkv, weights = qkv.to(dtype), normal(sum(lengths), 4, size, seed=1, dtype=dtype)
    exact = attend_exactly(lengths, qkv, weights, probability)
    plain = attend_exactly(lengths, qkv, weights, probability, dtype)
    floor = KERNEL_ERROR_FLOOR[str(dtype).removeprefix("torch.")]
    found = attend(lengths, qkv, weights, probability)
    for ours, theirs, expected in zip(parts(found), parts(plain), parts(exact), strict=True):
        error, error_plain = ((t - expected).abs().max() for t in (ours, theirs))
        assert error <= KERNEL_ERROR_FACTOR * error_plain + floor * expected.abs().max()


def parts(found):
    """The output, and the gradients of query, key and value."""
    output, gradient = found
    return output, *gradient.unbind(1)


def test_attention_takes_states_in_any_order_of_memory(steps, dtype):
    qkv, weights = normal(40, 3, 4, 12, dtype=dtype), normal(40, 4, 12, seed=1, dtype=dtype)
    expected = attend([33, 7], qkv, weights, 0.1)
    turned = qkv.transpose(0, 2).contiguous().transpose(0, 2)
    strided = weights.transpose(0, 1).contiguous().transpose(0, 1)
    for found, one in zip(attend([33, 7], turned, strided, 0.1), expected, strict=True):
        assert torch.equal(found, one)


def test_bits_depend_on_no_number_of_threads(steps, dtype, monkeypatch):
    qkv, weights = normal(227, 3, 4, 12, dtype=dtype), normal(227, 4, 12, seed=1, dtype=dtype)
    found = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(native, "thread_count", lambda threads=threads: threads)
        found.append(torch.cat([t.flatten() for t in attend([70, 150, 7], qkv, weights, 0.1)]))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("count", COUNTS)
def test_gelu_and_its_gradient_are_right(count, steps, dtype):
    x, weights = 3 * normal(count), normal(count, seed=1)
    x, weights = x.to(dtype), weights.to(dtype)

    def run(function, dtype):
        at = x.to(dtype).requires_grad_()
        y = function(at)
        (y * weights.to(dtype)).sum().backward()
        return y.detach(), at.grad

    exact = run(torch.nn.functional.gelu, torch.float64)
    plain = run(torch.nn.functional.gelu, dtype)
    floor = KERNEL_ERROR_FLOOR[str(dtype).removeprefix("torch.")]
    for found, theirs, expected in zip(run(native.Gelu.apply, dtype), plain, exact, strict=True):
        error, error_plain = ((t - expected).abs().max() for t in (found, theirs))
        assert error <= KERNEL_ERROR_FACTOR * error_plain + floor


def test_autocast_of_a_caller_changes_nothing(steps, dtype):
    qkv, weights = normal(40, 3, 4, 12, dtype=dtype), normal(40, 4, 12, seed=1, dtype=dtype)
    expected = attend([33, 7], qkv, weights, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        for found, one in zip(attend([33, 7], qkv, weights, 0.1), expected, strict=True):
            assert torch.equal(found, one)


def test_what_would_be_misread_is_refused(steps, dtype):
    qkv = normal(16, 3, 2, 12, dtype=dtype)
    for wrong in (qkv.double(), qkv.transpose(0, 2).contiguous().transpose(0, 2)):
        with pytest.raises(ValueError, match="one row after another"):
            steps.attention(wrong, [16], native.dropout(0.0, 0))
    with pytest.raises(ValueError, match="texts have 15 tokens, and qkv has 16"):
        steps.attention(qkv, [8, 7], native.dropout(0.0, 0))


@pytest.mark.parametrize("shift", [-3e3, 3e3])
def test_large_scores_and_what_is_behind_a_text_do_no_harm(shift, steps, dtype):
    """A softmax does not change when all its scores grow by one number."""
    lengths, far = [5, 1, 70], torch.zeros(76, 3, 2, 12, dtype=torch.float64)
    far[:, :2, :, 0] = 12**0.25 * abs(shift) ** 0.5
    far[:, 1] *= 1 if shift > 0 else -1
    qkv = normal(76, 3, 2, 12) * torch.cat([torch.zeros(1), torch.ones(11)]).double() + far
    qkv = qkv.to(dtype)
    weights = normal(76, 2, 12, seed=1, dtype=dtype)
    exact = attend_exactly(lengths, qkv, weights, 0.0)
    for found, expected in zip(attend(lengths, qkv, weights), exact, strict=True):
        error = (found.double() - expected).abs()[..., 1:].max()
        assert error <= (0.05 if dtype == torch.bfloat16 else 5e-3) * expected[..., 1:].abs().max()


def test_a_text_has_the_same_gradient_alone_and_among_others(steps, dtype):
    qkv, weights = normal(57, 3, 2, 12, dtype=dtype), normal(57, 2, 12, seed=1, dtype=dtype)
    _, together = attend([17, 40], qkv, weights)
    for place in (slice(0, 17), slice(17, 57)):
        _, alone = attend([place.stop - place.start], qkv[place], weights[place])
        assert torch.equal(together[place], alone)
