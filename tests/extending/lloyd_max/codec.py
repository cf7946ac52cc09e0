"""Codec of the quantizer `lloyd_max`."""

from collections.abc import Iterable, Mapping
from functools import partial

import torch
from torch import Tensor

from lloyd_max.stage import LloydMaxQuantizer
from reallm_compiler.codecs.column_coder import ColumnCoder
from reallm_compiler.codecs.contract import Latent, QuantizerCodec, RowDecoder, Shape
from reallm_compiler.codecs.quantizers.scalar import LevelCoder, TableDecoder, level_codes
from reallm_compiler.codecs.sections import Sections
from reallm_compiler.stages import Range


class LloydMaxCodec(QuantizerCodec[LloydMaxQuantizer]):
    """Weights by their nearest learned level."""

    def fit(self, params: LloydMaxQuantizer, latent: Latent) -> Sections:
        """The levels of one latent."""
        return {"levels": learn(latent.values.reshape(-1), params)}

    def fit_group(
        self,
        params: LloydMaxQuantizer,
        latents: Iterable[Latent],
        count: int,
        generator: torch.Generator,
    ) -> Sections:
        """The levels of all weights of a group together."""
        return {"levels": learn(torch.cat([one.values.reshape(-1) for one in latents]), params)}

    def coder(
        self,
        params: LloydMaxQuantizer,
        latent: Latent,
        tables: Mapping[str, Tensor],
        importance: Tensor | None = None,
    ) -> ColumnCoder:
        """Each weight by itself."""
        levels = tables["levels"].to(latent.values.device, latent.values.dtype)
        return LevelCoder(latent.values, levels, params.bits, partial(level_codes, levels=levels))

    def decoder(
        self,
        params: LloydMaxQuantizer,
        shape: Shape,
        sections: Mapping[str, Tensor],
        dtype: torch.dtype,
        range: Range,
    ) -> RowDecoder:
        """Levels by their codes."""
        codes = sections["codes"]
        levels = sections["levels"].to(codes.device, dtype)
        return TableDecoder(levels, codes, params.bits, shape)


def learn(values: Tensor, params: LloydMaxQuantizer) -> Tensor:
    """float16 [2^bits], ascending: quantiles, then means of the values nearest to them."""
    count = 2**params.bits
    ordered = values.sort().values
    position = (2 * torch.arange(count) + 1) * len(ordered) // (2 * count)
    levels = ordered[position.to(ordered.device)]
    for _ in range(params.iterations):
        codes = level_codes(values, levels).to(torch.int64)
        total = torch.zeros_like(levels).index_add_(0, codes, values)
        number = torch.bincount(codes, minlength=count)
        levels = torch.where(number > 0, total / number.clamp(min=1), levels).sort().values
    return levels.to(torch.float16)


CODEC = LloydMaxCodec()
