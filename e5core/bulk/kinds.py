"""The kind of a file by its first bytes. A file without lines of UTF-8 is refused and named."""

import codecs

from e5core.formats.files import LFS_POINTER

# Files that hold no lines of text: how each starts, its kind, and how to get at its text.
_UNPACK = "name it by its suffix, {}, or unpack it first"
SIGNATURES: tuple[tuple[bytes, str, str], ...] = (
    (b"\x1f\x8b", "gzip", _UNPACK.format(".gz")),
    (b"\x28\xb5\x2f\xfd", "zstandard", _UNPACK.format(".zst")),
    (b"\xfd7zXZ\x00", "xz", _UNPACK.format(".xz")),
    *((b"BZh%d1AY&SY" % level, "bzip2", _UNPACK.format(".bz2")) for level in range(1, 10)),
    (b"PAR1", "Parquet", 'pass format="parquet" (--format parquet), or name it .parquet'),
    (b"%PDF-", "a PDF", "extract its text first"),
    (b"PK\x03\x04", "a ZIP archive, as .docx and .xlsx are too", "unpack it, or save it as CSV"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office file", "save it as text or CSV"),
    (b"{\\rtf", "rich text", "save it as plain text"),
    (b"\x89PNG\r\n", "a PNG image", "it holds no text"),
    (b"\xff\xd8\xff", "a JPEG image", "it holds no text"),
    (b"GIF87a", "a GIF image", "it holds no text"),
    (b"GIF89a", "a GIF image", "it holds no text"),
    (b"SQLite format 3\x00", "an SQLite database", "export the table as CSV"),
    (b"\x93NUMPY", "a NumPy array", "it holds numbers"),
    (b"ARROW1\x00\x00", "Arrow", "write it as Parquet"),
    (b"ORC", "ORC", "write it as Parquet"),
    (b"Obj\x01", "Avro", "write it as Parquet or JSON Lines"),
    (b"\x89HDF\r\n", "HDF5", "write it as Parquet"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it first"),
    (b"Rar!\x1a\x07", "a RAR archive", "unpack it first"),
    (b"\x7fELF", "a program", "it holds no text"),
    (LFS_POINTER, "a pointer of git-lfs", "run git lfs pull in its folder"),
)
# A tar archive says so behind the name and the times of its first file, which are text.
_TAR, _TAR_AT = b"ustar", 257
BOMS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


def check_kind(file: str, head: bytes, whole: bool) -> None:
    """ValueError if a file holds no lines of text in UTF-8.

    head   its first bytes
    whole  whether they are all of it
    """
    for start, kind, way in SIGNATURES:
        # A signature of letters alone may also begin a text.
        if head.startswith(start) and not (start.isalnum() and _is_text(head, whole)):
            raise ValueError(f"{file} is {kind} by its first bytes; {way}")
    if head[_TAR_AT:].startswith(_TAR):
        raise ValueError(f"{file} is a tar archive by its first bytes; unpack it first")
    for mark, name in BOMS:
        if head.startswith(mark):
            _refuse_utf16(file, name, "byte 0 is not UTF-8: ")
    if b"\0" not in head:
        return
    for codec in ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"):
        if _looks_like(head, codec, whole):
            _refuse_utf16(file, codec[:6].upper(), "every other byte is 0: ")
    if not _is_text(head, whole):
        place = head.index(b"\0")
        raise ValueError(f"{file} is no text: it holds the byte 0 at {place}, and is not UTF-8")


def _refuse_utf16(file: str, name: str, sign: str) -> None:
    raise ValueError(
        f"{file}, line 1: {sign}the file is {name}; convert it, for example with "
        f"iconv -f {name} -t UTF-8"
    )


def _looks_like(head: bytes, codec: str, whole: bool) -> bool:
    """Whether bytes with zeros among them are text in UTF-16 or UTF-32 without a mark."""
    width = 2 if "16" in codec else 4
    if whole and len(head) % width:
        return False
    head = head[: len(head) // width * width]
    lowest = 0 if codec.endswith("le") else width - 1
    # A letter of the Latin script has zeros in its other bytes and none in its lowest one. What is
    # UTF-8 too may be text with some characters U+0000, so it must look like that.
    zeros = head.count(b"\0") // (width - 1)
    if _is_text(head, whole) and (zeros < 4 or b"\0" in head[lowest::width]):
        return False
    try:
        text = codecs.getincrementaldecoder(codec)().decode(head, final=whole)
    except UnicodeDecodeError:
        return False
    seen = "".join(text.split())
    spaced = len(seen) < len(text) or b"\0" not in head[lowest::width]
    return bool(seen) and seen.isprintable() and spaced


def _is_text(head: bytes, whole: bool) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head, final=whole)
    except UnicodeDecodeError:
        return False
    return True
