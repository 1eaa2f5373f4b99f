"""GGUF, the file that llama.cpp reads: made of a checkpoint of e5core."""

import tempfile
from pathlib import Path
from typing import Any

from e5core import EncoderConfig
from e5core.checkpoint.folder import ModelFolder
from e5core.convert.weights import stored_weights
from e5core.formats.sentencepiece import (
    CONTROL,
    FAIRSEQ_SPECIALS,
    UNKNOWN,
    Piece,
    read_charsmap,
    read_pieces,
)

SMALL_TABLES = ("position_embeddings.weight", "token_type_embeddings.weight")


def export_gguf(folder: Path, file: Path, precision: str) -> None:
    """Write what llama.cpp reads: matrices in float32, in float16, or for int8 in its Q8_0.

    llama.cpp's own converter takes e5-small for a BERT with BERT's tokenizer, since its config
    says so, and its vectors then mean nothing. This writes the vocabulary as that converter does
    for XLM-R ("t5", llama.cpp's name for Unigram), the names of the tensors by its own table, and
    positions that count from 0.
    """
    import gguf
    from gguf.quants import quantize

    kinds = gguf.GGMLQuantizationType
    kind = {"float32": kinds.F32, "float16": kinds.F16, "int8": kinds.Q8_0}[precision]
    source = ModelFolder.read(folder)
    config, weights = source.config, stored_weights(source)
    with tempfile.TemporaryDirectory(dir=file.parent) as temporary:
        writer = gguf.GGUFWriter(Path(temporary) / file.name, "bert")
        writer.add_context_length(config.max_length)
        writer.add_embedding_length(config.hidden_size)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_block_count(config.num_hidden_layers)
        writer.add_head_count(config.num_attention_heads)
        writer.add_layer_norm_eps(config.layer_norm_eps)
        writer.add_causal_attention(False)
        writer.add_pooling_type(gguf.PoolingType.MEAN)
        add_vocabulary(writer, folder / "sentencepiece.bpe.model", config)
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, config.num_hidden_layers)
        for name in weights.headers:
            values = weights.read(name).float().numpy()
            if name.endswith("position_embeddings.weight"):
                values = values[config.first_position :]
            # As llama.cpp's converter has it, vectors and small tables stay in float32.
            is_small = values.ndim == 1 or name.endswith(SMALL_TABLES)
            of_name = kinds.F32 if is_small else kind
            if of_name == kinds.Q8_0 and values.shape[1] % 32:
                of_name = kinds.F16
            theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
            writer.add_tensor(theirs, quantize(values, of_name), raw_dtype=of_name)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        (Path(temporary) / file.name).replace(file)


def add_vocabulary(writer: Any, model: Path, config: EncoderConfig) -> None:
    """The pieces by model id, and what the tokenizer does with a text."""
    import gguf

    content = model.read_bytes()
    pieces = [Piece(text, 0.0, CONTROL) for text in FAIRSEQ_SPECIALS[:3]]
    pieces += [Piece(FAIRSEQ_SPECIALS[3], 0.0, UNKNOWN), *read_pieces(content)[3:]]
    unused = int(gguf.TokenType.UNUSED)
    pieces += [Piece(f"[PAD{i}]", -10000.0, unused) for i in range(len(pieces), config.vocab_size)]
    writer.add_tokenizer_model("t5")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([piece.text for piece in pieces])
    writer.add_token_scores([piece.score for piece in pieces])
    writer.add_token_types([piece.kind for piece in pieces])
    writer.add_token_type_count(config.type_vocab_size)
    writer.add_precompiled_charsmap(read_charsmap(content))
    writer.add_add_space_prefix(True)
    writer.add_remove_extra_whitespaces(True)
    writer.add_bos_token_id(0)
    writer.add_pad_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_sep_token_id(2)
    writer.add_unk_token_id(3)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(True)
