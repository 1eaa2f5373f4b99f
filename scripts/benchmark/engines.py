"""The libraries that are compared: each loads a model and turns texts into unit vectors.

Every peer gets what its documentation recommends, texts sorted by length, batches padded to
their longest text, and the Hugging Face fast tokenizer. Exports are made once, beside the model
files that the peers share.
"""

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from exports import LIMIT, export_onnx, peer_folder
from gguf_export import export_gguf
from workloads import PREFIX

Vectors = npt.NDArray[np.float32]


class Engine:
    """One library in one precision, in a process of its own."""

    name: str
    package: str  # what has to be installed
    precisions: tuple[str, ...]
    batch_sizes: tuple[int, ...] = (8, 32)  # the better one of a workload counts
    has_switch = True  # one of instructions.py holds it to an instruction set
    first: Sequence[Any] = (PREFIX + "a first text",)  # what an engine is warmed up with

    @classmethod
    def export(cls, folder: Path, precision: str) -> None:
        """What is done once for a model, outside the measurement."""

    def __init__(self, folder: Path, precision: str, threads: int, device: str) -> None:
        raise NotImplementedError

    def encode(self, texts: Sequence[str], batch_size: int) -> Vectors:
        """Unit vectors in the order of the texts; prefixes are in the texts."""
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        vectors: list[Any] = [None] * len(texts)
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            for i, vector in zip(part, self.encode_batch([texts[i] for i in part]), strict=True):
                vectors[i] = vector
        stacked = np.stack(vectors).astype(np.float32)
        unit: Vectors = stacked / np.linalg.norm(stacked, axis=1, keepdims=True)
        return unit

    def encode_batch(self, texts: Sequence[str]) -> npt.NDArray[Any]:
        raise NotImplementedError


def fast(folder: Path) -> Any:
    import transformers

    return transformers.AutoTokenizer.from_pretrained(peer_folder(folder))


def padded(tokenizer: Any, texts: Sequence[str], tensors: str) -> Any:
    batch = tokenizer(
        list(texts), padding=True, truncation=True, max_length=LIMIT, return_tensors=tensors
    )
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


class E5core(Engine):
    name = "e5core"
    package = "e5core"
    precisions = ("float32", "bfloat16", "int8", "float16")
    batch_sizes = (0,)  # packed batches have a budget of tokens
    kernels = "auto"

    def __init__(self, folder: Path, precision: str, threads: int, device: str) -> None:
        import torch

        from e5core import E5

        torch.set_num_threads(threads)
        self.model = E5.from_pretrained(
            folder, dtype=precision, device=device, kernels=self.kernels
        )

    def encode(self, texts: Sequence[str], batch_size: int) -> Vectors:
        return self.model.encode(texts, input_type=None, show_progress=False)


class NativeAvx512(E5core):
    """e5core on one instruction set of its C++, like the next ones."""

    name = kernels = "native/avx512"
    precisions = ("float32", "bfloat16", "int8")


class NativeAvxvnni(NativeAvx512):
    name = kernels = "native/avxvnni"


class NativeAvx2(NativeAvx512):
    name = kernels = "native/avx2"


class NativeVariant(NativeAvx512):
    """e5core on C++ that was compiled elsewhere; tuning.py says where, and for which CPUs."""

    def __init__(self, folder: Path, precision: str, threads: int, device: str) -> None:
        from e5core.kernels.native import library

        library.FOLDER = Path(os.environ["E5CORE_VARIANT"])
        self.kernels = f"native/{os.environ['E5CORE_INSTRUCTIONS']}"
        super().__init__(folder, precision, threads, device)


class SentenceTransformers(Engine):
    name = "sentence-transformers"
    package = "sentence_transformers"
    precisions = ("float32", "bfloat16")

    @classmethod
    def export(cls, folder: Path, precision: str) -> None:
        peer_folder(folder)

    def __init__(self, folder: Path, precision: str, threads: int, device: str) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(threads)
        self.model = SentenceTransformer(
            str(peer_folder(folder)), device=device, model_kwargs={"dtype": precision}
        )
        self.model.max_seq_length = LIMIT

    def encode(self, texts: Sequence[str], batch_size: int) -> Vectors:
        vectors = np.asarray(
            self.model.encode(
                list(texts),
                batch_size=batch_size,
                normalize_embeddings=True,
                show_progress_bar=False,
            ),
            dtype=np.float32,
        )
        unit: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit


class Transformers(Engine):
    name = "transformers"
    package = "transformers"
    precisions = ("float32", "bfloat16", "float16")
    batch_sizes = (32,)  # as the models' cards have it

    @classmethod
    def export(cls, folder: Path, precision: str) -> None:
        peer_folder(folder)

    def __init__(self, folder: Path, precision: str, threads: int, device: str) -> None:
        import torch
        import transformers

        torch.set_num_threads(threads)
        self.device = device
        self.tokenizer = fast(folder)
        model = transformers.AutoModel.from_pretrained(
            peer_folder(folder),
            attn_implementation="sdpa",
            dtype=getattr(torch, precision),
            add_pooling_layer=False,
        )
        self.model = model.eval().to(device)

    def encode_batch(self, texts: Sequence[str]) -> npt.NDArray[Any]:
        import torch

        with torch.inference_mode():
            batch = {k: v.to(self.device) for k, v in padded(self.tokenizer, texts, "pt").items()}
            states = self.model(**batch).last_hidden_state.float()
            mask = batch["attention_mask"][..., None]
            vectors: npt.NDArray[Any] = ((states * mask).sum(1) / mask.sum(1)).cpu().numpy()
            return vectors


