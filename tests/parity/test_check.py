"""`e5core check` as a command, and its table."""

from collections.abc import Callable
from pathlib import Path

import pytest

from e5core.parity.cases import Case, at_least, at_most, table, worst

Make = Callable[..., Path]
Run = Callable[..., tuple[int, dict[str, str], str]]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--sample", "0"), "--sample is 0, expected 1 or more"),
        (("--dtype", "bfloat16"), "only beside published or MODEL"),
        (("--bounds", "int8"), "only beside MODEL"),
        (("--published-as", "multilingual-e5-base"), "only beside published"),
        (("--against", "published", "--sample", "3"), "only beside transformers or MODEL"),
        (("--against", "no/such/folder"), "'no/such/folder' is neither a folder nor a hub id"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    run: Run, make_tiny: Make, options: tuple[str, ...], said: str
) -> None:
    code, verdicts, err = run(make_tiny(), *options)
    assert (code, verdicts, err.count("\n")) == (2, {}, 1)
    assert err.startswith("e5core check: ")
    assert said in err


def test_a_missing_model(run: Run) -> None:
    code, _, err = run("./nowhere", "--against", "published", "--published-as", "xlm-roberta-base")
    assert (code, err.count("\n")) == (2, 1)
    assert "'./nowhere' is neither a folder nor a hub id" in err


def test_nan_breaks_every_bound() -> None:
    assert not at_most("a", 1.0, float("nan")).ok
    assert not at_least("a", 0.0, float("nan")).ok
    assert at_most("a", 1.0, 1.0).ok
    assert at_least("a", 1.0, 1.0).ok


def test_worst_refuses_unequal_shapes() -> None:
    assert worst([[1.0, 2.0]], [[1.5, 4.0]]) == 2.0
    with pytest.raises(ValueError, match=r"\(2,\) with one of \(1,\)"):
        worst([1.0, 2.0], [1.0])


def test_table() -> None:
    cases = [Case("long name", "≤ 1", "0.5", True), Case("b", "≥ 0.25", "0", False)]
    assert table(cases).splitlines() == [
        "case       bound   measured  verdict",
        "long name  ≤ 1     0.5       ok",
        "b          ≥ 0.25  0         FAIL",
    ]
