"""Names of sections: what a section holds can be read off its name.

    matrix:NAME/ROLE    a part of a coded matrix, such as `matrix:model.layers.0.mlp.up_proj/codes`
    share:GROUP/ROLE    a part that a group of matrices shares
    tensor:NAME         a kept tensor, whole
    file:PATH           a file of the checkpoint (config, tokenizer), whole
"""

from __future__ import annotations

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
