"""Codecs: what each stage of a matrix plan does to weights, and back. Torch starts here.

One file per kind, of the same name as its size law in `storage`; `encode` and `decode` run the
stages of a plan, `sections` turns their tensors to bytes and back.
"""

from reallm_compiler.codecs.decode import MatrixDecoder, decode_matrix
from reallm_compiler.codecs.encode import Encoded, encode_matrix, fit_shared
from reallm_compiler.codecs.sections import check_sections, from_bytes, to_bytes

__all__ = [
    "Encoded",
    "MatrixDecoder",
    "check_sections",
    "decode_matrix",
    "encode_matrix",
    "fit_shared",
    "from_bytes",
    "to_bytes",
]
