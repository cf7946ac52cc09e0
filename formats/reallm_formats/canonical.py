"""Canonical msgpack: one byte string for one document.

The encoder sorts the keys of maps, writes each number, string and length in its shortest form
and floats as float64. The decoder is our own and accepts exactly what the encoder writes: it is
the part of the package that meets hostile bytes first. It checks each length against the bytes
that are left before it builds anything, bounds the depth and the number of values, and names
the byte where a rule is broken. (A general msgpack decoder accepts many byte strings for one
document, and reserves memory for as many items as an array's head promises.)

Documents are made of None, bool, int, float, str, bytes, list and dict with str keys.
"""

from __future__ import annotations

import math
import struct
from typing import Any, Final, NoReturn

import msgpack

from reallm_formats.errors import FormatError
from reallm_formats.v1 import MAX_DEPTH, value_limit

_INT_MIN: Final = -(1 << 63)
_INT_MAX: Final = (1 << 64) - 1

# ---- encoding --------------------------------------------------------------------------------


def normal(value: object) -> Any:  # noqa: ANN401 (plain data has no narrower type)
    """A deep copy of a document in normal form: keys sorted, tuples as lists.

    Raises:
        FormatError: something in it is not allowed in a manifest (rules C3 to C8).
    """
    return _Normalizer().document(value)


def encode(document: object) -> bytes:
    """The one byte string of a document.

    Raises:
        FormatError: something in it is not allowed in a manifest (rules C3 to C9).
    """
    plain, count = counted(document)
    data = pack(plain)
    check_count(count, len(data))
    return data


def counted(document: object, *, depth: int = 0) -> tuple[Any, int]:
    """A document in normal form, and the number of values in it.

    Args:
        document: a whole document, or a part of one.
        depth: levels of the whole above it.

    Raises:
        FormatError: as `encode` does, but for C9.
    """
    normalizer = _Normalizer()
    return normalizer.document(document, depth), normalizer.count


def pack(plain: object) -> bytes:
    """The byte string of a document in normal form."""
    return bytes(msgpack.packb(plain, use_bin_type=True, strict_types=True))


def check_count(count: int, size: int) -> None:
    """Refuse more values than a document of `size` bytes may hold (rule C9)."""
    if count > value_limit(size):
        raise FormatError(
            "C9",
            f"the document holds {count} values in {size} bytes; {value_limit(size)} are allowed",
            location="document",
            hint="store long lists of numbers as a section",
        )


class _Normalizer:
    """Copies a document into normal form and counts its values, keys included."""

    __slots__ = ("count", "orders")

    def __init__(self) -> None:
        self.count = 0
        self.orders: dict[tuple[Any, ...], list[str]] = {}  # many maps have the same keys

    def document(self, value: object, depth: int = 0) -> Any:  # noqa: ANN401
        try:
            return self.value(value, depth)
        except FormatError as error:
            error.location = f"document{error.location or ''}"
            raise

    def value(self, value: object, depth: int) -> Any:  # noqa: ANN401
        self.count += 1
        return value if _is_scalar(value) else self.other(value, depth)

    def other(self, value: object, depth: int) -> Any:  # noqa: ANN401
        """What is no scalar, or none that may stand in a document as it is."""
        if isinstance(value, dict):
            return self.map(value, depth)
        if isinstance(value, list | tuple):
            return self.array(value, depth)
        if type(value) is str:
            _check_text(value)
            return value
        if type(value) is int:
            raise FormatError("C5", f"the integer {value} needs more than 64 bits")
        if type(value) is float:
            raise FormatError("C6", f"{value} is not a finite number")
        kind = type(value)
        name = f"{kind.__module__}.{kind.__qualname__}"
        raise FormatError("C5", f"a value of type {name} is not plain data")

    def map(self, items: dict[Any, Any], depth: int) -> dict[str, Any]:
        _check_depth(depth)
        keys = tuple(items)
        if keys not in self.orders:
            for key in keys:
                if type(key) is not str:
                    raise FormatError("C3", f"the key {key!r} is not text")
                _check_text(key)
            self.orders[keys] = sorted(keys)
        self.count += 2 * len(items)  # keys and values
        copy = {}
        for key in self.orders[keys]:
            value = items[key]
            if _is_scalar(value):  # most are, and a large model has a million
                copy[key] = value
                continue
            try:
                copy[key] = self.other(value, depth + 1)
            except FormatError as error:
                error.location = f".{key}{error.location or ''}"
                raise
        return copy

    def array(self, items: list[Any] | tuple[Any, ...], depth: int) -> list[Any]:
        _check_depth(depth)
        if all(map(_is_scalar, items)):
            self.count += len(items)
            return list(items)
        copy = []
        for index, item in enumerate(items):
            try:
                copy.append(self.value(item, depth + 1))
            except FormatError as error:
                error.location = f"[{index}]{error.location or ''}"
                raise
        return copy


