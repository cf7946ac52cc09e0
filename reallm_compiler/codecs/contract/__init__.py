"""The contract of a codec: what each stage does to weights, and back.

Each kind has one codec object, which holds no data; `params` are the kind's parameters. What a
codec stores are exactly the sections of the kind's size law (`reallm_compiler.storage`).
"""

from reallm_compiler.codecs.contract.autoencoder import (
    AutoencoderCodec,
    Coding,
    LatentCoder,
    LatentDecoder,
    LearnTables,
)
from reallm_compiler.codecs.contract.permutation import ColumnOrder, PermutationCodec
from reallm_compiler.codecs.contract.quantizer import Latent, QuantizerCodec
from reallm_compiler.codecs.contract.residual import ResidualCodec, ResidualTerm
from reallm_compiler.codecs.contract.rows import PANEL, RowDecoder, Shape
from reallm_compiler.codecs.contract.scales import ScalesCodec
from reallm_compiler.codecs.contract.transform import MatrixTransform, TransformCodec, Trial

__all__ = [
    "PANEL",
    "AutoencoderCodec",
    "Coding",
    "ColumnOrder",
    "Latent",
    "LatentCoder",
    "LatentDecoder",
    "LearnTables",
    "MatrixTransform",
    "PermutationCodec",
    "QuantizerCodec",
    "ResidualCodec",
    "ResidualTerm",
    "RowDecoder",
    "ScalesCodec",
    "Shape",
    "TransformCodec",
    "Trial",
]
