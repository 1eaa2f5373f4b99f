"""Weights of a checkpoint into an encoder: mapped files, one part at a time.

Only safetensors files are read: they hold tensors and nothing that could be executed.
"""

from collections.abc import Container, Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from e5core.checkpoint.contents import ADAPTER_FILE
from e5core.checkpoint.headers import (
    INT8,
    CheckpointError,
    StoredTensor,
    check_headers,
    read_headers,
)
from e5core.checkpoint.names import (
    SCALE_SUFFIX,
    WORD_EMBEDDINGS,
    head_names,
    names_by_part,
    tensor_names,
)
from e5core.config import EncoderConfig
from e5core.encoder import ClassificationHead, Embeddings, Encoder, EncoderLayer
from e5core.formats.safetensors import DTYPES_BY_NAME, open_tensors
from e5core.kernels import Kernels
from e5core.kernels.int8_rows import dequantize_rows


def load_encoder(
    config: EncoderConfig,
    stored: Mapping[str, StoredTensor],
    dtype: torch.dtype,
    device: torch.device,
    kernels: Kernels,
) -> Encoder:
    """An encoder of checked tensors, ready for inference.

    stored  as check_headers has found them to fit the config
    dtype   of the layers and their arithmetic; torch.int8 means float32 between them

    One part after another is filled, moved to the device and prepared, so that no two copies of
    all weights ever exist. Raises CheckpointError for values that are not finite; the token
    table is only mapped: such a value in it shows when its token occurs.
    """
    names_of_parts = names_by_part(config)
    # On the meta device the modules cost no memory; filling gives them the mapped file's.
    with torch.device("meta"):
        encoder = Encoder(config)
    for part, names in zip(encoder.parts(), names_of_parts, strict=True):
        fill(part, names, stored, dtype)
        part.to(device)
        part.prepare(kernels)
    return encoder.run_on(kernels)


def fill(
    part: Embeddings | EncoderLayer,
    names: Mapping[str, str],
    stored: Mapping[str, StoredTensor],
    dtype: torch.dtype,
) -> None:
    """Give a part on the meta device its weights, in the dtype of the file.

    names  published name → name in the part
    dtype  what the caller will lower the part to

    Of a file in int8 the token table keeps its integers, for torch.int8 the linear layers too;
    their scales are then a buffer of the module, `weight_scale`. Everything else is float.

    A tensor is the mapped file itself, mapped anew for each part: when the caller replaces or
    drops the part's tensors, no memory of the file stays behind.
    """
    part.requires_grad_(False)  # integers cannot
    in_layer = dtype == torch.int8 and isinstance(part, EncoderLayer)
    scales = read_scales(stored, [name for name in names if in_layer or name == WORD_EMBEDDINGS])
    for name, scale in scales.items():
        module = part.get_submodule(names[name].removesuffix(".weight"))
        module.register_buffer("weight_scale", scale, persistent=False)
    state = {}
    for name, tensor in read_weights(stored, names, integers=scales):
        if name != WORD_EMBEDDINGS:
            _check_values(stored[name], tensor, dtype)
        # Kernels replace matrices and keep vectors. A kept one must not keep the file mapped.
        state[names[name]] = tensor.clone() if tensor.dim() == 1 else tensor
    part.load_state_dict(state, assign=True)


def load_head(config: EncoderConfig, stored: Mapping[str, StoredTensor]) -> ClassificationHead:
    """The classification head of checked tensors, on the CPU, in float32 or wider.

    Raises CheckpointError for values that are not finite.
    """
    with torch.device("meta"):
        head = ClassificationHead(config)
    names, state = head_names(config), {}
    for name, tensor in read_weights(stored, names):
        _check_values(stored[name], tensor, torch.float32)
        dtype = torch.promote_types(tensor.dtype, torch.float32)
        state[names[name]] = tensor.to(dtype, copy=True)  # no view of the mapped file
    head.load_state_dict(state, assign=True)
    return head.requires_grad_(False)


