"""The kernels in C++: what they refuse, and how exact they are."""

import copy
import threading

import pytest
import torch
from support.models import CPU, tiny_encoder
from torch import nn

from e5core import pack
from e5core.kernels import BACKENDS, BY_NAME, select, why_not
from e5core.kernels.native import library, panels

missing = why_not(BACKENDS["native"], CPU, torch.float32)
usable = pytest.mark.skipif(missing is not None, reason=str(missing))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("columns", [32, 16])
@pytest.mark.parametrize("shapes", [[(64, 8)], [(32, 8), (96, 8)], [(3, 8), (40, 8)], [(5, 7)]])
def test_panels_hold_every_weight_where_linear_h_looks(shapes, columns, dtype):
    weights = [torch.randint(-9, 9, shape).to(dtype) for shape in shapes]
    laid, whole = panels(weights, dtype, columns), torch.cat(weights)
    count, units, _, numbers = laid.shape
    assert laid.shape[2:] == (columns, 4 // dtype.itemsize)
    assert laid.is_contiguous()
    assert laid.data_ptr() % 64 == 0
    for output in range(count * columns):
        for number in range(units * numbers):
            inside = output < whole.shape[0] and number < whole.shape[1]
            expected = whole[output, number] if inside else 0
            place = output // columns, number // numbers, output % columns, number % numbers
            assert laid[place] == expected, (output, number)


@usable
@pytest.mark.exhaustive(sample=40)
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("rows", [1, 13, 14, 15, 29, 56, 57, 300])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (7, 33), (16, 32), (400, 31), (1536, 65)])
def test_products_of_every_shape(native, inputs, outputs, rows, threads):
    """All splits among threads, blocks and panels, filled or not, against float64."""
    torch.manual_seed(0)
    layer, norm = nn.Linear(inputs, outputs), nn.LayerNorm(outputs)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x, residual = torch.randn(rows, inputs), torch.randn(rows, outputs)
    exact = x.double() @ layer.weight.double().T + layer.bias.double()
    added = residual.double() + exact
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        kernels = select(native)
        with torch.inference_mode():
            expected = torch.layer_norm(
                added, (outputs,), norm.weight.double(), norm.bias.double(), norm.eps
            )
            weights = kernels.prepare(layer)
            assert torch.allclose(kernels.linear(x, weights).double(), exact, rtol=0, atol=3e-6)
            gelu = nn.functional.gelu(exact)
            assert torch.allclose(kernels.linear_gelu(x, weights).double(), gelu, rtol=0, atol=3e-6)
            found = kernels.linear_residual_norm(x, weights, residual, norm, 0.0)
            assert torch.allclose(found.double(), expected, rtol=0, atol=1e-5)
    finally:
        torch.set_num_threads(before)


@pytest.fixture(params=[library.BFLOAT16, library.WIDENED], ids=["instruction", "widened"])
def bfloat16_kernels(native, request, monkeypatch):
    """Both ways to multiply bfloat16, whichever this CPU prefers."""
    if reason := library.unsupported(request.param, native.split("/")[1]):
        pytest.skip(reason)
    monkeypatch.setattr(library, "bfloat16_kind", lambda *_: request.param)
    return select(native, dtype=torch.bfloat16)


