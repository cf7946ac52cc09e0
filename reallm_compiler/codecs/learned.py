"""A section of numbers that is learned, in units of its own size.

One learning rate fits scales of 1e-3, norms near 1 and the integers of a table:

    values = round(theta * unit),   unit = root mean square of the stored values

Rounding is to the stored type; it passes gradients on as they are, so that what is tuned is what
will be read.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reallm_compiler.codecs.numerics.codebooks import INT8_LEVELS
from reallm_compiler.codecs.sections import TORCH_DTYPES
from reallm_compiler.storage.base import SectionSpec
from reallm_compiler.storage.values import Finite


class LearnedNumbers(nn.Module):
    """The numbers of one section.

    Args:
        spec: of the section.
        values: its stored numbers.
    """

    def __init__(self, spec: SectionSpec, values: Tensor) -> None:
        super().__init__()
        self._spec = spec
        self._dtype = TORCH_DTYPES[spec.dtype]
        exact = values.to(torch.float32)
        size = float(exact.square().mean(dtype=torch.float64).sqrt())
        self.unit = size or 1.0
        self.theta = nn.Parameter(exact / self.unit, requires_grad=False)

    def values(self) -> Tensor:
        """float32, of the section's extents: as they will be stored; the graph ends in `theta`."""
        exact = self.theta * self.unit
        return exact + (self._rounded(exact) - exact).detach()

    def stored(self) -> Tensor:
        """The section's tensor."""
        with torch.no_grad():
            return self._rounded(self.theta * self.unit).to(self._dtype).cpu()

    def _rounded(self, exact: Tensor) -> Tensor:
        """float32: what the stored type and the section's rule of values leave."""
        if not self._dtype.is_floating_point:
            return exact.round().clamp(-INT8_LEVELS, INT8_LEVELS)
        largest = torch.finfo(self._dtype).max
        least = -largest
        rule = self._spec.values
        if isinstance(rule, Finite) and not rule.negative:
            least = 0.0 if rule.zero else torch.finfo(self._dtype).smallest_normal
        return exact.clamp(least, largest).to(self._dtype).to(torch.float32)