class OnnxRuntime(Engine):
    name = "onnxruntime"
    package = "onnxruntime"
    precisions = ("float32", "int8")
    has_switch = False

    @classmethod
    def file(cls, folder: Path, precision: str) -> Path:
        return peer_folder(folder) / f"model-{precision}.onnx"

    @classmethod
    def export(cls, folder: Path, precision: str) -> None:
        exact = cls.file(folder, "float32")
        if not exact.is_file():
            export_onnx(folder, exact)
        if precision == "int8" and not cls.file(folder, "int8").is_file():
            from onnxruntime.quantization import QuantType, quantize_dynamic

            # Per channel, weights int8: its recommendation for transformers on AVX512-VNNI.
            quantize_dynamic(
                exact,
                cls.file(folder, "int8"),
                weight_type=QuantType.QInt8,
                per_channel=True,
                op_types_to_quantize=["MatMul", "Gemm"],
            )

    def __init__(self, folder: Path, precision: str, threads: int, device: str) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        self.tokenizer = fast(folder)
        self.session = onnxruntime.InferenceSession(
            self.file(folder, precision), options, providers=["CPUExecutionProvider"]
        )

    def encode_batch(self, texts: Sequence[str]) -> npt.NDArray[Any]:
        vectors: npt.NDArray[Any] = self.session.run(None, padded(self.tokenizer, texts, "np"))[0]
        return vectors


class OpenVino(Engine):
    name = "openvino"
    package = "openvino"
    precisions = ("float32", "bfloat16")
    # oneDNN's holds for a third of the matrix products. The others are MLAS's, as in ONNX Runtime,
    # and LayerNorm keeps AVX-512 too (by the model's get_runtime_model(), 2026.4).
    has_switch = False

    @classmethod
    def export(cls, folder: Path, precision: str) -> None:
        OnnxRuntime.export(folder, "float32")

    def __init__(self, folder: Path, precision: str, threads: int, device: str) -> None:
        import openvino

        self.tokenizer = fast(folder)
        core = openvino.Core()
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",  # one request at a time, all threads for it
            "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
        }
        file = OnnxRuntime.file(folder, "float32")
        self.model = core.compile_model(core.read_model(file), "CPU", settings)

    def encode_batch(self, texts: Sequence[str]) -> npt.NDArray[Any]:
        vectors: npt.NDArray[Any] = self.model(padded(self.tokenizer, texts, "np"))[0]
        return vectors


class CTranslate2(Engine):
    name = "ctranslate2"
    package = "ctranslate2"
    precisions = ("float32", "int8")

    @classmethod
    def export(cls, folder: Path, precision: str) -> None:
        from ctranslate2.converters import TransformersConverter

        target = peer_folder(folder) / "ctranslate2"
        if not (target / "model.bin").is_file():
            TransformersConverter(str(peer_folder(folder))).convert(str(target), force=True)

    def __init__(self, folder: Path, precision: str, threads: int, device: str) -> None:
        import ctranslate2

        self.tokenizer = fast(folder)
        self.model = ctranslate2.Encoder(
            str(peer_folder(folder) / "ctranslate2"),
            device="cpu",
            compute_type=precision,
            intra_threads=threads,
        )

    def encode_batch(self, texts: Sequence[str]) -> npt.NDArray[Any]:
        ids = self.tokenizer(list(texts), truncation=True, max_length=LIMIT)["input_ids"]
        states = np.array(self.model.forward_batch(ids).last_hidden_state)
        return np.stack(
            [row[: len(text)].mean(axis=0) for row, text in zip(states, ids, strict=True)]
        )


class LlamaCpp(Engine):
    """Its own tokenizer. A batch is one sequence, in which attention masks other texts out."""

    name = "llama.cpp"
    package = "llama_cpp"
    precisions = ("float32", "float16", "int8")  # Q8_0 as int8
    batch_sizes = (1, 8, 32)
    has_switch = False
    tokens = 2048  # of a batch; the memory and time of attention grow with their square

    @classmethod
    def file(cls, folder: Path, precision: str) -> Path:
        return peer_folder(folder) / f"model-{precision}.gguf"

    @classmethod
    def export(cls, folder: Path, precision: str) -> None:
        file = cls.file(folder, precision)
        if not file.is_file():
            export_gguf(folder, file, precision)

    def __init__(self, folder: Path, precision: str, threads: int, device: str) -> None:
        import llama_cpp

        self.model = llama_cpp.Llama(
            str(self.file(folder, precision)),
            embedding=True,
            pooling_type=llama_cpp.LLAMA_POOLING_TYPE_MEAN,
            n_ctx=self.tokens,
            n_batch=self.tokens,
            n_ubatch=self.tokens,
            n_threads=threads,
            n_threads_batch=threads,
            verbose=False,
        )
        self.lock = threading.Lock()  # a model of it takes one call at a time

    def encode_batch(self, texts: Sequence[str]) -> npt.NDArray[Any]:
        with self.lock:
            return np.array(self.model.embed(list(texts)))


ENGINES: dict[str, type[Engine]] = {
    engine.name: engine
    for engine in (
        E5core,
        NativeAvx512,
        NativeAvxvnni,
        NativeAvx2,
        SentenceTransformers,
        Transformers,
        OnnxRuntime,
        OpenVino,
        CTranslate2,
        LlamaCpp,
    )
}

# e5core itself, under each of its names.
OURS = {name for name, engine in ENGINES.items() if issubclass(engine, E5core)}
