"""The codec of each kind: no method has a code path of its own."""

from __future__ import annotations

import math
from typing import Any

from reallm_compiler.codecs.affine import AffineCodec
from reallm_compiler.codecs.autoencoders.hnerv import HnervCodec
from reallm_compiler.codecs.autoencoders.identity import IdentityCodec
from reallm_compiler.codecs.contract import PermutationCodec, ResidualCodec, ScalesCodec
from reallm_compiler.codecs.feedback import FeedbackCodec
from reallm_compiler.codecs.nearest import NearestCodec
from reallm_compiler.codecs.quantizers.additive import AdditiveCodec
from reallm_compiler.codecs.quantizers.e8p import E8PCodec
from reallm_compiler.codecs.quantizers.normal_float import NormalFloatCodec
from reallm_compiler.codecs.quantizers.plain import PlainCodec
from reallm_compiler.codecs.quantizers.trellis import TrellisCodec
from reallm_compiler.codecs.quantizers.uniform import UniformCodec
from reallm_compiler.codecs.quantizers.vq import VectorCodec
from reallm_compiler.codecs.residuals.low_rank import LowRankCodec
from reallm_compiler.codecs.residuals.monarch import MonarchCodec
from reallm_compiler.codecs.residuals.sparse import SparseCodec
from reallm_compiler.codecs.rounding import RoundingCodec
from reallm_compiler.codecs.scales import MagnitudeCodec, MinmaxCodec
from reallm_compiler.codecs.sorted_orders import ActOrderCodec, NormSortedCodec
from reallm_compiler.codecs.transforms.channel_scale import ChannelScaleCodec
from reallm_compiler.codecs.transforms.hadamard import HadamardCodec
from reallm_compiler.codecs.transforms.normalize import NormalizeCodec
from reallm_compiler.stages import (
    AbsmaxScales,
    ActOrderPermutation,
    AdditiveQuantizer,
    AffineScales,
    ChannelScale,
    E8PQuantizer,
    FeedbackRounding,
    Hadamard,
    Hnerv,
    Identity,
    LowRank,
    MinmaxScales,
    Monarch,
    NearestPermutation,
    NearestRounding,
    NoPermutation,
    NoQuantizer,
    NoResidual,
    NormalFloatQuantizer,
    Normalize,
    NormSortedPermutation,
    NoScales,
    RmsScales,
    Sparse,
    Stage,
    TrellisQuantizer,
    UniformQuantizer,
    VectorQuantizer,
)
from reallm_compiler.stages.registry import check_complete, implementation

CODECS: dict[type[Stage], Any] = {
    NoResidual: ResidualCodec[NoResidual](),
    LowRank: LowRankCodec(),
    Sparse: SparseCodec(),
    Monarch: MonarchCodec(),
    Normalize: NormalizeCodec(),
    Hadamard: HadamardCodec(),
    ChannelScale: ChannelScaleCodec(),
    Identity: IdentityCodec(),
    Hnerv: HnervCodec(),
    NoPermutation: PermutationCodec[NoPermutation](),
    NearestPermutation: NearestCodec(),
    NormSortedPermutation: NormSortedCodec(),
    ActOrderPermutation: ActOrderCodec(),
    NoScales: ScalesCodec[NoScales](),
    RmsScales: MagnitudeCodec(2.0),
    AbsmaxScales: MagnitudeCodec(math.inf),
    MinmaxScales: MinmaxCodec(),
    AffineScales: AffineCodec(),
    NoQuantizer: PlainCodec(),
    UniformQuantizer: UniformCodec(),
    NormalFloatQuantizer: NormalFloatCodec(),
    VectorQuantizer: VectorCodec(),
    AdditiveQuantizer: AdditiveCodec(),
    E8PQuantizer: E8PCodec(),
    TrellisQuantizer: TrellisCodec(),
    NearestRounding: RoundingCodec[NearestRounding](),
    FeedbackRounding: FeedbackCodec(),
}

check_complete(CODECS, "codec")


def codec_of(params: Stage) -> Any:  # noqa: ANN401 - the codec of that stage
    """The codec of a kind.

    Raises:
        RegistryError: a kind of another package whose codec cannot be found.
    """
    return implementation(type(params), CODECS, "codec")
