"""The permutations `norm_sorted` and `act_order`: columns and rows sorted by one number each.

`norm_sorted` sorts by Euclidean norms, so that the weights of a group, which share a scale, are of
one size (Trukhanov and Soloveychik 2024). `act_order` sorts by E[x_j^2] of the inputs, the diagonal
of their Gram matrix, and rows by E[g_i^2] of the gradients at the outputs (Frantar et al. 2022).
The largest comes first; among equals their own order stays.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reallm_compiler.codecs.numerics.numbers import unit
from reallm_compiler.codecs.orders import OrderCodec, StoredOrder, positions_of
from reallm_compiler.codecs.sections import Sections
from reallm_compiler.codecs.statistics import Metric
from reallm_compiler.errors import CodecError
from reallm_compiler.stages import ActOrderPermutation, NormSortedPermutation


class NormSortedCodec(OrderCodec[NormSortedPermutation]):
    """Rows by their norms, then the columns of each block of rows."""

    def encode(
        self, params: NormSortedPermutation, latent: Tensor, moments: Metric | None = None
    ) -> tuple[Sections, Tensor]:
        """Sections of the orders of a latent [p, q], and the latent in that order."""
        rows = columns = None
        scaled = latent / unit(latent)
        if params.sides != "columns":
            rows = _sorted(torch.linalg.vector_norm(scaled, dim=1))
            scaled = scaled.index_select(0, rows.argsort())
        if params.sides != "rows":
            size = len(latent) if isinstance(params.rows, str) else params.rows
            norms = [torch.linalg.vector_norm(block, dim=0) for block in torch.split(scaled, size)]
            columns = _sorted(torch.stack(norms))
        order = StoredOrder(params.rows, columns=columns, rows=rows)
        return order.sections(), order.permute(latent)


class ActOrderCodec(OrderCodec[ActOrderPermutation]):
    """One order of the columns, one of the rows."""

    def encode(
        self, params: ActOrderPermutation, latent: Tensor, moments: Metric | None = None
    ) -> tuple[Sections, Tensor]:
        """Sections of the orders of a latent [p, q], and the latent in that order.

        Raises:
            CodecError: rows shall be in order and the statistics have no gradients.
        """
        assert moments is not None
        rows = columns = None
        if params.sides != "rows":
            columns = _sorted(moments.inputs.diagonal())[None].to(latent.device)
        if params.sides != "columns":
            if moments.outputs is None:
                raise CodecError(
                    f"`act_order` with `sides: {params.sides}` needs gradients, and the statistics "
                    "hold none",
                    hint="measure them without `--no-gradients`, or use `sides: columns`",
                )
            rows = _sorted(moments.outputs.diagonal()).to(latent.device)
        order = StoredOrder("all", columns=columns, rows=rows)
        return order.sections(), order.permute(latent)


def _sorted(sizes: Tensor) -> Tensor:
    """int64 [..., n]: the position of each number, the largest first."""
    return positions_of(sizes.argsort(dim=-1, descending=True, stable=True))
