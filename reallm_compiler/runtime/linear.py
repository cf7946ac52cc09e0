"""A linear layer whose weight stays in its parts: V + L1 L2, rows rescaled to magnitudes m.

    y = m / ||V + L1 L2||_row * (x V^T + (x L2^T) L1^T) + bias

V [p, q] is the decoded coded part and never changes; L1 [p, r], L2 [r, q] and m [p] are float32
parameters. The norms are no part of the graph (DoRA, section 4.3): they scale the gradient and
get none. They are computed again whenever a factor has changed, over panels of rows, so that no
second matrix of full size is made. Without magnitudes the sum is taken as it is.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

PANEL = 1 << 22
"""Weights of a panel of rows whose norms are computed at once."""


class TunedLinear(nn.Module):
    """A linear layer with a frozen coded part and low-rank factors that can be tuned.

    Args:
        coded: V [p, q], rows are outputs, in the type to compute in.
        left: L1 [p, r]; None for a matrix without residual.
        right: L2 [r, q]; None for a matrix without residual.
        magnitude: m [p]; None for a matrix without magnitudes.
        bias: [p] or None; frozen.
    """

    coded: Tensor
    bias: Tensor | None

    def __init__(
        self,
        coded: Tensor,
        *,
        left: Tensor | None = None,
        right: Tensor | None = None,
        magnitude: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("coded", coded.detach().contiguous())
        self.register_buffer("bias", None if bias is None else bias.detach())
        self.l1: nn.Parameter | None
        self.l2: nn.Parameter | None
        self.magnitude: nn.Parameter | None
        self._gain: Tensor | None = None
        self._seen: tuple[int, ...] = ()
        self.set_parts(left, right, magnitude)

    @property
    def out_features(self) -> int:
        """Rows p."""
        return self.coded.shape[0]

    @property
    def in_features(self) -> int:
        """Columns q."""
        return self.coded.shape[1]

    @property
    def weight(self) -> Tensor:
        """The whole weight [p, q] in the type of the coded part; without a graph."""
        with torch.no_grad():
            total = self._sum(0, self.out_features)
            gain = self._gains()
            if gain is not None:
                total *= gain[:, None]
            return total.to(self.coded.dtype)

    def tuned(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters that tuning changes: `l1`, `l2`, `magnitude`, as far as they are there."""
        for name in ("l1", "l2", "magnitude"):
            value = getattr(self, name)
            if value is not None:
                yield name, value

    def set_parts(
        self, left: Tensor | None, right: Tensor | None, magnitude: Tensor | None
    ) -> None:
        """Replace the factors and magnitudes; the rank may change."""
        for name, value in (("l1", left), ("l2", right), ("magnitude", magnitude)):
            parameter = None
            if value is not None:
                fresh = value.detach().to(self.coded.device, torch.float32, copy=True)
                parameter = nn.Parameter(fresh.contiguous())
            setattr(self, name, parameter)
        self._gain = None

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs [..., p] for inputs [..., q], in the type of the inputs."""
        dtype = inputs.dtype
        result = functional.linear(inputs, self.coded.to(dtype))  # [..., p]
        if self.l1 is not None and self.l2 is not None:
            inner = functional.linear(inputs, self.l2.to(dtype))  # [..., r]
            result = result + functional.linear(inner, self.l1.to(dtype))
        if self.magnitude is not None:
            result = result * (self.magnitude * self._inverse_norms()).to(dtype)
        return result if self.bias is None else result + self.bias.to(dtype)

    def extra_repr(self) -> str:
        """What the layer says of itself."""
        rank = 0 if self.l1 is None else self.l1.shape[1]
        dora = self.magnitude is not None
        return f"in={self.in_features}, out={self.out_features}, rank={rank}, dora={dora}"

    def _gains(self) -> Tensor | None:
        return None if self.magnitude is None else self.magnitude * self._inverse_norms()

    def _inverse_norms(self) -> Tensor:
        """1 / ||V + L1 L2|| of each row [p] in float32; 0 for a row of zeros, which stays zero."""
        parts = (self.l1, self.l2, self.coded)
        seen = tuple(part._version for part in parts if part is not None)
        if self._gain is None or seen != self._seen or self._gain.device != self.coded.device:
            with torch.no_grad():
                step = max(1, PANEL // self.in_features)
                norms = [
                    torch.linalg.vector_norm(self._sum(first, first + step), dim=1)
                    for first in range(0, self.out_features, step)
                ]
                norm = torch.cat(norms)
                self._gain = torch.where(norm > 0, norm, torch.inf).reciprocal_()
            self._seen = seen
        return self._gain

    def _sum(self, first: int, last: int) -> Tensor:
        """Rows [first, last) of V + L1 L2 in float32, a fresh tensor."""
        rows = self.coded[first:last].to(torch.float32, copy=True)
        if self.l1 is not None and self.l2 is not None:
            rows.addmm_(self.l1[first:last], self.l2)
        return rows
