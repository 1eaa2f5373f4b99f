"""Weights from one precision to another and back, and files in int8."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.conversions import MEMORY, content, convert, convert_in_process, refused
from support.models import CPU, TINY

from e5core import E5, Encoder, load_checkpoint
from e5core.checkpoint.headers import CheckpointError
from e5core.checkpoint.names import tensor_names
from e5core.kernels import BACKENDS, why_not
from e5core.kernels.int8_rows import dequantize_rows, quantize_rows
from e5core.parity.samples import QUERIES, SENTENCES
from e5core.parity.tolerances import INT8_MEAN_COSINE, INT8_WORST_COSINE

WEIGHTS = "model.safetensors"
WORD = "embeddings.word_embeddings.weight"
QUERY = "encoder.layer.1.attention.self.query.weight"
no_int8 = why_not(BACKENDS["onednn"], CPU, torch.int8)
usable = pytest.mark.skipif(no_int8 is not None, reason=str(no_int8))


def converted(source: Path, dtype: str, name: str = "") -> Path:
    target = source.parent / (name or f"in-{dtype}")
    convert("dtype", source, target, "--dtype", dtype)
    return target


def change(folder: Path, **changes: torch.Tensor | None) -> Path:
    """Replace or take out tensors of a folder's file."""
    tensors = {**load_file(folder / WEIGHTS), **changes}
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_tensor_is_rounded_once(tiny_folder: Path, dtype: str) -> None:
    source, result = (load_file(f / WEIGHTS) for f in (tiny_folder, converted(tiny_folder, dtype)))
    assert result.keys() == source.keys()
    for name, tensor in result.items():
        assert torch.equal(tensor, source[name].to(getattr(torch, dtype))), name


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_there_and_back_again_gives_the_same_bytes(tiny_folder: Path, dtype: str) -> None:
    low = converted(tiny_folder, dtype)
    again = converted(converted(low, "float32", "wide"), dtype, "again")
    assert content(again) == content(low)


def test_float32_to_float32_is_the_same_file(tiny_folder: Path) -> None:
    assert content(converted(tiny_folder, "float32"))[WEIGHTS] == content(tiny_folder)[WEIGHTS]


def test_everything_else_travels_along(tiny_folder: Path) -> None:
    config = json.loads((tiny_folder / "config.json").read_text())
    (tiny_folder / "config.json").write_text(
        json.dumps({**config, "torch_dtype": "float32", "dtype": "float32", "own": [1]})
    )
    result = content(converted(tiny_folder, "bfloat16"))
    found = json.loads(result.pop("config.json"))
    assert found == {**config, "torch_dtype": "bfloat16", "dtype": "bfloat16", "own": [1]}
    source = content(tiny_folder)
    assert result.keys() == source.keys() - {"config.json"}
    for name in result.keys() - {WEIGHTS}:
        assert result[name] == source[name]


def test_int8_is_stored_as_documented(tiny_folder: Path, dialect: str) -> None:
    source, folder = load_file(tiny_folder / WEIGHTS), converted(tiny_folder, "int8")
    result = load_file(folder / WEIGHTS)
    integers = {name for name, tensor in result.items() if tensor.dtype == torch.int8}
    layers = TINY[dialect].num_hidden_layers
    assert WORD in integers
    assert len(integers) == 1 + 6 * layers
    assert result.keys() == source.keys() | {f"{name}_scale" for name in integers}
    for name, tensor in source.items():
        if name in integers:
            expected, scales = quantize_rows(tensor)
            assert torch.equal(result[name], expected)
            assert torch.equal(result[name + "_scale"], scales)
        else:
            assert torch.equal(result[name], tensor)
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["encoder_type"]) == ("e5core-int8", dialect)


def test_int8_to_float32_is_what_the_integers_stand_for(tiny_folder: Path) -> None:
    low = converted(tiny_folder, "int8")
    integers, floats = load_file(low / WEIGHTS), load_file(converted(low, "float32") / WEIGHTS)
    assert floats.keys() == {name for name in integers if not name.endswith("_scale")}
    expected = dequantize_rows(integers[QUERY], integers[QUERY + "_scale"])
    assert torch.equal(floats[QUERY], expected)
    wide = content(low.parent / "in-float32")
    assert wide["config.json"] == content(tiny_folder)["config.json"]


