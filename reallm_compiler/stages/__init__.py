"""The stages of a matrix plan: each is a kind with parameters.

    W [p, q]  ~  R                                            residual, the part tuned later
              +  T^-1( D_phi( P^-1( s * C[codes] + z ) ) )    coded part, frozen
    then DoRA: each output row is multiplied by its stored gain

A `MatrixPlan` says for one matrix which kind stands at each stage. The models only say what may
be written, and what a kind needs of the other stages; what it stores is its size law in `storage`,
what it does is its codec in `codecs`. The names of kinds and parameters are those of recipes.
"""

from reallm_compiler.stages.autoencoder import AutoencoderStage, Hnerv, Identity
from reallm_compiler.stages.base import Extent, FloatType, Rational, Stage, Whole
from reallm_compiler.stages.fit import FIT_KINDS, BlockFit, Learnable
from reallm_compiler.stages.kv_cache import CachedKeys, CachedStates, CachedValues, KvCache
from reallm_compiler.stages.permutation import (
    ActOrderPermutation,
    NearestPermutation,
    NoPermutation,
    NormSortedPermutation,
    PermutationStage,
)
from reallm_compiler.stages.plan import SHARING, MatrixPlan, shares
from reallm_compiler.stages.prepare import (
    PREPARE_KINDS,
    FoldNorms,
    Prepare,
    PrepareStage,
    Rotate,
)
from reallm_compiler.stages.quantizer import (
    AdditiveQuantizer,
    E8PQuantizer,
    NoQuantizer,
    NormalFloatQuantizer,
    QuantizerStage,
    TrellisQuantizer,
    UniformQuantizer,
    VectorQuantizer,
)
from reallm_compiler.stages.registry import (
    KINDS,
    ExternalKind,
    kind_name,
    kinds,
    register,
    unregister,
)
from reallm_compiler.stages.residual import LowRank, Monarch, NoResidual, ResidualStage, Sparse
from reallm_compiler.stages.rounding import FeedbackRounding, NearestRounding, RoundingStage
from reallm_compiler.stages.scales import (
    AbsmaxScales,
    AffineScales,
    GroupScales,
    MinmaxScales,
    NoScales,
    Range,
    RmsScales,
    ScalesStage,
)
from reallm_compiler.stages.transform import ChannelScale, Hadamard, Normalize, TransformStage

__all__ = [
    "FIT_KINDS",
    "KINDS",
    "PREPARE_KINDS",
    "SHARING",
    "AbsmaxScales",
    "ActOrderPermutation",
    "AdditiveQuantizer",
    "AffineScales",
    "AutoencoderStage",
    "BlockFit",
    "CachedKeys",
    "CachedStates",
    "CachedValues",
    "ChannelScale",
    "E8PQuantizer",
    "Extent",
    "ExternalKind",
    "FeedbackRounding",
    "FloatType",
    "FoldNorms",
    "GroupScales",
    "Hadamard",
    "Hnerv",
    "Identity",
    "KvCache",
    "Learnable",
    "LowRank",
    "MatrixPlan",
    "MinmaxScales",
    "Monarch",
    "NearestPermutation",
    "NearestRounding",
    "NoPermutation",
    "NoQuantizer",
    "NoResidual",
    "NoScales",
    "NormSortedPermutation",
    "NormalFloatQuantizer",
    "Normalize",
    "PermutationStage",
    "Prepare",
    "PrepareStage",
    "QuantizerStage",
    "Range",
    "Rational",
    "ResidualStage",
    "RmsScales",
    "Rotate",
    "RoundingStage",
    "ScalesStage",
    "Sparse",
    "Stage",
    "TransformStage",
    "TrellisQuantizer",
    "UniformQuantizer",
    "VectorQuantizer",
    "Whole",
    "kind_name",
    "kinds",
    "register",
    "shares",
    "unregister",
]
