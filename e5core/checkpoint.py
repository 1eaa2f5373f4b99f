"""Published tensor names to module names and back, as data; reading and writing weights.

Only safetensors files are read: they hold tensors and nothing that could be executed.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from e5core.config import EncoderConfig
from e5core.encoder import Encoder
from e5core.files import read_json_object, replacing, write_json

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

# Published name ↔ name in Encoder. {i} runs over layers, {p} over weight and bias.
TENSORS = (
    ("embeddings.word_embeddings.weight", "embeddings.word.weight"),
    ("embeddings.position_embeddings.weight", "embeddings.position.weight"),
    ("embeddings.token_type_embeddings.weight", "embeddings.token_type.weight"),
    ("embeddings.LayerNorm.{p}", "embeddings.layer_norm.{p}"),
    ("encoder.layer.{i}.attention.self.query.{p}", "layers.{i}.attention.query.{p}"),
    ("encoder.layer.{i}.attention.self.key.{p}", "layers.{i}.attention.key.{p}"),
    ("encoder.layer.{i}.attention.self.value.{p}", "layers.{i}.attention.value.{p}"),
    ("encoder.layer.{i}.attention.output.dense.{p}", "layers.{i}.attention.output.{p}"),
    ("encoder.layer.{i}.attention.output.LayerNorm.{p}", "layers.{i}.attention_layer_norm.{p}"),
    ("encoder.layer.{i}.intermediate.dense.{p}", "layers.{i}.intermediate.{p}"),
    ("encoder.layer.{i}.output.dense.{p}", "layers.{i}.output.{p}"),
    ("encoder.layer.{i}.output.LayerNorm.{p}", "layers.{i}.output_layer_norm.{p}"),
)

# The encoder's tensors carry the name of the model inside a file saved from a task model.
WORD_EMBEDDINGS = TENSORS[0][0]
PREFIXES = ("", "roberta.", "bert.")

# What else such files hold, by the start of the name after the prefix, and why it is left.
IGNORED = {
    "embeddings.position_ids": "a buffer that older files hold; positions are computed",
    "pooler.dense.": "E5 pools by mean, bge-m3 and others by the first token",
    "lm_head.": "head of a masked language model",
    "cls.": "head of a masked language model",
    "classifier.": "head of a classifier",
    "qa_outputs.": "head for question answering",
}

# LayerNorm's names in files that were born in TensorFlow.
OLD_SUFFIXES = {".gamma": ".weight", ".beta": ".bias"}


class CheckpointError(ValueError):
    """A checkpoint that is not what its config says, with every fault in one message."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, as the file's header describes it."""

    file: Path
    stored_name: str
    shape: tuple[int, ...]


