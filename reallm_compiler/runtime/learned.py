"""Numbers of an archive that tuning changes beside factors and gains, a section at a time.

A section is learned in units of its own size, so that one learning rate fits scales of 1e-3, norms
near 1 and the integers of a table:

    values = round(theta * unit),   unit = root mean square of the stored values

Rounding is to the stored type; it passes gradients on as they are, so that what is tuned is what
will be read.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from reallm_compiler.codecs.gradient import decode_tracked
from reallm_compiler.codecs.sections import TORCH_DTYPES
from reallm_compiler.planning.learnable import LearnableSection
from reallm_compiler.storage.matrix import MatrixLayout
from reallm_compiler.storage.values import Finite

INT8 = 127.0
"""The largest integer of a table."""


class LearnedSection(nn.Module):
    """One section that is learned.

    Args:
        section: what it is.
        values: its stored numbers.
        module: path of the module that a kept tensor belongs to; None for sections of matrices.
    """

    def __init__(self, section: LearnableSection, values: Tensor, module: str | None) -> None:
        super().__init__()
        self.section = section
        self.module = module
        self._dtype = TORCH_DTYPES[section.spec.dtype]
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
            return exact.round().clamp(-INT8, INT8)
        largest = torch.finfo(self._dtype).max
        least = -largest
        rule = self.section.spec.values
        if isinstance(rule, Finite) and not rule.negative:
            least = 0.0 if rule.zero else torch.finfo(self._dtype).smallest_normal
        return exact.clamp(least, largest).to(self._dtype).to(torch.float32)


class LearnedValue(nn.Module):
    """A parameter of a module that takes the values of a learned section (`parametrize`)."""

    def __init__(self, learned: LearnedSection) -> None:
        super().__init__()
        self.learned = learned

    def forward(self, stored: Tensor) -> Tensor:
        """The learned values, in the type of the stored ones."""
        return self.learned.values().to(stored.dtype)


def learn_parameter(module: nn.Module, name: str, learned: LearnedSection) -> None:
    """Let a parameter or buffer of a module follow a learned section."""
    parametrize.register_parametrization(module, name, LearnedValue(learned))


class TrackedMatrix(nn.Module):
    """The coded part of a matrix, decoded anew from learned sections each time.

    Args:
        layout: of the coded part alone.
        sections: its section tensors by role, without the learned ones.
        learned: its learned sections by role.
    """

    def __init__(
        self,
        layout: MatrixLayout,
        sections: Mapping[str, Tensor],
        learned: Mapping[str, LearnedSection],
    ) -> None:
        super().__init__()
        self.shape = layout.shape
        self._layout = layout
        self._roles = tuple(sections)
        for role, value in sections.items():
            self.register_buffer(role, value, persistent=False)
        self._learned = dict(learned)
        self.learned = nn.ModuleList(learned.values())  # for moves to another device

    def forward(self) -> Tensor:
        """V [p, q] in float32."""
        numbers = {role: one.values() for role, one in self._learned.items()}
        sections = {role: self.get_buffer(role) for role in self._roles}
        return decode_tracked(self._layout, sections, numbers)
