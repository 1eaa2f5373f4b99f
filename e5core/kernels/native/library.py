"""The compiled libraries: their structures, which of them this CPU runs, and loading it."""

import ctypes
import platform
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from e5core.kernels.native import build

FOLDER = build.FOLDER


@dataclass(frozen=True)
class Kind:
    """A kind of product: its number and name in C++, and the dtypes that it takes."""

    number: int
    name: str
    weight: torch.dtype
    activation: torch.dtype


# The numbers are those of kinds.h; a test compares them.
FLOAT32 = Kind(0, "float32", torch.float32, torch.float32)
BFLOAT16 = Kind(1, "bfloat16", torch.bfloat16, torch.bfloat16)
INT8 = Kind(2, "int8", torch.int8, torch.float32)
WIDENED = Kind(3, "widened", torch.bfloat16, torch.bfloat16)  # multiplied as float32

KINDS = (FLOAT32, BFLOAT16, INT8, WIDENED)  # by number


def bfloat16_kind(name: str | None = None) -> Kind:
    """BFLOAT16 on CPUs with a fast instruction for it, and WIDENED on others.

    name  of the instruction set, as for `load`
    """
    return BFLOAT16 if load(WIDENED, name).e5core_prefers_bfloat16() else WIDENED


class Linear(ctypes.Structure):
    """Matrices with their biases that are multiplied together; the fields are those of linear.h."""

    _fields_ = (
        ("kind", ctypes.c_int32),
        ("inputs", ctypes.c_int32),
        ("outputs", ctypes.c_int32),
        ("stretch", ctypes.c_int32),
        ("panels", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("channel", ctypes.c_void_p),
        ("row_sum", ctypes.c_void_p),
    )


class Norm(ctypes.Structure):
    """A LayerNorm; the fields are those of linear.h."""

    _fields_ = (("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("eps", ctypes.c_float))


class Tables(ctypes.Structure):
    """The tables of the embeddings and their Norm; the fields are those of ends.h."""

    _fields_ = (
        ("word", ctypes.c_void_p),
        ("position", ctypes.c_void_p),
        ("token_type", ctypes.c_void_p),
        ("norm", ctypes.c_void_p),
        ("hidden", ctypes.c_int32),
    )


class EncoderLayer(ctypes.Structure):
    """Addresses of four Linear and two Norm; the fields are those of encoder.cpp."""

    _fields_ = (
        ("qkv", ctypes.c_void_p),
        ("attention_output", ctypes.c_void_p),
        ("intermediate", ctypes.c_void_p),
        ("output", ctypes.c_void_p),
        ("attention_norm", ctypes.c_void_p),
        ("output_norm", ctypes.c_void_p),
    )


class Texts(ctypes.Structure):
    """Where each text of a packed batch starts; the fields are those of attention.h."""

    _fields_ = (
        ("cu_seqlens", ctypes.c_void_p),
        ("count", ctypes.c_int),
        ("heads", ctypes.c_int),
        ("head_size", ctypes.c_int),
    )


class Dropout(ctypes.Structure):
    """What is dropped; the fields are those of training.h."""

    _fields_ = (
        ("seed", ctypes.c_uint32 * 2),
        ("threshold", ctypes.c_uint32),
        ("scale", ctypes.c_float),
    )


def has_instructions() -> bool:
    """Whether the C++ can be compiled for machines of this kind."""
    return any(platform.machine() in one.machines for one in build.INSTRUCTION_SETS)


def missing(name: str | None = None) -> str | None:
    """Why there is no library, as a sentence; None if one can be loaded."""
    try:
        load(FLOAT32, name)
    except FileNotFoundError as error:
        return str(error)
    except OSError as error:
        return f"they cannot be loaded: {error}"
    return None


def unsupported(kind: Kind, name: str | None = None) -> str | None:
    """Why this CPU cannot multiply in a kind, as a sentence; None if it can."""
    if load(kind, name).e5core_supports(kind.number):
        return None
    instructions = load(kind, name).e5core_instructions(kind.number)
    return f"this CPU has no {instructions.decode()}"


def describe(name: str) -> str:
    """In what this CPU multiplies by an instruction set, or why it does not."""
    if reason := missing(name):
        return reason
    kinds = [kind for kind in KINDS if unsupported(kind, name) is None]
    if BFLOAT16 in kinds:
        kinds.remove(WIDENED)
    words = ["bfloat16 as float32" if kind is WIDENED else kind.name for kind in kinds]
    return ", ".join(words) or f"{unsupported(FLOAT32, name)}"


@cache
def load(kind: Kind = FLOAT32, name: str | None = None) -> ctypes.CDLL:
    """The library of the best instruction set in which this CPU multiplies in a kind.

    name  of the one instruction set that is wanted

    If the CPU has none, it is a library that does not support the kind. Raises FileNotFoundError
    if nothing was compiled, and OSError as load_library does.
    """
    wanted = [one for one in build.INSTRUCTION_SETS if name in (None, one.name)]
    machine = platform.machine()
    compiled = [one.name for one in wanted if build.library(one.name, FOLDER).exists()]
    if not any(machine in one.machines for one in wanted):
        machines = sorted({each for one in wanted for each in one.machines})
        raise FileNotFoundError(f"they are for {'/'.join(machines)}, and this CPU is {machine}")
    if not compiled:
        raise FileNotFoundError(
            "they were not compiled: e5core was installed without g++ or clang++"
        )
    for each in compiled:
        library = load_library(each)
        if library.e5core_supports(kind.number):
            break
    return library


@cache
def load_library(name: str) -> ctypes.CDLL:
    """The library of an instruction set. Its functions may only be called if the CPU has it.

    Raises OSError if it is not one of e5core, or was compiled from another source.
    """
    path = build.library(name, FOLDER)
    compiled = build.compiled_checksum(path)
    if compiled is None:
        raise OSError(f"{path.name} is not of e5core")
    if compiled != build.source_checksum(FOLDER):
        raise OSError(f"{path.name} was compiled from another source; install e5core again")
    library = ctypes.CDLL(str(path))
    declare(library)
    return library


def declare(library: ctypes.CDLL) -> None:
    """Say what the functions of cpu.cpp and encoder.cpp take and return."""
    pointer, number = ctypes.c_void_p, ctypes.c_int
    for function in (
        library.e5core_instruction_set, library.e5core_kind_name, library.e5core_instructions,
    ):  # fmt: skip
        function.restype = ctypes.c_char_p
    library.e5core_linear.argtypes = (pointer, pointer, number, number, pointer, number)
    library.e5core_linear_residual_norm.argtypes = (
        pointer, pointer, number, pointer, pointer, pointer, number,
    )  # fmt: skip
    library.e5core_attention.argtypes = (number, number, pointer, pointer, pointer, number)
    library.e5core_encoder.argtypes = (pointer, number, number, *[pointer] * 5, number)
    library.e5core_embed.argtypes = (number, pointer, pointer, pointer, number, pointer)
    library.e5core_mean.argtypes = (number, pointer, pointer, number, pointer)
    count, dropout, texts = ctypes.c_int64, ctypes.POINTER(Dropout), ctypes.POINTER(Texts)
    library.e5core_add_dropped.argtypes = (
        number, pointer, pointer, count, dropout, pointer, number,
    )  # fmt: skip
    library.e5core_gelu.argtypes = (number, pointer, pointer, count, number)
    library.e5core_gelu_gradient.argtypes = (number, pointer, pointer, count, number)
    library.e5core_drop.argtypes = (number, pointer, count, dropout, pointer, number)
    library.e5core_attention_forward.argtypes = (
        number, number, pointer, texts, dropout, pointer, pointer, number,
    )  # fmt: skip
    library.e5core_attention_backward.argtypes = (
        number, number, pointer, texts, dropout, *[pointer] * 4, number,
    )  # fmt: skip
    for function in (
        library.e5core_linear, library.e5core_linear_residual_norm, library.e5core_attention,
        library.e5core_encoder, library.e5core_embed, library.e5core_mean,
        library.e5core_add_dropped, library.e5core_drop,
        library.e5core_attention_forward, library.e5core_attention_backward,
        library.e5core_gelu, library.e5core_gelu_gradient,
    ):  # fmt: skip
        function.errcheck = _check_computed


def _check_computed(has_kinds: Any, function: Any, arguments: Any) -> Any:
    if not has_kinds:
        raise ValueError(f"{function.__name__} was called with a kind that its library lacks")
    return has_kinds
