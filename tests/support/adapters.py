"""LoRA adapters as peft saves them."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from e5core.formats.files import write_json

TARGETS = {
    "encoder.layer.0.attention.self.query": (24, 24),
    "encoder.layer.2.attention.self.value": (24, 24),
    "encoder.layer.1.attention.output.dense": (24, 24),
    "encoder.layer.1.intermediate.dense": (40, 24),
    "encoder.layer.1.output.dense": (24, 40),
}


def write_adapter(folder: Path, base: Path | str | None, rank: int = 3, **config: Any) -> Path:
    """An adapter of random numbers, as peft saves it."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(7)
    tensors = {}
    for module, (outputs, inputs) in TARGETS.items():
        name = f"base_model.model.{module}"
        tensors[f"{name}.lora_A.weight"] = torch.randn(rank, inputs) / 4
        tensors[f"{name}.lora_B.weight"] = torch.randn(outputs, rank) / 4
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 6, "bias": "none"}
    write_json(
        folder / "adapter_config.json",
        {**settings, "base_model_name_or_path": base and str(base), **config},
    )
    return folder
