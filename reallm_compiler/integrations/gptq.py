"""GPTQ's layers, which AutoGPTQ brought and vLLM, GPTQModel and transformers read.

    qweight  int32 [q bits / 32, p], codes side by side along the inputs, the first one lowest
    qzeros   int32 [groups, p bits / 32], zero points along the outputs; less 1 in format `gptq`
    scales   [groups, p] in the model's type
    g_idx    int32 [q], the group of each input

W = scale (code - zero), computed in the model's type. All layers have one width, one group size
and one symmetry.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from reallm_compiler.integrations.compressed_tensors import (
    WORD,
    integer_weights,
    integer_zeros,
    words,
)
from reallm_compiler.integrations.grids import Grid, UnfitError
from reallm_compiler.integrations.packed_folders import exactly


class GptqLayout:
    """Layers of a folder for GPTQ."""

    title = "GPTQ"
    wide_products = False

    def __init__(self) -> None:
        self._forms: set[tuple[int, int]] = set()
        self._symmetric = True
        self._sorted = False

    def add(self, name: str, grid: Grid) -> Mapping[str, Tensor]:
        """Packed codes and zero points, scales, and the group of each input."""
        zeros = integer_zeros(grid)
        p, q = grid.codes.shape
        if p * grid.bits % WORD:
            raise UnfitError(f"{p} rows of zero points do not fill whole 32-bit words")
        if bool((zeros == 0).any()):
            raise UnfitError(
                "a zero point is 0, and the format stores them less 1: use symmetric scales"
            )
        self._forms.add((grid.bits, -1 if grid.group == q else grid.group))
        self._sorted |= grid.columns is not None and grid.group < q
        self._symmetric &= bool((zeros == 2 ** (grid.bits - 1)).all())
        return {
            "qweight": words(grid.codes, grid.bits).t(),
            "qzeros": words((zeros - 1).t(), grid.bits),
            "scales": grid.by_rows(exactly(grid.scale, grid.dtype, "scales")).t(),
            "g_idx": grid.groups(),
        }

    def decoded(self, grid: Grid) -> Tensor:
        """Products in the model's type."""
        return integer_weights(grid)

    def config(self, dense: list[str], head: str | None) -> dict[str, Any]:
        """As AutoGPTQ's; the layers are all alike."""
        left = [name for name in dense if name != head]
        if left:
            raise UnfitError(f"`{left[0]}` is not coded, and all layers but the head must be")
        if len(self._forms) > 1:
            raise UnfitError("they differ in bits or in group size")
        ((bits, size),) = self._forms
        return {
            "quant_method": "gptq",
            "bits": bits,
            "group_size": size,
            "sym": self._symmetric,
            "desc_act": self._sorted,
            "checkpoint_format": "gptq",
            "lm_head": False,
            "modules_in_block_to_quantize": None,
            "true_sequential": True,
        }
