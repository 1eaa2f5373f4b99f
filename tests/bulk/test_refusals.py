"""What is refused before any work, and what a journal refuses to go on with."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.bulk import TEXTS, embed, interrupt
from support.conversions import content

from e5core.bulk import PartialOutputError, partial_folder


def test_an_output_among_its_input_is_refused(model: Path, texts: Path, output: Path) -> None:
    folder = output.parent
    (folder / "a.txt").write_text("a\n")
    for place in (folder, folder.parent):
        with pytest.raises(ValueError, match=f"{output} lies in the input folder {place}, where"):
            embed(model, place, output)
    assert [file.name for file in folder.iterdir()] == ["a.txt"]
    (folder / "_vectors").mkdir()  # no data, by its name
    assert embed(model, folder, folder / "_vectors" / output.name).rows == 1


def test_an_output_does_not_replace_its_input(model: Path, npy: Path) -> None:
    file = npy.with_name("vectors.npy.ids.jsonl")
    file.write_text('{"text": "a"}')
    with pytest.raises(ValueError, match=r"would replace the input .*ids\.jsonl; name another"):
        embed(model, file, npy)
    assert file.read_text() == '{"text": "a"}'


def test_a_pipe_is_refused(model: Path, tmp_path: Path, npy: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe is a pipe or a device, which can be read only once"):
        embed(model, tmp_path / "pipe", npy)
    assert not partial_folder(npy).exists()


def another_word(file: Path) -> None:
    file.write_text(file.read_text(encoding="utf-8").replace(TEXTS[3], "another"), "utf-8")


def one_row_less(file: Path) -> None:
    file.write_text("".join(file.read_text("utf-8").splitlines(keepends=True)[1:]), "utf-8")


def other_weights(model: Path) -> None:
    file = model / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_type": "passage"}, "prefix was 'query: ', is 'passage: '"),
        ({"normalize": False}, "normalize was True, is False"),
        ({"truncate": "window"}, "truncate was 'end', is 'window'"),
        ({"max_length": 40}, "max_length was 64, is 40"),
        ({"dtype": "float64"}, "dtype was 'float32', is 'float64'"),
        ({"kernels": "plain"}, "kernels was '.*', is 'plain'"),
        ({"max_tokens_per_batch": 9}, "max_tokens_per_batch was None, is 9"),
        ({"chunk_rows": 8}, "chunk_rows was 7, is 8"),
        ({"id_column": "id"}, "id_column was None, is 'id'"),
        (("texts", another_word), r"no longer the first ones of the input \(changed: .*texts"),
        (("texts", one_row_less), r"no longer the first ones of the input \(changed: .*texts"),
        (("model", other_weights), "the model's model.safetensors is another"),
    ],
)
def test_a_change_is_named_and_refused(
    model: Path, texts: Path, npy: Path, change: Any, message: str
) -> None:
    interrupt(model, texts, npy)
    before = content(npy.parent)
    options = change if isinstance(change, dict) else {}
    if not options:
        {"texts": lambda: change[1](texts), "model": lambda: change[1](model)}[change[0]]()
    with pytest.raises(PartialOutputError, match=message) as caught:
        embed(model, texts, npy, **options)
    assert "restart=True" in str(caught.value)
    assert content(npy.parent) == before
    summary = embed(model, texts, npy, restart=True, **options)
    assert np.load(npy).shape == (summary.rows, 24)
    assert not partial_folder(npy).exists()


def test_two_runs_at_a_time_are_refused(model: Path, texts: Path, npy: Path) -> None:
    import fcntl

    interrupt(model, texts, npy)
    number = os.open(partial_folder(npy), os.O_RDONLY)
    fcntl.flock(number, fcntl.LOCK_EX)
    try:
        with pytest.raises(PartialOutputError, match="is in use by another run; wait for its end"):
            embed(model, texts, npy)
    finally:
        os.close(number)
    assert embed(model, texts, npy).rows == 60


def test_files_that_were_changed_from_outside(model: Path, texts: Path, npy: Path) -> None:
    interrupt(model, texts, npy)
    os.truncate(partial_folder(npy) / "vectors", 500)
    with pytest.raises(ValueError, match=r"vectors has 500 bytes, expected \d+ or more"):
        embed(model, texts, npy)


def test_a_journal_that_was_changed_from_outside(model: Path, texts: Path, npy: Path) -> None:
    interrupt(model, texts, npy)
    file = partial_folder(npy) / "journal.json"
    os.truncate(file, 20)
    with pytest.raises(
        PartialOutputError, match=r"journal\.json is not valid JSON: .* restart=True"
    ):
        embed(model, texts, npy)
    assert embed(model, texts, npy, restart=True).rows == 60
