"""Write the stored references of the parity suite, with transformers alone.

    python scripts/make_reference.py tests/parity

For a tiny seeded checkpoint of each dialect (`bert`, `xlm-roberta`) a folder with the
checkpoint, a SentencePiece tokenizer trained on the project's sentences, and what transformers
computes from them in float64: ids, the keys and hidden states of every layer, pooled unit
vectors, and the gradient of a scalar with respect to every parameter. A manifest beside them
says what made them. This script never imports e5core: a reference comes from elsewhere.
"""

import argparse
import csv
import hashlib
import io
import json
import platform
import sys
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import sentencepiece
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

SENTENCES = Path(__file__).parent.parent / "e5core" / "parity" / "data" / "sentences.tsv"
SEED = 20240208  # arXiv:2402.05672 came out on that day
PIECES = 600
LONGEST = 48  # tokens; small, so that the files are
PREFIX = "query: "

# Every dimension another number, so that no two can be confused.
DIMENSIONS = {
    "vocab_size": PIECES + 10,  # more rows than ids, as in e5-small
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
}
DIALECTS = {
    "bert": transformers.BertConfig(
        **DIMENSIONS,
        max_position_embeddings=LONGEST,
        type_vocab_size=2,
        layer_norm_eps=1e-12,
        pad_token_id=0,  # as e5-small says, although it pads with 1
    ),
    "xlm-roberta": transformers.XLMRobertaConfig(
        **DIMENSIONS,
        max_position_embeddings=LONGEST + 2,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        pad_token_id=1,
    ),
}


def read_sentences() -> list[str]:
    with SENTENCES.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [row["sentence"] for row in rows]


def sample_texts() -> list[str]:
    """Texts of many lengths in every script of the collection, one over the limit."""
    sentences = read_sentences()
    return ["", "a", "no", *sentences[::23], " ".join(sentences[:4])]


def train_tokenizer(folder: Path) -> list[tuple[str, float]]:
    """A Unigram SentencePiece model with XLM-R's settings; returns its pieces for transformers.

    It leaves text as it is (no normalisation table), which keeps the file small.
    """
    # From memory to memory: a trainer that reads files writes their paths into the model.
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*read_sentences(), PREFIX.strip()] * 3),
        model_writer=model,
        model_type="unigram",
        vocab_size=PIECES - 2,  # <pad> and <mask> come on top
        character_coverage=0.98,  # so that some characters are unknown
        normalization_rule_name="identity",
        num_threads=1,
        minloglevel=2,
    )
    content = model.getvalue()
    (folder / "sentencepiece.bpe.model").write_bytes(content)
    processor = sentencepiece.SentencePieceProcessor(model_proto=content)
    pieces = [(name, 0.0) for name in ("<s>", "<pad>", "</s>", "<unk>")]
    size = processor.GetPieceSize()
    pieces += [(processor.IdToPiece(i), processor.GetScore(i)) for i in range(3, size)]
    return [*pieces, ("<mask>", 0.0)]


def spread(model: nn.Module) -> None:
    """Seeded weights under which every tensor matters, exact in float32.

    At the usual spread of 0.02 all texts get nearly the same vector. Here matrices keep the
    scale of their input, and biases and LayerNorms are away from 0 and 1.
    """
    generator = np.random.default_rng(SEED)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = generator.standard_normal(tuple(parameter.shape))
            if "LayerNorm.weight" in name:
                values = 1 + 0.3 * noise
            elif name.endswith("bias"):
                values = 0.1 * noise
            elif name.startswith("embeddings."):
                values = noise
            else:
                values = 1.5 * noise / np.sqrt(parameter.shape[-1])
            parameter.copy_(torch.from_numpy(values.astype(np.float32)))


def compute(model: nn.Module, ids: list[list[int]]) -> dict[str, Tensor]:
    """Everything that is stored, in float64, packed: the tokens of all texts end to end."""
    longest = max(map(len, ids))
    # transformers keeps the row of the config's pad id from learning. For e5-small that row is
    # <s>, which is in every text: the reference has its true gradient.
    model.embeddings.word_embeddings.padding_idx = None
    # The pad id is the tokenizer's for both dialects.
    input_ids = torch.tensor([[*text, *[1] * (longest - len(text))] for text in ids])
    mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in ids])
    keys: list[Tensor] = []
    for layer in model.encoder.layer:
        layer.attention.self.key.register_forward_hook(lambda *call: keys.append(call[2]))
    output = model(input_ids=input_ids, attention_mask=mask, output_hidden_states=True)

    def packed(states: Tensor) -> Tensor:
        return states[mask.bool()].detach().contiguous()

    weights = mask[..., None].double()
    means = (output.last_hidden_state * weights).sum(1) / weights.sum(1)
    vectors = means / means.norm(dim=1, keepdim=True)
    # A scalar to which every number of every vector contributes with a weight of its own.
    scalar = (vectors * torch.linspace(-1, 1, vectors.numel()).double().view_as(vectors)).sum()
    scalar.backward()
    tensors = {
        "input_ids": packed(input_ids),
        "cu_seqlens": torch.tensor([0, *map(len, ids)]).cumsum(0).int(),
        "vectors": vectors.detach(),
        "scalar": scalar.detach(),
    }
    for i, states in enumerate(output.hidden_states):
        tensors[f"hidden_states.{i}"] = packed(states)
    for i, states in enumerate(keys):
        tensors[f"keys.{i}"] = packed(states)
    for name, parameter in model.named_parameters():
        tensors[f"gradient.{name}"] = parameter.grad
    return tensors


def make(dialect: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pieces = train_tokenizer(folder)
    tokenizer = transformers.XLMRobertaTokenizer(vocab=pieces)
    texts = sample_texts()
    ids = tokenizer([PREFIX + text for text in texts], truncation=True, max_length=LONGEST)

    model = transformers.AutoModel.from_config(
        DIALECTS[dialect], attn_implementation="eager", add_pooling_layer=False
    ).eval()
    spread(model)
    model.save_pretrained(folder)
    save_file(
        compute(model.double(), ids["input_ids"]),
        folder / "reference.safetensors",
        # One entry: safetensors writes several in an order that changes from run to run.
        metadata={"input": json.dumps({"prefix": PREFIX, "texts": texts}, ensure_ascii=False)},
    )
    files = sorted(path for path in folder.iterdir() if path.name != "manifest.json")
    manifest = {
        "producer": "scripts/make_reference.py",
        "date": datetime.now(timezone.utc).date().isoformat(),
        "dtype": "float64, from weights in float32",
        "seed": SEED,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "sentencepiece": sentencepiece.__version__,
        },
        "sha256": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
    total = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{folder}: {len(texts)} texts, {total:,} bytes")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="gets a folder for each dialect")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the same order of additions, so the same bytes, in every run
    for dialect in DIALECTS:
        make(dialect, arguments.folder / dialect)
    return 0


if __name__ == "__main__":
    sys.exit(main())
