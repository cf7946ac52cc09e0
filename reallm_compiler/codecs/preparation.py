"""Weights and statistics of a prepared model from those of the original.

A prepared matrix is W' = diag(1 / t) L^T W diag(g) R diag(s) with orthogonal L and R: norm gains g
folded in, residual stream and heads rotated (`prepare`), columns multiplied by factors s by which
their inputs are divided, as the rows that make other inputs are by t (`fold`). All is computed in
float64 and stored in the tensor's own type.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from reallm_compiler.codecs.numerics.rotation import rotate_columns, rotate_rows
from reallm_compiler.codecs.statistics import MatrixStatistics
from reallm_compiler.tensors import Origin

BAND = 1 << 22
"""Weights that are in float64 at once where rows or columns stand alone, about."""


class Preparation:
    """What makes a tensor of a prepared model of the stored one.

    Args:
        origin: as the plan has it.
        gain: the stored gains [q] of its norm; None without one.
        columns: float64 [n], the factors s of the columns, once for heads that have the same ones;
            None without them.
        rows: float64 [n], the factors t of the rows that have some; None without them.
    """

    def __init__(
        self,
        origin: Origin,
        gain: Tensor | None,
        columns: Tensor | None = None,
        rows: Tensor | None = None,
    ) -> None:
        self._origin = origin
        self._gains = None if gain is None else gain.to(torch.float64) + origin.gain_offset
        self._column_factors, self._row_factors = columns, rows
        if columns is not None:  # [q]
            head, times = origin.column_heads
            heads = columns.view(-1, 1, head).expand(-1, times, head)
            self._column_factors = heads.reshape(-1)

    @property
    def by_rows(self) -> bool:
        """Whether each row is made of one stored row alone."""
        return self._origin.rows is None and self._row_factors is None

    def apply(self, matrix: Tensor) -> Tensor:
        """The prepared tensor of a stored one [p, q] or [p], in its type.

        Where rows are rotated the whole tensor must be given.
        """
        origin = self._origin
        if origin.constant is not None:
            matrix = torch.full_like(matrix, origin.constant)
        values = matrix if matrix.dim() == 2 else matrix[:, None]
        if self.by_rows:
            made = _in_parts(values, self._columns, 0)
        elif origin.columns is None and self._gains is None and self._column_factors is None:
            made = _in_parts(values, self._rows, 1)
        else:  # one rounding, after both
            made = self._rows(self._columns(values)).to(values.dtype)
        return made.reshape(matrix.shape)

    def lacking(self, *, diagonal_inputs: bool, diagonal_outputs: bool) -> str | None:
        """Why statistics of the original do not determine the prepared matrix's; None if they do.

        Args:
            diagonal_inputs: they hold the diagonal alone of moments of inputs.
            diagonal_outputs: likewise of gradients at outputs.
        """
        origin = self._origin
        if (diagonal_inputs and origin.columns) or (diagonal_outputs and origin.rows):
            return "they hold the diagonal alone, and a rotation mixes what it leaves out"
        if self._gains is not None and bool((self._gains == 0).any()):
            channel = int((self._gains == 0).nonzero()[0, 0])
            return (
                f"the gain of channel {channel} of the norm before it is 0, so that nothing of "
                "that channel reached the matrix when they were measured"
            )
        return None

    def statistics(self, found: MatrixStatistics) -> MatrixStatistics:
        """The statistics of the prepared matrix from those of the original one.

        Its inputs are diag(1 / s) R^T diag(1 / g) x and the gradients at its outputs diag(t) L^T g,
        exactly. Means that are weighted by the length of the other side keep their weights of
        before the factors s and t. Where gains are folded, |x|^2 is that of a normalized vector:
        one number for all tokens, but for the norm's epsilon, so that a mean weighted by it is the
        plain mean times that number.

        Args:
            found: of the original, which are not `lacking`.
        """
        inputs = self._moment(found.inputs, self._turn_inputs)
        outputs = self._optional(found.outputs, self._turn_outputs)
        weighted_outputs = self._optional(found.weighted_outputs, self._turn_outputs)
        energy, mean_abs = found.energy, found.mean_abs
        if self._gains is not None and outputs is not None:
            length = _trace(inputs)
            weighted_outputs, energy = outputs * length, _trace(outputs) * length
        if self._gains is not None and mean_abs is not None:
            mean_abs = mean_abs / self._gains.abs().to(mean_abs)
        if self._column_factors is not None and mean_abs is not None:
            mean_abs = mean_abs / self._column_factors.to(mean_abs)
        return replace(
            found,
            inputs=inputs,
            weighted_inputs=self._optional(found.weighted_inputs, self._turn_inputs),
            outputs=outputs,
            weighted_outputs=weighted_outputs,
            energy=energy,
            mean_abs=None if self._origin.columns is not None else mean_abs,
        )

    def _columns(self, values: Tensor) -> Tensor:
        """W diag(g) R of rows [n, q], in float64."""
        made = values.to(torch.float64)
        if self._gains is not None:
            made = made * self._gains.to(made.device)
        columns = self._origin.columns
        made = made if columns is None else rotate_columns(made, columns)
        factors = self._column_factors
        return made if factors is None else made * factors.to(made.device)

    def _rows(self, values: Tensor) -> Tensor:
        """diag(1 / t) L^T W of columns [p, n], in float64."""
        offset = self._origin.offset
        made = values.to(torch.float64)
        return self._in_rows(made + offset, lambda part, factors: part / factors) - offset

    def _in_rows(self, made: Tensor, scale: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """L^T W of columns [p, n], its rows [m, n] with factors [m, 1] as `scale` makes them."""
        rotation, factors = self._origin.rows, self._row_factors
        if rotation is None and factors is None:
            return made
        first, last = self._origin.row_range or (0, len(made))
        part = made[first:last]
        if rotation is not None:
            part = rotate_rows(part, rotation)
        if factors is not None:
            part = scale(part, factors.to(part.device)[:, None])
        return torch.cat([made[:first], part, made[last:]])

    def _optional(self, moment: Tensor | None, turn: Callable[[Tensor], Tensor]) -> Tensor | None:
        return None if moment is None else self._moment(moment, turn)

    def _moment(self, moment: Tensor, turn: Callable[[Tensor], Tensor]) -> Tensor:
        """The second moment [n, n] of turned vectors, or its diagonal [n], in its own type."""
        whole = moment.to(torch.float64)
        if moment.dim() == 1:  # nothing is rotated here: gains act on squares twice
            return turn(turn(whole[None]))[0].to(moment.dtype)
        made = turn(turn(whole).T)
        return ((made + made.T) / 2).to(moment.dtype)

    def _turn_inputs(self, vectors: Tensor) -> Tensor:
        """Vectors x [n, q] as diag(1 / s) R^T diag(1 / g) x."""
        if self._gains is not None:
            vectors = vectors / self._gains.to(vectors.device)
        columns, factors = self._origin.columns, self._column_factors
        vectors = vectors if columns is None else rotate_columns(vectors, columns)
        return vectors if factors is None else vectors / factors.to(vectors.device)

    def _turn_outputs(self, vectors: Tensor) -> Tensor:
        """Vectors g [n, p] as diag(t) L^T g."""
        return self._in_rows(vectors.T, lambda part, factors: part * factors).T


def _in_parts(values: Tensor, apply: Callable[[Tensor], Tensor], dim: int) -> Tensor:
    """What `apply` makes of bands along a dimension, each rounded to the type of `values`."""
    step = max(1, BAND // max(1, values.shape[1 - dim]))
    made = torch.empty_like(values)
    for first in range(0, values.shape[dim], step):
        size = min(step, values.shape[dim] - first)
        band = values.narrow(dim, first, size)
        made.narrow(dim, first, size).copy_(apply(band))
    return made


def _trace(moment: Tensor) -> float:
    return float(moment.sum() if moment.dim() == 1 else moment.trace())
