"""Attention in Triton against float64: on a GPU, or on CPU tensors by Triton's interpreter."""

import pytest
import torch
from support.gpu import DEVICE

from e5core.kernels import Kernels
from e5core.parity.tolerances import KERNEL_ERROR_FACTOR, KERNEL_ERROR_FLOOR

pytest.importorskip("triton", reason="triton is not installed")

from e5core.kernels.cuda.attention import LARGEST, TILES, Tile, attention, takes, tile_for

LENGTHS = [3, 70, 0, 1, 16, 200, 33, 64, 128]
KINDS = [*(tile for _, tile in TILES), LARGEST, Tile(32, 64, 2, 2)]


def texts(size, dtype=torch.float32, lengths=LENGTHS):
    generator = torch.Generator().manual_seed(size)
    qkv = 2 * torch.randn(sum(lengths), 3, 3, size, generator=generator)
    return qkv.to(DEVICE, dtype), torch.tensor([0, *lengths], device=DEVICE).cumsum(0).int()


def plain(qkv, cu_seqlens):
    """The plain kernels, which know no empty texts."""
    return Kernels().attention(qkv, cu_seqlens.unique(), max(LENGTHS), 0.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("size", [16, 32, 64])
@pytest.mark.parametrize("tile", KINDS, ids=str)
def test_it_is_as_near_to_float64_as_plain(tile, size, dtype):
    if dtype == torch.bfloat16 and DEVICE == "cpu":
        pytest.skip("Triton's interpreter (3.9) multiplies the bits of a bfloat16 as integers")
    qkv, cu_seqlens = texts(size, dtype)
    exact = plain(qkv.double(), cu_seqlens)
    error = (attention(qkv, cu_seqlens, max(LENGTHS), tile) - exact).abs().max()
    floor = KERNEL_ERROR_FLOOR[str(dtype)[6:]]
    assert error <= KERNEL_ERROR_FACTOR * (plain(qkv, cu_seqlens) - exact).abs().max() + floor


@pytest.mark.parametrize("tile", KINDS, ids=str)
def test_no_text_sees_another(tile):
    qkv, cu_seqlens = texts(32)
    changed = qkv.clone()
    changed[3:73] = torch.nan
    one, two = (attention(x, cu_seqlens, max(LENGTHS), tile) for x in (qkv, changed))
    assert torch.equal(one[:3], two[:3])
    assert torch.equal(one[73:], two[73:])
    assert two[3:73].isnan().all()


def test_scores_of_any_size():
    """The running maximum keeps exponents small: weights of one and of nothing."""
    qkv, cu_seqlens = texts(32)
    qkv[:, :2] *= 100
    found = attention(qkv, cu_seqlens, max(LENGTHS), Tile(64, 32, 4, 2))
    torch.testing.assert_close(found, plain(qkv, cu_seqlens), rtol=1e-3, atol=1e-3)


def test_tiles_are_as_small_as_texts_are():
    device = torch.device(DEVICE)
    wanted = [takes(device, torch.float16, size) for size in (8, 16, 24, 32)]
    assert wanted == [False, True, False, True]
    assert [longest for longest, _ in TILES] == sorted(longest for longest, _ in TILES)
    for longest, tile in TILES:
        assert tile_for(longest) == tile
    assert tile_for(TILES[-1][0] + 1) == LARGEST


@pytest.mark.parametrize("fault", ["raises", "wrong"])
def test_a_tile_that_fails_or_is_wrong_is_not_taken(monkeypatch, fault):
    def broken(qkv, cu_seqlens, max_seqlen, tile):
        if fault == "raises" and tile == LARGEST:
            raise RuntimeError("out of resource: shared memory")
        return attention(qkv, cu_seqlens, max_seqlen, tile) + (tile == TILES[1][1])

    monkeypatch.setattr("e5core.kernels.cuda.attention.attention", broken)
    assert not takes.__wrapped__(torch.device(DEVICE), torch.float16, 16)
