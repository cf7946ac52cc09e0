"""A linear layer whose weight stays in its parts: V + L1 L2, rows multiplied by gains g.

    y = g * ((c x) V^T + (x L2^T) L1^T) + bias,   g = m / ||V + L1 L2||_row

V [p, q] is the decoded coded part; L1 [p, r], L2 [r, q] and the magnitudes m [p] are float32
parameters. V is a constant, decoded or packed (`weight.PackedWeight`), or decoded each time from
scales and tables that are learned (`learned.TrackedMatrix`); the codes never change. Archives and
adapters hold the gain; m is made of it when it is put in, so that tuning has DoRA's parameters.
The norms are no part of the graph (DoRA, section 4.3, and peft): they scale the gradient and get
none. They are computed again whenever a factor has changed, over panels of rows, so that no second
matrix of full size is made.
Without gains the sum is taken as it is. Gains c of the columns of V, where
tuning has added some, are parameters too; V above is then V with its columns multiplied by them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from reallm_compiler.codecs import dora
from reallm_compiler.runtime.learned import TrackedMatrix


class TunedLinear(nn.Module):
    """A linear layer with a coded part, low-rank factors and gains that can be tuned.

    Args:
        coded: V [p, q], rows are outputs, in the type to compute in, packed or not; or what
            decodes it.
        left: L1 [p, r]; None for a matrix without residual.
        right: L2 [r, q]; None for a matrix without residual.
        gain: g [p]; None for a matrix without gains.
        column_gain: c [q]; None for a matrix without gains of columns.
        fixed_gain: the gains are constants, whatever becomes of V and the factors.
        bias: [p] or None; frozen.
    """

    coded: Tensor | None
    gain: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        coded: Tensor | TrackedMatrix,
        *,
        left: Tensor | None = None,
        right: Tensor | None = None,
        gain: Tensor | None = None,
        column_gain: Tensor | None = None,
        fixed_gain: bool = False,
        bias: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.tracked = coded if isinstance(coded, TrackedMatrix) else None
        self.register_buffer(
            "coded", coded.detach().contiguous() if isinstance(coded, Tensor) else None
        )
        self._shape = (coded.shape[0], coded.shape[1])
        self.register_buffer("bias", None if bias is None else bias.detach())
        self.l1: nn.Parameter | None
        self.l2: nn.Parameter | None
        self.magnitude: nn.Parameter | None
        self.column_gain: nn.Parameter | None
        self.register_buffer("gain", None)
        self._fixed_gain = fixed_gain
        self._norms: Tensor | None = None
        self._seen: tuple[int, ...] = ()
        self.set_parts(left, right, gain, column_gain)

    @property
    def out_features(self) -> int:
        """Rows p."""
        return self._shape[0]

    @property
    def in_features(self) -> int:
        """Columns q."""
        return self._shape[1]

    @property
    def weight(self) -> Tensor:
        """The whole weight [p, q] in the type of the coded part; without a graph."""
        with torch.no_grad():
            coded = self._coded()
            total = self._scaled(coded[:].to(torch.float32, copy=True))
            if self.l1 is not None and self.l2 is not None:
                total.addmm_(self.l1, self.l2)
            gain = self._gain(coded)
            if gain is not None:
                total *= gain[:, None]
            return total.to(coded.dtype)

    def tuned(self) -> Iterator[tuple[str, nn.Parameter]]:
        """`l1`, `l2`, `magnitude`, `column_gain`, as far as they are there: what can be tuned."""
        for name in ("l1", "l2", "magnitude", "column_gain"):
            value = getattr(self, name)
            if value is not None:
                yield name, value

    def parts(self) -> dict[str, Tensor]:
        """`l1`, `l2`, `gain` and `column_gain`, as far as they are there: what an adapter holds."""
        parts = {name: value.detach().clone() for name, value in self.tuned()}
        parts.pop("magnitude", None)
        with torch.no_grad():
            gain = self._gain(self._coded())
        if gain is not None:
            parts["gain"] = gain.detach().clone()
        return parts

    def set_parts(
        self,
        left: Tensor | None,
        right: Tensor | None,
        gain: Tensor | None,
        column_gain: Tensor | None = None,
    ) -> None:
        """Replace the factors and gains; the rank may change."""

        with torch.no_grad():
            coded = self._coded()

        def fresh(value: Tensor) -> nn.Parameter:
            copy = value.detach().to(coded.device, torch.float32, copy=True)
            return nn.Parameter(copy.contiguous())

        self.column_gain = None if column_gain is None else fresh(column_gain)
        self.l1 = None if left is None else fresh(left)
        self.l2 = None if right is None else fresh(right)
        self._norms = None
        self.magnitude = self.gain = None
        if gain is not None and self._fixed_gain:
            self.gain = fresh(gain).detach()
        elif gain is not None:
            self.magnitude = fresh(gain)
            with torch.no_grad():
                self.magnitude.mul_(self._row_norms(coded))

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs [..., p] for inputs [..., q], in the type of the inputs."""
        dtype = inputs.dtype
        coded = self._coded()
        result = functional.linear(self._scaled(inputs), coded.to(dtype))  # [..., p]
        if self.l1 is not None and self.l2 is not None:
            inner = functional.linear(inputs, self.l2.to(dtype))  # [..., r]
            result = result + functional.linear(inner, self.l1.to(dtype))
        gain = self._gain(coded)
        if gain is not None:
            result = result * gain.to(dtype)
        return result if self.bias is None else result + self.bias.to(dtype)

    def extra_repr(self) -> str:
        """Shown by `repr`."""
        rank = 0 if self.l1 is None else self.l1.shape[1]
        dora = self.magnitude is not None or self.gain is not None
        return f"in={self.in_features}, out={self.out_features}, rank={rank}, dora={dora}"

    def _coded(self) -> Tensor:
        """V [p, q]."""
        if self.tracked is None:
            assert self.coded is not None
            return self.coded
        decoded: Tensor = self.tracked()
        return decoded

    def _scaled(self, rows: Tensor) -> Tensor:
        """Rows [..., q], times the gains of columns."""
        return rows if self.column_gain is None else rows * self.column_gain.to(rows.dtype)

    def _gain(self, coded: Tensor) -> Tensor | None:
        if self.magnitude is None:
            return self.gain
        return dora.gain_of(self.magnitude, self._row_norms(coded))

    def _row_norms(self, coded: Tensor) -> Tensor:
        """||V + L1 L2|| of each row [p] in float32."""
        seen = tuple(part._version for part in (self.l1, self.l2, coded) if part is not None)
        moving = self.tracked is not None or self.column_gain is not None
        stale = self._norms is None or seen != self._seen or moving
        if stale or self._norms is None or self._norms.device != coded.device:
            with torch.no_grad():
                self._norms = dora.row_norms(coded, self.l1, self.l2, self.column_gain)
            self._seen = seen
        return self._norms
