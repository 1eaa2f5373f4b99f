"""Safetensors files: opened with one error, and written tensor by tensor.

Writing takes the memory of the largest tensor; safetensors' own save_file takes all tensors at
once. Format: github.com/huggingface/safetensors, "Format": 8 bytes with the header's length, the
header as JSON, then the tensors' bytes.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from e5core.formats.files import lfs_way_out, replacing

# Weights lie in this order of dtypes, then by name, as safetensors itself puts them: so that
# every tensor starts at a multiple of its numbers' size.
DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int8: "I8",
}
DTYPES_BY_NAME = {name: dtype for dtype, name in DTYPE_NAMES.items()}
_ALIGNMENT = 8  # of the first tensor; the header is filled up with spaces


@dataclass(frozen=True)
class TensorHeader:
    """The dtype and the shape of a tensor, known before its numbers are read."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """The bytes that its numbers take."""
        return prod(self.shape) * self.dtype.itemsize


def open_tensors(path: Path) -> safe_open:
    """A reader of a file's header and, mapped, of its tensors.

    Raises ValueError if the file is truncated or anything in its header is wrong.
    """
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ValueError(
            f"{path} ({path.stat().st_size} bytes) is not a whole safetensors file: {error}; "
            f"{lfs_way_out(path) or 'download it again'}"
        ) from error


def write_tensors(
    headers: Mapping[str, TensorHeader],
    read: Callable[[str], Tensor],
    path: Path,
    advance: Callable[[float], object] = lambda size: None,
) -> None:
    """Write the file that `save_file` would write, holding one tensor at a time.

    headers  by the names in the file
    read     gives a tensor by its name; called once for each
    advance  called with the bytes of each tensor once it is written

    A reader sees the old file at `path` or the whole new one. Raises ValueError for a tensor
    that is not what its header says or is of a dtype that weights do not have, OSError naming
    the file where the disk is full.
    """
    order = list(DTYPE_NAMES)
    for name, header in headers.items():
        if header.dtype not in order:
            raise ValueError(f"{name} is {header.dtype}, expected {', '.join(map(str, order))}")
    names = sorted(headers, key=lambda name: (order.index(headers[name].dtype), name))
    with replacing(path) as temporary:
        try:
            with temporary.open("wb") as file:
                file.write(encode_header({name: headers[name] for name in names}))
                for name in names:
                    tensor = read(name).detach().contiguous()
                    found = TensorHeader(tensor.dtype, tuple(tensor.shape))
                    if found != headers[name]:
                        raise ValueError(f"{name} is {found}, announced was {headers[name]}")
                    file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
                    advance(found.size)
                    del tensor  # before the next one comes
        except OSError as error:
            size = sum(header.size for header in headers.values())
            raise OSError(
                f"cannot write {path}, which takes {size:,} bytes: {error.strerror or error}"
            ) from error


def encode_header(headers: Mapping[str, TensorHeader], length: int = 0) -> bytes:
    """The first bytes of a file whose tensors lie one after another in the order of `headers`.

    length  of the JSON at least, filled up with spaces: a header that is written anew when more
            rows have come can so keep its place
    """
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers expects it
    place = 0
    for name, header in headers.items():
        entries[name] = {
            "dtype": DTYPE_NAMES[header.dtype],
            "shape": list(header.shape),
            "data_offsets": [place, place + header.size],
        }
        place += header.size
    content = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    content = content.ljust(length)
    content += b" " * (-len(content) % _ALIGNMENT)
    return len(content).to_bytes(8, "little") + content
