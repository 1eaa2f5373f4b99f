"""What a model's folder holds, read for inference: encoder, tokenizer and settings."""

import re
from dataclasses import dataclass
from pathlib import Path

import torch

from e5core.checkpoint.hub import TOKENIZER_FILES
from e5core.checkpoint.load import CONFIG_FILE, load_parts, stored_in_int8
from e5core.config import EncoderConfig
from e5core.encoder import Encoder
from e5core.formats.files import read_json_object
from e5core.kernels import BACKENDS, select, why_not
from e5core.pooling import read_pooling
from e5core.prompts import read_prompts
from e5core.tokenizer import SentencePieceTokenizer

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.int8,
}
AUTO = "auto"


@dataclass(frozen=True)
class Settings:
    """What a folder says beside the encoder's dimensions."""

    pooling: str
    prompts: dict[str, str] | None
    max_length: int | None


def read_settings(folder: Path, name: str) -> Settings:
    """Pooling, prompts and the limit of a folder; `name` is what the caller called it."""
    path = folder / "sentence_bert_config.json"
    limit = read_json_object(path).get("max_seq_length") if path.is_file() else None
    if limit is not None:
        if not isinstance(limit, int):
            raise ValueError(f"{path}: max_seq_length is {limit!r}, expected a whole number")
        # Some say 514, the rows of the position table, which hold 512 tokens.
        limit = min(limit, read_config(folder).max_length)
    return Settings(read_pooling(folder), read_prompts(folder, name), limit)


def read_config(folder: Path) -> EncoderConfig:
    """The config.json of a folder; FileNotFoundError says so if there is none."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has no {CONFIG_FILE}: it is no model folder in Hugging Face layout"
        )
    return EncoderConfig.from_file(path)


def load_tokenizer(folder: Path) -> SentencePieceTokenizer:
    """The tokenizer of a folder, from the first of TOKENIZER_FILES that is there."""
    for name in TOKENIZER_FILES:
        if (folder / name).is_file():
            return SentencePieceTokenizer(folder / name)
    raise FileNotFoundError(f"{folder} has no {' and no '.join(TOKENIZER_FILES)}")


def load_encoder(
    folder: Path,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    kernels: str = "auto",
) -> Encoder:
    """The encoder of a folder, ready for inference; arguments as in `E5.from_pretrained`."""
    device = _usable_device(device)
    config = read_config(folder)
    torch_dtype = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if dtype == AUTO:
        torch_dtype = _made_for(folder, device, kernels)
    elif torch_dtype not in DTYPES.values():
        raise ValueError(f"dtype is {dtype!r}, expected {AUTO} or one of {', '.join(DTYPES)}")
    assert torch_dtype is not None
    chosen = select(kernels, device, torch_dtype)
    # On the meta device the modules cost no memory; loading gives them the mapped file's.
    with torch.device("meta"):
        encoder = Encoder(config)
    parts = load_parts(encoder, folder, torch_dtype, device)
    return encoder.prepare_for_inference(torch_dtype, chosen, parts)


def _made_for(folder: Path, device: torch.device, kernels: str) -> torch.dtype:
    """int8 if the files are in int8 and the kernels that are wanted run it, else float32."""
    if stored_in_int8(folder):
        wanted = [backend for name, backend in BACKENDS.items() if kernels in ("auto", name)]
        if any(why_not(backend, device, torch.int8) is None for backend in wanted):
            return torch.int8
    return torch.float32


def _usable_device(device: str | torch.device | None) -> torch.device:
    """The device, if it holds data; ValueError in one sentence if not."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device).tolist()  # the meta device holds none
    except (RuntimeError, AssertionError) as error:  # the latter from a torch without CUDA
        reason = re.split(r"\.\s|\n", str(error))[0]  # torch goes on for pages
        raise ValueError(f"device {str(device)!r} cannot be used: {reason}") from None
    return torch.device(device)
