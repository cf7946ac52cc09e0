"""The size law of each kind."""

from __future__ import annotations

from typing import Any

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
from reallm_compiler.storage.additive import AdditiveLaw
from reallm_compiler.storage.affine import AffineLaw
from reallm_compiler.storage.base import AutoencoderLaw, ResidualLaw, SizeLaw
from reallm_compiler.storage.channel_scale import ChannelScaleLaw
from reallm_compiler.storage.e8p import E8PLaw
from reallm_compiler.storage.feedback import FeedbackLaw
from reallm_compiler.storage.hadamard import HadamardLaw
from reallm_compiler.storage.hnerv import HnervLaw
from reallm_compiler.storage.low_rank import LowRankLaw
from reallm_compiler.storage.monarch import MonarchLaw
from reallm_compiler.storage.nearest import NearestLaw
from reallm_compiler.storage.normal_float import NormalFloatLaw
from reallm_compiler.storage.normalize import NormalizeLaw
from reallm_compiler.storage.orders import SortedLaw
from reallm_compiler.storage.plain import PlainLaw
from reallm_compiler.storage.scales import ScalesLaw
from reallm_compiler.storage.sparse import SparseLaw
from reallm_compiler.storage.trellis import TrellisLaw
from reallm_compiler.storage.uniform import UniformLaw
from reallm_compiler.storage.vq import VectorLaw

SIZE_LAWS: dict[type[Stage], SizeLaw[Any]] = {
    NoResidual: ResidualLaw[NoResidual](),
    LowRank: LowRankLaw(),
    Sparse: SparseLaw(),
    Monarch: MonarchLaw(),
    Normalize: NormalizeLaw(),
    Hadamard: HadamardLaw(),
    ChannelScale: ChannelScaleLaw(),
    Identity: AutoencoderLaw[Identity](),
    Hnerv: HnervLaw(),
    NoPermutation: SizeLaw[NoPermutation](),
    NearestPermutation: NearestLaw(),
    NormSortedPermutation: SortedLaw(),
    ActOrderPermutation: SortedLaw(),
    NoScales: SizeLaw[NoScales](),
    RmsScales: ScalesLaw("scales"),
    AbsmaxScales: ScalesLaw("scales"),
    MinmaxScales: ScalesLaw("scales", "zeros"),
    AffineScales: AffineLaw(),
    NoQuantizer: PlainLaw(),
    UniformQuantizer: UniformLaw(),
    NormalFloatQuantizer: NormalFloatLaw(),
    VectorQuantizer: VectorLaw(),
    AdditiveQuantizer: AdditiveLaw(),
    E8PQuantizer: E8PLaw(),
    TrellisQuantizer: TrellisLaw(),
    NearestRounding: SizeLaw[NearestRounding](),
    FeedbackRounding: FeedbackLaw(),
}

check_complete(SIZE_LAWS, "size law")


def size_law_of(params: Stage) -> Any:  # noqa: ANN401 - the size law of that stage
    """The size law of a kind.

    Raises:
        RegistryError: a kind of another package whose size law cannot be found.
    """
    return implementation(type(params), SIZE_LAWS, "size_law")
