"""The encoder of BERT and XLM-RoBERTa on packed batches.

Post-LayerNorm: every sublayer computes LayerNorm(x + sublayer(x)).
Sources: Vaswani et al. 2017, arXiv:1706.03762; Devlin et al. 2018, arXiv:1810.04805.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout as apply_dropout

from e5core.batching import PackedBatch
from e5core.config import EncoderConfig
from e5core.kernels import Kernels, select
from e5core.kernels.forking import one_thread_if_forked
from e5core.kernels.int8_rows import dequantize_rows
from e5core.kernels.plain import LayerWeights, Pause, Prepared, Stack, go_on, only_infer

# Standard deviation of fresh weights, BERT's initializer_range.
INITIAL_SPREAD = 0.02


class Embeddings(nn.Module):
    """Token, position and type embeddings, added and normalised."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.word = _table(config.vocab_size, config.hidden_size)
        # The scales of a table in int8: see kernels/int8_rows.py.
        self.word.register_buffer("weight_scale", None, persistent=False)
        self.position = _table(config.max_position_embeddings, config.hidden_size)
        self.token_type = _table(config.type_vocab_size, config.hidden_size)
        self.layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = config.hidden_dropout
        self.layers_dtype: torch.dtype | None = None  # that layers get; None: that of the sum

    def forward(self, input_ids: Tensor, position_ids: Tensor, kernels: Kernels) -> Tensor:
        """hidden states [tokens, hidden_size] for the first layer"""
        word: Tensor = self.word.weight
        if word.dtype == torch.int8:
            word = dequantize_rows(word[input_ids], self.word.get_buffer("weight_scale")[input_ids])
            input_ids = torch.arange(len(input_ids))
        tables = word, self.position.weight, self.token_type.weight
        x = kernels.embed(input_ids, position_ids, *tables, self.layer_norm)
        x = x if self.layers_dtype is None else x.to(self.layers_dtype)
        return apply_dropout(x, self.dropout, self.training)

    def prepare(self, kernels: Kernels) -> None:
        """Give the tables to kernels, which read them row by row as they are, mapped files too,
        if they only infer on a CPU.

        The rows are then added in float32 or wider and rounded once.
        """
        word, dtype = self.word.weight, kernels.hidden_dtype
        if kernels.trainable or word.device.type != "cpu":
            if word.dtype == torch.int8:
                floats = dequantize_rows(word, self.word.get_buffer("weight_scale"))
                self.word.weight = nn.Parameter(floats, requires_grad=False)
                self.word.register_buffer("weight_scale", None, persistent=False)
            self.to(dtype)
        else:
            self.layer_norm.to(torch.promote_types(dtype, torch.float32))
            self.layers_dtype = dtype


