"""Reading and writing weights under their published names.

Only safetensors files are read: they hold tensors and nothing that could be executed.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from e5core.checkpoint.names import IGNORED, PREFIXES, WORD_EMBEDDINGS, published_name, tensor_names
from e5core.encoder import Embeddings, Encoder, EncoderLayer
from e5core.formats.files import read_json_object, replacing, write_json
from e5core.kernels.int8_rows import SCALE_SUFFIX, dequantize_rows

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

# What a weight may be stored as, in the names of safetensors. Other integers and 8-bit floats
# are quantised in ways that nothing in the file tells; int8 with its scales is ours.
STORED_DTYPES = ("F16", "BF16", "F32", "F64")
INT8 = "I8"


class CheckpointError(ValueError):
    """A checkpoint that is not what its config says, with every fault in one message."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, as the file's header describes it."""

    file: Path
    stored_name: str
    shape: tuple[int, ...]
    dtype: str


def weight_files(path: Path) -> tuple[list[Path], dict[str, str]]:
    """The safetensors files of a checkpoint, a file or those of a folder, which may be split.

    returns  the files, and which of them the index says each stored name lies in

    Raises FileNotFoundError saying what is missing, CheckpointError if the index is at fault.
    """
    if path.is_file():
        return [path], {}
    if (path / WEIGHTS_FILE).is_file():
        return [path / WEIGHTS_FILE], {}
    index = path / INDEX_FILE
    if index.is_file():
        weight_map = _read_weight_map(index)
        files = [path / name for name in sorted(set(weight_map.values()))]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise FileNotFoundError(
                f"{index} names {', '.join(missing)}, which {path} does not hold; "
                "download the whole model again"
            )
        return files, weight_map
    if not path.is_dir():
        raise FileNotFoundError(f"{path} does not exist; give a folder with {WEIGHTS_FILE}")
    way_out = "download the whole model again"
    if others := ", ".join(sorted(file.name for file in path.glob("*.bin"))):
        way_out = f"{others} may hold code and is never loaded: convert it to safetensors"
    raise FileNotFoundError(f"{path} has no {WEIGHTS_FILE} and no {INDEX_FILE}; {way_out}")


def read_headers(files: Iterable[Path], weight_map: Mapping[str, str]) -> dict[str, StoredTensor]:
    """The tensors of the files under their published names, read from the headers alone.

    files, weight_map  as weight_files returns them

    Raises CheckpointError if a file is truncated or not safetensors, if a tensor is there
    twice or not in the file that the index says.
    """
    tensors = []
    for file in files:
        with _open(file) as reader:
            for name in reader.keys():  # noqa: SIM118 (the reader is no dict)
                if weight_map.get(name, file.name) != file.name:
                    raise CheckpointError(
                        f"{name} is in {file}, but {INDEX_FILE} says {weight_map[name]}: the files "
                        "are not of one checkpoint; download the whole model again"
                    )
                header = reader.get_slice(name)
                shape = tuple(header.get_shape())
                tensors.append(StoredTensor(file, name, shape, header.get_dtype()))
    return by_published_name(tensors, ", ".join(map(str, files)))


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
        other = stored.setdefault(published_name(tensor.stored_name, prefix), tensor)
        if other is not tensor:
            raise CheckpointError(
                f"{other.stored_name} in {other.file} and {tensor.stored_name} in {tensor.file} "
                "are the same tensor; keep one of them"
            )
    return stored


