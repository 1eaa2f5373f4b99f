"""The encoder of BERT and XLM-RoBERTa on packed batches.

Post-LayerNorm: every sublayer computes LayerNorm(x + sublayer(x)).
Sources: Vaswani et al. 2017, arXiv:1706.03762; Devlin et al. 2018, arXiv:1810.04805.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout as apply_dropout

from e5core import kernels as backends
from e5core.batching import PackedBatch
from e5core.config import EncoderConfig
from e5core.kernels import Kernels
from e5core.kernels.int8_rows import dequantize_rows

# Standard deviation of fresh weights, BERT's initializer_range.
INITIAL_SPREAD = 0.02


class Embeddings(nn.Module):
    """Token, position and type embeddings, added and normalised."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.word = _table(config.vocab_size, config.hidden_size)
        # Of a table in int8: see quantization.py.
        self.word.register_buffer("weight_scale", None, persistent=False)
        self.position = _table(config.max_position_embeddings, config.hidden_size)
        self.token_type = _table(config.type_vocab_size, config.hidden_size)
        self.layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = config.hidden_dropout
        self.dtype: torch.dtype | None = None  # of the layers, where it is not that of the sum

    def forward(self, input_ids: Tensor, position_ids: Tensor, kernels: Kernels) -> Tensor:
        """hidden states [tokens, hidden_size] for the first layer"""
        word: Tensor = self.word.weight
        if word.dtype == torch.int8:
            word = dequantize_rows(word[input_ids], self.word.get_buffer("weight_scale")[input_ids])
            input_ids = torch.arange(len(input_ids))
        x = kernels.embed(
            input_ids,
            position_ids,
            word,
            self.position.weight,
            self.token_type.weight,
            self.layer_norm,
        )
        x = x if self.dtype is None else x.to(self.dtype)
        return apply_dropout(x, self.dropout, self.training)

    def prepare(self, dtype: torch.dtype, kernels: Kernels) -> None:
        """Kernels that only infer read the tables as they are, mapped files too, row by row.

        The rows are then added in float32 or wider and rounded once.
        """
        word = self.word.weight
        if kernels.trainable or word.device.type != "cpu":
            if word.dtype == torch.int8:
                floats = dequantize_rows(word, self.word.get_buffer("weight_scale"))
                self.word.weight = nn.Parameter(floats, requires_grad=False)
                self.word.register_buffer("weight_scale", None, persistent=False)
            self.to(dtype)
        else:
            self.layer_norm.to(torch.promote_types(dtype, torch.float32))
            self.dtype = dtype