@usable
def test_a_folder_in_int8_computes_in_int8(tiny_folder: Path) -> None:
    low = converted(tiny_folder, "int8")
    model = E5.from_pretrained(low)
    assert model.encoder.kernels.name in ("native", "onednn")
    assert model.encoder.embeddings.word.weight.dtype == torch.int8
    # The integers of the layers are those that loading in int8 makes; the table is not.
    table = converted(low, "float32", "floats")
    change(table, **{
        name: tensor
        for name, tensor in load_file(tiny_folder / WEIGHTS).items()
        if name.startswith("encoder.")
    })  # fmt: skip
    expected = E5.from_pretrained(table, dtype="int8", kernels="onednn").encode_query(QUERIES)
    model = E5.from_pretrained(low, kernels="onednn")  # AVX2 alone would quantise anew
    np.testing.assert_array_equal(model.encode_query(QUERIES), expected)


@pytest.mark.parametrize("kernels", ["auto", "sdpa", "plain"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_a_folder_in_int8_computes_in_floats_too(
    tiny_folder: Path, dtype: str, kernels: str
) -> None:
    low = converted(tiny_folder, "int8")
    options = {"dtype": dtype, "kernels": kernels}
    expected = E5.from_pretrained(converted(low, "float32"), **options).encode_query(QUERIES)
    found = E5.from_pretrained(low, **options).encode_query(QUERIES)
    np.testing.assert_array_equal(found, expected)


def test_without_int8_kernels_a_folder_in_int8_is_float32(tiny_folder: Path) -> None:
    low = converted(tiny_folder, "int8")
    model = E5.from_pretrained(low, kernels="plain")
    assert model.encoder.dtype == torch.float32
    assert model.encoder.embeddings.word.weight.dtype == torch.float32


def test_a_file_in_int8_can_be_trained_from(tiny_folder: Path, dialect: str) -> None:
    low = converted(tiny_folder, "int8")
    encoder = Encoder(TINY[dialect])
    load_checkpoint(encoder, low)
    floats = load_file(converted(low, "float32") / WEIGHTS)
    state = encoder.state_dict()
    for published, ours in tensor_names(TINY[dialect]).items():
        assert torch.equal(state[ours], floats[published]), published
    assert all(parameter.requires_grad for parameter in encoder.parameters())


@usable
def test_quality_of_the_real_model(
    real_folder: Path, real_model: E5, tmp_path: Path, measured: Callable[[str], None]
) -> None:
    """The gate of a mode in int8, token table included."""
    low = tmp_path / "small"
    convert("dtype", real_folder, low, "--dtype", "int8", "--verify")
    texts = [*SENTENCES, *QUERIES]
    cosines = (real_model.encode_query(texts) * E5.from_pretrained(low).encode_query(texts)).sum(1)
    size = (low / WEIGHTS).stat().st_size
    measured(
        f"e5-small stored in int8: {size / 1e6:.0f} MB, mean cosine to float32 "
        f"{cosines.mean():.5f}, worst {cosines.min():.5f}"
    )
    assert size < 0.26 * (real_folder / WEIGHTS).stat().st_size
    assert cosines.mean() >= INT8_MEAN_COSINE
    assert cosines.min() >= INT8_WORST_COSINE


def test_memory_is_that_of_the_largest_tensor(
    real_folder: Path, tmp_path: Path, measured: Callable[[str], None]
) -> None:
    with safe_open(real_folder / WEIGHTS, framework="pt") as reader:
        largest = 4 * np.prod(reader.get_slice(WORD).get_shape())
    for dtype in ("bfloat16", "int8"):
        done = convert_in_process(
            *("dtype", real_folder, tmp_path / dtype, "--dtype", dtype), wrapper=MEMORY
        )
        assert done.returncode == 0, done.stderr
        grown = int(done.stdout.split("grown by ")[1])
        measured(f"e5-small to {dtype}: {grown / 1e6:.0f} MB, largest tensor {largest / 1e6:.0f}")
        # The tensor itself, mapped, what it becomes, and what the interpreter needs.
        assert grown < 2 * largest


def test_a_number_that_float16_does_not_hold_is_named(
    tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weight = load_file(tiny_folder / WEIGHTS)[QUERY]
    weight[3, 4] = -70000
    change(tiny_folder, **{QUERY: weight})
    target = tiny_folder.parent / "half"
    line = refused("dtype", capsys, target, tiny_folder, target, "--dtype", "float16")
    assert f"{QUERY} holds 70000, but torch.float16 ends at 65504; take bfloat16" in line
    convert("dtype", tiny_folder, target, "--dtype", "bfloat16")


def test_what_is_no_number_is_named(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weight = load_file(tiny_folder / WEIGHTS)[QUERY]
    weight[3, 4] = torch.nan
    change(tiny_folder, **{QUERY: weight})
    target = tiny_folder.parent / "out"
    for dtype in ("bfloat16", "float16", "int8"):
        line = refused("dtype", capsys, target, tiny_folder, target, "--dtype", dtype)
        assert f"{QUERY} holds a NaN or an infinity" in line


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({QUERY + "_scale": None}, f"dtype: {QUERY} is I8 and its scales are missing"),
        (
            {QUERY + "_scale": torch.ones(23)},
            "are [23] F32, expected F16/BF16/F32/F64, or I8 with scales [24] F32",
        ),
        ({QUERY + "_scale": torch.ones(24).double()}, "its scales are [24] F64"),
        ({QUERY + "_scale": torch.zeros(24)}, f"{QUERY}_scale holds 0, expected scales above 0"),
        ({QUERY + "_scale": torch.full((24,), torch.nan)}, "holds a NaN or an infinity"),
        ({QUERY: torch.zeros(24, 24)}, f"unexpected: {QUERY}_scale"),
        ({QUERY: torch.zeros(24, 24).to(torch.uint8)}, f"dtype: {QUERY} is U8"),
        (
            {"embeddings.LayerNorm.bias": torch.zeros(24).to(torch.int8)},
            "dtype: embeddings.LayerNorm.bias is I8",
        ),
    ],
)
def test_damaged_files_in_int8_are_refused(
    tiny_folder: Path, changes: dict[str, Any], message: str
) -> None:
    low = change(converted(tiny_folder, "int8"), **changes)
    for dtype in ("auto", "float32"):
        with pytest.raises(CheckpointError) as caught:
            E5.from_pretrained(low, dtype=dtype)
        assert message in str(caught.value)


def test_transformers_refuses_integers(tiny_folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    with pytest.raises(ValueError, match="e5core-int8"):
        transformers.AutoModel.from_pretrained(converted(tiny_folder, "int8"))


def test_an_existing_target_stays_without_force(
    tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = converted(tiny_folder, "int8")
    line = refused("dtype", capsys, target, tiny_folder, target, "--dtype", "bfloat16")
    assert "is there already; pass --force to replace it" in line
    convert("dtype", tiny_folder, target, "--dtype", "bfloat16", "--force")
    assert content(target)[WEIGHTS] == content(converted(tiny_folder, "bfloat16"))[WEIGHTS]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: f.joinpath(WEIGHTS).write_bytes(b"x" * 90), "is not a whole safetensors file"),
        (lambda f: f.joinpath(WEIGHTS).unlink(), f"has no {WEIGHTS}"),
        (lambda f: change(f, **{QUERY: None}), f"missing: {QUERY}"),
        (lambda f: f.joinpath("config.json").write_text('{"model_type": "t5"}'), "'t5'"),
    ],
)
def test_bad_sources_are_refused_with_one_line(
    tiny_folder: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], object],
    message: str,
) -> None:
    damage(tiny_folder)
    target = tiny_folder.parent / "out"
    line = refused("dtype", capsys, target, tiny_folder, target, "--dtype", "int8")
    assert message in line


def test_a_full_disk_leaves_nothing(tiny_folder: Path) -> None:
    target = tiny_folder.parent / "out"
    done = convert_in_process("dtype", tiny_folder, target, "--dtype", "int8", limit=20_000)
    assert done.returncode == 2
    assert "cannot write" in done.stderr
    assert done.stderr.count("\n") == 1
    assert [path.name for path in target.parent.iterdir()] == [tiny_folder.name]


def test_a_killed_run_leaves_no_target_and_the_next_one_works(tiny_folder: Path) -> None:
    target = tiny_folder.parent / "out"
    # Killed as it is about to give the finished folder its name.
    killer = (
        "import os, signal, pathlib\n"
        "rename = pathlib.Path.rename\n"
        f"pathlib.Path.rename = lambda *a: os.kill(os.getpid(), signal.{signal.SIGKILL.name})"
    )
    done = convert_in_process("dtype", tiny_folder, target, "--dtype", "int8", wrapper=killer)
    assert done.returncode == -signal.SIGKILL
    assert not target.exists()
    assert len(list(target.parent.iterdir())) == 2  # something is left, and goes
    convert("dtype", tiny_folder, target, "--dtype", "int8")
    assert {*target.parent.iterdir()} == {target, tiny_folder}
