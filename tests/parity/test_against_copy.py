"""`e5core check` against another copy of the model."""

import dataclasses
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from e5core import Encoder, EncoderConfig, load_checkpoint, save_checkpoint
from e5core.cli import main
from e5core.parity.tolerances import COPY_BOUNDS

Make = Callable[..., Path]
Run = Callable[..., tuple[int, dict[str, str], str]]

pytestmark = pytest.mark.usefixtures("one_thread")


def broken(verdicts: dict[str, str]) -> set[str]:
    return {name for name, verdict in verdicts.items() if verdict == "FAIL"}


def test_a_copy_of_itself_holds(run: Run, tiny_folder: Path) -> None:
    code, verdicts, _ = run(tiny_folder, "--against", tiny_folder)
    assert code == 0
    assert list(verdicts) == [
        "largest difference",
        "worst cosine",
        "mean cosine",
        "queries with the same first passage",
        "overlap of the first 10",
    ]
    assert set(verdicts.values()) == {"ok"}


def test_another_model_breaks_every_bound(run: Run, make_tiny: Make) -> None:
    first, second = make_tiny(name="first"), make_tiny(seed=1, name="second")
    code, verdicts, _ = run(first, "--against", second, "--sample", 40)
    assert (code, len(broken(verdicts))) == (1, 5)


def test_a_slightly_changed_copy_breaks_float32_and_passes_a_wider_bound(
    run: Run, make_tiny: Make
) -> None:
    folder, copy = make_tiny(name="first"), make_tiny(name="copy")
    encoder = Encoder(EncoderConfig.from_file(folder / "config.json"))
    load_checkpoint(encoder, folder)
    with torch.no_grad():
        encoder.layers[0].intermediate.weight.mul_(1 + 1e-4)
    save_checkpoint(encoder, copy)
    code, verdicts, _ = run(folder, "--against", copy)
    assert code == 1
    assert "largest difference" in broken(verdicts)
    assert run(folder, "--against", copy, "--bounds", "int8")[0] == 0


@pytest.mark.parametrize(
    ("options", "deciding"),
    [
        (("--dtype", "bfloat16"), "bfloat16"),
        (("--dtype", "float16", "--against-dtype", "bfloat16"), "bfloat16"),
        (("--against-dtype", "float16"), "float16"),
        (("--against-dtype", "float64"), "float32"),
        (("--dtype", "bfloat16", "--bounds", "int8"), "int8"),
    ],
)
def test_the_coarser_precision_decides_the_bounds(
    make_tiny: Make, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], deciding: str
) -> None:
    folder = str(make_tiny())
    assert main(["check", folder, "--against", folder, *options, "--sample", "12"]) in (0, 1)
    out = capsys.readouterr().out
    assert f"≥ {COPY_BOUNDS[deciding].worst_cosine:.10g} " in out
    assert ("largest difference" in out) == (deciding == "float32")


def test_bounds_never_widen_towards_finer_precision() -> None:
    rows = [dataclasses.astuple(bounds)[1:] for bounds in COPY_BOUNDS.values()]
    assert list(COPY_BOUNDS) == ["float64", "float32", "float16", "bfloat16", "int8"]
    assert all(
        a >= b for finer, coarser in pairwise(rows) for a, b in zip(finer, coarser, strict=True)
    )


def test_real_small_in_bfloat16(run: Run, real_folder: Path) -> None:
    """The bound is tight enough to tell bfloat16 from float32."""
    options = ("--against", real_folder, "--dtype", "bfloat16", "--sample", 40)
    code, verdicts, _ = run(real_folder, *options)
    assert (code, len(verdicts)) == (0, 4)
    assert run(real_folder, *options, "--bounds", "float32")[0] == 1


def test_unequal_hidden_sizes(run: Run, make_tiny: Make, tmp_path: Path) -> None:
    wide = tmp_path / "wide"
    save_checkpoint(Encoder(EncoderConfig("bert", 120, 32, 1, 4, 40, 64, 0, 2, 1e-12)), wide)
    code, _, err = run(make_tiny(), "--against", wide)
    assert code == 2
    assert "hidden size 24" in err
    assert "32" in err
