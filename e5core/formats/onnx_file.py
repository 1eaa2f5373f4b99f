"""Writing an ONNX model tensor by tensor, in the memory of the largest one.

onnx itself serializes a model as a whole. A file is a protobuf message, whose fields may stand in
any order and whose repeated fields are so many fields of one number; so what onnx serializes
without weights can be followed by the weights, one at a time. Formats: onnx/onnx.proto and
docs/ExternalData.md of github.com/onnx/onnx.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import onnx
from onnx import TensorProto
from torch import Tensor

from e5core.formats.protobuf import field_start
from e5core.formats.safetensors import TensorHeader

Headers = Mapping[str, TensorHeader]
Read = Callable[[str], Tensor]
Advance = Callable[[float], object]

# External tensors start at multiples of a page, so that a runtime can map them.
PAGE = 4096

_GRAPH = onnx.ModelProto.GRAPH_FIELD_NUMBER
_INITIALIZER = onnx.GraphProto.INITIALIZER_FIELD_NUMBER
_RAW_DATA = TensorProto.RAW_DATA_FIELD_NUMBER


def write_onnx(
    model: onnx.ModelProto,
    weights: Headers,
    read: Read,
    path: Path,
    largest_in_file: int,
    advance: Advance = lambda size: None,
) -> list[Path]:
    """Write a model and its weights; returns the files.

    model            with a graph, but without the weights
    weights          float32, by the names in the graph
    read             gives a weight by its name; called once for each
    largest_in_file  bytes of weights; more of them go into a second file, `<path>_data`
    advance          called with the bytes of each weight once it is written

    Raises OSError naming the file where the disk is full.
    """
    total = sum(header.size for header in weights.values())
    try:
        if total > largest_in_file:
            return _write_apart(model, weights, read, path, advance)
        return _write_together(model, weights, read, path, advance)
    except OSError as error:
        raise OSError(
            f"cannot write {path}, which takes {total:,} bytes: {error.strerror or error}"
        ) from error


def _write_apart(
    model: onnx.ModelProto, weights: Headers, read: Read, path: Path, advance: Advance
) -> list[Path]:
    data = path.with_name(f"{path.name}_data")
    with_places = onnx.ModelProto()
    with_places.CopyFrom(model)
    with data.open("wb") as file:
        for name, header in weights.items():
            file.write(bytes(-file.tell() % PAGE))
            tensor = _described(name, header)
            tensor.data_location = TensorProto.EXTERNAL
            place = {"location": data.name, "offset": file.tell(), "length": header.size}
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
            with_places.graph.initializer.append(tensor)
            advance(_copy(read(name), file))
    path.write_bytes(with_places.SerializeToString())
    return [path, data]


def _write_together(
    model: onnx.ModelProto, weights: Headers, read: Read, path: Path, advance: Advance
) -> list[Path]:
    graph = model.graph.SerializeToString()
    starts = {name: _start(name, header) for name, header in weights.items()}
    size = len(graph) + sum(len(starts[name]) + weights[name].size for name in weights)
    rest = onnx.ModelProto()
    rest.CopyFrom(model)
    rest.ClearField("graph")
    with path.open("wb") as file:
        file.write(rest.SerializeToString() + field_start(_GRAPH, size) + graph)
        for name, start in starts.items():
            file.write(start)
            advance(_copy(read(name), file))
    return [path]


def _copy(tensor: Tensor, file: BinaryIO) -> int:
    """Write the numbers; returns their bytes."""
    file.write(tensor.contiguous().numpy().data)
    return tensor.nbytes


def _described(name: str, header: TensorHeader) -> TensorProto:
    return TensorProto(name=name, dims=header.shape, data_type=TensorProto.FLOAT)


def _start(name: str, header: TensorHeader) -> bytes:
    """The bytes of a weight in a graph up to its numbers, which follow."""
    described: bytes = _described(name, header).SerializeToString()
    tensor = described + field_start(_RAW_DATA, header.size)
    return field_start(_INITIALIZER, len(tensor) + header.size) + tensor
