"""A fairseq checkpoint of XLM-R to the layout of Hugging Face.

The source folder holds model.pt, dict.txt and sentencepiece.bpe.model, as in the archives
xlmr.base and xlmr.large. The names of old and of newer releases of fairseq are read; fairseq
itself is not needed. model.pt is a pickle: besides tensors and plain values only
argparse.Namespace is accepted, and one that brings code is refused.

    e5core convert fairseq xlmr.base xlm-roberta-base

Names and their history: upgrade_state_dict_named in fairseq/models/roberta/model.py and
fairseq/modules/multihead_attention.py of facebookresearch/fairseq.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from e5core import EncoderConfig
from e5core.checkpoint.headers import CheckpointError, StoredTensor, check_headers
from e5core.checkpoint.hub import TOKENIZER_FILES
from e5core.checkpoint.names import WORD_EMBEDDINGS, expand
from e5core.config import CONFIG_FILE
from e5core.convert.folder import copy_files, replacing_folder
from e5core.convert.weights import Weights, stream_weights, summarize, verify_tensors
from e5core.formats.files import write_json
from e5core.formats.safetensors import TensorHeader
from e5core.formats.sentencepiece import FAIRSEQ_SPECIALS, read_pieces
from e5core.formats.tokenizer_json import write_fast_tokenizer
from e5core.formats.torch_file import TorchFile, dtype_name

MODEL_FILE, DICTIONARY_FILE, SPM_FILE = "model.pt", "dict.txt", TOKENIZER_FILES[0]
PADDING = FAIRSEQ_SPECIALS.index("<pad>")

# In older releases the encoder lay in what was called the decoder.
PREFIXES = ("encoder.sentence_encoder.", "decoder.sentence_encoder.")

# fairseq's name ↔ published name. {i} runs over layers, {p} over weight and bias.
NAMES = (
    ("embed_tokens.weight", WORD_EMBEDDINGS),
    ("embed_positions.weight", "embeddings.position_embeddings.weight"),
    ("layernorm_embedding.{p}", "embeddings.LayerNorm.{p}"),
    ("layers.{i}.self_attn.q_proj.{p}", "encoder.layer.{i}.attention.self.query.{p}"),
    ("layers.{i}.self_attn.k_proj.{p}", "encoder.layer.{i}.attention.self.key.{p}"),
    ("layers.{i}.self_attn.v_proj.{p}", "encoder.layer.{i}.attention.self.value.{p}"),
    ("layers.{i}.self_attn.out_proj.{p}", "encoder.layer.{i}.attention.output.dense.{p}"),
    ("layers.{i}.self_attn_layer_norm.{p}", "encoder.layer.{i}.attention.output.LayerNorm.{p}"),
    ("layers.{i}.fc1.{p}", "encoder.layer.{i}.intermediate.dense.{p}"),
    ("layers.{i}.fc2.{p}", "encoder.layer.{i}.output.dense.{p}"),
    ("layers.{i}.final_layer_norm.{p}", "encoder.layer.{i}.output.LayerNorm.{p}"),
)
# RoBERTa has no token types; as Hugging Face writes it, it has one, of zeros.
TOKEN_TYPES = "embeddings.token_type_embeddings.weight"

# Query, key and value were one tensor in older releases, in this order.
JOINED = "self_attn.in_proj_"
PARTS = ("q_proj", "k_proj", "v_proj")


@dataclass(frozen=True)
class Place:
    """The place of a tensor in the file.

    part  0, 1 or 2 if the stored tensor joins query, key and value; None if it is one tensor
    """

    stored_name: str
    part: int | None = None

    def of(self, state: Mapping[str, Tensor]) -> Tensor:
        tensor = state[self.stored_name]
        if self.part is None:
            return tensor
        rows = len(tensor) // len(PARTS)
        return tensor[self.part * rows : (self.part + 1) * rows]


def places(state: Mapping[str, Tensor], prefix: str) -> Iterator[tuple[str, Place]]:
    """Yield each tensor of the encoder: its name in today's fairseq, unprefixed, and its place."""
    for stored_name, tensor in state.items():
        # `version` is a number that says which naming the file has.
        if not stored_name.startswith(prefix) or stored_name == prefix + "version":
            continue
        name = stored_name.removeprefix(prefix).replace("emb_layer_norm.", "layernorm_embedding.")
        if JOINED not in name:
            yield name, Place(stored_name)
            continue
        if len(tensor) % len(PARTS):
            raise CheckpointError(
                f"{stored_name} has {len(tensor)} rows, which are not query, key and value"
            )
        for part, projection in enumerate(PARTS):
            yield name.replace(JOINED, f"self_attn.{projection}."), Place(stored_name, part)


