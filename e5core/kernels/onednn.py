"""oneDNN on the CPU: weights packed once, products with GELU and residual fused.

The operators are those that TorchInductor emits for a frozen model; they are private to
torch, so `unavailable` tries them before anything depends on them. A text's vector has the
same bits alone, in any batch and in any order: each row of a packed product is computed in
one way whatever the number of rows, and a text's attention depends on its length alone.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from e5core.kernels.plain import PlainKernels, text_lengths

# Rows that the packed layout is chosen for: a full batch. It is no slower for one query.
ROWS = 1024

# torch's softmax takes a row in vectors of 16 float32 or 32 bfloat16 and what is left over one
# number at a time: rows of 14 take 8 times longer than rows of 16, of 63 in bfloat16 3 times
# longer than of 64 (torch 2.13, Zen 4, 2026-11). So texts are padded to these multiples inside
# attention, where padding costs least.
VECTOR = {torch.float32: 16, torch.bfloat16: 32}

# How attention is computed, by dtype: up to which length in which way and dtype. Short texts
# are faster in float32, longer ones in bfloat16; the rest takes PyTorch's fused attention.
# (e5-small and large on Zen 4: 1.1 to 2 times faster than fused attention throughout.)
WAYS = {
    torch.float32: ((64, "grouped", torch.float32),),
    torch.bfloat16: (
        (48, "grouped", torch.float32),
        (128, "grouped", torch.bfloat16),
        (512, "alone", torch.bfloat16),
    ),
}

# Numbers held at once as scores of grouped texts: 4 MB in bfloat16, which fit the cache.
MAX_SCORES = 1 << 21

# A reference path without vector instructions is hundreds of times slower than F.linear; a
# working one is never this much slower, on a busy machine either.
MAX_SLOWDOWN = 10

INFERENCE_ONLY = "dropout is not 0, but the onednn kernels only infer; call eval() first"


@dataclass(frozen=True)
class Packed:
    """The weights of layers that are called together, in oneDNN's layout."""

    weight: Tensor
    bias: Tensor


