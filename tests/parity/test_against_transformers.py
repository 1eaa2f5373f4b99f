"""`e5core check` against transformers: what holds is reported so, every kind of fault as broken."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.models import CHARSMAP

from e5core import mean_pool
from e5core.cli import main
from e5core.formats.files import write_json
from e5core.kernels.plain import Kernels
from e5core.kernels.sdpa import SdpaKernels
from e5core.parity.against_transformers import RUNNING, error_case

Make = Callable[..., Path]
Run = Callable[..., tuple[int, dict[str, str], str]]

pytestmark = pytest.mark.usefixtures("one_thread")


def broken(verdicts: dict[str, str]) -> set[str]:
    return {name for name, verdict in verdicts.items() if verdict == "FAIL"}


def test_a_right_model_holds_in_every_case(oracle: Any, run: Run, tiny_folder: Path) -> None:
    code, verdicts, err = run(tiny_folder)
    assert (code, set(verdicts.values()), err) == (0, {"ok"}, "")
    expected = {f"texts of other ids, prefix '{kind}: '" for kind in ("query", "passage")}
    assert {"plain", "sdpa"} <= set(RUNNING)
    for kernels in RUNNING:
        expected |= {
            f"{kind}, kernels {kernels}, against {reference}"
            for kind in ("query", "passage")
            for reference in ("eager", "sdpa")
        }
        expected |= {f"batches of {size}, kernels {kernels}" for size in (1, 2, 7, 64)}
        expected |= {
            f"packed against one at a time, kernels {kernels}",
            f"mean error against float64, kernels {kernels}",
        }
    assert set(verdicts) == expected


def tanh_gelu(self: Kernels, x: Any, layer: Any) -> torch.Tensor:
    return torch.nn.functional.gelu(self.linear(x, layer), approximate="tanh")


def test_a_wrong_activation_is_found(
    oracle: Any, run: Run, make_tiny: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Kernels, "linear_gelu", tanh_gelu)
    code, verdicts, _ = run(make_tiny(), "--sample", 4)
    assert code == 1
    # The plain kernels have it, and float64 too: only transformers can tell.
    wrong = {name for name in verdicts if "kernels plain, against" in name}
    assert wrong
    assert wrong <= broken(verdicts)
    assert "packed against one at a time, kernels plain" not in broken(verdicts)


def test_a_leak_between_texts_is_found_in_batches_alone(
    oracle: Any, run: Run, make_tiny: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leak(
        self: Kernels, qkv: Any, cu_seqlens: Any, max_seqlen: int, dropout: float
    ) -> torch.Tensor:
        q, k, v = qkv.permute(1, 2, 0, 3)[:, None]
        attended = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return attended[0].transpose(0, 1)

    monkeypatch.setattr(SdpaKernels, "attention", leak)
    code, verdicts, _ = run(make_tiny(), "--sample", 4)
    assert code == 1
    assert {
        "batches of 7, kernels sdpa",
        "packed against one at a time, kernels sdpa",
        "query, kernels sdpa, against eager",
    } <= broken(verdicts)
    assert verdicts["batches of 1, kernels sdpa"] == "ok"
    assert not [name for name in broken(verdicts) if "kernels plain" in name]


def test_wrong_ids_are_counted_and_the_first_text_is_shown(
    oracle: Any,
    make_tiny: Make,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("e5core.tokenizer.UNKNOWN", 0)
    assert main(["check", str(make_tiny("xlm-roberta")), "--sample", "4"]) == 1
    row = capsys.readouterr().out.splitlines()[1]
    assert row.startswith("texts of other ids, prefix 'query: '")
    assert ", first 'query: " in row
    assert row.endswith("FAIL")


def test_pooling_by_the_first_token(
    oracle: Any, run: Run, make_tiny: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_tiny("xlm-roberta")
    write_json(folder / "1_Pooling" / "config.json", {"pooling_mode_cls_token": True})
    assert run(folder, "--sample", 4)[0] == 0
    monkeypatch.setitem(sys.modules["e5core.pooling"].POOLINGS, "cls", mean_pool)
    assert run(folder, "--sample", 4)[0] == 1


def test_a_folder_with_tokenizer_json_alone(oracle: Any, run: Run, make_tiny: Make) -> None:
    folder = make_tiny()
    fast = oracle.fast_tokenizer(folder, CHARSMAP)
    fast.backend_tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "sentencepiece.bpe.model").unlink()
    code, verdicts, _ = run(folder, "--sample", 4)
    assert (code, len(verdicts)) == (0, 2 + 10 * len(RUNNING))


def test_another_normalisation_table_is_refused(oracle: Any, run: Run, make_tiny: Make) -> None:
    folder = make_tiny()
    file = folder / "sentencepiece.bpe.model"
    content = file.read_bytes()
    table = CHARSMAP.read_bytes()
    file.write_bytes(content.replace(table, table[:-1] + b"?"))
    assert file.read_bytes() != content
    code, _, err = run(folder)
    assert code == 2
    assert "another normalisation table" in err


@pytest.mark.parametrize(("factor", "ok"), [(1.0, True), (1.05, True), (1.3, False)])
def test_error_against_float64_is_compared_with_that_of_transformers(
    factor: float, ok: bool
) -> None:
    noise = np.random.default_rng(0).normal(size=(2, 40, 384)) * 1e-8
    truth = np.zeros((40, 384))
    assert error_case("sdpa", factor * noise[0], noise[1], truth).ok is ok


def test_without_transformers_one_line_says_what_to_install(
    run: Run, make_tiny: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "e5core.parity.oracle", raising=False)
    monkeypatch.delattr("e5core.parity.oracle", raising=False)
    monkeypatch.setitem(sys.modules, "transformers", None)
    code, verdicts, err = run(make_tiny())
    assert (code, verdicts, err.count("\n")) == (2, {}, 1)
    assert "python -m pip install 'transformers>=5'" in err
