"""What a SentenceTransformer has and e5core's has not, and what to use in its place."""

from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

import torch

Model = TypeVar("Model", bound="Module")

_BULK = (
    "one process uses all cores; for files in several processes or on several GPUs use "
    "e5core.bulk.embed_files(..., workers=N)"
)
_DTYPE = "load it in another precision, with model_kwargs={'dtype': 'bfloat16'}"
_DEVICE = "load it there, with SentenceTransformer(..., device=...)"
_TRAIN = "train model.model.encoder, an ordinary torch module, before it is prepared: see README.md"
_SAVE = "convert a folder with `e5core convert sentence-transformers`, or use save_checkpoint"

METHODS = {
    "encode_multi_process": _BULK,
    "start_multi_process_pool": _BULK,
    "stop_multi_process_pool": _BULK,
    "fit": _TRAIN,
    "old_fit": _TRAIN,
    "evaluate": "use mteb with e5core.integrations.mteb.E5Encoder",
    "forward": "call encode, or model.model.encoder on a batch of pack()",
    "half": _DTYPE,
    "bfloat16": _DTYPE,
    "float": "load it so, with model_kwargs={'dtype': 'float32'}",
    "double": "load it so, with model_kwargs={'dtype': 'float64'}",
    "compile": "leave it out: the kernels are compiled already",
    "parameters": "ask model.model.encoder.parameters()",
    "named_parameters": "ask model.model.encoder.named_parameters()",
    "state_dict": "ask model.model.encoder.state_dict()",
    "save": _SAVE,
    "save_pretrained": _SAVE,
    "save_to_hub": _SAVE,
    "push_to_hub": _SAVE,
    "truncate_sentence_embeddings": "cut the vectors: vectors[:, :256], then l2_normalize",
}

# Arguments with the values at which they ask for nothing that is not done.
ARGUMENTS: dict[str, tuple[tuple[Any, ...], str]] = {
    "precision": (("float32", None), "call e5core.quantize_vectors on the vectors"),
    "output_value": (
        ("sentence_embedding",),
        "for token states call model.model.encoder on a batch of pack()",
    ),
    "truncate_dim": ((None,), "cut the vectors: vectors[:, :256], then l2_normalize"),
    "pool": ((None,), _BULK),
    "chunk_size": ((None,), _BULK),
    "trust_remote_code": ((False, None), "leave it out: e5core runs no code from the hub"),
    "backend": (("torch",), "leave it out, or pass model_kwargs={'kernels': ...}"),
    "similarity_fn_name": (("cosine", None), "compute it from the vectors; here it is the cosine"),
    "modules": ((None,), "name a folder or a hub id"),
    "use_auth_token": ((None, False), "pass token="),
    "tokenizer_kwargs": ((None,), "set max_seq_length; nothing else of the tokenizer changes"),
    "processor_kwargs": ((None,), "set max_seq_length; nothing else of the tokenizer changes"),
    "config_kwargs": ((None,), "leave it out: the folder's config.json counts"),
    "model_card_data": ((None,), "leave it out"),
}


def refuse_arguments(options: Mapping[str, Any]) -> None:
    """TypeError for arguments that would change something, each with the way to what it asks."""
    for name, value in options.items():
        harmless, way = ARGUMENTS.get(name, ((), "leave it out"))
        if not any(value is known or value == known for known in harmless):
            raise TypeError(f"e5core's SentenceTransformer takes no {name}={value!r:.40}; {way}")


def method(name: str) -> Callable[..., NoReturn]:
    """A method that says what to use in its place; AttributeError if the library has none."""
    if name not in METHODS:
        raise AttributeError(f"e5core's SentenceTransformer has no attribute {name!r}")

    def refuse(*arguments: object, **options: object) -> NoReturn:
        raise TypeError(f"e5core's SentenceTransformer has no {name}; {METHODS[name]}")

    return refuse


def name_device(device: Any) -> str | None:
    """A device by its name, as E5.from_pretrained takes it; TypeError for several."""
    if isinstance(device, (list, tuple)):
        raise TypeError(f"device is {device!r}, expected one; {_BULK}")
    return f"cuda:{device}" if isinstance(device, int) else device and str(device)


class Module:
    """What code calls on a SentenceTransformer because it is a torch module."""

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        raise NotImplementedError

    def to(self: Model, device: Any = None) -> Model:
        """The model itself if it is there already; TypeError for another place or dtype."""
        self.check_device(device)
        return self

    def cpu(self: Model) -> Model:
        return self.to("cpu")

    def cuda(self: Model, index: int | None = None) -> Model:
        return self.to("cuda" if index is None else f"cuda:{index}")

    def eval(self: Model) -> Model:
        return self

    def train(self: Model, mode: bool = True) -> Model:
        return method("fit")() if mode else self

    def __getattr__(self, name: str) -> Any:
        return method(name)

    def check_device(self, device: Any) -> None:
        """TypeError unless the model is on this device; None is any."""
        name = name_device(device)
        if device is not None and (
            not isinstance(device, (str, int, torch.device))
            or (there := torch.device(str(name))).type != self.device.type
            or there.index not in (None, self.device.index or 0)
        ):
            raise TypeError(
                f"the model is on {self.device}, and {device!r} cannot be had from it; load it "
                "there, with SentenceTransformer(..., device=...)"
            )
