"""pytorch_model.bin, whole or split, to model.safetensors.

Names become those of today: no task model's prefix, no gamma and beta. Heads and buffers are
left out, but for the head of a cross-encoder, whose names keep the prefix; config, tokenizer and
sentence-transformers files travel along. A .bin file is a pickle: one that brings code is
refused, and nothing of it is run.

    e5core convert pytorch-bin FOLDER_WITH_BIN NEW_FOLDER
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from torch import Tensor

from e5core.checkpoint.contents import ADAPTER_FILE
from e5core.checkpoint.folder import ModelFolder
from e5core.checkpoint.headers import StoredTensor, by_published_name, check_headers, shards
from e5core.config import CONFIG_FILE
from e5core.convert.folder import copy_files, replacing_folder
from e5core.convert.settings import copy_settings, copy_tokenizer_files
from e5core.convert.weights import stream_weights, summarize, verify_tensors, weights_of
from e5core.formats.torch_file import TorchFile, dtype_name

BIN_FILE = "pytorch_model.bin"
INDEX_FILE = "pytorch_model.bin.index.json"


def bin_files(folder: Path) -> list[Path]:
    """pytorch_model.bin, or the files that its index names."""
    if (folder / BIN_FILE).is_file():
        return [folder / BIN_FILE]
    index = folder / INDEX_FILE
    if not index.is_file():
        raise FileNotFoundError(f"{folder} has no {BIN_FILE} and no {INDEX_FILE}")
    return shards(index)[0]


def add_arguments(parser: ArgumentParser) -> None:
    """There are none beside those of every conversion."""


def convert(options: Namespace) -> None:
    source = Path(options.source)
    with replacing_folder(options.folder, source, options.force) as target:
        folder = ModelFolder.read(source, options.source, weights=False)
        if (folder.path / ADAPTER_FILE).is_file():
            raise ValueError(f"{folder.path / ADAPTER_FILE}: there is an adapter; merge it first")
        files = {path: TorchFile(path) for path in bin_files(folder.config_file.parent)}
        stored = by_published_name(
            [
                StoredTensor(path, name, tuple(tensor.shape), dtype_name(tensor))
                for path, file in files.items()
                for name, tensor in file.tensors().items()
            ],
            str(source),
        )
        check_headers(stored, folder.config, source)

        def read(tensor: StoredTensor) -> Tensor:
            return files[tensor.file].tensors()[tensor.stored_name]

        weights = weights_of(stored, folder.config, read)
        copy_files(folder.config_file.parent, target, [CONFIG_FILE])
        copy_tokenizer_files(folder, target)
        copy_settings(folder, target)
        stream_weights(weights, target, folder.config)
        if options.verify:
            verify_tensors(weights, target)
    summarize(weights, options.folder)