class OnednnKernels(PlainKernels):
    name = "onednn"
    devices: tuple[str, ...] = ("cpu",)
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)
    trainable = False

    def __init__(self) -> None:
        self._packed: dict[nn.Linear, Packed] = {}
        self._scratch = torch.empty(0)

    @classmethod
    def unavailable(cls, device: torch.device, dtype: torch.dtype) -> str | None:
        return probe(dtype)

    def take(self, layers: Sequence[nn.Linear], dtype: torch.dtype) -> None:
        bias = torch.cat([layer.bias.detach().to(dtype) for layer in layers])
        self._packed[layers[0]] = pack(self._gathered(layers, dtype), bias)
        for layer in layers:
            layer.to("meta")  # one copy in memory is enough

    def _gathered(self, layers: Sequence[nn.Linear], dtype: torch.dtype) -> Tensor:
        """The weights in one matrix of a dtype: one of them as it is, or a copy.

        All copies use the same memory. Freed between packed weights, each would leave a hole
        that the process keeps (2026-11: a third more memory for large).
        """
        weights = [layer.weight.detach() for layer in layers]
        if len(weights) == 1 and weights[0].dtype == dtype:
            return weights[0]
        rows, columns = sum(weight.shape[0] for weight in weights), weights[0].shape[1]
        if self._scratch.numel() < rows * columns or self._scratch.dtype != dtype:
            self._scratch = torch.empty(rows * columns, dtype=dtype)
        gathered = self._scratch[: rows * columns].view(rows, columns)
        for weight, place in zip(
            weights, gathered.split([weight.shape[0] for weight in weights]), strict=True
        ):
            place.copy_(weight)
        return gathered

    def linear(self, x: Tensor, *layers: nn.Linear) -> Tensor:
        return product(x, self._packed[layers[0]], "none")

    def linear_gelu(self, x: Tensor, layer: nn.Linear) -> Tensor:
        return product(x, self._packed[layer], "gelu")

    def linear_residual_norm(
        self, x: Tensor, layer: nn.Linear, residual: Tensor, norm: nn.LayerNorm, dropout: float
    ) -> Tensor:
        if dropout:
            raise ValueError(INFERENCE_ONLY)
        return self.layer_norm(product(x, self._packed[layer], "add", residual), norm)

    def attention(self, qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout: float) -> Tensor:
        if dropout:
            raise ValueError(INFERENCE_ONLY)
        lengths = tuple(text_lengths(cu_seqlens, max_seqlen))
        tokens, _, heads, head_size = qkv.shape
        groups = plan(lengths, heads, self.attention_dtype(qkv.dtype))
        output = qkv.new_empty(tokens, heads, head_size)
        start = 0
        for group in groups:
            attend, stop = FUNCTIONS[group.way], start + group.tokens
            attend(qkv, start, group, output[start:stop])
            start = stop
        return output

    def attention_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The entry of WAYS for hidden states of a dtype."""
        return dtype


@dataclass(frozen=True)
class Group:
    """Neighbouring texts that attention takes as one dense batch.

    way     a name in FUNCTIONS
    length  tokens of each text, padded ones included
    rows    [tokens] where the tokens go among texts · length; None if all texts are equal
    mask    [texts · heads, 1, length] 0 and -inf, in the dtype to compute in
    """

    way: str
    texts: int
    tokens: int
    length: int
    rows: Tensor | None = None
    mask: Tensor | None = None


def attend_grouped(qkv: Tensor, start: int, group: Group, output: Tensor) -> None:
    """Short texts, padded to one length, with all their scores in memory at once."""
    assert group.mask is not None
    texts, length, (_, heads, head_size) = group.texts, group.length, qkv.shape[1:]
    if group.tokens < qkv.shape[0]:
        qkv = qkv[start : start + group.tokens]
    dense = qkv.new_zeros(3, texts, heads, length, head_size, dtype=group.mask.dtype)
    if group.rows is None:
        equal = qkv.view(texts, -1, 3, heads, head_size)
        dense[:, :, :, : equal.shape[1]] = equal.permute(2, 0, 3, 1, 4)
    else:
        padded = qkv.new_zeros(texts * length, 3, heads, head_size)
        padded.index_copy_(0, group.rows, qkv)
        dense.copy_(padded.view(texts, length, 3, heads, head_size).permute(2, 0, 3, 1, 4))
    # [texts · heads, length, head_size] each
    query, key, value = dense.view(3, texts * heads, length, head_size).unbind()
    context = _softmax_attention(query, key, value, group.mask)
    context = context.view(texts, heads, length, head_size).transpose(1, 2)
    if group.rows is None:
        equal_output = output.view(texts, -1, heads, head_size)
        equal_output.copy_(context[:, : equal_output.shape[1]])
    else:
        output.copy_(context.reshape(texts * length, heads, head_size)[group.rows])


def attend_alone(qkv: Tensor, start: int, group: Group, output: Tensor) -> None:
    """One long text, read and written in place.

    The keys and values that pad it are those of the texts behind it: their weight is exactly 0.
    Were one of them not finite, both texts would be, and E5 raises for either.
    """
    assert group.mask is not None
    window = qkv[start : start + group.length]
    if window.shape[0] < group.length:
        window = F.pad(window, (0, 0, 0, 0, 0, 0, 0, group.length - window.shape[0]))
    # [heads, length, head_size] each
    query, key, value = window.to(group.mask.dtype).permute(1, 2, 0, 3).unbind()
    place = output.transpose(0, 1) if output.dtype == group.mask.dtype else None
    context = _softmax_attention(query[:, : group.tokens], key, value, group.mask, place)
    if place is None:
        output.copy_(context.transpose(0, 1))


def attend_fused(qkv: Tensor, start: int, group: Group, output: Tensor) -> None:
    """Texts of one length through PyTorch's fused attention."""
    equal = qkv[start : start + group.tokens].unflatten(0, (group.texts, -1))
    query, key, value = equal.permute(2, 0, 3, 1, 4)
    context = F.scaled_dot_product_attention(query, key, value)
    output.unflatten(0, (group.texts, -1)).copy_(context.transpose(1, 2))


FUNCTIONS = {"grouped": attend_grouped, "alone": attend_alone, "fused": attend_fused}


def _softmax_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, output: Tensor | None = None
) -> Tensor:
    """softmax(query key^T / sqrt(head_size) + mask) value on [batch, length, head_size]"""
    scale = query.shape[-1] ** -0.5
    scores = torch.baddbmm(mask, query, key.transpose(1, 2), alpha=scale)
    torch.softmax(scores, -1, out=scores)  # megabytes of fresh memory cost as much as the exp
    return torch.bmm(scores, value) if output is None else torch.bmm(scores, value, out=output)


