"""The tensors of a source on their way into a result, one at a time in memory."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from e5core.checkpoint.folder import ModelFolder
from e5core.checkpoint.headers import WEIGHTS_FILE, StoredTensor, read_headers
from e5core.checkpoint.load import updated
from e5core.checkpoint.names import SCALE_SUFFIX, task_name, tensor_shapes
from e5core.config import EncoderConfig
from e5core.formats.files import sha256
from e5core.formats.safetensors import DTYPES_BY_NAME, TensorHeader, open_tensors, write_tensors
from e5core.kernels.int8_rows import dequantize_rows
from e5core.progress import progress_bar

Read = Callable[[StoredTensor], Tensor]


@dataclass(frozen=True)
class Weights:
    """The tensors of a source under their published names, none of them in memory.

    left_out  stored names of the tensors that the result lacks: heads and buffers
    """

    headers: Mapping[str, TensorHeader]
    read: Callable[[str], Tensor]
    left_out: Sequence[str] = ()

    @property
    def size(self) -> int:
        """The bytes of all tensors together."""
        return sum(header.size for header in self.headers.values())


def is_kept(name: str, config: EncoderConfig) -> bool:
    """Whether a result has the tensor: the encoder's, that of a cross-encoder's head, and an
    encoder's pooler, as transformers expects."""
    own = name.removesuffix(SCALE_SUFFIX) in tensor_shapes(config)
    return own or (not config.num_labels and name.startswith("pooler.dense."))


def weights_of(stored: Mapping[str, StoredTensor], config: EncoderConfig, read: Read) -> Weights:
    """The tensors of a checked checkpoint that go into a result.

    read  gives a stored tensor, best mapped anew each time, so that the memory of its file
          counts only while the tensor is in use
    """
    headers = {
        name: TensorHeader(DTYPES_BY_NAME[tensor.dtype], tensor.shape)
        for name, tensor in stored.items()
        if is_kept(name, config)
    }
    left_out = [tensor.stored_name for name, tensor in stored.items() if name not in headers]
    return Weights(headers, lambda name: read(stored[name]), left_out)


def read_safetensor(tensor: StoredTensor) -> Tensor:
    """One tensor of a safetensors file, mapped."""
    with open_tensors(tensor.file) as reader:
        mapped: Tensor = reader.get_tensor(tensor.stored_name)
        return updated(tensor, mapped)


def stored_weights(folder: ModelFolder) -> Weights:
    """The weights of a folder of safetensors; those in int8 as the float32 they stand for."""
    assert folder.tensors is not None, "read with weights=False"
    stored = folder.tensors
    weights = weights_of(stored, folder.config, read_safetensor)
    integers = {name for name, header in weights.headers.items() if header.dtype == torch.int8}

    def read(name: str) -> Tensor:
        tensor = weights.read(name)
        if name in integers:
            tensor = dequantize_rows(tensor, read_safetensor(stored[name + SCALE_SUFFIX]))
        return tensor

    headers = {
        name: TensorHeader(torch.float32, header.shape) if name in integers else header
        for name, header in weights.headers.items()
        if name.removesuffix(SCALE_SUFFIX) == name
    }
    return Weights(headers, read, weights.left_out)


def stream_weights(weights: Weights, folder: Path, config: EncoderConfig) -> None:
    """Write model.safetensors, a tensor at a time; ValueError for a value that is no number.

    config  whose labels say whether the names are those of a model with a head
    """
    names = {task_name(name, config): name for name in weights.headers}
    with progress_bar(round(weights.size / 1e6), None, " MB") as advance:
        write_tensors(
            {stored_name: weights.headers[name] for stored_name, name in names.items()},
            lambda stored_name: check_finite(stored_name, weights.read(names[stored_name])),
            folder / WEIGHTS_FILE,
            lambda size: advance(size / 1e6),
        )


def check_finite(name: str, tensor: Tensor) -> Tensor:
    """Return the tensor; ValueError if one of its values is no number."""
    if not torch.stack(tensor.aminmax()).isfinite().all():
        raise ValueError(f"{name} holds a NaN or an infinity; get the source again")
    return tensor


def verify_tensors(weights: Weights, folder: Path) -> None:
    """Raise ValueError unless every tensor in the result has the source's bits."""
    stored = read_headers(folder / WEIGHTS_FILE)
    with progress_bar(round(weights.size / 1e6), None, " MB") as advance:
        for name, header in weights.headers.items():
            expected, found = weights.read(name), read_safetensor(stored[name])
            if expected.dtype != found.dtype or not torch.equal(expected, found):
                raise ValueError(f"{name} is not in the result as it is in the source")
            del expected, found
            advance(header.size / 1e6)
    print(f"verified: {len(weights.headers)} tensors, compared bit by bit")


def print_summary(folder: Path, files: Iterable[Path], tensors: int, parameters: int) -> None:
    """What was written, a line a file; `folder` is the name that the result gets."""
    print(f"{folder}: {tensors} tensors, {parameters:,} parameters")
    for file in files:
        print(f"  {file.name}: {file.stat().st_size:,} bytes, sha256 {sha256(file)}")


def summarize(weights: Weights, folder: Path) -> None:
    """print_summary of a folder that is in place, and what was left out."""
    parameters = sum(prod(header.shape) for header in weights.headers.values())
    print_summary(folder, [folder / WEIGHTS_FILE], len(weights.headers), parameters)
    if weights.left_out:
        print(f"  left out, as no part of the encoder: {', '.join(sorted(weights.left_out))}")
