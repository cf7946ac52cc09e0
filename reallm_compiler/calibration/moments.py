"""Sums of the second moments of a matrix's inputs and of the gradients at its outputs.

Products of one chunk of tokens are taken in float32 and summed over chunks in float64, in the
order of the chunks. Of a symmetric sum the blocks on and below the diagonal are computed.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from reallm_compiler.codecs.statistics_file import BLOCK, triangle
from reallm_formats import StatisticsEntry
from reallm_formats.kinds.statistics import FULL, NONE

LARGEST = 1e30
"""A token with a larger |x|^2, |g|^2 or product of both is left out, as is one with a NaN: float32
holds no sum of such squares."""


class MatrixSums:
    """The sums of one matrix [p, q].

    Args:
        row: what is stored of it.
        device: where sums are kept.

    Attributes:
        reached: tokens that reached the matrix.
        left_out: those of them that were left out.
    """

    def __init__(self, row: StatisticsEntry, device: torch.device) -> None:
        self.row = row
        self.reached = 0
        self.left_out = 0
        self._device = device
        self._sums: dict[str, Tensor] = {}

    def add_inputs(self, inputs: Tensor) -> None:
        """Count inputs [n, q], and sum what of them does not depend on gradients.

        A matrix with gradients leaves tokens out in `add_gradients`.
        """
        self.reached += len(inputs)
        owns = self.row.inputs == self.row.name
        if not owns and self.row.output_form != NONE:
            return
        x = inputs.float()
        whole = len(x)
        x = x[x.square().sum(1) <= LARGEST] if not _all_usable(x.square().sum(1)) else x
        if self.row.output_form == NONE:
            self.left_out += whole - len(x)
        if owns:
            self._add("inputs", x, x)
            self._sum("mean_abs", (self.row.shape[1],)).add_(x.abs().sum(0, dtype=torch.float64))

    def add_gradients(self, inputs: Tensor, gradients: Tensor) -> None:
        """Sum what depends on gradients [n, p] at the outputs of inputs [n, q]."""
        if self.row.output_form == NONE:
            return
        x, g = inputs.float(), gradients.float()
        x_energy, g_energy = x.square().sum(1), g.square().sum(1)  # [n]
        energy = x_energy * g_energy
        if not (_all_usable(x_energy) and _all_usable(g_energy) and _all_usable(energy)):
            usable = (x_energy <= LARGEST) & (g_energy <= LARGEST) & (energy <= LARGEST)
            self.left_out += int((~usable).sum())
            x, g = x[usable], g[usable]
            x_energy, g_energy, energy = x_energy[usable], g_energy[usable], energy[usable]
        self._add("weighted_inputs", x * g_energy[:, None], x)
        self._add("outputs", g, g)
        self._add("weighted_outputs", g * x_energy[:, None], g)
        self._sum("energy", ()).add_(energy.sum(dtype=torch.float64))

    def parts(self, role: str, tokens: int) -> Iterator[Tensor]:
        """A section of the matrix, piece by piece, on the CPU: means over `tokens`."""
        if role == "counts":
            yield torch.tensor([self.reached, self.left_out], dtype=torch.int64).view(torch.uint64)
            return
        dtype = torch.float64 if role == "energy" else torch.float32
        shapes = {name: shape for name, _, shape in self.row.parts()}
        found = self._sums.get(role)
        if found is None:
            yield torch.zeros(shapes[role], dtype=dtype)
        elif found.dim() < 2:
            yield (found / tokens).to(dtype).cpu()
        else:
            for first, last, mask in triangle(len(found), self._device):
                yield (found[first:last, :last][mask] / tokens).to(dtype).cpu()

    def _add(self, role: str, left: Tensor, right: Tensor) -> None:
        """Add left^T right [n, n], which is symmetric."""
        extent = right.shape[1]
        if self._form(role) != FULL:
            self._sum(role, (extent,)).add_((left * right).sum(0, dtype=torch.float64))
            return
        total = self._sum(role, (extent, extent))
        for first in range(0, extent, BLOCK):
            last = min(extent, first + BLOCK)
            total[first:last, :last] += left[:, first:last].T @ right[:, :last]

    def _form(self, role: str) -> str:
        return self.row.output_form if role.endswith("outputs") else self.row.input_form

    def _sum(self, role: str, shape: tuple[int, ...]) -> Tensor:
        if role not in self._sums:
            self._sums[role] = torch.zeros(shape, dtype=torch.float64, device=self._device)
        return self._sums[role]


def sums_bytes(row: StatisticsEntry) -> int:
    """Bytes of the sums of a matrix."""
    p, q = row.shape
    inputs = q * q if row.input_form == FULL else q
    outputs = p * p if row.output_form == FULL else p
    own = inputs + q if row.inputs == row.name else 0
    return 8 * (own + (inputs + 2 * outputs if row.output_form != NONE else 0))


def _all_usable(energy: Tensor) -> bool:
    return bool((energy <= LARGEST).all())
