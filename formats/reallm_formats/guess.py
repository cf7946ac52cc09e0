"""What a file is that does not start as an archive does: more help than `bad magic`."""

from __future__ import annotations

import codecs
from typing import Final

from reallm_formats.errors import FormatError
from reallm_formats.v1 import MAGIC

_TEXT_MODE: Final = "transfer the file again in binary mode"
_MANGLED: Final = {
    b"\x89RLM\n\x1a\n": "CR LF became LF",
    b"\x89RLM\r\r\n\x1a\r\n": "LF became CR LF",
    b"\x89RLM\r\n\x1a\r\n": "LF became CR LF",
    b"\x89RLM\r\r\x1a\r": "LF became CR",
    b"\x89RLM\n\n\x1a\n": "CR became LF",
    b"\tRLM\r\n\x1a\n": "the eighth bit of each byte was lost",
    b"\xc2\x89RLM": "bytes were re-coded as UTF-8",
    b"\xef\xbf\xbdRLM": "bytes were decoded as UTF-8 text and replaced",
}
_OTHERS: Final = {
    b"GGUF": ("a GGUF file", None),
    b"PK\x03\x04": ("a zip file, as torch.save and numpy write", None),
    b"\x80\x02": ("a Python pickle", None),
    b"\x80\x03": ("a Python pickle", None),
    b"\x80\x04": ("a Python pickle", None),
    b"\x80\x05": ("a Python pickle", None),
    b"\x1f\x8b": ("a gzip file", "unpack it first"),
    b"\x28\xb5\x2f\xfd": ("a zstd file", "unpack it first"),
    b"\x89HDF": ("an HDF5 file", None),
    b"\x89PNG": ("a PNG image", None),
    b"version https://git-lfs": (
        "a Git LFS pointer, not the file itself",
        "fetch the file with `git lfs pull`",
    ),
}


def check_magic(head: bytes) -> None:
    """Refuse a file that does not start with the magic, and say what it seems to be (rule H1).

    A file shorter than the magic that agrees with it as far as it goes is let through: it was
    cut short, which the caller reports.

    Args:
        head: the first bytes of the file, about 128.
    """
    if head.startswith(MAGIC) or MAGIC.startswith(head):
        return
    for start, change in _MANGLED.items():
        if head.startswith(start):
            raise FormatError(
                "H1",
                f"the file was transferred as text: {change}",
                location="header, byte 0",
                note="every such change inside the data is lost; the file cannot be repaired",
                hint=_TEXT_MODE,
            )
    if not any(head):
        raise FormatError(
            "H1",
            "the file starts with zeros: it was reserved and never finished",
            location="header, byte 0",
            hint="run the same compile again; it resumes where it stopped",
        )
    kind, hint = _other_format(head)
    raise FormatError(
        "H1",
        f"this is not a .reallm archive{f'; it looks like {kind}' if kind else ''}",
        location="header, byte 0",
        hint=hint,
    )


def _other_format(head: bytes) -> tuple[str | None, str | None]:
    """What the file looks like, and what to do about it, as far as either is known."""
    for start, known in _OTHERS.items():
        if head.startswith(start):
            return known
    if head[8:9] == b"{" and head[6:8] == b"\0\0":
        return "a safetensors file", "`reallm compile` makes an archive of its folder"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "a web page", "the download gave a page instead of the file; fetch it again"
    if sum(a != b for a, b in zip(head, MAGIC, strict=False)) <= 2 and len(head) >= len(MAGIC):
        return "an archive whose first bytes are damaged", "transfer it again"
    if text.startswith(b"{"):
        return "JSON text", None
    return ("text", None) if _is_text(head) else (None, None)


def _is_text(head: bytes) -> bool:
    """UTF-8 without control characters; the last character may be cut."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return all(byte >= 0x20 or byte in b"\t\r\n" for byte in head)
