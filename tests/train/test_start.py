"""What a run starts from."""

import os

import pytest

from e5core.checkpoint.options import LoadOptions
from e5core.train.settings import Settings
from e5core.train.start import KEPT_PRIMITIVES, load_task


@pytest.mark.parametrize("reranker", [False, True], ids=["vectors", "reranker"])
@pytest.mark.parametrize(
    ("has", "kernels", "asked", "wanted"),
    [
        (True, "auto", None, "bfloat16"),
        (False, "auto", None, "float32"),
        (True, "plain", None, "float32"),
        (True, "auto", "float32", "float32"),
        (True, "auto", "float64", "float64"),
        (False, "auto", "bfloat16", "bfloat16"),
    ],
)
def test_products_are_in_bfloat16_where_the_cpu_has_it(
    folder, monkeypatch, has, kernels, asked, wanted, reranker
):
    monkeypatch.setattr("e5core.kernels.training.has_bfloat16", lambda: has)
    options = LoadOptions(kernels=kernels, device="cpu")
    task = load_task(folder, Settings(precision=asked), options, reranker)
    assert task.settings.precision == wanted


def test_what_onednn_keeps_of_shapes_is_bounded_unless_the_user_has_said_how(folder, monkeypatch):
    name, bound = KEPT_PRIMITIVES
    for before, wanted in ((None, bound), ("7", "7")):
        monkeypatch.delenv(name, raising=False)
        if before is not None:
            monkeypatch.setenv(name, before)
        load_task(folder, Settings(), LoadOptions(), False)
        assert os.environ[name] == wanted