def training_settings(content: Any, path: Path) -> Mapping[str, Any]:
    """The settings of the training: `args` in older checkpoints, `cfg.model` in newer ones."""
    if isinstance(content, Mapping):
        found = content.get("args") or content.get("cfg")
        found = found.get("model") if isinstance(found, Mapping) else found
        if isinstance(found, Namespace):
            return vars(found)
        if isinstance(found, Mapping):
            return found
    raise CheckpointError(f"{path} has neither args nor cfg: it is no checkpoint of fairseq")


def read_config(arguments: Mapping[str, Any], rows: int, positions: int) -> EncoderConfig:
    """The dimensions, from the settings and the rows of the two tables."""
    # "gelu" is the exact one; "gelu_accurate" and "gelu_fast" are tanh.
    if arguments.get("activation_fn") != "gelu":
        raise ValueError(f"activation_fn is {arguments.get('activation_fn')!r}, expected 'gelu'")
    dimensions = {
        "hidden_size": "encoder_embed_dim",
        "num_hidden_layers": "encoder_layers",
        "num_attention_heads": "encoder_attention_heads",
        "intermediate_size": "encoder_ffn_embed_dim",
        "hidden_dropout_prob": "dropout",
        "attention_probs_dropout_prob": "attention_dropout",
    }
    if missing := [name for name in dimensions.values() if name not in arguments]:
        raise ValueError(f"{MODEL_FILE} does not say {', '.join(missing)}")
    length = arguments.get("max_positions") or arguments.get("tokens_per_sample")
    if positions != (length or 0) + PADDING + 1:
        raise ValueError(
            f"embed_positions has {positions} rows, expected {PADDING + 1} more than "
            f"max_positions, which is {length}"
        )
    return EncoderConfig.from_dict(
        {
            "model_type": "xlm-roberta",
            **{name: arguments[theirs] for name, theirs in dimensions.items()},
            "vocab_size": rows,
            "max_position_embeddings": positions,
            "type_vocab_size": 1,
            "layer_norm_eps": 1e-5,  # torch's own default, which fairseq leaves as it is
            "pad_token_id": PADDING,
        }
    )


def check_dictionary(source: Path, rows: int) -> None:
    """Raise ValueError unless dict.txt has the pieces of the SentencePiece model in its order.

    Then SentencePiece's piece k has the id k + 1, which is what every XLM-R tokenizer assumes.

    rows  of the token table: fairseq's four, a row a line, `<mask>`
    """
    try:
        pieces = [piece.text for piece in read_pieces((source / SPM_FILE).read_bytes())[3:]]
    except ValueError as error:
        raise ValueError(f"{SPM_FILE}: {error}") from error
    # Not splitlines(): some pieces are characters that it takes for the end of a line.
    lines = (source / DICTIONARY_FILE).read_text("utf-8").removesuffix("\n").split("\n")
    symbols = [line.rsplit(" ", 1)[0] for line in lines]  # behind it stands the count
    for k, (symbol, piece) in enumerate(zip(symbols, pieces, strict=False)):
        if symbol != piece:
            raise ValueError(
                f"line {k + 1} of {DICTIONARY_FILE} is {symbol!r}, piece {k + 3} of {SPM_FILE} is "
                f"{piece!r}: they do not belong together"
            )
    if len(symbols) != len(pieces) or rows != len(FAIRSEQ_SPECIALS) + len(symbols) + 1:
        raise ValueError(
            f"{DICTIONARY_FILE} has {len(symbols)} lines, {SPM_FILE} {len(pieces)} pieces behind "
            f"its specials and embed_tokens {rows} rows; expected are as many pieces as lines, "
            f"and {len(FAIRSEQ_SPECIALS) + 1} more rows"
        )


