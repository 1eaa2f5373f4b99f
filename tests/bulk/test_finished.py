"""A finished output: what stands beside it, and what may take its place."""

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.bulk import TEXTS, embed, interrupt, read_jsonl, read_vectors
from support.conversions import content

from e5core import E5, Index
from e5core.bulk import PartialOutputError, partial_folder


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All texts that are embedded from here on."""
    found: list[str] = []
    original = E5.embed

    def spy(self: E5, texts: list[str], **options: Any) -> Any:
        found.extend(texts)
        return original(self, texts, **options)

    monkeypatch.setattr(E5, "embed", spy)
    return found


def test_what_made_it_stands_beside_it(model: Path, texts: Path, output: Path) -> None:
    summary = embed(model, texts, output, id_column="id")
    record = json.loads(output.with_name(f"{output.name}.json").read_text())
    assert record["model"]["name"] == str(model)
    assert "model.safetensors" in record["model"]["files"]
    assert len(record["model"]["sha256"]) == 64
    assert record["prompts"] == {"query": "query: ", "passage": "passage: "}
    assert (record["input_type"], record["task"]) == ("query", None)
    assert record["options"]["normalize"] is True
    assert set(record["versions"]) == {"e5core", "torch"}
    assert record["counts"]["rows"] == summary.rows == record["counts"]["rows_read"]
    assert record["counts"]["tokens"] == summary.tokens


def test_the_same_command_again_computes_nothing(
    model: Path, texts: Path, output: Path, embedded: list[str]
) -> None:
    first = embed(model, texts, output)
    before = content(output.parent)
    embedded.clear()
    os.utime(texts)  # the rows count, not the time of the file
    again = embed(model, texts, output)
    assert (again.rows, again.tokens, again.cut) == (first.rows, first.tokens, first.cut)
    assert embedded == []
    assert content(output.parent) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_type": "passage"}, "input_type was 'query', is 'passage'"),
        ({"normalize": False}, "normalize was True, is False"),
        ({"max_length": 40}, "max_length was 64, is 40"),
        ({"prompts": "none"}, "prefix was 'query: ', is ''"),
        ({"id_column": "id"}, "id_column was None, is 'id'"),
    ],
)
def test_other_options_replace_nothing(
    model: Path, texts: Path, output: Path, change: dict[str, Any], message: str
) -> None:
    embed(model, texts, output)
    before = content(output.parent)
    for options in (change, {**change, "restart": True}):
        with pytest.raises(FileExistsError, match=f"{message}.*force=True"):
            embed(model, texts, output, **options)
        assert content(output.parent) == before
    embed(model, texts, output, force=True, **change)
    forced = content(output.parent)
    assert forced != before
    embed(model, texts, output, **change)
    assert content(output.parent) == forced
    assert not partial_folder(output).exists()


def test_another_model_replaces_nothing(model: Path, texts: Path, npy: Path, make_tiny) -> None:
    embed(model, texts, npy)
    other = make_tiny(seed=1, name="other")
    with pytest.raises(FileExistsError, match=r"the model's model\.safetensors is another"):
        embed(other, texts, npy)


def test_other_rows(model: Path, texts: Path, output: Path) -> None:
    embed(model, texts, output)
    with texts.open("a") as file:
        file.write('{"text": "one more"}\n')
    if output.suffix == ".parquet":
        with pytest.raises(FileExistsError, match=r"is there already, of other rows.*--force"):
            embed(model, texts, output)
    assert embed(model, texts, output, force=output.suffix == ".parquet").rows == 61
    assert len(read_vectors(output)) == 61


def test_a_finished_output_that_was_changed(model: Path, texts: Path, output: Path) -> None:
    """It is not called done, whichever of its files was cut, removed or put beside it."""
    embed(model, texts, output)
    whole = content(output.parent)
    names = [name for name in whole if not name.endswith(".json")]
    assert len(names) >= 2
    for name in names:
        file = output.parent / name
        for change in (lambda file=file: os.truncate(file, 9), file.unlink):
            change()
            if not output.exists():  # then there is nothing that could be lost
                assert embed(model, texts, output).rows == 60
            else:
                with pytest.raises(FileExistsError, match=r"changed after it was finished: its "):
                    embed(model, texts, output)
                if output.suffix == ".parquet" and not file.exists():
                    with pytest.raises(ValueError, match="says 60: a part is missing"):
                        Index.open(output)
                embed(model, texts, output, force=True)
            assert content(output.parent) == whole


def test_an_output_that_links_to_itself(model: Path, texts: Path, tmp_path: Path) -> None:
    (tmp_path / "loop.npy").symlink_to(tmp_path / "loop.npy")
    with pytest.raises(OSError, match=r"loop\.npy is a link that leads nowhere"):
        embed(model, texts, tmp_path / "loop.npy")


def test_standard_input_again(
    model: Path, output: Path, monkeypatch: pytest.MonkeyPatch, embedded: list[str]
) -> None:
    def run(lines: bytes) -> int:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
        return int(embed(model, Path("-"), output).rows)

    assert run(b"a\nb\n") == 2
    before = content(output.parent)
    assert run(b"a\nb\n") == 2
    assert len(embedded) == 2
    assert content(output.parent) == before
    if output.suffix == ".parquet":
        with pytest.raises(FileExistsError, match="of other rows"):
            run(b"a\nc\n")
    else:
        assert run(b"a\nc\nd\n") == 3
        assert embedded[2:] == ["a", "c", "d"]
        np.testing.assert_array_equal(
            read_vectors(output), E5.from_pretrained(model).encode_query(["a", "c", "d"])
        )
        assert run(b"a\n") == len(read_vectors(output)) == 1


def test_a_folder_of_shards_of_somebody_else(model: Path, texts: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    output = tmp_path / "vectors.parquet"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is there already; move it away"):
        embed(model, texts, output)
    with pytest.raises(FileExistsError, match=r"holds notes\.txt, which is no shard"):
        embed(model, texts, output, force=True)
    assert (output / "notes.txt").read_text() == "mine"


def test_a_record_of_somebody_else_is_none(model: Path, texts: Path, npy: Path) -> None:
    npy.write_bytes(b"old")
    for other in ("{}", "[", '{"format": 1, "model": 7}', '{"format": 99}'):
        npy.with_name("vectors.npy.json").write_text(other)
        assert embed(model, texts, npy, restart=True).rows == 60
        npy.write_bytes(b"old")


def test_a_link_is_followed(model: Path, texts: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    link, target = tmp_path / "vectors.npy", tmp_path / "disk" / "vectors.npy"
    link.symlink_to(target)
    assert partial_folder(link) == tmp_path / "disk" / "vectors.npy.partial"
    interrupt(model, texts, link)
    summary = embed(model, texts, link)
    assert link.is_symlink()
    assert summary.output == target
    assert np.load(link).shape == (60, 24)
    assert read_jsonl(tmp_path / "disk" / "vectors.npy.ids.jsonl")[0]["line"] == 1


def test_an_output_that_is_a_folder(model: Path, texts: Path, tmp_path: Path) -> None:
    for name in ("folder", "folder.npy"):
        (tmp_path / name).mkdir()
        with pytest.raises(ValueError, match=rf"it is a folder: name a file .*{name}/vectors\.npy"):
            embed(model, texts, tmp_path / name)
    (tmp_path / "file.parquet").touch()
    with pytest.raises(FileExistsError, match="is a file, expected a folder of shards"):
        embed(model, texts, tmp_path / "file.parquet")


@pytest.mark.parametrize(
    "change",
    [
        lambda journal: journal.pop("done"),
        lambda journal: journal.update(done=7),
        lambda journal: journal["done"].update(rows_read="many"),
        lambda journal: journal["done"].update(rows_read=-1),
        lambda journal: journal["done"].update(sizes={"vectors": "x"}),
        lambda journal: journal["done"].update(sizes=None),
        lambda journal: journal["done"].update(more=1),
        lambda journal: journal.update(complete="yes"),
        lambda journal: journal.update(made_from=[]),
        lambda journal: journal["made_from"].pop("options"),
        lambda journal: journal["made_from"]["options"].pop("hidden_size"),
    ],
)
def test_a_misshapen_journal(model: Path, texts: Path, npy: Path, change: Any) -> None:
    interrupt(model, texts, npy)
    path = partial_folder(npy) / "journal.json"
    journal = json.loads(path.read_text())
    change(journal)
    path.write_text(json.dumps(journal))
    with pytest.raises(PartialOutputError, match=r"journal\.json is not a journal .*restart=True"):
        embed(model, texts, npy)
    assert embed(model, texts, npy, restart=True).rows == len(TEXTS)