@pytest.mark.parametrize("rows", [1, 2, 13, 14, 15, 57, 300])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (7, 33), (16, 32), (400, 31), (1537, 65)])
def test_both_kinds_of_bfloat16(bfloat16_kernels, inputs, outputs, rows):
    """Against float64, and with the same bits for every number of rows."""
    torch.manual_seed(0)
    layer, norm = nn.Linear(inputs, outputs).bfloat16(), nn.LayerNorm(outputs).bfloat16()
    x, residual = torch.randn(rows, inputs).bfloat16(), torch.randn(rows, outputs).bfloat16()
    exact = x.double() @ layer.weight.double().T + layer.bias.double()
    with torch.inference_mode():
        weights = bfloat16_kernels.prepare(layer)
        found = bfloat16_kernels.linear(x, weights)
        # One rounding to 8 bits; 1e-5 is that of the sums in float32 where they nearly cancel.
        assert ((found.double() - exact).abs() <= exact.abs() / 256 + 1e-5).all()
        gelu = nn.functional.gelu(exact)
        error = (bfloat16_kernels.linear_gelu(x, weights).double() - gelu).abs()
        assert (error <= gelu.abs() / 256 + 1e-5).all()
        normed = bfloat16_kernels.linear_residual_norm(x, weights, residual, norm, 0.0)
        for some in (slice(0, 1), slice(rows // 2, rows), slice(rows // 3, rows // 3 + 1)):
            assert torch.equal(bfloat16_kernels.linear(x[some], weights), found[some])
            again = bfloat16_kernels.linear_residual_norm(
                x[some], weights, residual[some], norm, 0.0
            )
            assert torch.equal(again, normed[some])


def test_numbers_are_rounded_to_bfloat16_as_by_torch(bfloat16_kernels):
    """Halves to even, NaN of every payload, infinities, the largest finite numbers."""
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (50_000,), generator=generator, dtype=torch.int64)
    bits[:20_000] &= ~0xFFFF  # ties and their neighbours
    bits[:20_000] += 0x7FFF + torch.arange(20_000) % 3
    bits = torch.cat([bits.int(), torch.tensor([0x7F800001, 0x7F7FFFFF, 0x7FFFFFFF]).int()])
    numbers = bits.view(torch.float32)
    numbers = numbers[~((numbers != 0) & (numbers.abs() < 2**-126))]  # the instruction drops those
    layer = nn.Linear(1, len(numbers))
    with torch.inference_mode():
        layer.weight.zero_()
        layer.bias.copy_(numbers)
        weights = bfloat16_kernels.prepare(layer)
        found = bfloat16_kernels.linear(torch.zeros(1, 1).bfloat16(), weights)[0]
    expected = numbers.bfloat16()
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.nan_to_num(), expected.nan_to_num())


@pytest.mark.parametrize("length", [1, 2, 31, 112, 113, 224, 225, 500])
def test_attention_of_both_kinds_of_bfloat16(bfloat16_kernels, length):
    """Texts of one tile of keys and of several, beside a short one."""
    qkv = torch.randn(length + 3, 3, 2, 40, generator=torch.Generator().manual_seed(length))
    qkv = (2 * qkv).bfloat16()
    cu_seqlens = torch.tensor([0, length, length + 3], dtype=torch.int32)
    exact = select("plain").attention(qkv.double(), cu_seqlens, length + 3, 0.0)
    found = bfloat16_kernels.attention(qkv, cu_seqlens, length + 3, 0.0).double()
    assert (found - exact).abs().max() <= exact.abs().max() / 64
    alone = bfloat16_kernels.attention(qkv[:length], cu_seqlens[:2], length, 0.0)
    assert torch.equal(alone.double(), found[:length])


