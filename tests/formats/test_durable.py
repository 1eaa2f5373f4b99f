"""Files that a run goes on from: whole after a failure, and good up to the size that is known."""

from pathlib import Path

import pytest

from e5core.formats.durable import GrowingFile, replace_durably, write_json_durably
from e5core.formats.files import read_json


def test_a_failed_block_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_json_durably(file, {"a": 1})

    def write_half() -> None:
        with replace_durably(file) as temporary:
            temporary.write_text("{")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert read_json(file) == {"a": 1}


def test_an_error_of_the_disk_names_the_file(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match=r"No space left on device: .*a\.json\.temporary"),
        replace_durably(tmp_path / "a.json"),
    ):
        raise OSError(28, "No space left on device")


def test_what_lies_behind_the_known_size_is_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"headone, and half of")
    growing = GrowingFile(file, 7)
    growing.append(b"two")
    assert file.read_bytes() == b"headonetwo"
    assert growing.size == 10
    growing.complete(b"HEAD")
    growing.close()
    assert file.read_bytes() == b"HEADonetwo"


def test_a_file_that_is_too_short_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12")
    with pytest.raises(ValueError, match="a has 2 bytes, expected 3 or more"):
        GrowingFile(tmp_path / "a", 3)
