"""The tensors of a checkpoint and all their faults, read from the headers of its files alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from e5core.checkpoint.names import (
    CLASSIFIER,
    IGNORED,
    OLD_SUFFIXES,
    PREFIXES,
    SCALE_SUFFIX,
    WORD_EMBEDDINGS,
    tensor_shapes,
)
from e5core.config import EncoderConfig
from e5core.formats.files import read_json_object
from e5core.formats.safetensors import open_tensors
from e5core.kernels.forking import one_thread_if_forked

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
FAULTS_SHOWN = 12  # a config of another model has hundreds

# The dtypes that a weight may be stored in, under safetensors' names. Other integers and 8-bit
# floats are quantised in ways that nothing in the file tells; int8 with its scales is ours.
STORED_DTYPES = ("F16", "BF16", "F32", "F64")
INT8 = "I8"


class CheckpointError(ValueError):
    """A checkpoint that is not what its config says, with every fault in one message."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, as the file's header describes it.

    update  what an adapter adds to it when it is read
    """

    file: Path
    stored_name: str
    shape: tuple[int, ...]
    dtype: str
    update: "LowRank | None" = None


@dataclass(frozen=True)
class LowRank:
    """A matrix scale · up · down, as LoRA keeps what it changes about a weight.

    up    [outputs, rank]
    down  [rank, inputs]
    """

    up: StoredTensor
    down: StoredTensor
    scale: float


def weight_files(path: Path) -> tuple[list[Path], dict[str, str]]:
    """The safetensors files of a checkpoint, a file or those of a folder, which may be split.

    returns  the files, and which of them the index says each stored name lies in

    Raises FileNotFoundError saying what is missing, CheckpointError if the index is at fault.
    """
    if path.is_file():
        return [path], {}
    if (path / WEIGHTS_FILE).is_file():
        return [path / WEIGHTS_FILE], {}
    if (path / INDEX_FILE).is_file():
        return shards(path / INDEX_FILE)
    if not path.is_dir():
        raise FileNotFoundError(f"{path} does not exist; give a folder with {WEIGHTS_FILE}")
    way_out = "download the whole model again"
    if others := ", ".join(sorted(file.name for file in path.glob("*.bin"))):
        way_out = f"{others} may hold code and is never loaded: convert it to safetensors"
    raise FileNotFoundError(f"{path} has no {WEIGHTS_FILE} and no {INDEX_FILE}; {way_out}")


def shards(index: Path) -> tuple[list[Path], dict[str, str]]:
    """The files that an index names, and which of them each stored name lies in.

    Raises CheckpointError if the index is none or names a file elsewhere than beside it,
    FileNotFoundError if one of its files is missing.
    """
    try:
        weight_map = read_json_object(index).get("weight_map")
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{index} has no weight_map that names files beside it; download the whole model again"
        )
    for name, file in weight_map.items():
        # Nothing outside the folder is read, whatever an index says.
        if not isinstance(file, str) or not file or Path(file).name != file:
            raise CheckpointError(
                f"{index} puts {name} in {file!r}, expected the name of a file beside the index"
            )
    files = [index.with_name(name) for name in sorted(set(weight_map.values()))]
    if missing := [file.name for file in files if not file.is_file()]:
        raise FileNotFoundError(
            f"{index} names {', '.join(missing)}, which {index.parent} does not hold; "
            "download the whole model again"
        )
    return files, weight_map


def read_headers(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a checkpoint under their published names, read from the headers alone.

    path  a folder with model.safetensors or its index, or one file

    Raises FileNotFoundError if a file is missing, CheckpointError if one is truncated or not
    safetensors, if a tensor is there twice or not in the file that the index says.
    """
    one_thread_if_forked()  # whoever reads headers computes with the weights next
    files, weight_map = weight_files(path)
    tensors = [tensor for file in files for tensor in read_tensors(file)]
    for tensor in tensors:
        name, file = tensor.stored_name, tensor.file
        if weight_map.get(name, file.name) != file.name:
            raise CheckpointError(
                f"{name} is in {file}, but {INDEX_FILE} says {weight_map[name]}: the files "
                "are not of one checkpoint; download the whole model again"
            )
    return by_published_name(tensors, ", ".join(map(str, files)))


