"""The encoder of BERT and XLM-RoBERTa on packed batches.

Post-LayerNorm: every sublayer computes LayerNorm(x + sublayer(x)).
Sources: Vaswani et al. 2017, arXiv:1706.03762; Devlin et al. 2018, arXiv:1810.04805.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout as apply_dropout

from e5core import kernels as backends
from e5core.batching import PackedBatch
from e5core.config import EncoderConfig
from e5core.kernels import Kernels

# Standard deviation of fresh weights, BERT's initializer_range.
INITIAL_SPREAD = 0.02


class Embeddings(nn.Module):
    """Token, position and type embeddings, added and normalised."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.word = _table(config.vocab_size, config.hidden_size)
        self.position = _table(config.max_position_embeddings, config.hidden_size)
        self.token_type = _table(config.type_vocab_size, config.hidden_size)
        self.layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = config.hidden_dropout

    def forward(self, input_ids: Tensor, position_ids: Tensor, kernels: Kernels) -> Tensor:
        # Single texts are always of type 0. The order of the sum is transformers' own.
        x = self.word(input_ids) + self.token_type.weight[0] + self.position(position_ids)
        return apply_dropout(kernels.layer_norm(x, self.layer_norm), self.dropout, self.training)


class SelfAttention(nn.Module):
    """The four projections of multi-head attention, apart as they are published."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.output = nn.Linear(config.hidden_size, config.hidden_size)
        self.head_size = config.head_size
        self.hidden_dropout = config.hidden_dropout
        self.attention_dropout = config.attention_dropout

    def forward(self, x: Tensor, cu_seqlens: Tensor, max_seqlen: int, kernels: Kernels) -> Tensor:
        """x + attention(x), both [tokens, hidden_size]"""
        query, key, value = (
            kernels.linear(x, layer).unflatten(-1, (-1, self.head_size))
            for layer in (self.query, self.key, self.value)
        )  # [tokens, heads, head_size]
        context = kernels.attention(
            query, key, value, cu_seqlens, max_seqlen, self.attention_dropout * self.training
        )
        return kernels.linear_residual(
            context.flatten(1), self.output, x, self.hidden_dropout * self.training
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
        attended = self.attention(x, cu_seqlens, max_seqlen, kernels)
        attended = kernels.layer_norm(attended, self.attention_layer_norm)
        inner = kernels.linear_gelu(attended, self.intermediate)  # [tokens, intermediate_size]
        x = kernels.linear_residual(inner, self.output, attended, self.dropout * self.training)
        return kernels.layer_norm(x, self.output_layer_norm)


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
        self.kernels = backends.select(kernels)
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_hidden_layers))
        if not self.embeddings.word.weight.is_meta:
            self.apply(_initialize)

    def forward(self, batch: PackedBatch) -> Tensor:
        """The last hidden states [tokens, hidden_size] of a batch on the encoder's device."""
        x: Tensor = self.embeddings(batch.input_ids, batch.position_ids, self.kernels)
        for layer in self.layers:
            x = layer(x, batch.cu_seqlens, batch.max_seqlen, self.kernels)
        return x

    def prepare_for_inference(
        self, dtype: torch.dtype = torch.float32, kernels: str = "auto"
    ) -> "Encoder":
        """Fix dtype and kernels and switch training off; returns the encoder itself."""
        self.kernels = backends.select(kernels)
        return self.eval().requires_grad_(False).to(dtype)


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
