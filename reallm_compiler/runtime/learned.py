"""Numbers of an archive that tuning changes beside factors and gains, a section at a time."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.utils import parametrize

from reallm_compiler.codecs.gradient import decode_tracked
from reallm_compiler.codecs.learned import LearnedNumbers
from reallm_compiler.planning.learnable import LearnableSection
from reallm_compiler.storage.matrix import MatrixLayout


class LearnedSection(LearnedNumbers):
    """One section that is learned.

    Args:
        section: what it is.
        values: its stored numbers.
        module: path of the module that a kept tensor belongs to; None for sections of matrices.
    """

    def __init__(self, section: LearnableSection, values: Tensor, module: str | None) -> None:
        super().__init__(section.spec, values)
        self.section = section
        self.module = module


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