def read_tensors(file: Path) -> list[StoredTensor]:
    """All tensors of one file; CheckpointError if it is truncated or no safetensors."""
    with _open(file) as reader:
        slices = {name: reader.get_slice(name) for name in reader.keys()}  # noqa: SIM118
        return [
            StoredTensor(file, name, tuple(header.get_shape()), header.get_dtype())
            for name, header in slices.items()
        ]


def by_published_name(tensors: Sequence[StoredTensor], source: str) -> dict[str, StoredTensor]:
    """Stored tensors under their published names: no task model's prefix, no gamma and beta.

    Raises CheckpointError if they are of another architecture, or if one is there twice.
    """
    names = {tensor.stored_name for tensor in tensors}
    prefix = next((p for p in PREFIXES if p + WORD_EMBEDDINGS in names), None)
    if prefix is None:
        raise CheckpointError(
            f"{source}: no tensor is named {WORD_EMBEDDINGS}, alone or after "
            f"{' or '.join(filter(None, PREFIXES))}; the first names are {sorted(names)[:3]}: "
            "this is not a BERT or XLM-RoBERTa checkpoint"
        )
    stored: dict[str, StoredTensor] = {}
    for tensor in tensors:
        other = stored.setdefault(_published_name(tensor.stored_name, prefix), tensor)
        if other is not tensor:
            raise CheckpointError(
                f"{other.stored_name} in {other.file} and {tensor.stored_name} in {tensor.file} "
                "are the same tensor; keep one of them"
            )
    return stored


def _published_name(name: str, prefix: str) -> str:
    """The published name of a stored one: no task model's prefix, and today's suffix."""
    name = name.removeprefix(prefix)
    for old, new in OLD_SUFFIXES.items():
        if name.endswith("LayerNorm" + old):
            return name.removesuffix(old) + new
    return name


def check_headers(
    stored: Mapping[str, StoredTensor], config: EncoderConfig, source: str | Path
) -> None:
    """Raise one CheckpointError that counts all missing, unexpected, misshapen and untyped tensors
    and names the first of them.

    source  what the error calls the checkpoint
    """
    shapes = tensor_shapes(config)
    faults = [f"missing: {name}" for name in shapes if name not in stored]
    in_int8 = (name for name in shapes if name in stored and stored[name].dtype == INT8)
    scales = {name + SCALE_SUFFIX for name in in_int8}
    # What else a head has would change its scores.
    ignored = tuple(start for start in IGNORED if not config.num_labels or start != CLASSIFIER)
    for name, tensor in stored.items():
        if name in shapes:
            faults += _faults(name, tensor, shapes[name], stored.get(name + SCALE_SUFFIX))
        elif name not in scales and not name.startswith(ignored):
            faults.append(f"unexpected: {tensor.stored_name}")
    if faults:
        shown = "; ".join(faults[:FAULTS_SHOWN]) + ("; …" if len(faults) > FAULTS_SHOWN else "")
        raise CheckpointError(
            f"{source} does not fit its config.json: {shown} ({len(faults)} faults); "
            "config and weights must come from one model"
        )


def _faults(
    name: str, tensor: StoredTensor, expected: tuple[int, ...], scales: StoredTensor | None
) -> list[str]:
    """The faults in the shape and the dtype of one tensor of the encoder, each as a phrase."""
    faults = []
    if tensor.shape != expected:
        faults.append(
            f"misshapen: {name} is {list(tensor.shape)}, config.json says {list(expected)}"
        )
    wanted = "/".join(STORED_DTYPES)
    if tensor.dtype == INT8 and len(expected) == 2:
        found = "missing" if scales is None else f"{list(scales.shape)} {scales.dtype}"
        if found != (scales_wanted := f"[{expected[0]}] F32"):
            faults.append(
                f"dtype: {name} is {INT8} and its scales are {found}, expected {wanted}, or "
                f"{INT8} with scales {scales_wanted}"
            )
    elif tensor.dtype not in STORED_DTYPES:
        faults.append(f"dtype: {name} is {tensor.dtype}, expected {wanted}")
    return faults


def _open(file: Path) -> safe_open:
    try:
        return open_tensors(file)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
