"""What the conversions share: a target that appears whole, tensors that are written one at a time
and compared afterwards, files that travel along, a summary."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from e5core.checkpoint.folder import ModelFolder
from e5core.checkpoint.headers import (
    WEIGHTS_FILE,
    StoredTensor,
    read_headers,
)
from e5core.checkpoint.names import SCALE_SUFFIX, tensor_names
from e5core.checkpoint.sentence_transformers import LIMIT_FILE, MODULES_FILE, PROMPTS_FILE
from e5core.config import CONFIG_FILE, EncoderConfig
from e5core.formats.files import lock_folder, read_json_object, sha256, write_json
from e5core.formats.safetensors import DTYPES_BY_NAME, TensorHeader, open_tensors, write_tensors
from e5core.kernels.int8_rows import dequantize_rows
from e5core.progress import progress_bar

# What a model folder holds beside config and weights, and sentence-transformers' files among it.
TOKENIZER_PATTERNS = (
    "sentencepiece.bpe.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
SENTENCE_TRANSFORMERS_PATTERNS = (
    MODULES_FILE,
    LIMIT_FILE,
    PROMPTS_FILE,
    "*_Pooling/config.json",
    "*_Normalize/config.json",
)


@contextmanager
def replacing_folder(folder: Path, source: Path, force: bool) -> Iterator[Path]:
    """Yield a new folder beside `folder` that takes its name if the block succeeds.

    What a killed run has left beside the target is cleared away; while that run lives, another
    one for the same target is refused. Raises FileExistsError before any work if `folder` holds
    anything and is not to be replaced, or is no model's folder, or holds the source.
    """
    folder = folder.resolve()
    temporary = folder.with_name(f".{folder.name}.partial")
    old = folder.with_name(f".{folder.name}.old")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(temporary, folder):
        if old.exists() and not folder.exists():  # killed between the two renames below
            old.rename(folder)
        _check_target(folder, source.resolve(), force)
        try:
            yield temporary
            if folder.exists():
                shutil.rmtree(old, ignore_errors=True)
                folder.rename(old)
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            if folder.exists():
                shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _locked(temporary: Path, folder: Path) -> Iterator[None]:
    """Make a new folder, once nobody else can be at work on it."""
    with suppress(FileExistsError):
        temporary.mkdir()
    with lock_folder(temporary) as ours:
        if not ours:
            raise FileExistsError(
                f"another process is writing {folder}; wait for it, or name another folder"
            )
        for left in temporary.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        try:
            yield
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _check_target(folder: Path, source: Path, force: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is there and is not a folder; name another one")
    if folder.is_dir() and any(folder.iterdir()):
        if folder in (source, *source.parents):
            raise FileExistsError(f"{folder} holds the source; name another folder for the result")
        if not force:
            raise FileExistsError(f"{folder} is there already; pass --force to replace it")
        if not (folder / CONFIG_FILE).is_file():
            raise FileExistsError(
                f"{folder} has no {CONFIG_FILE}, so it is no model and is not replaced; remove it "
                "or name another one"
            )


def copy_files(source: Path, target: Path, patterns: Iterable[str]) -> None:
    """Copy the files of a folder that match any of the patterns, under the same names."""
    for pattern in patterns:
        for file in source.glob(pattern):
            copy = target / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)


def write_config(source: Path, target: Path) -> None:
    """The source's config.json, with the encoder's own type and the precision of e5core."""
    content = read_json_object(source / CONFIG_FILE)
    content["model_type"] = content.pop("encoder_type", content["model_type"])
    # Where nothing is said, transformers computes in the precision of the file.
    content.pop("torch_dtype", None)
    write_json(target / CONFIG_FILE, {**content, "dtype": "float32"})


@dataclass(frozen=True)
class Weights:
    """The tensors of a source under their published names, none of them in memory.

    left_out  stored names of what the result does not take along: heads and buffers
    """

    headers: Mapping[str, TensorHeader]
    read: Callable[[str], Tensor]
    left_out: Sequence[str] = ()

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(header.size for header in self.headers.values())


def taken(name: str, config: EncoderConfig) -> bool:
    """Whether a result has the tensor: the encoder's, and a pooler, as transformers expects."""
    own = name.removesuffix(SCALE_SUFFIX) in tensor_names(config)
    return own or name.startswith("pooler.dense.")


def weights_of(stored: Mapping[str, StoredTensor], config: EncoderConfig, read: "Read") -> Weights:
    """What of some checked tensors goes into a result.

    read  gives a stored tensor, best mapped anew each time, so that the memory of its file
          counts only while the tensor is in use
    """
    headers = {
        name: TensorHeader(DTYPES_BY_NAME[tensor.dtype], tensor.shape)
        for name, tensor in stored.items()
        if taken(name, config)
    }
    left_out = [tensor.stored_name for name, tensor in stored.items() if name not in headers]
    return Weights(headers, lambda name: read(stored[name]), left_out)


Read = Callable[[StoredTensor], Tensor]


def read_safetensor(tensor: StoredTensor) -> Tensor:
    """One tensor of a safetensors file, mapped."""
    with open_tensors(tensor.file) as reader:
        mapped: Tensor = reader.get_tensor(tensor.stored_name)
        return mapped


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


def write_weights(weights: Weights, folder: Path) -> None:
    """Write model.safetensors with a progress bar; ValueError for a value that is no number."""
    with progress_bar(round(weights.size / 1e6), None, " MB") as advance:
        write_tensors(
            weights.headers,
            lambda name: finite(name, weights.read(name)),
            folder / WEIGHTS_FILE,
            lambda size: advance(size / 1e6),
        )


def finite(name: str, tensor: Tensor) -> Tensor:
    """The tensor itself; ValueError if one of its values is no number."""
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
