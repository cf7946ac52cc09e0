"""The processors that kernels are written for."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from reallm_compiler.codecs.numerics import emit
from reallm_compiler.codecs.windows import WindowValues
from reallm_compiler.kernels import llvm_text_vbmi, llvm_text_words
from reallm_compiler.kernels.form import Form
from reallm_compiler.kernels.llvm_text import Text
from reallm_compiler.kernels.llvm_text_evened import Evened
from reallm_compiler.kernels.llvm_text_looked import Computed, Pairs, Rows, Single
from reallm_compiler.kernels.llvm_text_nibbles import Nibbles
from reallm_compiler.kernels.llvm_text_product import Steps
from reallm_compiler.kernels.llvm_text_vectors import Vectors
from reallm_compiler.kernels.llvm_text_wide import ARM, X86, Machine

FEW_TOKENS = 12
"""Tokens up to which any codes are read for the tokens themselves, as that is faster."""

MOST_TOKENS = 24
"""Tokens up to which those are that are looked up fast."""

FAST = 4
"""Registers of tables, for each row of a line, that are looked up fast."""


class Target(Protocol):
    """A processor that kernels are written for."""

    @property
    def features(self) -> tuple[str, ...]:
        """What it must have, by LLVM's names."""

    @property
    def machines(self) -> tuple[str, ...]:
        """Names of its architecture."""

    @property
    def processor(self) -> str | None:
        """LLVM's name of the processor to compile for; None for this one."""

    def fits(self, form: Form) -> bool:
        """Whether there is a kernel for a form."""

    def most_tokens(self, form: Form) -> int:
        """Tokens up to which codes are read for the tokens themselves."""

    def planes(self, form: Form) -> bool:
        """Whether activations are two planes of int8, else they are integers of 16 bits."""

    def evens(self, form: Form) -> bool:
        """Whether the even ones of each 64 activations lie before the odd ones."""

    def unit(self, form: Form) -> int:
        """What an entry of its tables counts, in entries."""

    def steps(self, text: Text, form: Form) -> Steps:
        """What writes the parts of a product that know the processor."""

    def tables(self, form: Form, values: WindowValues) -> Tensor | None:
        """What its kernels look entries up in."""

    def bias(self, form: Form) -> int:
        """What all entries of a form together are larger in sums of blocks than they are."""


class Vbmi:
    """AVX-512 with VBMI and VNNI."""

    features = llvm_text_vbmi.FEATURES
    machines = ("x86_64", "AMD64")
    processor: str | None = None

    def fits(self, form: Form) -> bool:
        """Where windows and tables fit into registers."""
        return llvm_text_vbmi.fits(form)

    def most_tokens(self, form: Form) -> int:
        """More with small tables."""
        fast = llvm_text_vbmi.table_registers(form) <= FAST * form.line_rows
        return MOST_TOKENS if fast else FEW_TOKENS

    def planes(self, form: Form) -> bool:
        """Unless entries have 16 bits."""
        return not llvm_text_words.fits(form)

    def evens(self, form: Form) -> bool:
        """For codes of 4 bits that are no windows of more."""
        return llvm_text_words.halves(form) or llvm_text_vbmi.halves(form)

    def unit(self, form: Form) -> int:
        """Entries of 16 bits are halved."""
        return 2 if llvm_text_words.fits(form) else 1

    def steps(self, text: Text, form: Form) -> Steps:
        """In registers of 64 bytes."""
        if llvm_text_words.fits(form):
            return llvm_text_words.Words(text, form)
        return llvm_text_vbmi.Registers(text, form)

    def tables(self, form: Form, values: WindowValues) -> Tensor | None:
        """Bytes without sign, or entries of 16 bits."""
        if llvm_text_words.fits(form):
            return llvm_text_words.tables(values)
        return llvm_text_vbmi.tables(form, values)

    def bias(self, form: Form) -> int:
        """That of bytes without sign."""
        return 0 if llvm_text_words.fits(form) else llvm_text_vbmi.bias(form)


@dataclass(frozen=True, kw_only=True, slots=True)
class Wide:
    """Processors that multiply numbers of 16 bits."""

    features: tuple[str, ...]
    machines: tuple[str, ...]
    processor: str | None
    instructions: Machine

    def fits(self, form: Form) -> bool:
        """Where one of the ways does."""
        return any(way.fits(form) for way in WAYS)

    def most_tokens(self, form: Form) -> int:
        """The same for all."""
        return FEW_TOKENS

    def planes(self, form: Form) -> bool:
        """Never."""
        return False

    def evens(self, form: Form) -> bool:
        """Whether the kernel wants even activations before odd ones."""
        return bool(_way(form).evens)

    def unit(self, form: Form) -> int:
        """The unit of the kernel for this form."""
        return int(_way(form).unit)

    def steps(self, text: Text, form: Form) -> Steps:
        """The first kernel that does the form."""
        made: Steps = _way(form)(text, form, self.instructions)
        return made

    def tables(self, form: Form, values: WindowValues) -> Tensor | None:
        """Tables in the layout of the kernel for this form."""
        found: Tensor | None = _way(form).tables(form, values)
        return found

    def bias(self, form: Form) -> int:
        """None."""
        return 0


WAYS: tuple[Any, ...] = (Nibbles, Evened, Computed, Pairs, Rows, Vectors, Single)
"""Ways from codes to entries, the fastest first."""


def _way(form: Form) -> Any:  # noqa: ANN401 - a class
    return next(way for way in WAYS if way.fits(form))


TARGETS: dict[str, Target] = {
    "vbmi": Vbmi(),
    "avx2": Wide(
        features=("avx2", "fma", "f16c"),
        machines=("x86_64", "AMD64"),
        processor="x86-64-v3",
        instructions=X86,
    ),
    "neon": Wide(features=(), machines=("aarch64", "arm64"), processor=None, instructions=ARM),
}
"""By name, the fastest first."""


def runs_here(name: str) -> bool:
    """Whether this machine can run kernels of a target; `emit.available` must be true."""
    target = TARGETS[name]
    here = platform.machine() in target.machines
    return here and all(map(emit.processor_has, target.features))
