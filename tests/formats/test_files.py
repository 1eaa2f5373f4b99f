"""Files appear whole or not at all."""

import os
from pathlib import Path

import pytest

from e5core.formats.files import lock_folder, read_json, read_json_object, replacing, write_json

CONTENT = {"text": "日本語 ß 🙂", "numbers": [1, 2.5, None, True]}


def test_json_round_trip(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", CONTENT)
    assert read_json(tmp_path / "a.json") == CONTENT
    assert read_json_object(tmp_path / "a.json") == CONTENT
    assert "日本語" in (tmp_path / "a.json").read_text("utf-8")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe{}", b"{'a': 1}", b"[" * 99999], ids=range(5)
)
def test_what_is_not_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.json is not valid JSON") as caught:
        read_json(tmp_path / "a.json")
    assert type(caught.value) is ValueError


@pytest.mark.parametrize(("text", "kind"), [("[]", "list"), ("1", "int"), ("null", "NoneType")])
def test_what_is_no_object(tmp_path: Path, text: str, kind: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=rf"a\.json holds a JSON {kind}, expected an object"):
        read_json_object(tmp_path / "a.json")


def test_readers_see_the_old_file_until_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    path.write_text("old")
    with replacing(path) as temporary:
        assert (temporary.parent, temporary.suffix) == (tmp_path, ".npy")
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("old", [None, "old"])
def test_a_failure_leaves_nothing(
    tmp_path: Path, old: str | None, error: type[BaseException]
) -> None:
    path = tmp_path / "a.json"
    if old:
        path.write_text(old)

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise error("in the middle")

    with pytest.raises(error, match="in the middle"):
        fail()
    assert [file.read_text() for file in tmp_path.iterdir()] == ([old] if old else [])


def test_content_that_json_cannot_hold_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", CONTENT)
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    assert read_json(tmp_path / "a.json") == CONTENT
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_modes_are_those_of_open(tmp_path: Path, umask: int) -> None:
    """New files follow the umask, old ones keep their mode, however the block wrote them."""
    (tmp_path / "private.json").touch(mode=0o600)
    before = os.umask(umask)
    try:
        for name in ("new.json", "private.json"):
            with replacing(tmp_path / name) as temporary:
                temporary.unlink()
                temporary.touch(mode=0o400)
    finally:
        os.umask(before)
    assert (tmp_path / "new.json").stat().st_mode & 0o777 == 0o666 & ~umask
    assert (tmp_path / "private.json").stat().st_mode & 0o777 == 0o600


def test_no_folder_is_said_before_the_work(tmp_path: Path) -> None:
    with (
        pytest.raises(FileNotFoundError, match=r"the folder .*none does not exist"),
        replacing(tmp_path / "none" / "a.json"),
    ):
        pytest.fail("the work began")


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_only_files_are_replaced(tmp_path: Path, kind: str) -> None:
    """A rename over /dev/null would work, for root, and replace it for everybody."""
    path = tmp_path / "a.json"
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    before = path.stat().st_mode
    with pytest.raises(FileExistsError, match="is not a file"), replacing(path):
        pytest.fail("the work began")
    assert path.stat().st_mode == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into any folder")
def test_a_folder_that_takes_no_files(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError), replacing(tmp_path / "a.json"):
        pytest.fail("the work began")
    tmp_path.chmod(0o700)


def test_one_holder_of_a_folder(tmp_path: Path) -> None:
    with lock_folder(tmp_path) as first, lock_folder(tmp_path) as second:
        assert (first, second) == (True, False)
    with lock_folder(tmp_path) as again:
        assert again


@pytest.mark.parametrize("made_anew", [True, False])
def test_a_folder_that_goes_while_it_is_locked_is_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made_anew: bool
) -> None:
    import fcntl

    folder, flock = tmp_path / "folder", fcntl.flock
    folder.mkdir()

    def late(number: int, operation: int) -> None:
        folder.rename(tmp_path / "result")  # by the process that had it until now
        if made_anew:
            folder.mkdir()
        flock(number, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with lock_folder(folder) as ours:
        assert not ours