class SelfAttention(nn.Module):
    """The projections of multi-head attention, apart as they are published."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size)


class EncoderLayer(nn.Module):
    """Attention, then a feed-forward network, each with its residual and LayerNorm.

    The modules hold the weights as published. `weights` holds what the kernels multiply by: the
    modules themselves until `prepare` is called.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config.hidden_size)
        self.attention_layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.intermediate = nn.Linear(config.hidden_size, config.intermediate_size)
        self.output = nn.Linear(config.intermediate_size, config.hidden_size)
        self.output_layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.head_size = config.head_size
        self.hidden_dropout = config.hidden_dropout
        self.attention_dropout = config.attention_dropout
        self.weights = self._gather(*self._linears())

    def forward(
        self,
        x: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        kernels: Kernels,
        first_only: bool = False,
    ) -> Tensor:
        """hidden states [tokens, hidden_size] of one layer to those of the next

        first_only  give those [texts, hidden_size] of each text's first token alone
        """
        weights = self.weights
        hidden_dropout = self.hidden_dropout if self.training else 0.0
        attention_dropout = self.attention_dropout if self.training else 0.0

        qkv = kernels.linear(x, weights.qkv)
        qkv = qkv.view(x.shape[0], 3, -1, self.head_size)  # [tokens, 3, heads, head_size]
        context = kernels.attention(qkv, cu_seqlens, max_seqlen, attention_dropout).flatten(1)
        if first_only:  # the others were of use as keys and values
            first = cu_seqlens[:-1].long()
            x, context = x[first], context[first]
        x = kernels.linear_residual_norm(
            context, weights.attention_output, x, weights.attention_norm, hidden_dropout
        )
        return kernels.feed_forward(
            x, weights.intermediate, weights.output, weights.output_norm, hidden_dropout
        )

    def prepare(self, kernels: Kernels) -> None:
        """Take from the kernels what they multiply by, one product after another."""
        prepared = []
        for linears in self._linears():
            prepared.append(kernels.prepare(*linears))
            if not kernels.trainable:
                for linear in linears:
                    linear.to("meta")  # one copy in memory is enough
        for norm in (self.attention_layer_norm, self.output_layer_norm):
            norm.to(kernels.hidden_dtype)
        self.weights = self._gather(*prepared)

    def _linears(self) -> tuple[tuple[nn.Linear, ...], ...]:
        """The linears of each product, in the order of `forward`."""
        attention = self.attention
        return (
            (attention.query, attention.key, attention.value),
            (attention.output,),
            (self.intermediate,),
            (self.output,),
        )

    def _gather(self, *prepared: Prepared) -> LayerWeights:
        qkv, attention_output, intermediate, output = prepared
        norms = self.attention_layer_norm, self.output_layer_norm
        return LayerWeights(qkv, attention_output, norms[0], intermediate, output, norms[1])


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
        self.kernels = select(kernels, training=True)
        # All layers in one call, and all but the last, where the kernels have that.
        self.stack: Stack | None = None
        self.stack_before_last: Stack | None = None
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_hidden_layers))
        if not self.embeddings.word.weight.is_meta:
            self.apply(_initialize)

    @property
    def device(self) -> torch.device:
        """Where the token table is, and batches are to be."""
        return self.embeddings.word.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the hidden states."""
        return self.embeddings.layers_dtype or self.embeddings.layer_norm.weight.dtype

    def forward(self, batch: PackedBatch, first_only: bool = False, pause: Pause = go_on) -> Tensor:
        """The last hidden states [tokens, hidden_size] of a batch on the encoder's device.

        first_only  give those [texts, hidden_size] of first tokens alone: the last layer has less
        pause       called after each layer, except by kernels that cannot wait

        Raises ValueError in training mode on kernels that only infer.
        """
        if self.training and not self.kernels.trainable:
            raise ValueError(f"the encoder is in training mode, but {only_infer(self.kernels)}")
        one_thread_if_forked()
        x: Tensor = self.embeddings(batch.input_ids, batch.position_ids, self.kernels)
        place = batch.cu_seqlens, batch.max_seqlen
        stack = self.stack_before_last if first_only else self.stack
        if stack is not None:
            x = stack(x, *place, pause)
        else:
            for layer in islice(self.layers, len(self.layers) - first_only):
                x = layer(x, *place, self.kernels)
                pause()
        return self.layers[-1](x, *place, self.kernels, first_only=True) if first_only else x

    def parts(self) -> Iterator[Embeddings | EncoderLayer]:
        """The embeddings, then each layer."""
        yield self.embeddings
        yield from cast(Sequence[EncoderLayer], self.layers)

    def prepare_for_inference(
        self, dtype: torch.dtype = torch.float32, kernels: str | Kernels = "auto"
    ) -> "Encoder":
        """Fix dtype and kernels and switch training off; returns the encoder itself.

        Kernels may take the weights over in a layout of their own. The encoder then only
        runs: it cannot be trained, saved or prepared again.

        dtype    of the layers and their arithmetic; torch.int8 means float32 between them. Kernels
                 that are no name bring their own
        kernels  "auto" for the fastest that run here, or what kernels.select takes or returns

        Raises ValueError if such kernels cannot run here, or if earlier ones hold the weights.
        """
        if isinstance(kernels, str):
            kernels = select(kernels, self.device, dtype, scores=self.config.num_labels > 0)
        if any(parameter.is_meta for parameter in self.parameters()):
            raise ValueError(
                "the encoder holds no weights: it was prepared for inference before, and its "
                "kernels have taken them; load it anew"
            )
        self.requires_grad_(False)
        for part in self.parts():
            part.prepare(kernels)
        return self.run_on(kernels)

    def run_on(self, kernels: Kernels) -> "Encoder":
        """Run on kernels that have prepared every part, without training; returns the encoder.

        A loader prepares each part as soon as it is filled and then calls this, so that no two
        copies of all weights ever exist.
        """
        self.eval().requires_grad_(False)
        self.kernels = kernels
        layers = list(cast(Sequence[EncoderLayer], self.layers))
        self.stack = kernels.stack(layers)
        self.stack_before_last = kernels.stack(layers[:-1]) if layers[1:] else None
        return self


class ClassificationHead(nn.Module):
    """Logits from the states of the first tokens: output(tanh(dense(x))).

    Both dialects have it, under other names. It computes in float32 or wider, since logits that
    are rounded tie.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.output = nn.Linear(config.hidden_size, config.num_labels)
        self.dropout = config.hidden_dropout
        self.kernels = Kernels()
        self.weights: tuple[Prepared, Prepared] = ((self.dense,), (self.output,))

    def forward(self, x: Tensor) -> Tensor:
        """logits [texts, num_labels] of x [texts, hidden_size]"""
        dense, output = self.weights
        x = apply_dropout(x.to(self.kernels.dtype), self.dropout, self.training)
        x = self.kernels.linear(x, dense).tanh()
        return self.kernels.linear(apply_dropout(x, self.dropout, self.training), output)

    def prepare(self, kernels: Kernels) -> None:
        """Compute on kernels like these, or on plain ones where they have nothing so wide."""
        wide = torch.promote_types(kernels.hidden_dtype, torch.float32)
        backend = type(kernels) if wide in kernels.dtypes else Kernels
        self.kernels = backend(wide).for_scores()
        self.weights = self.kernels.prepare(self.dense), self.kernels.prepare(self.output)


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