def check_headers(stored: Mapping[str, StoredTensor], encoder: Encoder, source: Path) -> None:
    """Raise one CheckpointError with all missing, unexpected, misshapen and untyped tensors."""
    names = tensor_names(encoder.config)
    shapes = {name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()}
    faults = [f"missing: {name}" for name in names if name not in stored]
    scales = {name + SCALE_SUFFIX for name in names if _is_int8(stored, name)}
    for name, tensor in stored.items():
        if name not in names:
            if name not in scales and not name.startswith(tuple(IGNORED)):
                faults.append(f"unexpected: {tensor.stored_name}")
            continue
        expected = shapes[names[name]]
        if tensor.shape != expected:
            faults.append(
                f"misshapen: {name} is {list(tensor.shape)}, config.json says {list(expected)}"
            )
        wanted = "/".join(STORED_DTYPES)
        if tensor.dtype == INT8 and len(expected) == 2:
            scale = stored.get(name + SCALE_SUFFIX)
            found = "missing" if scale is None else f"{list(scale.shape)} {scale.dtype}"
            if found != (scales_wanted := f"[{expected[0]}] F32"):
                faults.append(
                    f"dtype: {name} is {INT8} and its scales are {found}, expected {wanted}, or "
                    f"{INT8} with scales {scales_wanted}"
                )
        elif tensor.dtype not in STORED_DTYPES:
            faults.append(f"dtype: {name} is {tensor.dtype}, expected {wanted}")
    if faults:
        raise CheckpointError(
            f"{source} does not fit its config.json: {'; '.join(faults)} ({len(faults)} faults); "
            "config and weights must come from one model"
        )


def load_checkpoint(encoder: Encoder, path: str | Path) -> None:
    """Fill an encoder with published weights, in the encoder's dtype and on its device.

    encoder  elsewhere than on torch's meta device its parameters stay the same objects; on
             it they are made anew and, if the dtype is the file's, are the mapped file itself
    path     a folder with model.safetensors or its index, or one file

    All names and shapes are checked before any tensor is read, and all values before the
    encoder changes. Raises FileNotFoundError or CheckpointError.
    """
    stored = _checked_headers(encoder, Path(path))
    parameters = encoder.state_dict()
    assign = any(parameter.is_meta for parameter in parameters.values())
    state: dict[str, Tensor] = {}
    names = tensor_names(encoder.config)
    scales = _read_scales(stored, names)
    for name, tensor in _read_tensors(stored, names):
        ours = names[name]
        dtype = parameters[ours].dtype
        if name in scales:
            tensor = dequantize_rows(tensor, scales[name])
        _check_values(stored[name], tensor, dtype)
        state[ours] = tensor.to(dtype) if assign else tensor
    encoder.load_state_dict(state, assign=assign)


def load_parts(
    encoder: Encoder, path: str | Path, dtype: torch.dtype, device: torch.device
) -> Iterator[Embeddings | EncoderLayer]:
    """Fill an encoder on the meta device part by part; yields each part when it is on `device`.

    dtype  what the caller will lower the part to; parts come in the dtype of the file

    Of a file in int8 the token table keeps its integers, for torch.int8 the linear layers too;
    their scales are then a buffer of the module, `weight_scale`. Everything else is float.

    On a CPU a part is the mapped file itself, mapped anew for each: when the caller replaces
    or drops its tensors, no memory of the file stays behind. Errors as in load_checkpoint, but
    the token table is only mapped: a value that is not finite shows when its token occurs.
    """
    stored = _checked_headers(encoder, Path(path))
    names = {ours: name for name, ours in tensor_names(encoder.config).items()}
    for prefix, part in encoder.named_modules():
        if not isinstance(part, (Embeddings, EncoderLayer)):
            continue
        part.requires_grad_(False)  # integers cannot
        ours = {names[f"{prefix}.{key}"]: key for key in part.state_dict()}
        scales = _read_scales(stored, ours)
        state = {}
        for name, tensor in _read_tensors(stored, ours):
            if name in scales:
                in_layer = dtype == torch.int8 and isinstance(part, EncoderLayer)
                if in_layer or name == WORD_EMBEDDINGS:
                    module = part.get_submodule(ours[name].removesuffix(".weight"))
                    module.register_buffer("weight_scale", scales[name], persistent=False)
                else:
                    tensor = dequantize_rows(tensor, scales[name])
            if name != WORD_EMBEDDINGS:
                _check_values(stored[name], tensor, dtype)
            # A vector that stays would keep the whole file mapped.
            state[ours[name]] = tensor.clone() if tensor.dim() == 1 else tensor
        part.load_state_dict(state, assign=True)
        yield part.to(device)


def stored_in_int8(path: Path) -> bool:
    """Whether a checkpoint holds its token table in int8; errors as in load_checkpoint."""
    return _is_int8(read_headers(*weight_files(path)), WORD_EMBEDDINGS)


