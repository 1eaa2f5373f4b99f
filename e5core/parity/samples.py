"""Texts and weights for tests and checks.

The texts are the project's own sentences, or are made to a given length. The weights are random
and give different texts different vectors.
"""

import csv
import math
import random
from collections.abc import Sequence
from pathlib import Path

import torch

from e5core import Encoder, SentencePieceTokenizer
from e5core.encoder import ClassificationHead

DATA = Path(__file__).parent / "data"


def read_column(name: str, column: str) -> list[str]:
    with (DATA / name).open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [row[column] for row in rows]


SENTENCES = read_column("sentences.tsv", "sentence")
LANGUAGES = read_column("sentences.tsv", "language")
TOPICS = read_column("sentences.tsv", "topic")
QUERIES = read_column("queries.tsv", "query")

# `spread` walks through the texts in steps of this length. They are ordered by language and topic,
# and the step is coprime to their number (192 sentences; 208 with the queries), so that a few texts
# already have most languages and topics.
_STRIDE = 17


def spread(texts: Sequence[str], count: int) -> list[str]:
    """Take `count` texts from all over the list, or all there are; always the same ones."""
    return [texts[i * _STRIDE % len(texts)] for i in range(min(count, len(texts)))]


def text_of_length(
    tokenizer: SentencePieceTokenizer, tokens: int, prefix: str = "", seed: int = 0
) -> str:
    """Make a text in many languages with `tokens` tokens, prefix, `<s>` and `</s>` included.

    If that is less than the prefix, `<s>` and `</s>` have together, the text is empty.
    """
    generator = random.Random(seed)
    words: list[str] = []
    while tokenizer.count(prefix + " ".join(words)) < tokens:
        words += generator.choice(SENTENCES).split(" ")
    while words and tokenizer.count(prefix + " ".join(words)) > tokens:
        words.pop()
    # The rest is filled with a word that is always one token, even beside itself.
    missing = tokens - tokenizer.count(prefix + " ".join(words))
    return " ".join([*words, *["a"] * max(0, missing)])


def spread_weights(encoder: Encoder, seed: int = 0) -> Encoder:
    """Fill an encoder with random weights under which every tensor matters; returns the encoder.

    At BERT's usual spread of 0.02 all texts get nearly the same vector, and a parity test on
    those vectors proves little. Here matrices keep the scale of their input, biases are away from 0
    and LayerNorms from 1.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "layer_norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.2 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.1 * noise)
            elif name.startswith("embeddings."):
                parameter.copy_(noise)
            else:
                parameter.copy_(1.5 * noise / math.sqrt(parameter.shape[-1]))
    return encoder


def spread_head(head: ClassificationHead, seed: int = 0) -> ClassificationHead:
    """The same for a cross-encoder's head, whose logits then are tens apart; returns the head."""
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for linear, scale in ((head.dense, 1.5), (head.output, 20.0)):
            noise = torch.randn(linear.weight.shape, generator=generator)
            linear.weight.copy_(scale * noise / math.sqrt(linear.in_features))
            linear.bias.copy_(0.1 * torch.randn(linear.bias.shape, generator=generator))
    return head