@usable
@pytest.mark.parametrize("length", [111, 112, 113, 225, 700])
def test_attention_over_several_tiles_of_keys(native, length):
    """The largest score in the first tile, in the last one, and far apart."""
    generator = torch.Generator().manual_seed(length)
    kernels, cu_seqlens = select(native), torch.tensor([0, length], dtype=torch.int32)
    for peak in (0, length - 1, length // 2):
        qkv = torch.randn(length, 3, 2, 24, generator=generator)
        qkv[peak, 1] *= 20
        exact = select("plain").attention(qkv.double(), cu_seqlens, length, 0.0)
        plain = select("plain").attention(qkv, cu_seqlens, length, 0.0)
        found = kernels.attention(qkv, cu_seqlens, length, 0.0)
        allowed = 2 * (plain - exact).abs().mean() + 1e-8
        assert (found - exact).abs().mean() <= allowed, peak


@usable
def test_gelu_is_as_near_to_float64_as_that_of_torch(native):
    x = torch.linspace(-15, 15, 100_001)[:, None]
    layer, kernels = nn.Linear(1, 1), select(native)
    with torch.inference_mode():
        layer.weight.fill_(1)
        layer.bias.zero_()
        weights = kernels.prepare(layer)
        found = kernels.linear_gelu(x, weights).double()
    exact = x.double() * torch.erfc(-x.double() / 2**0.5) / 2
    error = (found - exact).abs()
    assert error.max() <= (nn.functional.gelu(x) - exact).abs().max()
    # Also where 1 + erf has no digits left: at -5 torch is wrong by a fifth.
    assert (error / exact.abs().clamp(min=1e-30))[x > -9].max() < 1e-5


@usable
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_none_stays_in_its_text(native, value):
    qkv = torch.randn(40, 3, 2, 8, generator=torch.Generator().manual_seed(0))
    cu_seqlens = torch.tensor([0, 17, 40], dtype=torch.int32)
    kernels = select(native)
    clean = kernels.attention(qkv, cu_seqlens, 23, 0.0)
    qkv[3] = value
    found = kernels.attention(qkv, cu_seqlens, 23, 0.0)
    assert found[:17].isnan().all()
    assert torch.equal(found[17:], clean[17:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_none_shows_in_its_row(native, dtype, value):
    wide = torch.float32 if dtype == torch.int8 else dtype
    if reason := why_not(BY_NAME[native], CPU, dtype):
        pytest.skip(reason)
    kernels, layer, x = (
        select(native, dtype=dtype),
        nn.Linear(40, 33),
        torch.ones(20, 40).to(wide),
    )
    weights = kernels.prepare(layer)
    clean = kernels.linear(x, weights)
    x[3, 7] = value
    found = kernels.linear(x, weights)
    assert not found[3].isfinite().any()
    found[3] = clean[3]
    assert torch.equal(found, clean)


@usable
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(3, 5), r"x is \[3, 5\] torch.float32, expected \[tokens, 6\] torch.float32"),
        (torch.zeros(3, 6).double(), r"x is \[3, 6\] torch.float64, expected \[tokens, 6\]"),
        (torch.zeros(6), r"x is \[6\] torch.float32"),
    ],
)
def test_what_would_be_misread_is_refused(native, x, message):
    kernels, layer = select(native), nn.Linear(6, 4)
    weights = kernels.prepare(layer)
    with pytest.raises(ValueError, match=message):
        kernels.linear(x, weights)


@usable
def test_a_residual_of_another_shape_is_refused(native):
    kernels, layer, norm = select(native), nn.Linear(6, 4), nn.LayerNorm(4)
    weights = kernels.prepare(layer)
    with pytest.raises(ValueError, match=r"residual is \[2, 4\] torch.float32, expected \[3, 4\]"):
        kernels.linear_residual_norm(torch.zeros(3, 6), weights, torch.zeros(2, 4), norm, 0.0)


