"""Names of sections: what a section holds can be read off its name.

    matrix:NAME/ROLE    a part of a coded matrix, such as `matrix:model.layers.0.mlp.up_proj/codes`
    share:GROUP/ROLE    a part that a group of matrices shares
    tensor:NAME         a kept tensor, whole
    file:PATH           a file of the checkpoint (config, tokenizer), whole

NAME and GROUP are a checkpoint's words and may hold `/`, `.` and spaces: never use one as a path.
PATH is made so that it can be joined to a folder (rule S5); ROLE is one word.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Final

from reallm_formats.errors import FormatError
from reallm_formats.v1 import MAX_NAME_BYTES, MAX_PART_BYTES

MATRIX = "matrix:"
SHARE = "share:"
TENSOR = "tensor:"
FILE = "file:"


def matrix_section(matrix: str, role: str) -> str:
    """Name of a matrix's own section."""
    return f"{MATRIX}{matrix}/{role}"


def share_section(group: str, role: str) -> str:
    """Name of a section that a group shares."""
    return f"{SHARE}{group}/{role}"


def tensor_section(tensor: str) -> str:
    """Name of a kept tensor's section."""
    return f"{TENSOR}{tensor}"


def file_section(path: str) -> str:
    """Name of an embedded file's section."""
    return f"{FILE}{path}"


@dataclass(frozen=True, kw_only=True, slots=True)
class SectionName:
    """A section's name in its parts.

    Attributes:
        space: `MATRIX`, `SHARE`, `TENSOR` or `FILE`.
        owner: the matrix, group or tensor, or the file's path.
        role: which part of a matrix or group; empty for tensors and files.
    """

    space: str
    owner: str
    role: str = ""


_ROLE: Final = re.compile(r"[a-z][a-z0-9_]*")
# What could move a cursor, hide text or turn its direction where a name is shown.
_UNSAFE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufeff]")


# Windows opens a device under these names, whatever follows after a dot.
_DEVICE: Final = re.compile(
    r"(?:con|prn|aux|nul|conin\$|conout\$|(?:com|lpt)[0-9\u00b9\u00b2\u00b3])(?: *\..*)?",
    re.IGNORECASE,
)


def folded(path: str) -> str:
    """A path as file systems compare it that ignore case and Unicode normalization."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def check_name(name: str, where: str) -> None:
    """Refuse a name that is empty, too long, or not safe to show (rule S2)."""
    if name.isascii() and name.isprintable() and 1 <= len(name) <= MAX_NAME_BYTES:
        return
    size = len(name.encode("utf-8"))
    if not 1 <= size <= MAX_NAME_BYTES:
        message = f"a name has {size} bytes; 1 to {MAX_NAME_BYTES} are allowed"
        raise FormatError("S2", message, location=where)
    unsafe = _UNSAFE.search(name)
    if unsafe:
        message = f"the name {name!r} holds the control character U+{ord(unsafe[0]):04X}"
        raise FormatError("S2", message, location=where)


def parse_name(name: str, where: str = "section") -> SectionName:
    """The parts of a section's name.

    Raises:
        FormatError: it is not safe to show (S2), has no known form (S3), or is the path of a
            file that would be written outside its folder (S5).
    """
    check_name(name, where)
    for space in (MATRIX, SHARE):
        if name.startswith(space):
            owner, _, role = name[len(space) :].rpartition("/")
            if owner and _ROLE.fullmatch(role):
                return SectionName(space=space, owner=owner, role=role)
    if name.startswith(TENSOR) and name != TENSOR:
        return SectionName(space=TENSOR, owner=name[len(TENSOR) :])
    if name.startswith(FILE) and name != FILE:
        path = name[len(FILE) :]
        _check_path(path, where)
        return SectionName(space=FILE, owner=path)
    raise FormatError(
        "S3",
        f"the name `{name}` has no known form",
        location=where,
        note="names are matrix:NAME/ROLE, share:GROUP/ROLE, tensor:NAME or file:PATH",
    )


def _check_path(path: str, where: str) -> None:
    """Refuse a path that is not plainly below the folder it will be joined to (rule S5)."""
    problem = ""
    if "\\" in path or ":" in path:
        problem = "holds a backslash or a colon"
    elif path.startswith("/"):
        problem = "is absolute"
    else:
        for part in path.split("/"):
            if not part:
                problem = "has an empty part"
            elif part in (".", ".."):
                problem = f"has the part `{part}`"
            elif len(part.encode("utf-8")) > MAX_PART_BYTES:
                problem = f"has a part of more than {MAX_PART_BYTES} bytes"
            elif part.endswith((" ", ".")):
                problem = f"has the part `{part}`, whose last character some systems drop"
            elif _DEVICE.fullmatch(part):
                problem = f"has the part `{part}`, which is a device on some systems"
    if problem:
        raise FormatError(
            "S5",
            f"the path `{path}` {problem}",
            location=where,
            note="the path of an embedded file is relative, with `/` between its parts",
        )