def find_encoder(state: Mapping[str, Tensor], path: Path) -> tuple[str, dict[str, Place]]:
    """The prefix of the encoder's names, and its tensors by their names behind it.

    Raises CheckpointError if it is another encoder than XLM-R's.
    """
    prefix = next((p for p in PREFIXES if p + "embed_tokens.weight" in state), None)
    if prefix is None:
        raise CheckpointError(
            f"{path} has no {PREFIXES[0]}embed_tokens.weight, its first names are "
            f"{sorted(state)[:3]}: it is no checkpoint of RoBERTa or XLM-R"
        )
    found = dict(places(state, prefix))
    if "layer_norm.weight" in found:
        raise CheckpointError(
            f"{path} has a LayerNorm behind its last layer, as XLM-R XL and XXL have: it "
            "normalises before each layer, e5core's encoder behind it"
        )
    if "embed_positions.weight" not in found:
        raise CheckpointError(f"{path} has no {prefix}embed_positions.weight: no learned positions")
    return prefix, found


def read_source(source: Path) -> tuple[EncoderConfig, Weights]:
    """Dimensions and tensors of a checkpoint, all of it checked but for the values."""
    path = source / MODEL_FILE
    file = TorchFile(path, allowed=[Namespace])
    arguments, stored_state = training_settings(file.content, path), file.tensors("model")
    prefix, found = find_encoder(stored_state, path)
    rows, positions = (
        len(stored_state[found[name].stored_name])
        for name in ("embed_tokens.weight", "embed_positions.weight")
    )
    config = read_config(arguments, rows, positions)
    published = expand(NAMES, config.num_hidden_layers)
    by_name = {published.get(name, prefix + name): place for name, place in found.items()}
    tensors = {name: place.of(stored_state) for name, place in by_name.items()}
    # On torch's meta device it has a shape and no numbers.
    tensors[TOKEN_TYPES] = torch.empty(
        1, config.hidden_size, dtype=tensors[WORD_EMBEDDINGS].dtype, device="meta"
    )
    by_name[TOKEN_TYPES] = Place(TOKEN_TYPES)
    stored = {
        name: StoredTensor(path, by_name[name].stored_name, tuple(t.shape), dtype_name(t))
        for name, t in tensors.items()
    }
    check_headers(stored, config, source)
    headers = {name: TensorHeader(t.dtype, tuple(t.shape)) for name, t in tensors.items()}

    def read(name: str) -> Tensor:
        if name == TOKEN_TYPES:
            return torch.zeros(headers[name].shape, dtype=headers[name].dtype)
        return by_name[name].of(file.tensors("model"))

    return config, Weights(headers, read, [n for n in stored_state if not n.startswith(prefix)])


def add_arguments(parser: ArgumentParser) -> None:
    """There are none beside those of every conversion."""


def convert(options: Namespace) -> None:
    source = Path(options.source)
    for name in (MODEL_FILE, DICTIONARY_FILE, SPM_FILE):
        if not (source / name).is_file():
            raise FileNotFoundError(f"{source} has no {name}; unpack the whole archive")
    with replacing_folder(options.folder, source, options.force) as target:
        config, weights = read_source(source)
        check_dictionary(source, config.vocab_size)
        write_json(target / CONFIG_FILE, config.to_dict())
        copy_files(source, target, [SPM_FILE])
        write_fast_tokenizer((source / SPM_FILE).read_bytes(), target, config.max_length)
        stream_weights(weights, target, config)
        if options.verify:
            verify_tensors(weights, target)
    summarize(weights, options.folder)
