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
from typing import Any, Literal

from reallm_compiler.codecs.numerics import emit
from reallm_compiler.kernels.form import Form
from reallm_compiler.kernels.llvm_text import Text
from reallm_compiler.kernels.llvm_text_blocks import write_block_sums
from reallm_compiler.kernels.llvm_text_call import write_call
from reallm_compiler.kernels.llvm_text_finish import Outputs, write_finish
from reallm_compiler.kernels.llvm_text_panel import write_panel
from reallm_compiler.kernels.llvm_text_prepare import Inputs, write_prepare
from reallm_compiler.kernels.llvm_text_product import write_row_sums
from reallm_compiler.kernels.targets import TARGETS, runs_here

GROUPS = (4, 2, 1)
"""Tokens that a kernel for several takes at once."""

VARIABLE = "REALLM_KERNELS"
"""Environment variable that names the target of kernels; `none` for none."""


Work = Literal["one", "several", "panel"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernel:
    """What a module is compiled from.

    Attributes:
        form: of the codes.
        inputs: what is done to activations.
        outputs: what is done to results.
        work: `one` for one token, which compiles faster than `several`; or `panel` for panels of
            numbers and what goes with them.
    """

    form: Form
    inputs: Inputs
    outputs: Outputs
    work: Work


@cache
def targets() -> tuple[str, ...]:
    """The targets of kernels on this machine, the fastest first; none if llvmlite is missing."""
    wanted = os.environ.get(VARIABLE, "")
    if wanted == "none" or sys.byteorder != "little" or not emit.available():
        return ()
    return tuple(name for name in TARGETS if runs_here(name) and wanted in ("", name))


def source(kernel: Kernel, name: str) -> str:
    """A module in LLVM's language for a target."""
    text, form = Text(), kernel.form
    write_prepare(text, kernel.inputs)
    write_finish(text, kernel.outputs)
    if kernel.work == "panel":
        write_panel(text, form, TARGETS[name].steps(text, form), kernel.inputs)
        return str(text)
    groups = GROUPS if kernel.work == "several" else (2, 1) if kernel.inputs.exact else (1,)
    for tokens in groups:
        steps = TARGETS[name].steps(text, form)
        write = write_row_sums if form.blocks is None else write_block_sums
        write(text, form, steps, tokens)
    write_call(text, form, kernel.inputs.planes, groups)
    return str(text)


JOB = CFUNCTYPE(None, c_void_p)
LINES = CFUNCTYPE(None, c_void_p, c_int64, c_int64)
PANEL = CFUNCTYPE(None, c_void_p, c_int64, c_int64, c_void_p)


class _Module:
    """A compiled module, which owns the code of its functions."""

    def __init__(self, kernel: Kernel, name: str) -> None:
        self._program = emit.Program(
            source(kernel, name), optimize=False, processor=TARGETS[name].processor
        )

    def _function(self, name: str, kind: Any = JOB) -> Any:  # noqa: ANN401 - ctypes' functions
        return kind(self._program.address(name))


class Direct(_Module):
    """Products of a few tokens with codes.

    Attributes:
        linear: all of a layer (address of a job).
        prepare, inner, finish: its parts before and after the sums.
        sums: lines of it (job, first, last).
    """

    def __init__(self, kernel: Kernel, name: str) -> None:
        super().__init__(kernel, name)
        self.linear = self._function("linear")
        self.prepare = self._function("prepare")
        self.inner = self._function("inner")
        self.finish = self._function("finish")
        self.sums = self._function("sums", LINES)


class Panel(_Module):
    """Parts of products of many tokens.

    Attributes:
        mixed: activations in the order of the codes (job).
        decode: rows of lines (job, first, last, address of the panel).
        finish: results on their way out (job).
    """

    def __init__(self, kernel: Kernel, name: str) -> None:
        super().__init__(kernel, name)
        self.mixed = self._function("mixed")
        self.decode = self._function("decode", PANEL)
        self.finish = self._function("finish")


@lru_cache(maxsize=256)
def direct(kernel: Kernel, name: str) -> Direct:
    """A kernel for a target, compiled once."""
    return Direct(kernel, name)


@lru_cache(maxsize=256)
def panel(kernel: Kernel, name: str) -> Panel:
    """A kernel for a target, compiled once."""
    return Panel(kernel, name)
