"""Compiles kernels for a processor and keeps them: one module for each form.

The processor can be named, so that tests run the way of a smaller one on a larger, and look at
what LLVM makes for another architecture without running it.
"""

from __future__ import annotations

import os
import sys
from ctypes import CFUNCTYPE, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from reallm_compiler.codecs.numerics import emit
from reallm_compiler.kernels.form import Form
from reallm_compiler.kernels.llvm_text import Text
from reallm_compiler.kernels.llvm_text_blocks import write_block_sums
from reallm_compiler.kernels.llvm_text_call import write_call
from reallm_compiler.kernels.llvm_text_finish import Outputs, write_finish
from reallm_compiler.kernels.llvm_text_prepare import Inputs, write_prepare
from reallm_compiler.kernels.llvm_text_product import write_row_sums
from reallm_compiler.kernels.targets import TARGETS, runs_here

GROUPS = (4, 1)
"""Tokens that a kernel for several takes at once."""

VARIABLE = "REALLM_KERNELS"
"""Environment variable that names the target of kernels; `none` for none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernel:
    """What a module is compiled from.

    Attributes:
        form: of the codes.
        inputs: what is done to activations.
        outputs: what is done to results.
        several: for several tokens at once; the module for one compiles faster.
    """

    form: Form
    inputs: Inputs
    outputs: Outputs
    several: bool


@cache
def target() -> str | None:
    """The target of kernels on this machine; None if there is none, or llvmlite is missing."""
    wanted = os.environ.get(VARIABLE, "")
    if wanted == "none" or sys.byteorder != "little" or not emit.available():
        return None
    found = [name for name in TARGETS if runs_here(name)]
    if wanted:
        return wanted if wanted in found else None
    return found[0] if found else None


def source(kernel: Kernel, name: str) -> str:
    """A module in LLVM's language for a target."""
    text = Text()
    write_prepare(text, kernel.inputs)
    groups = GROUPS if kernel.several else (1,)
    for tokens in groups:
        steps = TARGETS[name].steps(text, kernel.form)
        if kernel.form.blocks is None:
            write_row_sums(text, kernel.form, steps, tokens)
        else:
            write_block_sums(text, kernel.form, steps, tokens)
    write_finish(text, kernel.outputs)
    write_call(text, groups)
    return str(text)


class Compiled:
    """The functions of a module, which it owns.

    Args:
        kernel: what it is compiled from.
        name: the target.

    Attributes:
        linear: all of a layer (address of a job).
        prepare, inner, finish: its parts before and after the sums.
        sums: lines of it (job, first, last).
    """

    def __init__(self, kernel: Kernel, name: str) -> None:
        self._program = emit.Program(
            source(kernel, name), optimise=False, processor=TARGETS[name].processor
        )
        job = CFUNCTYPE(None, c_void_p)
        self.linear: Any = job(self._program.address("linear"))
        self.prepare: Any = job(self._program.address("prepare"))
        self.inner: Any = job(self._program.address("inner"))
        self.finish: Any = job(self._program.address("finish"))
        lines = CFUNCTYPE(None, c_void_p, c_int64, c_int64)
        self.sums: Any = lines(self._program.address("sums"))


@lru_cache(maxsize=256)
def compiled(kernel: Kernel, name: str) -> Compiled:
    """A kernel for a target, compiled once."""
    return Compiled(kernel, name)