def _is_scalar(value: object) -> bool:
    """Whether a value is no map and no list, and may stand in a document as it is."""
    kind = type(value)
    if kind is str:
        return value.isascii()  # type: ignore[attr-defined, no-any-return]
    if kind is int:
        return _INT_MIN <= value <= _INT_MAX  # type: ignore[operator]
    if kind is float:
        return math.isfinite(value)  # type: ignore[arg-type]
    return value is None or kind is bool or kind is bytes


def _check_text(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise FormatError("C7", f"{text!r} is not valid Unicode") from None


def _check_depth(depth: int) -> None:
    if depth >= MAX_DEPTH:
        raise FormatError("C8", f"nested deeper than {MAX_DEPTH} levels")


# ---- decoding --------------------------------------------------------------------------------

_FLOAT: Final = struct.Struct(">d")
# By first byte: length of the field that follows, and the least value or length that needs it.
_UINT: Final = {0xCC: (1, 1 << 7), 0xCD: (2, 1 << 8), 0xCE: (4, 1 << 16), 0xCF: (8, 1 << 32)}
_INT: Final = {0xD0: (1, -33), 0xD1: (2, -129), 0xD2: (4, -32769), 0xD3: (8, -(1 << 31) - 1)}
_BIN: Final = {0xC4: (1, 0), 0xC5: (2, 1 << 8), 0xC6: (4, 1 << 16)}
_STR: Final = {0xD9: (1, 1 << 5), 0xDA: (2, 1 << 8), 0xDB: (4, 1 << 16)}
_ARRAY: Final = {0xDC: (2, 1 << 4), 0xDD: (4, 1 << 16)}
_MAP: Final = {0xDE: (2, 1 << 4), 0xDF: (4, 1 << 16)}


def decode(data: bytes, *, base: int = 0) -> Any:  # noqa: ANN401
    """The document that `data` is the byte string of.

    Args:
        data: all bytes of the document.
        base: where `data` starts in its file, for the location in error messages.

    Raises:
        FormatError: `data` is not what `encode` writes for any document (rules C1 to C9).
    """
    decoder = _Decoder(data, base)
    value = decoder.value(0)
    if decoder.at != len(data):
        decoder.fail("C1", "the document is followed by other bytes", decoder.at)
    return value


class _Decoder:
    """Reads one value after another; `at` is the next byte."""

    __slots__ = ("at", "base", "data", "keys", "left")

    def __init__(self, data: bytes, base: int) -> None:
        self.data = data
        self.base = base
        self.at = 0
        self.left = value_limit(len(data))
        self.keys: dict[bytes, str] = {}  # each spelling of a key is stored once

    def fail(self, rule: str, message: str, at: int) -> NoReturn:
        raise FormatError(rule, message, location=f"manifest, byte {self.base + at}")

    def tag(self) -> int:
        """The next byte, which starts a value."""
        at = self.at
        if at >= len(self.data):
            self.fail("C1", "the document ends in the middle of a value", at)
        self.at = at + 1
        return self.data[at]

    def take(self, count: int) -> bytes:
        """The next `count` bytes; a promise beyond the end is refused before it is allocated."""
        end = self.at + count
        if end > len(self.data):
            left = len(self.data) - self.at
            self.fail("C1", f"a value of {count} bytes is announced and {left} are left", self.at)
        chunk = self.data[self.at : end]
        self.at = end
        return chunk

    def number(self, start: int, size: int, least: int) -> int:
        """An unsigned field of `size` bytes whose value a shorter form could not hold."""
        value = int.from_bytes(self.take(size), "big")
        if value < least:
            self.fail("C2", f"{value} is not written in its shortest form", start)
        return value

    def value(self, depth: int) -> Any:  # noqa: ANN401
        self.left -= 1
        if self.left < 0:
            limit = value_limit(len(self.data))
            self.fail("C9", f"more than {limit} values in {len(self.data)} bytes", self.at)
        start = self.at
        tag = self.tag()
        if tag < 0x80:
            return tag
        if tag >= 0xE0:
            return tag - 0x100
        if tag < 0x90:
            return self.map(start, tag & 0x0F, depth)
        if tag < 0xA0:
            return self.array(start, tag & 0x0F, depth)
        if tag < 0xC0:
            return self.text(start, tag & 0x1F)
        return self.tagged(tag, start, depth)

    def tagged(self, tag: int, start: int, depth: int) -> Any:  # noqa: ANN401
        """A value whose first byte only names its type."""
        if tag == 0xC0:
            return None
        if tag in (0xC2, 0xC3):
            return tag == 0xC3
        if tag in _UINT:
            return self.number(start, *_UINT[tag])
        if tag in _STR:
            return self.text(start, self.number(start, *_STR[tag]))
        if tag in _BIN:
            return self.take(self.number(start, *_BIN[tag]))
        if tag == 0xCB:
            return self.double(start)
        if tag in _INT:
            size, most = _INT[tag]
            value = int.from_bytes(self.take(size), "big", signed=True)
            if value > most:
                self.fail("C2", f"{value} is not written in its shortest form", start)
            return value
        if tag in _ARRAY:
            return self.array(start, self.number(start, *_ARRAY[tag]), depth)
        if tag in _MAP:
            return self.map(start, self.number(start, *_MAP[tag]), depth)
        return self.fail("C5", f"a value starts with 0x{tag:02x}, a type that is not used", start)

    def double(self, start: int) -> float:
        value = float(_FLOAT.unpack(self.take(8))[0])
        if not math.isfinite(value):
            self.fail("C6", f"{value} is not a finite number", start)
        return value

    def text(self, start: int, size: int) -> str:
        try:
            return self.take(size).decode("utf-8")
        except UnicodeDecodeError:
            return self.fail("C7", "text is not valid UTF-8", start)

    def check_remaining(self, start: int, least: int, depth: int) -> None:
        """Refuse a container that is too deep or promises more values than bytes are left."""
        if depth >= MAX_DEPTH:
            self.fail("C8", f"nested deeper than {MAX_DEPTH} levels", start)
        left = len(self.data) - self.at
        if least > left:
            self.fail(
                "C1", f"values of {least} bytes or more are announced and {left} are left", start
            )

    def array(self, start: int, count: int, depth: int) -> list[Any]:
        self.check_remaining(start, count, depth)
        return [self.value(depth + 1) for _ in range(count)]

    def map(self, start: int, count: int, depth: int) -> dict[str, Any]:
        self.check_remaining(start, 2 * count, depth)
        items: dict[str, Any] = {}
        last: bytes | None = None
        for _ in range(count):
            at = self.at
            raw, key = self.key()
            if last is not None and raw <= last:
                if raw == last:
                    self.fail("C4", f"the key {key!r} stands twice in one map", at)
                self.fail("C3", f"the key {key!r} is not in sorted order", at)
            last = raw
            items[key] = self.value(depth + 1)
        return items

    def key(self) -> tuple[bytes, str]:
        """The next key, as bytes (which are compared) and as text."""
        self.left -= 1
        start = self.at
        tag = self.tag()
        if 0xA0 <= tag < 0xC0:
            size = tag & 0x1F
        elif tag in _STR:
            size = self.number(start, *_STR[tag])
        else:
            self.fail("C3", "a key of a map is not text", start)
        raw = self.take(size)
        if raw not in self.keys:
            try:
                self.keys[raw] = raw.decode("utf-8")
            except UnicodeDecodeError:
                self.fail("C7", "text is not valid UTF-8", start)
        return raw, self.keys[raw]
