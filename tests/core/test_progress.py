"""The progress bar: whole units, and only where a person looks."""

import io
import re
import sys

import pytest

from e5core.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def written(
    monkeypatch: pytest.MonkeyPatch,
    stream: io.StringIO,
    show: bool | None,
    total: int | None = 3,
) -> str:
    """What a bar writes while three texts of seven windows each are embedded."""
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar(total, show) as advance:
        for _ in range(21):
            advance(1 / 7)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("stream", "show", "expected"),
    [
        (Terminal, None, True),
        (Terminal, False, False),
        (io.StringIO, None, False),
        (io.StringIO, True, True),
    ],
)
def test_a_bar_is_shown_on_a_terminal_or_on_request(
    monkeypatch: pytest.MonkeyPatch, stream: type[io.StringIO], show: bool | None, expected: bool
) -> None:
    assert bool(written(monkeypatch, stream(), show)) is expected


def test_the_bar_counts_whole_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    text = written(monkeypatch, Terminal(), None)
    assert "100%" in text
    assert re.findall(r"\d\S*/3", text)[-1] == "3/3"
    assert "texts" in text


def test_a_bar_without_a_total_counts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "3 texts" in written(monkeypatch, Terminal(), None, total=None)


def test_an_error_closes_the_bar_and_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)

    def work() -> None:
        with progress_bar(3, None) as advance:
            advance(1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert stream.getvalue().endswith("\n")  # the next line on the terminal stands alone
