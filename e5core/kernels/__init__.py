"""The operations that an encoder is made of, and the choice of who computes them.

`plain` is the specification: torch operators only, obviously right. Every other back-end is
one file or folder with the same operations, tested against it.
"""

import warnings
from functools import cache

import torch

from e5core.kernels.cuda.operations import CudaKernels
from e5core.kernels.forking import one_thread_if_forked
from e5core.kernels.native import BY_INSTRUCTIONS, NativeKernels
from e5core.kernels.onednn import OnednnKernels, has_amx
from e5core.kernels.plain import Kernels
from e5core.kernels.sdpa import SdpaKernels

__all__ = [
    "BACKENDS",
    "BY_NAME",
    "Kernels",
    "describe",
    "made_for",
    "preferred",
    "select",
    "warn_of_missing",
    "warn_once",
    "why_not",
]

# In the order in which "auto" prefers them, see also `preferred`.
BACKENDS: dict[str, type[Kernels]] = {
    backend.name: backend
    for backend in (CudaKernels, NativeKernels, OnednnKernels, SdpaKernels, Kernels)
}

# Whatever can be asked for by name: also native for one instruction set, "native/avx2".
BY_NAME: dict[str, type[Kernels]] = {
    **BACKENDS,
    **{f"{NativeKernels.name}/{name}": backend for name, backend in BY_INSTRUCTIONS.items()},
}


def select(
    name: str = "auto",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    training: bool = False,
    scores: bool = False,
) -> Kernels:
    """The kernels of that name; "auto" takes the fastest that runs there.

    training  whether gradients are wanted
    scores    whether they are for a cross-encoder, see Kernels.for_scores

    Raises ValueError naming the choices, or why the kernels of that name cannot run.
    """
    one_thread_if_forked()
    device = torch.device(device)
    if name != "auto":
        if name not in BY_NAME:
            raise ValueError(f"kernels is {name!r}, expected 'auto' or one of {sorted(BY_NAME)}")
        if reason := why_not(BY_NAME[name], device, dtype):
            raise ValueError(f"kernels {name!r} cannot be used: {reason}")
        return _made(BY_NAME[name], dtype, scores)
    reasons: list[str] = []
    for backend in preferred(dtype):
        if not made_for(backend, device, dtype) or (training and not backend.trainable):
            continue
        reason = backend.unavailable(device, dtype)
        if reason is None:
            if reasons:
                warn_once(f"e5core runs on its {backend.name} kernels: {'; '.join(reasons)}")
            return _made(backend, dtype, scores)
        if not backend.optional:
            reasons.append(f"{backend.name} cannot be used: {reason}")
    devices = {
        d for backend in BACKENDS.values() if dtype in backend.dtypes for d in backend.devices
    }
    if devices and device.type not in devices:
        reasons.append(f"it needs {' or '.join(sorted(devices))}")
    raise ValueError(
        f"no kernels run in {_word(dtype)} on {device}{': ' if reasons else ''}{'; '.join(reasons)}"
    )


def preferred(dtype: torch.dtype) -> list[type[Kernels]]:
    """All kernels, the fastest first.

    Where there is AMX, oneDNN's products in bfloat16 use it, and those of native do not. In int8
    native is faster all the same; docs/performance.md has both.
    """
    first = [OnednnKernels] if dtype == torch.bfloat16 and has_amx() else []
    return list(dict.fromkeys([*first, *BACKENDS.values()]))


def _made(backend: type[Kernels], dtype: torch.dtype, scores: bool) -> Kernels:
    return backend(dtype).for_scores() if scores else backend(dtype)


def why_not(backend: type[Kernels], device: torch.device, dtype: torch.dtype) -> str | None:
    """Why kernels do not run on a device in a dtype, as a sentence; None if they do."""
    one_thread_if_forked()
    if made_for(backend, device, dtype):
        return backend.unavailable(device, dtype)
    return (
        f"they are for {' and '.join(map(_word, backend.dtypes))} on {'/'.join(backend.devices)}, "
        f"not for {_word(dtype)} on {device}"
    )


def describe(name: str, device: torch.device, dtype: torch.dtype) -> str:
    """The name of kernels that run, with the reason why not for each that "auto" prefers."""
    reasons = []
    for backend in preferred(dtype):
        if backend.name == name.split("/")[0]:
            break
        if made_for(backend, device, dtype) and (reason := why_not(backend, device, dtype)):
            reasons.append(f"{backend.name} cannot be used: {reason}")
    return f"{name} ({'; '.join(reasons)})" if reasons else name


def warn_of_missing(kernels: Kernels, device: torch.device) -> None:
    """Say once which kernels run, if another installation could have faster ones."""
    missing = [
        f"{name} cannot be used: {reason}"
        for name, backend in BACKENDS.items()
        if made_for(backend, device, kernels.dtype) and (reason := backend.missing())
    ]
    if missing:
        warn_once(
            f"e5core runs on its {kernels.name} kernels: {'; '.join(missing)}. For faster ones "
            "install g++, and then e5core again"
        )


def made_for(backend: type[Kernels], device: torch.device, dtype: torch.dtype) -> bool:
    return device.type in backend.devices and dtype in backend.dtypes


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@cache
def warn_once(message: str) -> None:
    """Give a warning once in a process, however often this is called."""
    warnings.warn(message, stacklevel=3)