def save_checkpoint(encoder: Encoder, folder: str | Path) -> None:
    """Write model.safetensors, under the published names, and config.json into a folder.

    transformers and load_checkpoint read them back. The folder is made if it is missing.
    Both files are written in full before either takes the place of an older one.
    """
    folder = Path(folder)
    config = encoder.config.to_dict()
    if any(parameter.is_meta for parameter in encoder.parameters()):
        raise ValueError(
            "the encoder holds no weights to save: prepare_for_inference gave them to its "
            f"{encoder.kernels.name} kernels; load it with load_checkpoint, which leaves it whole"
        )
    folder.mkdir(parents=True, exist_ok=True)
    state = encoder.state_dict()
    tensors = {
        published: state[ours].detach().cpu().contiguous()
        for published, ours in tensor_names(encoder.config).items()
    }
    with replacing(folder / CONFIG_FILE) as temporary:
        write_json(temporary, config)
        write_weights(tensors, folder / WEIGHTS_FILE)


def write_weights(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file that says it holds torch tensors, as transformers expects."""
    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, metadata={"format": "pt"})
        except SafetensorError as error:  # what it makes of a full disk
            raise OSError(f"cannot write {path}: {error}") from error


def _checked_headers(encoder: Encoder, path: Path) -> dict[str, StoredTensor]:
    files, weight_map = weight_files(path)
    stored = read_headers(files, weight_map)
    check_headers(stored, encoder, path)
    return stored


def _read_tensors(
    stored: Mapping[str, StoredTensor], names: Iterable[str]
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of some published names, memory-mapped, file by file."""
    by_file = sorted(names, key=lambda name: stored[name].file)
    for file, group in groupby(by_file, key=lambda name: stored[name].file):
        with _open(file) as reader:
            for name in group:
                yield name, reader.get_tensor(stored[name].stored_name)


def _is_int8(stored: Mapping[str, StoredTensor], name: str) -> bool:
    return name in stored and stored[name].dtype == INT8


def _read_scales(stored: Mapping[str, StoredTensor], names: Iterable[str]) -> dict[str, Tensor]:
    """The scales [rows] of those tensors that are stored in int8, by the tensors' names."""
    owners = {name + SCALE_SUFFIX: name for name in names if _is_int8(stored, name)}
    scales = {}
    for name, scale in _read_tensors(stored, owners):
        _check_values(stored[name], scale, torch.float32)
        if scale.min() <= 0:
            raise CheckpointError(
                f"{stored[name].file}: {stored[name].stored_name} holds {scale.min():g}, expected "
                "scales above 0; convert the model again"
            )
        scales[owners[name]] = scale.clone()  # or it would keep the whole file mapped
    return scales


def _read_weight_map(index: Path) -> dict[str, str]:
    """Stored name → name of the file beside the index that holds the tensor."""
    try:
        weight_map = read_json_object(index).get("weight_map")
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map; download the whole model again")
    for name, file in weight_map.items():
        # Nothing outside the folder is read, whatever an index says.
        if not isinstance(file, str) or not file or Path(file).name != file:
            raise CheckpointError(
                f"{index} puts {name} in {file!r}, expected the name of a file beside the index"
            )
    return weight_map


def _open(file: Path) -> safe_open:
    try:
        return safe_open(file, framework="pt")
    except SafetensorError as error:
        raise CheckpointError(
            f"{file} ({file.stat().st_size} bytes) is not a whole safetensors file: {error}; "
            "download it again"
        ) from error


def _check_values(stored: StoredTensor, tensor: Tensor, dtype: torch.dtype) -> None:
    """Raise CheckpointError unless all values are finite, and stay so in `dtype`."""
    file, name = stored.file, stored.stored_name
    # The extremes are NaN as soon as one value is. Unlike isfinite() and a sum in float64
    # they cost no memory (2026-11: 768 MB for the word embeddings of small).
    extremes = torch.stack(tensor.aminmax())
    if not extremes.isfinite().all():
        raise CheckpointError(f"{file}: {name} holds a NaN or an infinity; download it again")
    if not extremes.to(dtype).isfinite().all():
        raise CheckpointError(
            f"{file}: {name} holds {extremes.abs().max().item():g}, too large for {dtype}; load it "
            "in float32 or bfloat16"
        )
