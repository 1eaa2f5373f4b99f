"""Reading files of torch.save: tensors and plain values, never code."""

import pickle
import re
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from e5core.formats.safetensors import DTYPE_NAMES

_ZIP_MAGIC = b"PK\x03\x04"


class TorchFile:
    """A file of torch.save, which is a pickle with tensors.

    torch's own restricted unpickler reads it. It takes tensors, plain values and the types in
    `allowed`; everything else is refused and never run. Since torch 1.6 the file is an archive.
    It is mapped anew for each access, so its memory counts only while a tensor is in use. The
    older form can only be read whole, once.

    Raises ValueError naming the file and what is wrong with it.
    """

    def __init__(self, path: Path, allowed: Sequence[type] = ()) -> None:
        self.path = path
        self.allowed = allowed
        with path.open("rb") as file:
            self.mapped = file.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC

    @property
    def content(self) -> Any:
        """The object that was saved, usually a dictionary."""
        return self._load() if self.mapped else self._whole

    def tensors(self, *keys: str) -> dict[str, Tensor]:
        """The state dict in the file, or under a chain of keys in its dictionary."""
        state = self.content
        for key in keys:
            state = state.get(key) if isinstance(state, Mapping) else None
        where = f"{self.path}: {key}" if keys else f"{self.path}"
        if not isinstance(state, Mapping):
            raise ValueError(f"{where} is a {type(state).__name__}, expected names to tensors")
        for name, tensor in state.items():
            if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
                found = getattr(tensor, "layout", type(tensor).__name__)
                raise ValueError(f"{where} holds {name!r}, a {found}, expected dense tensors")
        return dict(state)

    @cached_property
    def _whole(self) -> Any:
        return self._load()

    def _load(self) -> Any:
        try:
            with torch.serialization.safe_globals(list(self.allowed)), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the error says what is wrong
                return torch.load(
                    self.path, map_location="cpu", weights_only=True, mmap=self.mapped
                )
        except pickle.UnpicklingError as error:
            # torch's message names the code amid advice on how to allow it.
            if wanted := re.search(r"GLOBAL (\S+)", str(error)):
                raise ValueError(
                    f"{self.path} wants {wanted[1]}, which is code and no weight; nothing of it "
                    "was run. Get the weights as safetensors, or from a source that you trust"
                ) from error
            raise self._damaged("its pickle cannot be read") from error
        except Exception as error:  # of any type, where the bytes make no sense
            reason = str(error).strip().split("\n")[0][:200]
            raise self._damaged(reason or type(error).__name__) from error

    def _damaged(self, reason: str) -> ValueError:
        return ValueError(
            f"{self.path} ({self.path.stat().st_size} bytes) is not a whole file of torch.save: "
            f"{reason}; get it again"
        )


def dtype_name(tensor: Tensor) -> str:
    """The name of a tensor's dtype in safetensors, or in torch if no weight has that dtype."""
    return DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype))
