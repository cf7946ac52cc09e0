"""The words of a matrix plan: each stage is a kind with parameters.

    W [p, q]  ~  R                                            residual, the part tuned later
              +  T^-1( D_phi( P^-1( s * C[codes] + z ) ) )    coded part, frozen
    then DoRA: each output row is rescaled to its stored magnitude

A `MatrixPlan` says for one matrix which kind stands at each stage. The models only say what may
be written; what a kind costs is its size law in `layouts`, what it does is its codec in `codecs`.
The names of kinds and parameters are the words of the recipe language.
"""

from reallm_compiler.stages.autoencoder import Hnerv, Identity
from reallm_compiler.stages.base import Extent, FloatType, Rational, Stage, Whole
from reallm_compiler.stages.permutation import NearestPermutation, NoPermutation
from reallm_compiler.stages.plan import (
    SHARED_KINDS,
    Autoencoder,
    MatrixPlan,
    Permutation,
    Quantizer,
    Residual,
    Scales,
    Transform,
)
from reallm_compiler.stages.quantizer import (
    NoQuantizer,
    NormalFloatQuantizer,
    TrellisQuantizer,
    UniformQuantizer,
    VectorQuantizer,
)
from reallm_compiler.stages.residual import LowRank, NoResidual
from reallm_compiler.stages.scales import AbsmaxScales, MinmaxScales, NoScales, RmsScales
from reallm_compiler.stages.transform import Hadamard, Normalize

__all__ = [
    "SHARED_KINDS",
    "AbsmaxScales",
    "Autoencoder",
    "Extent",
    "FloatType",
    "Hadamard",
    "Hnerv",
    "Identity",
    "LowRank",
    "MatrixPlan",
    "MinmaxScales",
    "NearestPermutation",
    "NoPermutation",
    "NoQuantizer",
    "NoResidual",
    "NoScales",
    "NormalFloatQuantizer",
    "Normalize",
    "Permutation",
    "Quantizer",
    "Rational",
    "Residual",
    "RmsScales",
    "Scales",
    "Stage",
    "Transform",
    "TrellisQuantizer",
    "UniformQuantizer",
    "VectorQuantizer",
    "Whole",
]
