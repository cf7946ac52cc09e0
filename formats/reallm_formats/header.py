"""The first 128 bytes: what the file is, its lengths, and one digest over header and manifest.

    offset  size  field
         0     8  magic
         8     2  major version, u16
        10     2  minor version, u16
        12     4  length of the header, u32
        16     8  length of the manifest, u64
        24     8  length of the file, u64
        32    32  SHA-256 of the header (with zeros here) and the manifest
        64    64  zeros

All integers are little-endian on every machine.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from reallm_formats import guess, v1
from reallm_formats.errors import FormatError


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """The fields of a header that vary.

    Attributes:
        major: version; another major is another format.
        minor: version; a newer minor can be read by an older reader.
        manifest_bytes: length of the manifest.
        file_bytes: length of the whole file.
        digest: SHA-256 of header and manifest; it names the archive.
    """

    major: int = v1.MAJOR
    minor: int = v1.MINOR
    manifest_bytes: int
    file_bytes: int
    digest: bytes


def encode_header(manifest: bytes, file_bytes: int) -> bytes:
    """The header of a file of `file_bytes` bytes that holds the encoded `manifest`."""
    blank = _pack(len(manifest), file_bytes, bytes(v1.DIGEST_BYTES))
    return _pack(len(manifest), file_bytes, _digest(blank, manifest))


def parse_header(data: bytes, file_bytes: int) -> Header:
    """The header of a file, without its digest checked.

    Args:
        data: the first bytes of the file: `HEADER_BYTES`, or all there are.
        file_bytes: real length of the file.

    Raises:
        FormatError: rules F2 and H1 to H6.
    """
    if not data:
        raise FormatError("F2", "the file is empty", location="byte 0")
    guess.check_magic(data)
    if len(data) < v1.HEADER_BYTES:
        raise FormatError(
            "F2",
            f"the file ends after {len(data)} bytes; a header has {v1.HEADER_BYTES}",
            location=f"byte {len(data)}",
            hint="transfer or compile it again",
        )
    _, major, minor, header_bytes, manifest_bytes, claimed, digest, rest = v1.HEADER.unpack(data)
    if major != v1.MAJOR:
        raise FormatError(
            "H2",
            f"the file has major version {major}; this reader knows version {v1.MAJOR}",
            location="header, byte 8",
            note="a major version changes the format of the file, or these bytes are damaged",
            hint="install a newer reallm" if major > v1.MAJOR else None,
        )
    if header_bytes != v1.HEADER_BYTES:
        message = f"the header claims {header_bytes} bytes; it has {v1.HEADER_BYTES}"
        raise FormatError("H3", message, location="header, byte 12")
    if claimed != file_bytes:
        _wrong_length(claimed, file_bytes)
    _check_manifest_bytes(manifest_bytes, file_bytes)
    if minor <= v1.MINOR and any(rest):
        offset = next(i for i, byte in enumerate(rest) if byte) + v1.HEADER_BYTES - len(rest)
        message = "a reserved byte of the header is not zero"
        raise FormatError("H6", message, location=f"header, byte {offset}")
    return Header(
        major=major,
        minor=minor,
        manifest_bytes=manifest_bytes,
        file_bytes=file_bytes,
        digest=digest,
    )


def check_digest(header: Header, data: bytes, manifest: bytes) -> None:
    """Refuse a header and manifest that do not have the header's digest (rule H7)."""
    start = v1.DIGEST_OFFSET
    blank = data[:start] + bytes(v1.DIGEST_BYTES) + data[start + v1.DIGEST_BYTES :]
    if _digest(blank, manifest) != header.digest:
        raise FormatError(
            "H7",
            "the header or the manifest is damaged: their digest differs",
            location=f"header and manifest, bytes 0 to {len(data) + len(manifest) - 1}",
            hint="transfer or compile the file again",
        )


def _pack(manifest_bytes: int, file_bytes: int, digest: bytes) -> bytes:
    return v1.HEADER.pack(
        v1.MAGIC,
        v1.MAJOR,
        v1.MINOR,
        v1.HEADER_BYTES,
        manifest_bytes,
        file_bytes,
        digest,
        b"",
    )


def _digest(blank_header: bytes, manifest: bytes) -> bytes:
    digest = hashlib.sha256(blank_header)
    digest.update(manifest)
    return digest.digest()


def _wrong_length(claimed: int, file_bytes: int) -> None:
    change = "cut short" if file_bytes < claimed else "longer than it was written"
    raise FormatError(
        "H4",
        f"the file is {change}: its header says {claimed} bytes and it has {file_bytes}",
        location=f"header, byte 24; the file ends at byte {file_bytes}",
        hint="transfer or compile it again",
    )


def _check_manifest_bytes(manifest_bytes: int, file_bytes: int) -> None:
    most = min(v1.MAX_MANIFEST_BYTES, file_bytes - v1.HEADER_BYTES)
    if not 1 <= manifest_bytes <= most:
        message = f"the header claims a manifest of {manifest_bytes} bytes; 1 to {most} fit"
        raise FormatError("H5", message, location="header, byte 16")
