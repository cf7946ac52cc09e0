"""Sums of the second moments of a matrix's inputs and of the gradients at its outputs.

Products of one chunk of tokens are taken in float32 and summed over chunks in float64, in the
order of the chunks. Of a symmetric sum the blocks on and below the diagonal are computed. A sum is
made of jobs that touch different numbers, so several threads may do them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reallm_compiler.codecs.statistics_file import BLOCK, triangle
from reallm_formats import StatisticsEntry
from reallm_formats.kinds.statistics import FULL, NONE

LARGEST = 1e30
"""A token with a larger |x|^2, |g|^2 or product of both is left out, as is one with a NaN: float32
holds no sum of such squares."""

COUNTS = "counts"
"""Role of the tokens that reached a matrix, and of those of them that were left out."""

Job = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Inputs:
    """Tokens of one chunk that reached a matrix, without those that are left out.

    Attributes:
        x: float32 [n, q].
        left_out: tokens that are left out.
    """

    x: Tensor
    left_out: int

    @classmethod
    def of(cls, inputs: Tensor) -> Inputs:
        """Of inputs [n, q] of any type."""
        x = inputs.float()
        usable = x.square().sum(1) <= LARGEST  # [n]
        if bool(usable.all()):
            return cls(x, 0)
        return cls(x[usable], len(x) - int(usable.sum()))


@dataclass(frozen=True, slots=True)
class Gradients:
    """The same with gradients at the outputs.

    Attributes:
        x, g: float32 [n, q] and [n, p].
        x_energy, g_energy: float32 [n], |x|^2 and |g|^2.
        left_out: tokens that are left out.
    """

    x: Tensor
    g: Tensor
    x_energy: Tensor
    g_energy: Tensor
    left_out: int

    @classmethod
    def of(cls, inputs: Tensor, gradients: Tensor) -> Gradients:
        """Of inputs [n, q] and gradients [n, p] of any type."""
        x, g = inputs.float(), gradients.float()
        x_energy, g_energy = x.square().sum(1), g.square().sum(1)
        usable = (x_energy <= LARGEST) & (g_energy <= LARGEST) & (x_energy * g_energy <= LARGEST)
        if bool(usable.all()):
            return cls(x, g, x_energy, g_energy, 0)
        left_out = len(x) - int(usable.sum())
        return cls(x[usable], g[usable], x_energy[usable], g_energy[usable], left_out)


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

    @property
    def owns_inputs(self) -> bool:
        """Whether moments of its inputs are stored under its name."""
        return self.row.inputs == self.row.name

    @property
    def has_gradients(self) -> bool:
        """Whether anything of gradients is stored."""
        return self.row.output_form != NONE

    def jobs_of_inputs(self, tokens: Sequence[Inputs]) -> Iterator[Job]:
        """What sums the inputs of some chunks, in their order."""
        for one in tokens:
            self.left_out += 0 if self.has_gradients else one.left_out
        if tokens and self.owns_inputs:
            yield from self._symmetric("inputs", [(one.x, one.x, None) for one in tokens])
            yield from self._mean_abs(tokens)

    def jobs_of_gradients(self, tokens: Sequence[Gradients]) -> Iterator[Job]:
        """What sums the inputs and gradients of some chunks, in their order."""
        for one in tokens:
            self.left_out += one.left_out
        if tokens and self.has_gradients:
            weighted = [(one.x, one.x, one.g_energy) for one in tokens]
            yield from self._symmetric("weighted_inputs", weighted)
            yield from self._symmetric("outputs", [(one.g, one.g, None) for one in tokens])
            weighted = [(one.g, one.g, one.x_energy) for one in tokens]
            yield from self._symmetric("weighted_outputs", weighted)
            yield from self._energy(tokens)

    def state(self) -> dict[str, Tensor]:
        """The sums of some tokens, on the CPU, to be added to others."""
        counts = torch.tensor([self.reached, self.left_out], dtype=torch.int64)
        return {**{role: total.cpu() for role, total in self._sums.items()}, COUNTS: counts}

    def add(self, state: Mapping[str, Tensor]) -> None:
        """Add the sums of other tokens."""
        reached, left_out = state[COUNTS].tolist()
        self.reached += reached
        self.left_out += left_out
        for role, values in state.items():
            if role != COUNTS:
                self._sum(role, tuple(values.shape)).add_(values.to(self._device))

    def parts(self, role: str, tokens: int) -> Iterator[Tensor]:
        """A section of the matrix, piece by piece, on the CPU: means over `tokens`."""
        if role == COUNTS:
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

    def _symmetric(
        self, role: str, operands: Sequence[tuple[Tensor, Tensor, Tensor | None]]
    ) -> Iterator[Job]:
        """Add a^T diag(w) b [n, n], which are symmetric, for all (a, b, w); no w is ones."""
        extent = operands[0][0].shape[1]
        if (self.row.output_form if role.endswith("outputs") else self.row.input_form) != FULL:
            total = self._sum(role, (extent,))

            def diagonal() -> None:
                for a, b, weights in operands:
                    squares = a * b if weights is None else a * b * weights[:, None]
                    total.add_(squares.sum(0, dtype=torch.float64))

            yield diagonal
            return
        total = self._sum(role, (extent, extent))
        for first in range(0, extent, BLOCK):

            def rows(first: int = first, last: int = min(extent, first + BLOCK)) -> None:
                for a, b, weights in operands:
                    left = a[:, first:last]
                    left = left if weights is None else left * weights[:, None]
                    total[first:last, :last] += left.T @ b[:, :last]

            yield rows

    def _mean_abs(self, tokens: Sequence[Inputs]) -> Iterator[Job]:
        total = self._sum("mean_abs", (self.row.shape[1],))

        def job() -> None:
            for one in tokens:
                total.add_(one.x.abs().sum(0, dtype=torch.float64))

        yield job

    def _energy(self, tokens: Sequence[Gradients]) -> Iterator[Job]:
        total = self._sum("energy", ())

        def job() -> None:
            for one in tokens:
                total.add_((one.x_energy * one.g_energy).sum(dtype=torch.float64))

        yield job

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