class SelfAttention(nn.Module):
    """Multi-head attention with its residual and LayerNorm; projections apart, as published."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.output = nn.Linear(config.hidden_size, config.hidden_size)
        self.head_size = config.head_size
        self.hidden_dropout = config.hidden_dropout
        self.attention_dropout = config.attention_dropout

    def forward(
        self, x: Tensor, norm: nn.LayerNorm, cu_seqlens: Tensor, max_seqlen: int, kernels: Kernels
    ) -> Tensor:
        """norm(x + attention(x)), [tokens, hidden_size] like x"""
        qkv = kernels.linear(x, self.query, self.key, self.value)
        qkv = qkv.view(x.shape[0], 3, -1, self.head_size)  # [tokens, 3, heads, head_size]
        context = kernels.attention(
            qkv, cu_seqlens, max_seqlen, self.attention_dropout * self.training
        )
        return kernels.linear_residual_norm(
            context.flatten(1), self.output, x, norm, self.hidden_dropout * self.training
        )


class EncoderLayer(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config)
        self.attention_layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.intermediate = nn.Linear(config.hidden_size, config.intermediate_size)
        self.output = nn.Linear(config.intermediate_size, config.hidden_size)
        self.output_layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = config.hidden_dropout

    def forward(self, x: Tensor, cu_seqlens: Tensor, max_seqlen: int, kernels: Kernels) -> Tensor:
        """hidden states [tokens, hidden_size] of one layer to those of the next"""
        x = self.attention(x, self.attention_layer_norm, cu_seqlens, max_seqlen, kernels)
        inner = kernels.linear_gelu(x, self.intermediate)  # [tokens, intermediate_size]
        return kernels.linear_residual_norm(
            inner, self.output, x, self.output_layer_norm, self.dropout * self.training
        )

    def prepare(self, dtype: torch.dtype, kernels: Kernels) -> None:
        """Lower the precision and let the kernels take the weights, as `forward` calls them."""
        attention = self.attention
        for layers in (
            (attention.query, attention.key, attention.value),
            (attention.output,),
            (self.intermediate,),
            (self.output,),
        ):
            kernels.take(layers, dtype)
        for norm in (self.attention_layer_norm, self.output_layer_norm):
            norm.to(dtype)


class Encoder(nn.Module):
    """A stack of layers over packed token embeddings. Trainable as it is.

    >>> config = EncoderConfig("bert", 100, 32, 2, 4, 64, 16, 0, 2, 1e-12)
    >>> encoder = Encoder(config).eval()
    >>> encoder(pack([[0, 7, 2], [0, 8, 9, 2]], config)).shape
    torch.Size([7, 32])
    """

    def __init__(self, config: EncoderConfig, kernels: str = "auto") -> None:
        super().__init__()
        self.config = config
        self.kernels = backends.select(kernels, training=True)
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_hidden_layers))
        if not self.embeddings.word.weight.is_meta:
            self.apply(_initialize)

    @property
    def dtype(self) -> torch.dtype:
        """Of the hidden states."""
        return self.embeddings.dtype or self.embeddings.layer_norm.weight.dtype

    def forward(self, batch: PackedBatch) -> Tensor:
        """The last hidden states [tokens, hidden_size] of a batch on the encoder's device."""
        x: Tensor = self.embeddings(batch.input_ids, batch.position_ids, self.kernels)
        layers = cast(Sequence[EncoderLayer], self.layers)
        return self.kernels.layers(x, layers, batch.cu_seqlens, batch.max_seqlen)

    def parts(self) -> Iterator["Embeddings | EncoderLayer"]:
        """The embeddings, then each layer."""
        yield self.embeddings
        for layer in self.layers:
            assert isinstance(layer, EncoderLayer)
            yield layer

    def prepare_for_inference(
        self,
        dtype: torch.dtype = torch.float32,
        kernels: str | Kernels = "auto",
        parts: Iterable["Embeddings | EncoderLayer"] | None = None,
    ) -> "Encoder":
        """Fix dtype and kernels and switch training off; returns the encoder itself.

        Kernels may take the weights over in a layout of their own. The encoder then only
        runs: it cannot be trained, saved or prepared again.

        dtype    of the layers and their arithmetic; torch.int8 means float32 between them
        kernels  "auto" for the fastest that run here, or what kernels.select takes or returns
        parts    the encoder's own parts; a loader yields each as soon as it is filled, so that
                 no two copies of all weights ever exist

        Raises ValueError if the kernels of that name cannot run here, or if earlier ones hold
        the weights.
        """
        if isinstance(kernels, str):
            kernels = backends.select(kernels, self.embeddings.word.weight.device, dtype)
        self.kernels = kernels
        self.eval().requires_grad_(False)
        for part in self.parts() if parts is None else parts:
            if any(parameter.is_meta for parameter in part.parameters()):
                raise ValueError(
                    "the encoder holds no weights: it was prepared for inference before, and its "
                    "kernels have taken them; load it anew"
                )
            part.prepare(torch.float32 if dtype == torch.int8 else dtype, kernels)
        return self


def _table(rows: int, hidden_size: int) -> nn.Embedding:
    """An embedding that is not filled yet.

    nn.Embedding fills its own with normal_(), for which torch imports its compiler when it
    is on the meta device: 1.4 s of every load (torch 2.13, 2026-11).
    """
    table: nn.Embedding = nn.Embedding.from_pretrained(torch.empty(rows, hidden_size), freeze=False)
    return table


def _initialize(module: nn.Module) -> None:
    """Fresh weights as BERT starts from; biases 0, LayerNorms 1 (torch's own start)."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=INITIAL_SPREAD)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