@usable
def test_tensors_that_are_not_contiguous(native):
    torch.manual_seed(0)
    kernels, layer = select(native), nn.Linear(6, 4)
    x, qkv = torch.randn(6, 50).T, torch.randn(2, 3, 50, 8).permute(2, 1, 0, 3)
    cu_seqlens = torch.tensor([0, 0, 0, 0, 50], dtype=torch.int32)[::4]
    expected = x @ layer.weight.T + layer.bias
    weights = kernels.prepare(layer)
    assert torch.allclose(kernels.linear(x, weights), expected, atol=1e-6)
    plain = select("plain").attention(qkv, cu_seqlens, 50, 0.0)
    assert torch.allclose(kernels.attention(qkv, cu_seqlens, 50, 0.0), plain, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize(
    "prefers", [library.BFLOAT16, library.WIDENED], ids=["instruction", "widened"]
)
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("lengths", [[1], [5, 20], [3, *[20] * 9]])
def test_all_layers_at_once_are_the_operations_one_by_one(
    native, monkeypatch, dialect, dtype, prefers, threads, lengths
):
    monkeypatch.setattr(library, "bfloat16_kind", lambda *_: prefers)  # int8's attention follows
    if reason := library.unsupported(prefers, native.split("/")[1]):
        pytest.skip(reason)
    if reason := why_not(BY_NAME[native], CPU, dtype):
        pytest.skip(reason)
    encoder = tiny_encoder(dialect).prepare_for_inference(dtype, native)
    batch = pack([[0, *range(5, 5 + n), 2] for n in lengths], encoder.config)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            x = encoder.embeddings(batch.input_ids, batch.position_ids, encoder.kernels)
            for layer in encoder.layers:
                x = layer(x, batch.cu_seqlens, batch.max_seqlen, encoder.kernels)
            assert torch.equal(encoder(batch), x)
    finally:
        torch.set_num_threads(before)


@usable
@pytest.mark.parametrize(
    ("cu_seqlens", "max_seqlen", "message"),
    [
        ([0, 4, 8], 4, "cu_seqlens goes from 0 to 8, expected it to rise from 0 to 7"),
        ([0, 4, 6], 4, "cu_seqlens goes from 0 to 6"),
        ([1, 4, 7], 4, "cu_seqlens goes from 1 to 7"),
        ([0, 9, 7], 9, "cu_seqlens goes from 0 to 7, expected it to rise"),
        ([0, 3, 7], 3, "max_seqlen is 3, but a text has 4 tokens"),
    ],
)
def test_texts_outside_of_the_tokens_are_refused(native, dialect, cu_seqlens, max_seqlen, message):
    encoder = tiny_encoder(dialect).prepare_for_inference(kernels=native)
    x, starts = torch.randn(7, encoder.config.hidden_size), torch.tensor(cu_seqlens).int()
    qkv = x.new_zeros(7, 3, 2, 8)
    with pytest.raises(ValueError, match=message):
        encoder.kernels.attention(qkv, starts, max_seqlen, 0.0)
    with pytest.raises(ValueError, match=message):
        encoder.stack(x, starts, max_seqlen)


@pytest.mark.parametrize("own", [torch.float32, torch.int8])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int8])
@usable
def test_attention_refuses_other_numbers(native, own, dtype):
    if reason := why_not(BY_NAME[native], CPU, own):
        pytest.skip(reason)
    qkv, cu_seqlens = torch.zeros(4, 3, 2, 8, dtype=dtype), torch.tensor([0, 4]).int()
    with pytest.raises(ValueError, match=rf"qkv is {dtype}, expected torch.float32"):
        select(native, dtype=own).attention(qkv, cu_seqlens, 4, 0.0)


@usable
def test_no_rows_give_none(native, dialect):
    kernels, layer, norm = select(native), nn.Linear(6, 4), nn.LayerNorm(4)
    weights = kernels.prepare(layer)
    none = torch.zeros(0, 6)
    assert kernels.linear(none, weights).shape == (0, 4)
    assert kernels.linear_residual_norm(none, weights, none[:, :4], norm, 0.0).shape == (0, 4)
    encoder = tiny_encoder(dialect).prepare_for_inference(kernels=native)
    x = torch.zeros(0, encoder.config.hidden_size)
    starts = torch.tensor([0, 0], dtype=torch.int32)
    assert encoder.stack(x, starts, 0).shape == x.shape


@usable
def test_layers_refuse_what_they_cannot_do(native, dialect):
    encoder = tiny_encoder(dialect).prepare_for_inference(kernels=native)
    batch = pack([[0, 7, 2]], encoder.config)
    with pytest.raises(ValueError, match=r"x is \[3, 5\] torch.float32, expected \[tokens, "):
        encoder.stack(torch.zeros(3, 5), batch.cu_seqlens, batch.max_seqlen)
    with pytest.raises(ValueError, match="the native kernels only infer; call eval"):
        encoder.train()(batch)


@usable
def test_threads_that_share_an_encoder_get_their_own_results(native, dialect):
    encoder = tiny_encoder(dialect).prepare_for_inference(kernels=native)
    batches = [pack([[0, *range(5, 5 + n), 2]] * (n % 7 + 1), encoder.config) for n in range(1, 40)]
    with torch.inference_mode():
        alone = [encoder(batch) for batch in batches]
    wrong = []

    def run(order):
        with torch.inference_mode():
            for i in order:
                if not torch.equal(encoder(batches[i]), alone[i]):
                    wrong.append(i)

    count = len(batches)
    orders = [range(count), range(count - 1, -1, -1), [*range(7, count), *range(7)]]
    threads = [threading.Thread(target=run, args=(list(order) * 5,)) for order in orders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@usable
def test_an_encoder_that_holds_pointers_is_not_copied(native, dialect):
    encoder = tiny_encoder(dialect).prepare_for_inference(kernels=native)
    with pytest.raises(TypeError, match="cannot be copied or pickled; load the model anew"):
        copy.deepcopy(encoder)
