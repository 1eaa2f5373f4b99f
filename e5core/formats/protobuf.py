"""Protobuf messages field by field, for formats of which a few fields are all that matters.

Wire format: protobuf.dev, "Encoding".
"""

import struct
from collections.abc import Iterator

VARINT, FIXED64, BYTES, FLOAT = 0, 1, 2, 5  # wire types; FLOAT is any value of four bytes

Value = int | float | bytes


def field(number: int, value: Value) -> bytes:
    """One field: a float as 4 bytes, bytes with their length, an int as a varint."""
    if isinstance(value, bytes):
        return field_start(number, len(value)) + value
    if isinstance(value, float):
        return varint(number << 3 | FLOAT) + struct.pack("<f", value)
    return varint(number << 3 | VARINT) + varint(value)


def field_start(number: int, size: int) -> bytes:
    """The start of a field of `size` bytes: its number and type, then the size."""
    return varint(number << 3 | BYTES) + varint(size)


def varint(value: int) -> bytes:
    """Seven bits a byte, lowest first; the top bit says that more follow."""
    parts = []
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def fields(message: bytes, kind: str) -> Iterator[tuple[int, Value, bytes]]:
    """The fields of a message: number, value, and all its bytes, to be written as they are.

    kind  what the message should be, as errors call it: "SentencePiece model"

    Raises ValueError if it is none, or only the beginning of one.
    """
    place = 0
    while place < len(message):
        start = place
        key, place = _read_varint(message, place, kind)
        value: Value
        if key & 7 == VARINT:
            value, place = _read_varint(message, place, kind)
        else:
            if key & 7 == BYTES:
                size, place = _read_varint(message, place, kind)
            elif key & 7 in (FIXED64, FLOAT):
                size = 8 if key & 7 == FIXED64 else 4
            else:
                raise ValueError(f"it is not a {kind}: wire type {key & 7}")
            value = message[place : place + size]
            place += size
            if place > len(message):
                raise ValueError(f"it is not a whole {kind}: {len(message)} bytes")
            if key & 7 == FLOAT:
                (value,) = struct.unpack("<f", value)
        yield key >> 3, value, message[start:place]


def _read_varint(message: bytes, place: int, kind: str) -> tuple[int, int]:
    """The number that starts at a place, and the place after it."""
    value = shift = 0
    while place < len(message):
        byte = message[place]
        value |= (byte & 0x7F) << shift
        place += 1
        if byte < 0x80:
            return value, place
        shift += 7
    raise ValueError(f"it is not a whole {kind}: {len(message)} bytes")
