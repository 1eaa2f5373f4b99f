"""What classes of sentence-transformers have and e5core's have not, and what to use instead."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NoReturn, TypeVar

import torch

Model = TypeVar("Model", bound="Module")

_CORES = "one process uses all cores"
_BULK = (
    f"{_CORES}; for files in several processes or on several GPUs use "
    "e5core.bulk.embed_files(..., workers=N)"
)
_DTYPE = "load it in another precision, with model_kwargs={'dtype': 'bfloat16'}"
_TRAIN = "use e5core.train.train or the command e5core train: see docs/training.md"
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

# Arguments that e5core cannot follow: the values at which they ask for nothing, and the way out.
ARGUMENTS: dict[str, tuple[tuple[Any, ...], str]] = {
    "precision": (("float32", None), "call e5core.quantize_vectors on the vectors"),
    "output_value": (
        ("sentence_embedding",),
        "for token states call model.model.encoder on a batch of pack()",
    ),
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


# The same for the methods of a CrossEncoder.
CROSS_ENCODER_METHODS = {
    **{name: way for name, way in METHODS.items() if not name.startswith(("encode", "truncate"))},
    **dict.fromkeys(("start_multi_process_pool", "stop_multi_process_pool"), _CORES),
    "evaluate": "compare the scores of predict with what is expected",
    "forward": "call predict, or model.model.compute, which tells what was cut too",
    "set_keep_in_fp32_modules": "leave it out: the head computes in float32 or wider anyway",
}
CROSS_ENCODER_ARGUMENTS: dict[str, tuple[tuple[Any, ...], str]] = {
    **ARGUMENTS,
    **dict.fromkeys(("pool", "chunk_size"), ((None,), _CORES)),
    **dict.fromkeys(
        ("prompts", "prompt", "prompt_name", "default_prompt_name"),
        ((None, "", {}), "a cross-encoder reads texts as they are; write it before the query"),
    ),
    "num_labels": ((None, 1), "a reranker has one label"),
    "apply_softmax": ((None, False, True), "leave it out: of one label it changes nothing"),
    "keep_in_fp32_modules": ((None, []), "leave it out: the head computes in float32 anyway"),
}


def refuse_arguments(
    options: Mapping[str, Any],
    owner: str = "SentenceTransformer",
    known: Mapping[str, tuple[tuple[Any, ...], str]] = ARGUMENTS,
) -> None:
    """TypeError for arguments that would change something, each with the way to what it asks."""
    for name, value in options.items():
        harmless, way = known.get(name, ((), "leave it out"))
        if not any(value is other or value == other for other in harmless):
            raise TypeError(f"e5core's {owner} takes no {name}={value!r:.40}; {way}")


def method(name: str, owner: str, ways: Mapping[str, str]) -> Callable[..., NoReturn]:
    """A method that says what to use in its place; AttributeError if the library has none."""
    if name not in ways:
        raise AttributeError(f"e5core's {owner} has no attribute {name!r}")

    def refuse(*arguments: object, **options: object) -> NoReturn:
        raise TypeError(f"e5core's {owner} has no {name}; {ways[name]}")

    return refuse


def name_device(device: Any) -> str | None:
    """A device by its name, as E5.from_pretrained takes it; TypeError for several."""
    if isinstance(device, (list, tuple)):
        raise TypeError(f"device is {device!r}, expected one; {_BULK}")
    return f"cuda:{device}" if isinstance(device, int) else device and str(device)


class Module:
    """The torch module's methods that code calls on a model of sentence-transformers."""

    ways: ClassVar[Mapping[str, str]] = METHODS  # what to use in place of methods

    @property
    def device(self) -> torch.device:
        """The device that holds the model."""
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
        return self.__getattr__("fit")() if mode else self

    def __getattr__(self, name: str) -> Any:
        return method(name, type(self).__name__, self.ways)

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
                f"there, with {type(self).__name__}(..., device=...)"
            )
