"""Weights in: every published layout loads alike, and no value that is no number."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import (
    IDS,
    QUERY,
    WORD,
    Tensors,
    assert_restored,
    load,
    parts,
    refused,
    rewrite,
    split,
    write_parts,
)
from support.models import TINY, tiny_encoder

from e5core import CheckpointError, Encoder, load_checkpoint, save_checkpoint
from e5core.batching import pack
from e5core.checkpoint.headers import WEIGHTS_FILE
from e5core.checkpoint.names import tensor_names


def _task_model(tensors: Tensors, prefix: str) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()} | {
        prefix + "pooler.dense.weight": torch.ones(24, 24),
        "lm_head.dense.weight": torch.ones(24, 24),
        "classifier.out_proj.bias": torch.ones(2),
        "cls.predictions.transform.LayerNorm.gamma": torch.ones(24),
        "cls.predictions.bias": torch.ones(120),
        prefix + "embeddings.position_ids": torch.arange(64)[None],
    }


def _old_norms(tensors: Tensors) -> Tensors:
    return {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in tensors.items()
    }


LAYOUTS: dict[str, Callable[[Tensors], Tensors | None]] = {
    "plain": lambda tensors: tensors,
    "pooler": lambda t: t | {"pooler.dense.weight": torch.ones(24, 24)},
    "position-ids": lambda t: t | {"embeddings.position_ids": torch.arange(64)[None]},
    "roberta": lambda tensors: _task_model(tensors, "roberta."),
    "bert": lambda tensors: _task_model(tensors, "bert."),
    "gamma-beta": _old_norms,
    "bert-gamma-beta": lambda tensors: _task_model(_old_norms(tensors), "bert."),
    "float64": lambda tensors: {name: tensor.double() for name, tensor in tensors.items()},
}


@pytest.mark.parametrize("meta", [True, False], ids=["meta", "memory"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_loads_alike(folder: Path, dialect: str, layout: str, meta: bool) -> None:
    rewrite(folder, LAYOUTS[layout])
    assert_restored(load(folder, dialect, meta=meta))


@pytest.mark.parametrize("meta", [True, False], ids=["meta", "memory"])
@pytest.mark.parametrize("layout", ["plain", "roberta"])
def test_shards_load_alike(folder: Path, dialect: str, layout: str, meta: bool) -> None:
    rewrite(folder, LAYOUTS[layout])
    weight_map = split(folder)
    assert len({file for name, file in weight_map.items() if "layer.0." in name}) == 3
    assert_restored(load(folder, dialect, meta=meta))


def test_a_file_loads_without_its_folder(folder: Path, dialect: str) -> None:
    file = (folder / WEIGHTS_FILE).rename(folder.parent / "other-name.safetensors")
    assert_restored(load(file, dialect))


@pytest.mark.parametrize("meta", [True, False], ids=["meta", "memory"])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_are_rounded_once(
    make_folder: Path, stored: torch.dtype, wanted: torch.dtype, meta: bool
) -> None:
    rewrite(make_folder, lambda tensors: {n: t.to(stored) for n, t in tensors.items()})
    loaded = load(make_folder, "bert", wanted, meta).state_dict()
    for name, tensor in tiny_encoder("bert").state_dict().items():
        assert loaded[name].dtype == wanted
        assert torch.equal(loaded[name], tensor.to(stored).to(wanted)), name


def test_an_optimizer_made_before_loading_still_trains(folder: Path, dialect: str) -> None:
    encoder = Encoder(TINY[dialect], "plain").eval()
    parameters = dict(encoder.named_parameters())
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
    load_checkpoint(encoder, folder)
    assert all(parameters[name] is now for name, now in encoder.named_parameters())
    encoder(pack(IDS, encoder.config)).square().sum().backward()
    optimizer.step()
    query = encoder.layers[0].attention.query.weight
    assert not torch.equal(query, tiny_encoder(dialect).layers[0].attention.query.weight)


def test_training_on_mapped_memory_leaves_the_file(folder: Path, dialect: str) -> None:
    before = (folder / WEIGHTS_FILE).read_bytes()
    encoder = load(folder, dialect)
    assert all(parameter.requires_grad for parameter in encoder.parameters())
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(1.0)
    assert (folder / WEIGHTS_FILE).read_bytes() == before
    # Saving over the file that the encoder is mapped from.
    save_checkpoint(encoder, folder)
    assert_restored(load(folder, dialect), encoder)


MEASURE = """
import sys, torch
from pathlib import Path
from types import ModuleType
from e5core.checkpoint.folder import ModelFolder

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key + ":"))

before = status("RssAnon"), status("VmHWM")
encoder = ModelFolder.read(Path(sys.argv[1])).load_encoder(device="cpu")
print(status("RssAnon") - before[0], status("VmHWM") - before[1])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_loading_maps_the_file(real_folder: Path) -> None:
    """Measured 2026-11 on the 448 MiB of small: 68 MiB of modules torch imports, peak 528."""
    command = [sys.executable, "-c", MEASURE, str(real_folder)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    private, peak = map(float, printed.split())
    file = (real_folder / WEIGHTS_FILE).stat().st_size / 2**20
    assert private < 200
    assert peak < file + 200


def test_a_header_of_any_length_loads(folder: Path, dialect: str) -> None:
    """The format asks for no alignment; transformers' files have it, others' may not."""
    header, data = parts(folder)
    for spaces in range(1, 8):
        write_parts(folder, header + b" " * spaces, data)
        assert_restored(load(folder, dialect))


# ---- values


@pytest.mark.parametrize("meta", [True, False], ids=["meta", "memory"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_that_are_not_numbers(
    make_folder: Path, dtype: torch.dtype, value: float, meta: bool
) -> None:
    """In the word embeddings and in the last tensor; the encoder stays as it was."""
    good = {
        name: tensor.to(dtype) for name, tensor in load_file(make_folder / WEIGHTS_FILE).items()
    }
    for name in (WORD, "encoder.layer.2.output.LayerNorm.bias"):
        tensor = good[name].clone()
        tensor.view(-1)[-3] = value
        save_file(good | {name: tensor}, make_folder / WEIGHTS_FILE)
        with torch.device("meta" if meta else "cpu"):
            encoder = Encoder(TINY["bert"], "plain")
        before = {key: parameter.clone() for key, parameter in encoder.named_parameters()}
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(encoder, make_folder)
        assert f"{WEIGHTS_FILE}: {name} holds a NaN or an infinity" in str(caught.value)
        for key, parameter in encoder.named_parameters():
            assert parameter.is_meta == meta
            assert meta or torch.equal(parameter, before[key])


def test_every_tensor_is_looked_at(make_folder: Path) -> None:
    good = load_file(make_folder / WEIGHTS_FILE)
    for name in tensor_names(TINY["bert"]):
        tensor = good[name].clone()
        tensor.view(-1)[0] = float("nan")
        save_file(good | {name: tensor}, make_folder / WEIGHTS_FILE)
        refused(make_folder, "bert", f"{name} holds a NaN")


def test_too_large_for_float16(make_folder: Path) -> None:
    def enlarge(tensors: Tensors) -> None:
        tensors[QUERY][3, 4] = -70000.0

    rewrite(make_folder, enlarge)
    with pytest.raises(CheckpointError, match=r"holds 70000, too large for torch.float16; load it"):
        load(make_folder, "bert", torch.float16)
    # No sum is taken that could overflow, and the large number itself is no fault.
    loaded = load(make_folder, "bert", torch.bfloat16)
    assert loaded.layers[0].attention.query.weight[3, 4] == torch.tensor(-70000.0).bfloat16()
