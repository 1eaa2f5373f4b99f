"""Reading JSON, and writing files so that nobody ever sees half of one.

The system takes these files to the disk when it likes, so a power cut may undo them. That is right
for files that can be made again, such as a converted model. A file that a stopped run goes on from
is written by durable.py instead.
"""

import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# What git leaves in the place of a file that Git LFS keeps elsewhere. Source: git-lfs,
# docs/spec.md.
LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def read_json(path: Path) -> Any:
    """Parse a JSON file; ValueError names the file and the place when it is not JSON."""
    try:
        # Editors on Windows put a byte order mark before it.
        return json.loads(path.read_text(encoding="utf-8-sig"))
    # JSONDecodeError and UnicodeDecodeError are both ValueErrors; "[[[[…" exhausts the stack.
    except (ValueError, RecursionError) as error:
        way_out = "get the file again"
        raise ValueError(
            f"{path} is not valid JSON: {error}; {lfs_way_out(path) or way_out}"
        ) from error


def lfs_way_out(path: Path) -> str:
    """How to get a file of which only a Git LFS pointer is there; "" if it is no pointer."""
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) != LFS_POINTER:
            return ""
    return "it is a pointer that git-lfs replaces by the file: run git lfs pull in its folder"


def read_json_object(path: Path) -> dict[str, Any]:
    """Parse a JSON file that must hold an object at its top."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a JSON {type(content).__name__}, expected an object")
    return content


def write_json(path: Path, content: Any) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")


def sha256(path: Path) -> str:
    """The digest of a file of any size, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` if the block succeeds.

    A reader sees the old file or the whole new one, a failed block leaves neither a
    half-written file nor the temporary one. The result has the mode that open() would have
    given it. Raises OSError before any work is done if the folder does not exist or takes no
    files, or if `path` is something else than a file: a rename would replace a device.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: the folder {path.parent} does not exist")
    if path.exists() and not path.is_file():
        raise FileExistsError(f"cannot write {path}: it is there and is not a file")
    # The suffix stays: numpy.save would otherwise add one of its own.
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")
    temporary.touch(exist_ok=False)
    try:
        mode = (path if path.exists() else temporary).stat().st_mode
        yield temporary
        # safetensors 0.8 puts a private file of its own in the place of the one it is given.
        temporary.chmod(mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def lock_folder(folder: Path) -> Iterator[bool]:
    """Keep other processes out of a folder; the block gets False if one of them is in it.

    The system gives the lock up when the process ends, however it ends. Windows has no such lock
    on folders and lets everybody in.
    """
    try:
        import fcntl
    except ImportError:
        yield True
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever was in it may have moved or removed it between the two calls: a lock on what
            # has no name any more would keep nobody out.
            ours = os.path.samestat(os.fstat(number), folder.stat())
        except (BlockingIOError, FileNotFoundError):
            ours = False
        yield ours
    finally:
        os.close(number)
