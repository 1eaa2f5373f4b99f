"""Change the precision of a model's weights: float32, bfloat16, float16 or int8, and back.

    e5core convert dtype MODEL FOLDER --dtype int8

int8 takes a quarter of float32: multilingual-e5-large 0.6 GB instead of 2.2. The token table
and the matrices of the linear layers become I8 tensors [rows, columns] under their own names;
beside each lies NAME_scale, F32 [rows], and value = scale · integer. All else is F32. In
config.json model_type is "e5core-int8", by which other libraries refuse the folder rather than
take the integers for weights, and encoder_type what model_type was. e5core loads the folder as it
is, and computes in int8 unless it is told otherwise.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from e5core.checkpoint.folder import ModelFolder
from e5core.checkpoint.names import SCALE_SUFFIX, WORD_EMBEDDINGS
from e5core.checkpoint.options import DTYPES
from e5core.config import CONFIG_FILE, INT8_MODEL_TYPE
from e5core.convert.folder import replacing_folder
from e5core.convert.settings import copy_settings, copy_tokenizer_files
from e5core.convert.weights import Weights, check_finite, stored_weights, stream_weights, summarize
from e5core.formats.files import read_json_object, write_json
from e5core.formats.safetensors import TensorHeader
from e5core.kernels.int8_rows import quantize_rows
from e5core.parity.against_copy import against_copy
from e5core.parity.cases import table

TARGETS = {name: DTYPES[name] for name in ("float32", "bfloat16", "float16", "int8")}
BLOCK_ROWS = 1 << 14  # of the token table, which is quantised in blocks to save memory


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--dtype", required=True, choices=TARGETS, help="of the result")


def convert(options: Namespace) -> None:
    model = ModelFolder.open(options.source)
    source, weights = model.path, stored_weights(model)
    result = convert_weights(weights, TARGETS[options.dtype])
    with replacing_folder(options.folder, source, options.force) as folder:
        stream_weights(result, folder, model.config)
        write_config_in(options.dtype, model.config_file, folder)
        copy_tokenizer_files(model, folder)
        copy_settings(model, folder)
        if options.verify:
            verify_copy(folder, options.source, options.dtype)
    summarize(result, options.folder)
    share = result.size / weights.size
    print(f"  {result.size / 1e6:,.0f} MB of weights, {share:.0%} of the source's")


def convert_weights(weights: Weights, dtype: torch.dtype) -> Weights:
    """The same weights in another precision.

    `read` raises ValueError naming a tensor with a number that the new dtype does not hold.
    """
    headers: dict[str, TensorHeader] = {}
    for name, header in weights.headers.items():
        if dtype != torch.int8:
            headers[name] = TensorHeader(dtype, header.shape)
        elif is_quantized(name, header):
            headers[name] = TensorHeader(torch.int8, header.shape)
            headers[name + SCALE_SUFFIX] = TensorHeader(torch.float32, header.shape[:1])
        else:
            headers[name] = TensorHeader(torch.float32, header.shape)

    def read(name: str) -> Tensor:
        if headers[name].dtype == torch.int8:
            return torch.cat([q for q, _ in quantize_blocks(weights, name)])
        if name not in weights.headers:
            name = name.removesuffix(SCALE_SUFFIX)
            return torch.cat([scales for _, scales in quantize_blocks(weights, name)])
        return to_dtype(name, weights.read(name), headers[name].dtype)

    return Weights(headers, read, weights.left_out)


def is_quantized(name: str, header: TensorHeader) -> bool:
    """Whether int8 has the tensor in integers: the token table and what linear layers multiply."""
    in_layer = name.startswith("encoder.")  # the head of a cross-encoder stays in float32
    return name == WORD_EMBEDDINGS or (in_layer and len(header.shape) == 2)


def quantize_blocks(weights: Weights, name: str) -> Iterator[tuple[Tensor, Tensor]]:
    """The integers and scales of a matrix, some rows at a time."""
    for rows in weights.read(name).split(BLOCK_ROWS):
        yield quantize_rows(check_finite(name, rows).float())


def to_dtype(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Round a tensor; ValueError names it if it holds a number that the dtype does not."""
    extremes = torch.stack(tensor.aminmax())
    if extremes.isfinite().all() and not extremes.to(dtype).isfinite().all():
        raise ValueError(
            f"{name} holds {extremes.abs().max().item():g}, but {dtype} ends at "
            f"{torch.finfo(dtype).max:g}; take bfloat16, which has float32's range"
        )
    return tensor.to(dtype)


def write_config_in(dtype: str, source: Path, folder: Path) -> None:
    """A source's config.json, but for what it says about precision."""
    content = read_json_object(source)
    content["model_type"] = content.pop("encoder_type", content["model_type"])
    for key in ("dtype", "torch_dtype"):  # the one of transformers 5, the other of 4
        if key in content:
            content[key] = "float32" if dtype == "int8" else dtype
    if dtype == "int8":
        content["encoder_type"], content["model_type"] = content["model_type"], INT8_MODEL_TYPE
    write_json(folder / CONFIG_FILE, content)


def verify_copy(folder: Path, source: str, dtype: str) -> None:
    """Raise ValueError unless texts have the source's vectors, or pairs its scores, as far as the
    dtype allows."""
    result = "int8" if dtype == "int8" else "float32"  # of the arithmetic
    cases = list(against_copy(str(folder), source, result, "float32", bounds=dtype))
    print(table(cases))
    if not all(case.ok for case in cases):
        raise ValueError(f"in {dtype} the outputs are too far from the source's")