def tensor_names(config: EncoderConfig) -> dict[str, str]:
    """Published name → name in Encoder, for every tensor of an encoder of this size."""
    names = {}
    for published, ours in TENSORS:
        for i in range(config.num_hidden_layers) if "{i}" in published else (0,):
            for p in ("weight", "bias") if "{p}" in published else ("",):
                names[published.format(i=i, p=p)] = ours.format(i=i, p=p)
    return names


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a checkpoint: a file, or those of a folder, which may be split.

    Raises FileNotFoundError saying what is missing.
    """
    if path.is_file():
        return [path]
    if (path / WEIGHTS_FILE).is_file():
        return [path / WEIGHTS_FILE]
    if (path / INDEX_FILE).is_file():
        weight_map = read_json_object(path / INDEX_FILE).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{path / INDEX_FILE} has no weight_map")
        # Only the last part of a name counts: an index cannot lead out of its folder.
        files = [path / Path(str(name)).name for name in sorted(set(weight_map.values()))]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise FileNotFoundError(
                f"{path / INDEX_FILE} names {', '.join(missing)}, which {path} does not hold; "
                "download the whole model again"
            )
        return files
    others = sorted(file.name for file in path.glob("*.bin")) if path.is_dir() else []
    raise FileNotFoundError(
        f"{path} has no {WEIGHTS_FILE} and no {INDEX_FILE}"
        + (
            f"; {', '.join(others)} may hold code and is never loaded: convert it to safetensors"
            if others
            else ""
        )
    )


def read_headers(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """The tensors of the files under their published names, read from the headers alone.

    Raises CheckpointError if a file is truncated or not safetensors, or if a name is there
    twice.
    """
    stored: dict[str, StoredTensor] = {}
    for file in files:
        with _open(file) as reader:
            for name in reader.keys():  # noqa: SIM118 (the reader is no dict)
                shape = tuple(reader.get_slice(name).get_shape())
                if name in stored:
                    raise CheckpointError(f"{name} is in {stored[name].file} and again in {file}")
                stored[name] = StoredTensor(file, name, shape)
    prefix = next((p for p in PREFIXES if p + WORD_EMBEDDINGS in stored), None)
    if prefix is None:
        raise CheckpointError(
            f"{', '.join(map(str, files))}: no tensor is named {WORD_EMBEDDINGS}, alone or after "
            f"{' or '.join(filter(None, PREFIXES))}; the first names are {sorted(stored)[:3]}: "
            "this is not a BERT or XLM-RoBERTa checkpoint"
        )
    return {_published(name, prefix): tensor for name, tensor in stored.items()}


def check_headers(stored: dict[str, StoredTensor], encoder: Encoder, source: Path) -> None:
    """Raise one CheckpointError with all missing, unexpected and misshapen tensors."""
    names = tensor_names(encoder.config)
    shapes = {name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()}
    faults = [f"missing: {name}" for name in names if name not in stored]
    for name, tensor in stored.items():
        if name in names:
            expected = shapes[names[name]]
            if tensor.shape != expected:
                faults.append(
                    f"misshapen: {name} is {list(tensor.shape)}, config.json says {list(expected)}"
                )
        elif not name.startswith(tuple(IGNORED)):
            faults.append(f"unexpected: {name}")
    if faults:
        raise CheckpointError(
            f"{source} does not fit its config.json, {len(faults)} faults: {'; '.join(faults)}"
        )


def load_checkpoint(encoder: Encoder, path: str | Path) -> None:
    """Fill an encoder with published weights, in the encoder's dtype and on its device.

    encoder  on torch's meta device its tensors take the loaded memory without a copy
    path     a folder with model.safetensors or its index, or one file

    All names and shapes are checked before any tensor is read.
    Raises FileNotFoundError or CheckpointError; a failed load of an encoder that is not on
    the meta device can leave it half-filled.
    """
    path = Path(path)
    files = weight_files(path)
    stored = read_headers(files)
    check_headers(stored, encoder, path)
    parameters = dict(encoder.named_parameters())
    state = {}
    for file in files:
        with _open(file) as reader:
            for name, ours in tensor_names(encoder.config).items():
                if stored[name].file != file:
                    continue
                tensor: Tensor = reader.get_tensor(stored[name].stored_name)
                _check_values(name, tensor, file)
                target = parameters[ours]
                if target.is_meta:
                    state[ours] = tensor.to(target.dtype)
                else:
                    with torch.no_grad():
                        target.copy_(tensor)
    if state:
        encoder.load_state_dict(state, assign=True)


def save_checkpoint(encoder: Encoder, folder: str | Path) -> None:
    """Write model.safetensors, under the published names, and config.json into a folder.

    transformers and load_checkpoint read them back. The folder is made if it is missing;
    each file appears whole or not at all.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = encoder.state_dict()
    tensors = {
        published: state[ours].detach().cpu().contiguous()
        for published, ours in tensor_names(encoder.config).items()
    }
    write_weights(tensors, folder / WEIGHTS_FILE)
    write_json(folder / "config.json", encoder.config.to_dict())


def write_weights(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file that says it holds torch tensors, as transformers expects."""
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})


def _published(name: str, prefix: str) -> str:
    """A stored name without a task model's prefix and with today's suffix."""
    name = name.removeprefix(prefix)
    for old, new in OLD_SUFFIXES.items():
        if name.endswith("LayerNorm" + old):
            return name.removesuffix(old) + new
    return name


def _open(file: Path) -> safe_open:
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist")
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file} ({file.stat().st_size} bytes) is not a whole safetensors file: {error}; "
            "download it again"
        ) from error


def _check_values(name: str, tensor: Tensor, file: Path) -> None:
    if not tensor.is_floating_point():
        raise CheckpointError(f"{file}: {name} has dtype {tensor.dtype}, expected a float")
    # A sum is NaN or infinite as soon as one value is, and costs no memory. The second look
    # clears sums of finite values that overflow.
    if not tensor.sum(dtype=torch.float64).isfinite() and not tensor.isfinite().all():
        raise CheckpointError(f"{file}: {name} holds a NaN or an infinity; download it again")