@lru_cache(maxsize=64)
def plan(lengths: tuple[int, ...], heads: int, dtype: torch.dtype) -> tuple[Group, ...]:
    """Groups of a batch, in order; the same for each of its layers."""
    return tuple(_groups(lengths, heads, dtype))


def _groups(lengths: tuple[int, ...], heads: int, dtype: torch.dtype) -> Iterator[Group]:
    for (way, length, wide), run in groupby(lengths, key=partial(_way, dtype=dtype)):
        members = list(run)
        if way == "fused":
            yield Group(way, len(members), sum(members), length)
            continue
        most = 1 if way == "alone" else max(1, MAX_SCORES // (heads * length * length))
        for start in range(0, len(members), most):
            part = torch.tensor(members[start : start + most])
            inside = torch.arange(length) < part[:, None]  # [texts, length]
            mask = torch.zeros(inside.shape, dtype=wide).masked_fill_(~inside, -torch.inf)
            mask = mask.repeat_interleave(heads, 0)[:, None]
            equal = bool((part == part[0]).all())
            rows = None if equal else inside.flatten().nonzero().flatten()
            yield Group(way, len(part), int(part.sum()), length, rows, mask)


def _way(length: int, dtype: torch.dtype) -> tuple[str, int, torch.dtype]:
    """How the attention of a text is computed: way, length with padding, dtype of the scores.

    It depends on nothing but the text's length, so neither do the bits of the result.
    """
    for longest, way, wide in WAYS[dtype]:
        if length <= longest:
            vector = VECTOR[wide]
            return way, -(-length // vector) * vector, wide
    return "fused", length, dtype


def pack(weight: Tensor, bias: Tensor) -> Packed:
    return Packed(torch.ops.mkldnn._reorder_linear_weight(weight, ROWS), bias)


def product(x: Tensor, packed: Packed, then: str, residual: Tensor | None = None) -> Tensor:
    """x W^T + b, then "none", "gelu" (the exact one) or "add" of a residual"""
    if x.shape[0] == 1:
        # oneDNN has another routine for a single row, which adds in another order.
        doubled = None if residual is None else residual.expand(2, -1)
        return product(x.expand(2, -1), packed, then, doubled)[:1]
    linear = torch.ops.mkldnn._linear_pointwise
    output: Tensor
    if residual is None:
        output = linear(x, packed.weight, packed.bias, then, [], "none")
    else:
        output = linear.binary(x, residual, packed.weight, packed.bias, then)
    return output


@cache
def probe(dtype: torch.dtype) -> str | None:
    """Call the private operators on a small input: they must be there, right and not slow."""
    generator = torch.Generator().manual_seed(0)
    x, residual = torch.randn(2, 64, 128, generator=generator).to(dtype)
    layer, norm = nn.Linear(128, 128, dtype=dtype), nn.LayerNorm(128, dtype=dtype)
    ours = OnednnKernels()
    try:
        with torch.inference_mode():
            product = F.linear(x.double(), layer.weight.double(), layer.bias.double())
            summed = F.layer_norm(product + residual.double(), norm.normalized_shape)
            expected = torch.stack([product, F.gelu(product), summed])
            plain_seconds = fastest(lambda: F.linear(x, layer.weight, layer.bias))
            ours.take([layer], dtype)
            seconds = fastest(lambda: ours.linear(x, layer))
            found = torch.stack(
                [
                    ours.linear(x, layer),
                    ours.linear_gelu(x, layer),
                    ours.linear_residual_norm(x, layer, residual, norm, 0.0),
                ]
            )
    except (AttributeError, RuntimeError, NotImplementedError) as error:
        return f"oneDNN's packed products fail in {dtype}: {str(error).splitlines()[0]}"
    deviation = (found - expected).abs().max().item()
    if deviation > 32 * torch.finfo(dtype).eps:
        return f"oneDNN's packed products are wrong in {dtype}, by {deviation:.1g}"
    if seconds > MAX_SLOWDOWN * plain_seconds:
        return (
            f"oneDNN's packed products take {seconds / plain_seconds:.0f} times as long in {dtype}"
        )
    return None


def fastest(call: Callable[[], object], times: int = 3) -> float:
    """Seconds of the fastest of a few calls, after one to warm up."""
    call()
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