def load_checkpoint(encoder: Encoder, path: str | Path) -> None:
    """Fill an encoder with published weights, in the encoder's dtype and on its device.

    encoder  elsewhere than on torch's meta device its parameters stay the same objects; on
             it they are made anew and, if the dtype is the file's, are the mapped file itself
    path     a folder with model.safetensors or its index, or one file

    All names and shapes are checked before any tensor is read, and all values before the
    encoder changes. Raises FileNotFoundError or CheckpointError.
    """
    if (Path(path) / ADAPTER_FILE).is_file():
        raise CheckpointError(
            f"{path} holds an adapter, which E5.from_pretrained merges and this does not; convert "
            "it to a whole model with: e5core convert dtype"
        )
    stored = read_headers(Path(path))
    check_headers(stored, encoder.config, path)
    names = tensor_names(encoder.config)
    parameters = encoder.state_dict()
    assign = any(parameter.is_meta for parameter in parameters.values())
    state = {}
    for name, tensor in read_weights(stored, names):
        dtype = parameters[names[name]].dtype
        _check_values(stored[name], tensor, dtype)
        state[names[name]] = tensor.to(dtype) if assign else tensor
    encoder.load_state_dict(state, assign=assign)


def read_weights(
    stored: Mapping[str, StoredTensor], names: Iterable[str], integers: Container[str] = ()
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of some published names; those in int8 as the float32 they stand for.

    integers  names of those that stay in int8
    """
    names = list(names)
    scales = read_scales(stored, [name for name in names if name not in integers])
    for name, tensor in _read_mapped(stored, names):
        yield name, dequantize_rows(tensor, scales[name]) if name in scales else tensor


def read_scales(stored: Mapping[str, StoredTensor], names: Iterable[str]) -> dict[str, Tensor]:
    """The scales [rows] of those tensors that are stored in int8, by the tensors' names."""
    owners = {name + SCALE_SUFFIX: name for name in names if stored[name].dtype == INT8}
    scales = {}
    for name, scale in _read_mapped(stored, owners):
        _check_values(stored[name], scale, torch.float32)
        if scale.min() <= 0:
            raise CheckpointError(
                f"{stored[name].file}: {stored[name].stored_name} holds {scale.min():g}, expected "
                "scales above 0; convert the model again"
            )
        scales[owners[name]] = scale.clone()  # a view would keep the whole file mapped
    return scales


def _read_mapped(
    stored: Mapping[str, StoredTensor], names: Iterable[str]
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of some published names, memory-mapped, file by file."""
    by_file = sorted(names, key=lambda name: stored[name].file)
    for file, group in groupby(by_file, key=lambda name: stored[name].file):
        with open_tensors(file) as reader:
            for name in group:
                yield name, updated(stored[name], reader.get_tensor(stored[name].stored_name))


def updated(stored: StoredTensor, tensor: Tensor) -> Tensor:
    """A tensor as it was read, with what an adapter adds to it."""
    if stored.update is None:
        return tensor
    (_, up), (_, down) = _read_mapped({"0": stored.update.up, "1": stored.update.down}, ("0", "1"))
    dtype = DTYPES_BY_NAME[stored.dtype]
    return tensor.to(dtype) + (up.to(dtype) @ down.to(dtype)) * stored.update.scale


def _check_values(stored: StoredTensor, tensor: Tensor, dtype: torch.dtype) -> None:
    """Raise CheckpointError unless all values are finite, and stay so in `dtype`."""
    file, name = stored.file, stored.stored_name
    # The extremes are NaN as soon as one value is. Unlike isfinite() and a sum in float64
    # they cost no memory (2026-11: 768 MB for the word embeddings of small).
    extremes = torch.stack(tensor.aminmax())
    if not extremes.isfinite().all():
        raise CheckpointError(f"{file}: {name} holds a NaN or an infinity; download it again")
    scaled = dtype.itemsize == 1  # what has scales of its own holds any number
    if not scaled and not extremes.to(dtype).isfinite().all():
        raise CheckpointError(
            f"{file}: {name} holds {extremes.abs().max().item():g}, too large for {dtype}; load it "
            "in float32 or bfloat16"
        )
