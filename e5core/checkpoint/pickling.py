"""How what was loaded travels to other processes: as the call that loads it there.

Weights that kernels have prepared are addresses and layouts of one process. So a pickle or a deep
copy of an encoder that only infers, and of a tokenizer, loads it anew from its folder. An encoder
that can be trained may have other weights by now; it travels with them, as any module does.
"""

import copyreg
from pathlib import Path
from typing import Any, Protocol, TypeVar
from weakref import WeakKeyDictionary

from e5core.checkpoint.tokenizers import FastTokenizer
from e5core.encoder import ClassificationHead, Encoder
from e5core.kernels import BY_NAME, select, why_not
from e5core.tokenizer import SentencePieceTokenizer

Part = TypeVar("Part", Encoder, SentencePieceTokenizer)


class Folder(Protocol):
    """What is seen here of a ModelFolder, which is data and travels as it is."""

    @property
    def path(self) -> Path: ...


_origins: WeakKeyDictionary[Any, tuple[Any, ...]] = WeakKeyDictionary()


def travels_as(part: Part, folder: Folder, name: str, *arguments: Any) -> Part:
    """Return the part, which other processes get by `folder.load_<name>(*arguments)`."""
    _origins[part] = folder, name, *arguments
    return part


def origin(part: Encoder | SentencePieceTokenizer) -> Any:
    """The ModelFolder that a part was loaded from; None if it was put together otherwise."""
    return _origins.get(part, (None,))[0]


def _reduce(part: Encoder | SentencePieceTokenizer) -> Any:
    call = _origins.get(part)
    if call is None or (isinstance(part, Encoder) and part.kernels.trainable):
        return part.__reduce_ex__(4)
    return _load_anew, call


def _load_anew(folder: Folder, name: str, *arguments: Any) -> Any:
    if not folder.path.is_dir():
        raise FileNotFoundError(
            f"{folder.path} is not there, and a pickled model is loaded from its folder anew; let "
            "this process see the folder, or load the model here with E5.from_pretrained"
        )
    return getattr(folder, f"load_{name}")(*arguments)


def _reduce_head(head: ClassificationHead) -> Any:
    """A head keeps its linears beside what kernels have made of them: those travel."""
    if head.kernels.trainable:
        return head.__reduce_ex__(4)
    state = {
        name: value for name, value in vars(head).items() if name not in ("kernels", "weights")
    }
    return _prepared_head, (state, head.kernels.label, head.kernels.dtype)


def _prepared_head(state: dict[str, Any], name: str, dtype: Any) -> ClassificationHead:
    head = ClassificationHead.__new__(ClassificationHead)
    vars(head).update(state)
    device = head.dense.weight.device
    name = "auto" if why_not(BY_NAME[name], device, dtype) else name
    head.prepare(select(name, device, dtype, scores=True))
    return head


copyreg.pickle(Encoder, _reduce)
for tokenizer in (SentencePieceTokenizer, FastTokenizer):
    copyreg.pickle(tokenizer, _reduce)
copyreg.pickle(ClassificationHead, _reduce_head)
